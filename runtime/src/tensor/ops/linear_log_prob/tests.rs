use proptest::prelude::*;
use reel_device::{Device, MemoryCategory, Profiler, SimOptions};

use super::products::LogitTile;
use super::*;
use crate::tensor::ops::tests::{pseudo_random_numbers, relative_distance};
use crate::tensor::ops::{add, weighted_sum};
use crate::tensor::tape::Grads;

/// Sizes and dtypes of one call of `linear_log_prob`.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    vocab: usize,
    hidden: usize,
    dtype: DType,
    weight: DType,
    entropy: bool,
    /// Maximum number of bytes of logits that the forward pass keeps.
    keep: usize,
    seed: u32,
}

/// Three lists: log-probabilities followed by entropies, the gradient of the rows, the gradient of the weight.
type Results = [Vec<f32>; 3];

fn results(device: &Device, a: Case, limit: usize) -> Results {
    let mut grads = Grads::new();
    let outputs = add_gradients(device, a, limit, &mut grads);
    let [dh, dw] = ["h", "w"].map(|name| grads.get(name).unwrap().to_f32().unwrap());
    [outputs, dh, dw]
}

/// Runs one forward and backward pass, which adds to `grads`. Returns log-probabilities followed by entropies.
fn add_gradients(device: &Device, a: Case, limit: usize, grads: &mut Grads) -> Vec<f32> {
    let values = |n: usize, m: usize, seed: u32| pseudo_random_numbers(n * m, a.seed + seed);
    let leaf = |name: &str, n: usize, m: usize, dtype, seed| {
        let t = Tensor::from_f32(device, &[n, m], dtype, &values(n, m, seed), MemoryCategory::Weights).unwrap();
        t.into_parameter(name).unwrap()
    };
    let (h, w) = (leaf("h", a.rows, a.hidden, a.dtype, 1), leaf("w", a.vocab, a.hidden, a.weight, 2));
    let targets: Vec<i32> = (0..a.rows).map(|r| (r * 5 + 1) as i32 % (a.vocab as i32 + 1) - 1).collect();
    let targets = Tensor::from_i32(device, &[a.rows], &targets).unwrap();
    let cx = Cx::training(device, a.dtype);
    // `linear_log_prob` gets a view of parameter h, because a view counts as an activation, as the hidden states of a
    // model do.
    let rows = h.reshape(h.shape()).unwrap();
    let head = Head { limit, keep: a.keep, ..Head::new(&rows, &w, &targets, 0.7).unwrap() };
    let entropy = Tensor::empty(device, &[a.rows], DType::F32, MemoryCategory::Activations).unwrap();
    let (y, entropy) = head.log_prob(&cx, Some(&entropy).filter(|_| a.entropy)).unwrap();
    let weighted = |y: &Tensor, seed| {
        let weights = values(y.count(), 1, seed);
        let weights = Tensor::from_f32(device, y.shape(), DType::F32, &weights, MemoryCategory::Inputs).unwrap();
        weighted_sum(&cx, y, &weights).unwrap()
    };
    let of_log_prob = weighted(&y, 3);
    let total = entropy.as_ref().map_or(of_log_prob.clone(), |e| add(&cx, &of_log_prob, &weighted(e, 4)).unwrap());
    cx.backward(&total, 1.0, grads).unwrap();
    let entropies = entropy.map_or(Vec::new(), |entropy| entropy.to_f32().unwrap());
    [y.to_f32().unwrap(), entropies].concat()
}

fn agree(got: &Results, want: &Results, a: Case, what: &str) {
    let gradient = if a.dtype == DType::F32 { 2e-5 } else { 1e-2 };
    for (i, limit) in [1e-5, gradient, gradient].into_iter().enumerate() {
        let off = relative_distance(&got[i], &want[i]);
        assert!(off <= limit, "{what}, {a:?}: part {i} off by {off:.2e}, allowed {limit:.0e}");
    }
}

/// A memory limit in bytes that allows a tile of `side` by `side` logits, in the forward and in the backward pass.
fn squares_of(side: usize) -> usize {
    side * side * 8
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn small_tiles_equal_one_tile(
        rows in 0usize..40,
        vocab in 2usize..90,
        hidden in 1usize..24,
        side in 1usize..12,
        bf16: bool,
        entropy: bool,
        keep in 0usize..120,
        seed in 1u32..1000,
    ) {
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let a = Case { rows, vocab, hidden, dtype, weight: dtype, entropy, keep: 0, seed };
        let device = Device::cpu(2);
        let tiles = results(&device, a, squares_of(side));
        // The forward pass keeps `keep` percent of the logits: none, some or all of them.
        let some = Case { keep: keep * rows * vocab * 4 / 100, ..a };
        prop_assert_eq!(&tiles, &results(&device, some, squares_of(side)));
        agree(&tiles, &results(&device, a, MAX_LOGITS_BYTES), a, "one tile");
        prop_assert_eq!(&tiles, &results(&Device::cpu(1), a, squares_of(side)));
    }

    /// The gradient of a step is `g1 + g2` in f32, where g2 is the whole gradient of the second micro-batch. This
    /// holds also if several tiles of rows add to g2.
    #[test]
    fn a_second_micro_batch_adds_its_whole_gradient(rows in 1usize..30, side in 1usize..12, bf16: bool, seed in 1u32..1000) {
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let first = Case { rows, vocab: 50, hidden: 9, dtype, weight: dtype, entropy: false, keep: 0, seed };
        let (device, limit) = (Device::cpu(2), squares_of(side));
        let batches = [first, Case { seed: seed + 1, ..first }, Case { seed: seed + 2, ..first }];
        let mut grads = Grads::new();
        batches.iter().for_each(|a| drop(add_gradients(&device, *a, limit, &mut grads)));
        let of = |a: &Case| results(&device, *a, limit)[2].clone();
        let add = |sum: Vec<f32>, next: Vec<f32>| -> Vec<f32> { sum.iter().zip(next).map(|(a, b)| a + b).collect() };
        let want = batches.iter().map(of).reduce(add).unwrap();
        prop_assert_eq!(grads.get("w").unwrap().to_f32().unwrap(), want);
    }

    #[test]
    fn bits_of_a_row_do_not_depend_on_later_rows(rows in 2usize..40, few in 1usize..40, side in 1usize..12, entropy: bool, seed in 1u32..1000) {
        let all = Case { rows, vocab: 70, hidden: 9, dtype: DType::F32, weight: DType::F32, entropy, keep: 0, seed };
        let few = Case { rows: few.min(rows), ..all };
        let device = Device::cpu(2);
        let [of_all, of_few] = [all, few].map(|a| results(&device, a, squares_of(side)));
        prop_assert_eq!(&of_few[0][..few.rows], &of_all[0][..few.rows]);
        prop_assert_eq!(&of_few[1][..], &of_all[1][..few.rows * few.hidden]);
    }

    #[test]
    fn tiles_are_within_the_limit_and_nearly_square(each in 4usize..9, vocab in 1usize..200_000, limit in 1usize..(64 << 20)) {
        let tile = LogitTile::new(each, vocab, limit);
        prop_assert!(tile.rows >= 1 && (1..=vocab).contains(&tile.columns));
        prop_assert!(tile.rows * tile.columns * each <= limit.max(each));
        prop_assert!(tile.columns == vocab || tile.rows * 2 >= tile.columns);
        prop_assert!(tile.columns == vocab || tile.columns < 128 || tile.columns.is_multiple_of(4));
    }
}

#[test]
fn tile_size_at_8192_rows_and_152064_words() {
    assert_eq!(LogitTile::new(4, 152_064, MAX_LOGITS_BYTES), LogitTile { rows: 4096, columns: 4096 });
    // The backward pass takes 6 bytes per logit in bf16 and 8 bytes in f32.
    for each in [6, 8] {
        let tile = LogitTile::new(each, 152_064, MAX_LOGITS_BYTES);
        assert!(tile.columns.is_multiple_of(128) && tile.rows.abs_diff(tile.columns) < 256, "{tile:?}");
    }
}

#[test]
fn f32_rows_times_a_bf16_weight() {
    let device = Device::cpu(2);
    for entropy in [false, true] {
        let a =
            Case { rows: 19, vocab: 67, hidden: 12, dtype: DType::F32, weight: DType::BF16, entropy, keep: 0, seed: 5 };
        agree(&results(&device, a, squares_of(7)), &results(&device, a, MAX_LOGITS_BYTES), a, "one tile");
    }
}

#[test]
fn sim_equals_cpu() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let options = SimOptions { threads: 1, interleavings: 3, ..Default::default() };
    let (cpu, sim) = (Device::cpu(1), Device::sim(options).unwrap());
    for (dtype, entropy) in [(DType::F32, true), (DType::BF16, false), (DType::BF16, true)] {
        let a = Case { rows: 21, vocab: 150, hidden: 16, dtype, weight: dtype, entropy, keep: 0, seed: 4 };
        // The tiles have 8 columns, or 61 columns, which is not a multiple of the length of a SIMD vector.
        for limit in [squares_of(8), squares_of(61)] {
            agree(&results(&sim, a, limit), &results(&cpu, a, limit), a, "sim");
        }
    }
}

/// A lower bound in ms on the time of the profiled launches on an H200, by the model of `reel plan`: each launch
/// takes as long as its operations or its bytes alone would take, whichever is longer.
fn floor(profile: Profiler) -> f64 {
    let totals = profile.totals().unwrap();
    // The sum leaves out the launches that set gradients to 0.
    let own = totals.iter().filter(|(name, _)| !name.starts_with("fill"));
    own.map(|(_, t)| (t.cost.flops / 790e12).max(t.cost.bytes / 4.3e12) * 1e3).sum()
}

#[test]
fn entropies_do_not_change_the_log_probabilities() {
    let device = Device::cpu(2);
    let tensor = |n: usize, m: usize, seed| {
        Tensor::from_f32(&device, &[n, m], DType::F32, &pseudo_random_numbers(n * m, seed), MemoryCategory::Weights)
            .unwrap()
    };
    let (h, w) = (tensor(37, 16, 1), tensor(70, 16, 2));
    let targets: Vec<i32> = (0..37).map(|r| r * 5 % 71 - 1).collect();
    let targets = Tensor::from_i32(&device, &[37], &targets).unwrap();
    let cx = Cx::inference(&device, DType::F32);
    let (lp, entropy) = linear_log_prob_with_entropy(&cx, &h, &w, &targets, 0.7).unwrap();
    assert_eq!(lp.to_f32().unwrap(), linear_log_prob(&cx, &h, &w, &targets, 0.7).unwrap().to_f32().unwrap());
    assert!(entropy.to_f32().unwrap().iter().any(|&e| e > 1.0));
}

/// Returns the number of matrix products (over all rows and the whole vocabulary) of the backward pass, and the peak
/// bytes of a training step of the output layer on the CPU.
fn step_of(rows: usize) -> (f64, usize) {
    let device = Device::dry(Kernels::Cpu);
    let (vocab, hidden) = (152_064, 64);
    let tensor = |shape: &[usize]| Tensor::empty(&device, shape, DType::F32, MemoryCategory::Weights).unwrap();
    let (h, w) =
        (tensor(&[rows, hidden]).detach_requiring_grad(), tensor(&[vocab, hidden]).into_parameter("w").unwrap());
    let targets = Tensor::empty(&device, &[rows], DType::I32, MemoryCategory::Inputs).unwrap();
    let weights = Tensor::empty(&device, &[rows], DType::F32, MemoryCategory::Inputs).unwrap();
    let mut grads = Grads::new();
    grads.reserve([&w]).unwrap();
    let before = device.memory().current;
    device.reset_peak();
    let cx = Cx::training(&device, DType::F32);
    let y = linear_log_prob(&cx, &h, &w, &targets, 1.0).unwrap();
    let products = |profile: Profiler| {
        let totals = profile.totals().unwrap();
        totals.iter().filter(|(name, _)| name.starts_with("matmul")).map(|(_, t)| t.cost.flops).sum::<f64>()
    };
    let forward = products(device.profiler());
    cx.backward(&weighted_sum(&cx, &y, &weights).unwrap(), 1.0, &mut grads).unwrap();
    ((products(device.profiler()) - forward) / (2 * rows * vocab * hidden) as f64, device.memory().peak - before)
}

#[test]
fn the_cpu_keeps_at_most_512_mib_of_logits() {
    // The backward pass takes two products if the logits of a row are kept, and a third one to compute them again
    // otherwise.
    let (few, bytes) = step_of(800);
    assert!((1.999..2.001).contains(&few) && bytes < (512 << 20), "{few} {bytes}");
    let (many, bytes) = step_of(2000);
    let kept = (512 << 20) as f64 / (2000 * 152_064 * 4) as f64;
    assert!((many - (3.0 - kept)).abs() < 0.05 && bytes < (640 << 20), "{many}, kept {kept} {bytes}");
}

/// Checks the memory of the output layer of a 7B model and the least time of its launches, which
/// docs/guide-performance.md states.
#[test]
fn least_time_of_products_on_an_h200() {
    let device = Device::dry(Kernels::Cuda);
    let (rows, vocab, hidden) = (8192, 152_064, 3584);
    let tensor = |shape: &[usize]| Tensor::empty(&device, shape, DType::BF16, MemoryCategory::Weights).unwrap();
    let (h, w) =
        (tensor(&[rows, hidden]).detach_requiring_grad(), tensor(&[vocab, hidden]).into_parameter("w").unwrap());
    let targets = Tensor::empty(&device, &[rows], DType::I32, MemoryCategory::Inputs).unwrap();
    let weights = Tensor::empty(&device, &[rows], DType::F32, MemoryCategory::Inputs).unwrap();
    let cx = Cx::training(&device, DType::BF16);
    let mut grads = Grads::new();
    grads.reserve([&w]).unwrap();
    let before = device.memory().current;
    device.reset_peak();
    let y = linear_log_prob(&cx, &h, &w, &targets, 1.0).unwrap();
    // The peak has the logits of one tile, the state of the tile's rows, and two results per row.
    assert_eq!(device.memory().peak - before, (64 << 20) + 4096 * 64 + 8192 * 8);
    let forward = floor(device.profiler());
    cx.backward(&weighted_sum(&cx, &y, &weights).unwrap(), 1.0, &mut grads).unwrap();
    let backward = floor(device.profiler()) - forward;
    assert!((forward - 12.5).abs() < 0.05 && (backward - 35.7).abs() < 0.05, "{forward} {backward}");
}

/// Counts the launches of a training step of the output layer, and the gigabytes that they read and write. The
/// documentation of [`super::products::LogitTile`] states both numbers.
#[test]
fn launches_and_bytes_by_the_size_of_a_tile() {
    let of_limit = |mebibytes: usize| {
        let device = Device::dry(Kernels::Cuda);
        let (rows, vocab, hidden) = (8192, 152_064, 3584);
        let tensor = |shape: &[usize]| Tensor::empty(&device, shape, DType::BF16, MemoryCategory::Weights).unwrap();
        let (h, w) =
            (tensor(&[rows, hidden]).detach_requiring_grad(), tensor(&[vocab, hidden]).into_parameter("w").unwrap());
        let targets = Tensor::empty(&device, &[rows], DType::I32, MemoryCategory::Inputs).unwrap();
        let weights = Tensor::empty(&device, &[rows], DType::F32, MemoryCategory::Inputs).unwrap();
        let mut grads = Grads::new();
        grads.reserve([&w]).unwrap();
        let cx = Cx::training(&device, DType::BF16);
        let head = Head { limit: mebibytes << 20, ..Head::new(&h, &w, &targets, 1.0).unwrap() };
        let (y, _) = head.log_prob(&cx, None).unwrap();
        cx.backward(&weighted_sum(&cx, &y, &weights).unwrap(), 1.0, &mut grads).unwrap();
        let totals = device.profiler().totals().unwrap();
        let own = totals.iter().filter(|(name, _)| !name.starts_with("fill"));
        own.fold((0, 0.0), |(launches, bytes), (_, t)| (launches + t.launches, bytes + t.cost.bytes / 1e9))
    };
    for (mebibytes, launches, gigabytes) in [(24, 1710, 86.0), (64, 709, 65.5), (128, 376, 53.8)] {
        let (n, moved) = of_limit(mebibytes);
        assert!(n == launches && (moved - gigabytes).abs() < 0.1, "{mebibytes} MiB: {n} launches, {moved} GB");
    }
}
