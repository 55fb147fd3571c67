//! Training steps of several ranks on fake GPUs. Each rank is a thread of the test with a fake GPU of its own, and
//! the ranks exchange gradients and weights by a fake NCCL. The fake driver and the fake NCCL enforce the documented
//! rules and delay everything as long as the rules allow.

#[path = "support/fake_gpu.rs"]
mod fake_gpu;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_device::cuda::fake::FakeDriver;
use reel_device::{DType, Device, compile};
use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::qwen_vl::QwenVl;
use reel_samples::rewards::EmaMoments;
use reel_samples::sample::Sample;
use reel_support::error::{Error, Kind, Result};
use reel_support::ranks::{Ranks, Timeouts, Traffic, TrafficVolume, World};
use reel_train::options::{GrpoOptions, RunOptions};
use reel_train::rollout::{CompletionTokens, Prompt, Rollout, RolloutSet};
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::trainer::{StepResult, Trainer};
use reel_train::step::{grpo, sft};

use fake_gpu::{assert_no_violations_or_leaks, fake_cuda};
use support::golden;

/// Memory of a fake GPU in bytes: enough for the model and the 32 MiB workspace of matrix products.
const GPU_BYTES: u64 = 48 << 20;
/// Number of micro-batches of a step. With 2 or 8 ranks, the last round has one micro-batch.
const MICRO_BATCHES: usize = 9;
/// The index of the SFT micro-batch with an image. In the other micro-batches, the vision tower has no gradient.
const WITH_IMAGE: usize = 2;

/// The trained weights and the result of a step on one rank.
#[derive(Clone, Debug, PartialEq)]
struct Trained {
    /// Name and hash of each trained tensor.
    hashes: Vec<(String, u64)>,
    result: StepResult,
}

/// Returns the hyperparameters of a run of one step.
fn hyperparameters(options: &RunOptions) -> Hyperparameters {
    Hyperparameters::new(
        &RunOptions { learning_rate: 1e-3, weight_decay: 0.1, max_grad_norm: 0.5, ..options.clone() },
        1,
    )
}

/// Opens the trainer of a rank, or of a single process. Several ranks connect by NCCL.
fn open_trainer(device: &Device, dtype: DType, options: &RunOptions, ranks: Option<Arc<Ranks>>) -> Result<Trainer> {
    let model = golden("train").join("model_a");
    let config = ModelConfig::open(&model).expect("a configuration");
    Ok(Trainer::resume(device, &config, &model, None, dtype, hyperparameters(options), ranks)?.0)
}

/// Returns `tokens` token ids of text, which depend on `seed`.
fn text(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|t| (1 + (t * 7 + seed * 31) % 350) as u32).collect()
}

/// Returns model inputs with these token ids. Each image, if any, has one merged patch.
fn inputs(input_ids: Vec<u32>) -> ModelInput {
    let positions: Vec<i64> = (0..input_ids.len() as i64).collect();
    ModelInput { input_ids, position_ids: [positions.clone(), positions.clone(), positions], ..ModelInput::default() }
}

/// Returns the sample of micro-batch `index`: 3 to 8 tokens of text, or an image of 2 × 2 patches and 2 tokens of
/// text.
fn sample(index: usize) -> Sample {
    let mut ids = text(3 + index % 6, index);
    let mut media = ModelInput::default();
    if index == WITH_IMAGE {
        // The token ids of model_a that begin an image, stand for its patches, and end it.
        ids.splice(..1, [409, 412, 410]);
        let values = 4 * 3 * 2 * 14 * 14;
        media.pixel_values = Some((0..values).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect());
        media.image_grid_thw = vec![[1, 2, 2]];
    }
    let mut targets: Vec<i32> = ids.iter().skip(1).map(|&id| if id < 400 { id as i32 } else { -1 }).collect();
    targets.push(-1);
    let ModelInput { input_ids, position_ids, .. } = inputs(ids);
    Sample { tokens: ModelInput { input_ids, position_ids, ..media }, targets }
}

/// Runs an SFT step on `micro_batches` micro-batches.
fn sft_step(device: &Device, dtype: DType, micro_batches: usize, ranks: Option<Arc<Ranks>>) -> Result<Trained> {
    sft_step_with(RunOptions::default(), device, dtype, micro_batches, ranks)
}

/// Like [`sft_step`], with these options.
fn sft_step_with(
    options: RunOptions,
    device: &Device,
    dtype: DType,
    micro_batches: usize,
    ranks: Option<Arc<Ranks>>,
) -> Result<Trained> {
    let options = RunOptions { gradient_accumulation_steps: micro_batches, ..options };
    let mut trainer = open_trainer(device, dtype, &options, ranks)?;
    let mut samples = (0..micro_batches).map(|index| vec![sample(index)]);
    let result = sft::step(&mut trainer, 1, || Ok(samples.next()))?.expect("a step");
    Ok(Trained { hashes: trainer.tensor_hashes()?, result })
}

/// Returns group `index` of a GRPO step: a prompt of 3 or 4 tokens and two completions of 2 or 3 tokens.
fn group(index: usize) -> Rollout {
    let completion = |number: usize| {
        let ids = text(2 + (index + number) % 2, index * 5 + number);
        CompletionTokens {
            learned_len: ids.len(),
            log_probs: vec![-6.0; ids.len()],
            ids,
            ..CompletionTokens::default()
        }
    };
    let prompt = Arc::new(Prompt::from_model_input(inputs(text(3 + index % 2, index))));
    let rewards = vec![index as f32, 2.0];
    Rollout::with_rewards(prompt, vec![completion(0), completion(1)], rewards)
}

/// Runs a GRPO step with a reference model; each micro-batch has one group.
fn grpo_step(device: &Device, dtype: DType, ranks: Option<Arc<Ranks>>) -> Result<Trained> {
    let options = GrpoOptions {
        run: RunOptions { per_device_train_batch_size: 2, ..RunOptions::default() },
        num_generations: 2,
        ..GrpoOptions::default()
    };
    let mut trainer = open_trainer(device, dtype, &options.run, ranks)?;
    let files = Checkpoint::open(&golden("train").join("model_a")).expect("weights");
    let reference = QwenVl::open(device, &files, &trainer.model.config, dtype).expect("a reference model");
    let (groups, rules) = ((0..MICRO_BATCHES).map(group).collect(), options.advantage_rules()?);
    let mut set = RolloutSet::new(groups, &rules, &mut EmaMoments::default());
    let mut result = grpo::step(&mut trainer, &options, Some(&reference), &mut set, 1)?;
    (result.grpo.rollout_seconds, result.grpo.train_seconds) = (None, None);
    Ok(Trained { hashes: trainer.tensor_hashes()?, result })
}

/// Runs a step as a single process on a fake GPU.
fn train_alone(dtype: DType, step: impl Fn(&Device, Option<Arc<Ranks>>) -> Result<Trained>) -> Trained {
    let (fake, device) = fake_cuda(GPU_BYTES);
    let before = open_trainer(&device, dtype, &RunOptions::default(), None).and_then(|trainer| trainer.tensor_hashes());
    let before = before.expect("hashes");
    let trained = step(&device, None).expect("a step");
    let changed = before.iter().zip(&trained.hashes).filter(|(before, after)| before != after).count();
    assert!(changed > 20, "the step has changed {changed} of {} tensors", before.len());
    assert!(trained.result.loss.is_finite() && trained.result.grad_norm > 0.0, "{:?}", trained.result);
    drop(device);
    assert_no_violations_or_leaks(&fake, "one process");
    trained
}

/// Runs `step` on one rank per device and returns the result of each rank. A rank whose step fails reports its error
/// to the others, unless its process was killed.
fn on_ranks<T: Send>(
    devices: Vec<Device>,
    step: impl Fn(&Device, Arc<Ranks>) -> Result<T> + Sync,
) -> Vec<(Result<T>, Traffic)> {
    let folder = tempfile::tempdir().expect("a folder");
    let (size, seconds) = (devices.len(), Duration::from_secs);
    let timeouts = Timeouts { join: seconds(60), heartbeat: Duration::from_millis(200), ..Timeouts::default() };
    std::thread::scope(|scope| {
        let start = |(rank, device): (usize, Device)| {
            let (local_rank, local_size, job) = (rank, size, "ranks_cuda".to_string());
            let world = World { rank, size, local_rank, local_size, job, ..World::default() };
            let (folder, step) = (folder.path(), &step);
            scope.spawn(move || {
                let ranks = Ranks::join(world, folder, timeouts, Box::new(|_| {})).expect("all ranks join");
                let ranks = Arc::new(ranks);
                let done = step(&device, ranks.clone());
                let traffic = ranks.traffic();
                let ranks = Arc::into_inner(ranks).expect("the step has ended");
                match &done {
                    Ok(_) => drop(ranks.leave()),
                    Err(e) if e.kind == Kind::Rank => drop(ranks),
                    Err(e) if is_killed(e) => drop(ranks),
                    Err(e) => ranks.fail_job(&e.to_string()),
                }
                (done, traffic)
            })
        };
        let threads: Vec<_> = devices.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

/// Returns true if an error comes from a process on whose fake GPU [`FakeDriver::kill_process`] was called.
fn is_killed(e: &Error) -> bool {
    e.to_string().contains("the process was killed")
}

fn fake_gpus(size: usize) -> (Vec<FakeDriver>, Vec<Device>) {
    (0..size).map(|_| fake_cuda(GPU_BYTES)).unzip()
}

/// Checks that `size` ranks give the same results as one process, exchange tensors only by NCCL, break no rule and
/// free everything.
fn check_ranks(size: usize, alone: &Trained, step: impl Fn(&Device, Option<Arc<Ranks>>) -> Result<Trained> + Sync) {
    let beside = launches_beside_exchanges(size, alone, step);
    // The whole model is one bucket, so each launch after an exchange waits for the exchange.
    assert_eq!(beside, 0, "{size} ranks: launches that do not wait for an exchange");
}

/// Makes the checks of [`check_ranks`], and returns the number of launches that may run at the same time as an
/// exchange.
fn launches_beside_exchanges(
    size: usize,
    alone: &Trained,
    step: impl Fn(&Device, Option<Arc<Ranks>>) -> Result<Trained> + Sync,
) -> u64 {
    let (fakes, devices) = fake_gpus(size);
    let all = on_ranks(devices, |device, ranks| step(device, Some(ranks)));
    for (rank, (trained, traffic)) in all.into_iter().enumerate() {
        let name = format!("rank {rank} of {size}");
        assert_eq!(&trained.unwrap_or_else(|e| panic!("{name}: {e}")), alone, "{name}");
        assert_eq!(traffic.all_to_all, TrafficVolume::default(), "{name}: tensors went through host memory");
    }
    fakes.iter().for_each(|fake| assert_no_violations_or_leaks(fake, &format!("{size} ranks")));
    fakes.iter().map(FakeDriver::launches_beside_transfers).sum()
}

#[test]
fn sft_step_of_2_and_8_ranks_on_fake_gpus_trains_what_one_process_trains() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let step = |device: &Device, ranks| sft_step(device, DType::F32, MICRO_BATCHES, ranks);
    let alone = train_alone(DType::F32, step);
    [2, 8].into_iter().for_each(|size| check_ranks(size, &alone, step));
}

#[test]
fn sft_step_in_bf16_of_2_ranks_on_fake_gpus_trains_what_one_process_trains() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let step = |device: &Device, ranks| sft_step(device, DType::BF16, 3, ranks);
    check_ranks(2, &train_alone(DType::BF16, step), step);
}

/// With ZeRO-3, the weights of the next layer are gathered while a layer computes. Only one micro-batch has an image,
/// and one rank has no micro-batch in the last round.
#[test]
fn sft_step_with_divided_weights_on_fake_gpus_trains_what_one_process_trains() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let options = || RunOptions { zero_stage: 3, ..RunOptions::default() };
    let step = |device: &Device, ranks| sft_step_with(options(), device, DType::F32, 3, ranks);
    let beside = launches_beside_exchanges(2, &train_alone(DType::F32, step), step);
    assert!(beside > 100, "{beside} launches run beside an exchange");
}

#[test]
fn grpo_step_of_2_and_8_ranks_on_fake_gpus_trains_what_one_process_trains() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let step = |device: &Device, ranks| grpo_step(device, DType::F32, ranks);
    let alone = train_alone(DType::F32, step);
    assert!(alone.result.grpo.kl.is_some_and(|kl| kl >= 0.0), "{:?}", alone.result.grpo);
    [2, 8].into_iter().for_each(|size| check_ranks(size, &alone, step));
}

/// The names of the calls between ranks in an SFT step. An error names the call that has failed.
const CALLS: [&str; 5] = ["cells with a gradient", "gradients", "losses", "sums of squares", "weights"];

/// The process of a rank is killed at several points of its step. The other ranks get an error that names the call in
/// which the killed rank is missing.
#[test]
fn ranks_on_fake_gpus_end_when_the_process_of_one_is_killed() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    const SIZE: usize = 3;
    // Returns the number of launches before the step.
    let train = |fakes: &[FakeDriver], device: &Device, ranks: Arc<Ranks>| {
        let options = RunOptions { gradient_accumulation_steps: SIZE, ..RunOptions::default() };
        let fake = &fakes[ranks.rank()];
        let mut trainer = open_trainer(device, DType::F32, &options, Some(ranks))?;
        device.synchronize()?;
        let launches = fake.launch_count();
        let mut samples = [0, 1, 3].into_iter().map(|index| vec![sample(index)]);
        sft::step(&mut trainer, 1, || Ok(samples.next())).map(|_| launches)
    };
    let (fakes, devices) = fake_gpus(SIZE);
    let before = on_ranks(devices, |device, ranks| train(&fakes, device, ranks));
    // The number of launches of each rank before its step and at the end.
    let launches: Vec<(u64, u64)> = before
        .into_iter()
        .zip(&fakes)
        .map(|((before, _), fake)| (before.expect("a step"), fake.launch_count()))
        .collect();
    // A rank's last launch updates its weights, before the ranks exchange the weights.
    for (killed, share) in [(1, 0.0), (2, 0.3), (0, 0.6), (1, 0.9), (2, 1.0)] {
        let (fakes, devices) = fake_gpus(SIZE);
        let (first, last) = (launches[killed].0 + 1, launches[killed].1);
        let at = first + ((last - first) as f64 * share) as u64;
        fakes[killed].kill_process_at_launch(at);
        let start = Instant::now();
        let all = on_ranks(devices, |device, ranks| train(&fakes, device, ranks));
        let name = format!("rank {killed} killed at launch {at} of {first} to {last}");
        assert!(start.elapsed() < Duration::from_secs(60), "{name}: {:?}", start.elapsed());
        for (rank, (done, _)) in all.into_iter().enumerate() {
            let e = done.expect_err(&name);
            if rank == killed {
                assert!(is_killed(&e), "{name}: {e}");
                continue;
            }
            let said = e.to_string();
            assert!(CALLS.iter().any(|call| said.contains(&format!("'{call}'"))), "{name}: rank {rank}: {said}");
            assert!(share < 1.0 || said.contains("'weights': ncclRemoteError"), "{name}: rank {rank}: {said}");
            assert_no_violations_or_leaks(&fakes[rank], &name);
        }
    }
}
