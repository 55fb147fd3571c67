use proptest::prelude::*;
use reel_runtime::optim::ParameterSize;

use super::*;
use crate::measure::machine::MachineSpec;

fn h200() -> MachineSpec {
    MachineSpec::gpu_by_name("h200").unwrap()
}

fn process(parameters: u64, bytes_per_weight: u64, bytes_of_moments: u64) -> ProcessCosts {
    let parts = [
        ("weights", parameters * bytes_per_weight),
        ("gradients", 4 * parameters),
        ("optimizer", parameters * bytes_of_moments),
        ("activations", 12_345),
        ("kv_cache", 0),
        ("inputs", 678),
        ("workspace", 9),
    ];
    let at_peak: Vec<(&'static str, usize)> =
        parts.into_iter().map(|(name, bytes)| (name, usize::try_from(bytes).unwrap())).collect();
    let peak = at_peak.iter().map(|(_, bytes)| bytes).sum();
    ProcessCosts {
        memory: MemoryUse { current: 0, peak, now: Vec::new(), at_peak },
        parameters,
        weight_bytes: parameters * bytes_per_weight,
        largest_parameter: parameters / 10,
        divided: None,
        compute_seconds: 1.0,
        backward_seconds: 0.6,
        backward: backward(parameters, 125),
        optimizer_seconds: 0.1,
        tokens: 1000.0,
    }
}

/// A backward pass of `count` equal launches, each of which finishes one of `count` equal parameters.
fn backward(weights: u64, count: usize) -> BackwardTimes {
    let size = ParameterSize { weights: usize::try_from(weights).unwrap() / count, divisible: true };
    let gradients =
        GradientOrder { sizes: vec![size; count], order: (0..count).collect(), finished_after: (1..=count).collect() };
    BackwardTimes { launches: vec![0.6 / count as f64; count], gradients }
}

/// The exchange of one huge bucket begins after the last launch, so all of it is exposed. With many small buckets,
/// only the exchange of the last bucket is exposed, as long as each exchange takes less time than the launches up to
/// the next bucket.
#[test]
fn small_buckets_hide_behind_later_launches_and_one_huge_bucket_does_not() {
    let exchange = 0.3;
    let bucket = |weights, after| ExchangedBucket { weights, after };
    let times = BackwardTimes { launches: vec![0.01; 100], gradients: GradientOrder::default() };
    let exposed = |buckets: &[ExchangedBucket], seconds: f64| {
        let all: u64 = buckets.iter().map(|bucket| bucket.weights).sum();
        times.exposed_seconds(buckets, |weights| seconds * weights as f64 / all as f64)
    };
    let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got} {wanted}");
    near(exposed(&[bucket(500, 100)], exchange), exchange);
    let small: Vec<ExchangedBucket> = (1..=50).map(|i| bucket(10, 2 * i)).collect();
    near(exposed(&small, exchange), exchange / 50.0);
    // A backward pass of 1 s cannot hide an exchange of 2 s. The exchange begins after the first bucket, which is
    // finished after 0.02 s.
    near(exposed(&small, 2.0), 2.0 + 0.02 - 1.0);
    // The first of two buckets is finished halfway: 0.5 s of its exchange of 0.8 s overlap with launches.
    near(exposed(&[bucket(4, 50), bucket(1, 100)], 1.0), 0.3 + 0.2);
    // One parameter fills three buckets and is finished early. The launches after it wait only for the exchange of
    // the first bucket.
    near(exposed(&[bucket(1, 10), bucket(1, 10), bucket(1, 10)], 0.3), 0.1);
    // The exchanges of buckets that are finished early are completely hidden.
    near(exposed(&[bucket(4, 10), bucket(1, 50)], 0.4), 0.0);
    near(exposed(&[], 1.0), 0.0);
}

fn shapes() -> impl Strategy<Value = JobShape> {
    (1usize..40, 1usize..10, 0usize..100).prop_map(|(ranks, gpus_per_node, more)| JobShape {
        ranks,
        gpus_per_node,
        micro_batches: ranks + more,
    })
}

fn sum(traffic: impl Iterator<Item = RankTraffic>) -> [u64; 4] {
    traffic.fold([0; 4], |[a, b, c, d], RankTraffic { within_node: n, between_nodes: m }| {
        [a + n.sent, b + n.received, c + m.sent, d + m.received]
    })
}

proptest! {
    /// On each link, the ranks together receive as many bytes as they send. Gradients go to the owners of their cells,
    /// each updated weight goes to all ranks but its owner.
    #[test]
    fn all_ranks_receive_what_all_send(
        shape in shapes(), parameters in 1u64..1_000_000, bytes in prop_oneof![Just(2u64), Just(4)],
    ) {
        let process = process(parameters, bytes, 10);
        let ranks = 0..shape.ranks;
        let gradients = sum(ranks.clone().map(|rank| shape.gradient_traffic(rank, parameters)));
        prop_assert_eq!((gradients[0], gradients[2]), (gradients[1], gradients[3]));
        let weights = sum(ranks.clone().map(|rank| shape.weight_traffic(rank, &process)));
        prop_assert_eq!((weights[0], weights[2]), (weights[1], weights[3]));
        prop_assert_eq!(weights[0] + weights[2], process.weight_bytes * (shape.ranks as u64 - 1));
        // A rank never sends the part that it owns itself.
        let own = |rank| shape.owned(rank..rank + 1, 4 * parameters, parameters);
        let kept: u64 = ranks.map(|rank| shape.micro_batches_of(rank) * own(rank)).sum();
        prop_assert_eq!(gradients[0] + gradients[2] + kept, 4 * parameters * shape.micro_batches as u64);
    }

    /// A job on one machine has no traffic between machines. A job on machines with one GPU each has no traffic
    /// within machines.
    #[test]
    fn bytes_cross_only_links_between_different_places(shape in shapes(), parameters in 1u64..1_000_000) {
        let total = |shape: JobShape| sum((0..shape.ranks).map(|rank| shape.gradient_traffic(rank, parameters)));
        let together = total(JobShape { gpus_per_node: shape.ranks, ..shape });
        let apart = total(JobShape { gpus_per_node: 1, ..shape });
        prop_assert_eq!((together[2], together[3], apart[0], apart[1]), (0, 0, 0, 0));
        let both = total(shape);
        prop_assert_eq!(both[0] + both[2], together[0]);
        prop_assert_eq!(apart[2], together[0]);
    }

    /// If the model is larger than a bucket, a rank needs no more memory in a job of more ranks. Two ranks, compared
    /// with one, need sums of gradients and buffers, but save more memory by sharing moments of f32 or bf16.
    #[test]
    fn memory_falls_with_the_number_of_ranks(
        parameters in 300_000_000u64..80_000_000_000, moments in prop_oneof![Just(6u64), Just(10)],
    ) {
        let process = process(parameters, 2, moments);
        let peak = |ranks| JobShape { ranks, gpus_per_node: 8, micro_batches: ranks }.peak_bytes(&process);
        prop_assert_eq!(peak(1), process.memory.peak as u64);
        for ranks in 1..64 {
            prop_assert!(peak(ranks + 1) <= peak(ranks), "{} ranks: {} {}", ranks, peak(ranks), peak(ranks + 1));
        }
    }

    /// All ranks together hold the optimizer state and the sums once.
    #[test]
    fn ranks_share_the_optimizer_state(shape in shapes(), parameters in 1u64..1_000_000) {
        prop_assume!(shape.ranks > 1);
        let process = process(parameters, 2, 10);
        let of = |wanted: &str| -> u64 {
            let all = (0..shape.ranks).flat_map(|rank| shape.memory_of_rank(rank, &process));
            all.filter(|(name, _)| *name == wanted).map(|(_, bytes)| bytes).sum()
        };
        prop_assert_eq!((of("optimizer"), of(GRADIENT_SUMS_CATEGORY)), (10 * parameters, 4 * parameters));
        prop_assert_eq!(of("weights"), shape.ranks as u64 * process.weight_bytes);
    }
}

#[test]
fn one_rank_is_the_process_itself() {
    let process = process(1000, 2, 10);
    let shape = JobShape { ranks: 1, gpus_per_node: 8, micro_batches: 3 };
    let as_before: Vec<(&str, u64)> =
        process.memory.at_peak.iter().map(|(name, bytes)| (*name, *bytes as u64)).collect();
    assert_eq!(shape.memory_of_rank(0, &process), as_before);
    assert_eq!(shape.gradient_traffic(0, 1000), RankTraffic::default());
    assert_eq!(shape.weight_traffic(0, &process), RankTraffic::default());
    let time = shape.step_time(&process, &JobLinks::new(&h200(), &[]).unwrap());
    assert_eq!((time.total_seconds(), time.exposed_seconds(), time.hidden_seconds()), (1.1, 0.0, 0.0));
}

/// 16 GPUs in two machines, two rounds, 16 GB of gradients, 8 GB of weights. Each expected number was computed by
/// hand.
#[test]
fn exchange_of_two_nodes_is_bound_by_the_network() {
    let process = process(4_000_000_000, 2, 10);
    let shape = JobShape { ranks: 16, gpus_per_node: 8, micro_batches: 32 };
    let links = JobLinks::new(&h200(), &[]).unwrap();
    let of = |sent: u64, received: u64| LinkBytes { sent, received };
    let gb = 1_000_000_000;
    // In each round, a rank sends 1 GB to each other rank: 7 on its own machine, 8 on the other machine.
    let gradients = RankTraffic { within_node: of(14 * gb, 14 * gb), between_nodes: of(16 * gb, 16 * gb) };
    assert_eq!(shape.gradient_traffic(5, process.parameters), gradients);
    // A rank sends 0.5 GB of weights to each other rank.
    let weights = RankTraffic { within_node: of(7 * gb / 2, 7 * gb / 2), between_nodes: of(4 * gb, 4 * gb) };
    assert_eq!(shape.weight_traffic(5, &process), weights);
    let time = shape.step_time(&process, &links);
    // The link between machines reaches 80 % of 50 GB/s. The backward pass of a round takes 0.3 s, its exchange 0.2
    // s.
    assert!((time.gradients - 0.4).abs() < 1e-9 && (time.weights - 0.1).abs() < 1e-9, "{time:?}");
    // Each launch of 2.4 ms finishes a parameter of 32 million weights, almost a bucket. The exchange of a bucket
    // takes 1.7 ms, so only the last bucket is exposed in each round.
    assert!(time.exposed_gradients > 0.001 && time.exposed_gradients < 2.0 * 0.002, "{time:?}");
    assert!((time.total_seconds() - (1.0 + 0.1 / 16.0 + 0.1 + time.exposed_gradients)).abs() < 1e-9, "{time:?}");
    // On one machine, all ranks use NVLink: 15 GB per round at 80 % of 450 GB/s.
    let one = JobShape { gpus_per_node: 16, ..shape }.step_time(&process, &links);
    assert!((one.gradients - 2.0 * 15.0 / 360.0).abs() < 1e-9, "{one:?}");
}

/// Four ranks divide 800 bytes of weights. Each expected number was computed by hand.
#[test]
fn zero_3_divides_weights_and_gathers_them_in_each_round() {
    let mut process = process(1000, 2, 10);
    let shape = JobShape { ranks: 4, gpus_per_node: 8, micro_batches: 12 };
    let weights = |process: &ProcessCosts| {
        let memory = shape.memory_of_rank(1, process);
        memory.iter().find(|(name, _)| *name == MemoryCategory::Weights.name()).map_or(0, |(_, bytes)| *bytes)
    };
    let whole = weights(&process);
    let divided = DividedWeightBytes {
        all: 800,
        two_units: 300,
        gathered: 1200,
        gathered_beside_rounds: 0,
        are_evaluated: false,
        are_trained: true,
        memory_by_units: process.memory.clone(),
        memory_with_all: None,
    };
    process.divided = Some(divided.clone());
    assert_eq!(weights(&process), whole - 800 + 200 + 300);
    // Three rounds; in each, a rank has a quarter of 1200 bytes, which it sends to three ranks.
    let of = |bytes| RankTraffic { within_node: LinkBytes { sent: bytes, received: bytes }, ..RankTraffic::default() };
    assert_eq!(shape.weight_traffic(1, &process), of(3 * 900));
    // If the divided weights are frozen, the ranks also exchange the updated weights of the adapter.
    process.divided = Some(DividedWeightBytes { are_trained: false, ..divided.clone() });
    assert_eq!(shape.weight_traffic(1, &process), of(3 * 900 + 2000 * 3 / 4));
    assert_eq!(shape.evaluation_traffic(1, &process), RankTraffic::default());
    // Rollouts and evaluations gather all weights: 500 bytes more than the passes gather. They have no gradients
    // (4000 bytes in the passes) but more activations: in total 600 or 400 bytes less.
    let peak = |memory: Vec<(&'static str, u64)>| memory.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let by_units = peak(shape.memory_of_rank(1, &process));
    for (fewer, more) in [(600, 0), (400, 100)] {
        let mut with_all = process.memory.clone();
        with_all
            .at_peak
            .iter_mut()
            .filter(|(name, _)| *name == "activations")
            .for_each(|(_, bytes)| *bytes += 4000 - fewer);
        process.divided = Some(DividedWeightBytes {
            gathered_beside_rounds: 800,
            are_evaluated: true,
            memory_with_all: Some(with_all),
            ..divided.clone()
        });
        assert_eq!(shape.weight_traffic(1, &process), of(3 * 900 + 600));
        assert_eq!(shape.evaluation_traffic(1, &process), of(600));
        assert_eq!(peak(shape.memory_of_rank(1, &process)), by_units + more);
        // A job of one process does not divide its weights.
        let alone = JobShape { ranks: 1, ..shape };
        assert_eq!(peak(alone.memory_of_rank(0, &process)), process.memory.peak as u64);
    }
}

/// 33 micro-batches on 16 ranks need three rounds, of which the last has one micro-batch.
#[test]
fn the_last_round_may_be_incomplete() {
    let shape = JobShape { ranks: 16, gpus_per_node: 8, micro_batches: 33 };
    assert_eq!((shape.round_count(), shape.micro_batches_of(0), shape.micro_batches_of(1)), (3, 3, 2));
    assert_eq!((0..16).map(|rank| shape.micro_batches_of(rank)).sum::<u64>(), 33);
}

#[test]
fn weak_scaling_goes_to_1024_gpus() {
    let links = JobLinks::new(&h200(), &["ib200".to_string()]).unwrap();
    let points = weak_scaling(&process(4_000_000_000, 2, 10), 2, 8, &links);
    let gpus: Vec<usize> = points.iter().map(|p| p.shape.ranks).collect();
    assert_eq!(gpus, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
    assert_eq!((points[0].efficiency, points[10].shape.node_count(), points[10].shape.round_count()), (1.0, 128, 2));
    // The exchange takes longer beyond one machine. With more GPUs, its time tends to G / rate, where G is the bytes
    // of the gradients.
    let exchange = |point: &ScalingPoint| point.time.gradients + point.time.weights;
    assert!(points.windows(2).all(|two| exchange(&two[1]) >= exchange(&two[0])), "{points:?}");
    assert!(points[4].efficiency < points[3].efficiency && points[10].efficiency > 0.3, "{points:?}");
    assert!(points.windows(2).all(|two| two[1].tokens_per_second > two[0].tokens_per_second), "{points:?}");
}
