//! Tests training steps of several ranks, which are threads of the test.

use reel_device::MemoryCategory::{Gradients, Optimizer};
use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::{Arch, compile};
use reel_input::config::ModelConfig;
use reel_support::ranks::Traffic;

use super::*;
use crate::options::{GradientCheckpointing, RunOptions};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::sft;
use crate::step::testing::{bytes_of_category, model_folder, run_on_rank_threads, text_sample};
use crate::step::trainer::Trainer;

/// Number of micro-batches of a step. With 2, 3 and 4 ranks, the last round has fewer micro-batches than the other
/// rounds.
const MICRO_BATCHES: usize = 5;
const STEPS: u64 = 3;

/// The results of a rank after its steps.
#[derive(Debug)]
struct Trained {
    hashes: Vec<(String, u64)>,
    results: Vec<(f64, f64, usize)>,
    /// Bytes of all allocated memory after each step.
    current: Vec<usize>,
    /// Bytes of gradients at the moment of the highest memory use.
    gradient_bytes: usize,
    /// Maximum allowed value of `gradient_bytes`: the sums, the buffers for other ranks, and finished gradients.
    gradient_limit: usize,
    optimizer_bytes: usize,
    traffic: Traffic,
    /// Number of bytes of the gradient of a micro-batch, and of the weights that the gradient changes.
    exchanged: [u64; 2],
}

/// Creates the gradient sum of a trainer, with buckets of at most `bucket` weights.
fn with_buckets_of(bucket: usize, ranks: Arc<Ranks>, t: &Trainer) -> GradientSum {
    let parameters: Vec<Tensor> = t.model.parameters().cloned().collect();
    let exchange = t.gradient_sum.as_ref().unwrap().exchange.clone();
    let (shared, model) = ((exchange, t.weight_shards.clone()), (&t.device, &t.model.config));
    GradientSum::with_buckets_of(bucket, ranks, shared, model, &t.optimizer, &parameters).unwrap()
}

fn train(ranks: Option<Arc<Ranks>>, checkpointing: GradientCheckpointing, bucket: usize) -> Trained {
    let device = Device::cpu(1);
    let config = ModelConfig::open(&model_folder()).unwrap();
    let options = RunOptions {
        gradient_accumulation_steps: MICRO_BATCHES,
        gradient_checkpointing: checkpointing,
        learning_rate: 1e-3,
        ..RunOptions::default()
    };
    let hyperparameters = Hyperparameters::new(&options, STEPS);
    let opened = Trainer::resume(&device, &config, &model_folder(), None, DType::F32, hyperparameters, ranks.clone());
    let (mut t, _files) = opened.unwrap();
    if let Some(ranks) = &ranks {
        t.gradient_sum = Some(with_buckets_of(bucket, ranks.clone(), &t));
    }
    let before = ranks.as_ref().map(|ranks| ranks.traffic()).unwrap_or_default();
    device.reset_peak();
    let (mut results, mut current) = (Vec::new(), Vec::new());
    for step in 1..=STEPS {
        let mut micro_batches = 0..MICRO_BATCHES;
        let next = || Ok(micro_batches.next().map(|i| vec![text_sample(step, i)]));
        let result = sft::step(&mut t, step, next).unwrap().unwrap();
        results.push((result.loss, result.grad_norm, result.tokens));
        current.push(device.memory().current);
    }
    let after = ranks.as_ref().map(|ranks| ranks.traffic()).unwrap_or_default();
    let reached = match &t.gradient_sum {
        Some(sum) => sum.names().map(str::to_string).collect(),
        None => Vec::new(),
    };
    let weights = t.model.parameters().filter(|p| reached.iter().any(|name| p.parameter_name() == Some(name)));
    let bytes = weights.map(|p| p.bytes() as u64).sum();
    let volume = |now: reel_support::ranks::TrafficVolume, then: reel_support::ranks::TrafficVolume| {
        reel_support::ranks::TrafficVolume { sent: now.sent - then.sent, received: now.received - then.received }
    };
    Trained {
        hashes: t.tensor_hashes().unwrap(),
        results,
        current,
        gradient_limit: t.gradient_sum.as_ref().map_or(usize::MAX, |sum| {
            let buffers = sum.received.iter().flatten().map(|t| t.bytes()).sum::<usize>();
            sum.sums.bytes() + buffers + sum.max_finished_gradient_bytes() as usize
        }),
        gradient_bytes: bytes_of_category(Gradients, &device.memory().at_peak),
        optimizer_bytes: bytes_of_category(Optimizer, &device.memory().now),
        traffic: Traffic {
            all_to_all: volume(after.all_to_all, before.all_to_all),
            all_gather: volume(after.all_gather, before.all_gather),
            ..Traffic::default()
        },
        // The test model has f32 weights, so gradients have the size of weights.
        exchanged: [bytes, bytes],
    }
}

fn train_on(size: usize, checkpointing: GradientCheckpointing, bucket: usize) -> Vec<Trained> {
    run_on_rank_threads(size, |ranks| train(Some(ranks), checkpointing, bucket))
}

#[test]
fn any_number_of_ranks_trains_the_same_weights() {
    for checkpointing in [GradientCheckpointing::None, GradientCheckpointing::Full] {
        let one = train(None, checkpointing, 1);
        // With at most one weight per bucket, each bucket has one cell.
        for (size, bucket) in [(2, 1), (2, 1 << 20), (3, 2000), (4, 1 << 20)] {
            for rank in train_on(size, checkpointing, bucket) {
                assert_eq!(rank.hashes, one.hashes, "{size} ranks, {checkpointing:?}");
                assert_eq!(rank.results, one.results, "{size} ranks, {checkpointing:?}");
            }
        }
    }
}

#[test]
fn a_rank_exchanges_gradients_and_weights_once_and_keeps_its_share_of_memory() {
    let one = train(None, GradientCheckpointing::None, 1);
    for size in [2, 4] {
        let all = train_on(size, GradientCheckpointing::None, 2000);
        let rounds = MICRO_BATCHES.div_ceil(size) as u64;
        for rank in &all {
            let [gradients, weights] = rank.exchanged;
            let exchanged = rank.traffic.all_to_all.sent + rank.traffic.all_to_all.received;
            let limit = 2.05 * (STEPS * (rounds * gradients + weights)) as f64;
            assert!(exchanged > STEPS * gradients && exchanged as f64 <= limit, "{size} ranks: {rank:?}");
            // The all-gathers transfer only flags, losses and sums of squares.
            let small = rank.traffic.all_gather.sent + rank.traffic.all_gather.received;
            assert!(small < exchanged / 10, "{rank:?}");
            // A step does not leave memory allocated.
            assert!(rank.current.iter().all(|bytes| *bytes == rank.current[0]), "{:?}", rank.current);
            let share = |bytes: usize| bytes / size + bytes / 4;
            assert!(
                rank.optimizer_bytes < share(one.optimizer_bytes),
                "{} {}",
                rank.optimizer_bytes,
                one.optimizer_bytes
            );
            assert!(rank.gradient_bytes <= rank.gradient_limit, "{} {}", rank.gradient_bytes, rank.gradient_limit);
        }
        // With one bucket, all gradients stay until the end of the backward pass.
        let in_one_bucket = train_on(size, GradientCheckpointing::None, 1 << 20);
        for (rank, all) in all.iter().zip(&in_one_bucket) {
            assert!(rank.gradient_bytes < all.gradient_bytes, "{} {}", rank.gradient_bytes, all.gradient_bytes);
        }
        let total = |part: fn(&Trained) -> u64| all.iter().map(part).sum::<u64>();
        assert_eq!(total(|r| r.traffic.all_to_all.sent), total(|r| r.traffic.all_to_all.received));
    }
}

/// Does a step with two micro-batches of a rank on a fake GPU, with buckets of at most `bucket` weights. Returns the
/// hashes of the trained weights, the number of launches of the backward pass, and how many of all launches may run
/// at the same time as an exchange.
fn train_on_fake_gpu(ranks: Option<Arc<Ranks>>, bucket: usize) -> (Vec<(String, u64)>, usize, u64) {
    let fake = FakeDriver::new(Arch::A100, 48 << 20);
    let device = Device::on_gpu(Gpu::from_driver(Arc::new(fake.clone())).unwrap()).unwrap();
    let config = ModelConfig::open(&model_folder()).unwrap();
    let options = RunOptions { learning_rate: 1e-3, ..RunOptions::default() };
    let hyperparameters = Hyperparameters::new(&options, 1);
    let opened = Trainer::resume(&device, &config, &model_folder(), None, DType::F32, hyperparameters, ranks.clone());
    let (mut t, _files) = opened.unwrap();
    if let Some(ranks) = ranks {
        t.gradient_sum = Some(with_buckets_of(bucket, ranks, &t));
    }
    device.profiler().record_timeline(true);
    let mut samples = (0..2).map(|i| vec![text_sample(1, i)]);
    sft::step(&mut t, 1, || Ok(samples.next())).unwrap();
    let launches = device.profiler().launch_events().unwrap();
    let backward = launches.iter().filter(|launch| launch.part == "backward").count();
    let hashes = t.tensor_hashes().unwrap();
    drop((t, device));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
    (hashes, backward, fake.launches_beside_transfers())
}

/// The GPU does not wait for the exchange of a bucket before it computes the gradients of the next bucket.
#[test]
fn simulated_gpus_exchange_buckets_beside_the_backward_pass() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (alone, _, beside) = train_on_fake_gpu(None, 1);
    assert_eq!(beside, 0);
    for (hashes, backward, beside) in run_on_rank_threads(2, |ranks| train_on_fake_gpu(Some(ranks), 10_000)) {
        assert_eq!(hashes, alone);
        println!("of {backward} launches of the backward pass, {beside} run beside an exchange");
        assert!(beside as usize > backward / 2, "{beside} of {backward} launches run beside an exchange");
    }
    // With a single bucket, which is exchanged after the backward pass, no launch runs in parallel with an exchange.
    for (hashes, _, beside) in run_on_rank_threads(2, |ranks| train_on_fake_gpu(Some(ranks), MAX_WEIGHTS_PER_BUCKET)) {
        assert_eq!((hashes, beside), (alone.clone(), 0));
    }
}

#[test]
fn buckets_have_all_cells_in_the_order_of_the_parameters() {
    let sizes = [5, 70, 0, 9].map(|weights| reel_runtime::optim::ParameterSize { weights, divisible: true });
    let partition = Partition::new(&sizes, 0, 2);
    let order = [3, 1, 0, 2];
    let made = buckets(&partition, &order, 20);
    let parameters: Vec<usize> = made.iter().flatten().map(|cell| cell.parameter).collect();
    assert_eq!(parameters, order);
    assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2]);
}
