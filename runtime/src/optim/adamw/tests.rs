//! Tests of AdamW with bf16 and 8-bit moments against f32 moments, on cpu and sim.

use proptest::prelude::*;

use super::*;
use crate::tensor::cx::Cx;
use crate::tensor::ops;

const ALL: [MomentFormat; 3] = [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Int8];
const HYPER: AdamWParams =
    AdamWParams { learning_rate: 1e-2, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };

/// Pseudo-random numbers from -1 to 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Optimizes two parameters, one of `n` and one of 3 weights, for `steps` steps. The loss is linear with new random
/// slopes in each step. Returns the weights and the optimizer.
fn run(device: &Device, dtype: DType, moments: MomentFormat, seed: u64, n: usize, steps: u64) -> (Vec<f32>, AdamW) {
    let parameter = |name: &str, n: usize| {
        let t = Tensor::from_f32(device, &[n], dtype, &numbers(n, 5), MemoryCategory::Weights).unwrap();
        t.into_parameter(name).unwrap()
    };
    let parameters = [parameter("a", n), parameter("b", 3)];
    let mut optimizer = AdamW::new(&parameters, moments, seed).unwrap();
    let mut grads = Grads::new();
    grads.reserve(&parameters).unwrap();
    for step in 0..steps {
        grads.clear();
        let cx = Cx::training(device, dtype);
        let terms = |p: &Tensor| {
            let slopes = numbers(p.count(), 11 + step);
            let w = Tensor::from_f32(device, p.shape(), DType::F32, &slopes, MemoryCategory::Inputs).unwrap();
            let x = ops::linear(&cx, &ones(device, dtype), &p.reshape(&[p.count(), 1]).unwrap(), None).unwrap();
            ops::weighted_sum(&cx, &as_f32(&cx, &x), &w).unwrap()
        };
        let loss = ops::add(&cx, &terms(&parameters[0]), &terms(&parameters[1])).unwrap();
        cx.backward(&loss, 1.0, &mut grads).unwrap();
        let clip = optimizer.norm_and_clip_factor(device, &grads, 1e9).unwrap();
        optimizer.step(&grads, &clip, |_| HYPER).unwrap();
    }
    let weights = parameters.iter().flat_map(|p| p.to_f32().unwrap()).collect();
    (weights, optimizer)
}

fn ones(device: &Device, dtype: DType) -> Tensor {
    Tensor::from_f32(device, &[1, 1], dtype, &[1.0], MemoryCategory::Inputs).unwrap()
}

/// Reshapes `[1, n]` to `[n]` and casts it to f32. The gradient has the dtype of x.
fn as_f32(cx: &Cx, x: &Tensor) -> Tensor {
    let flat = x.reshape(&[x.count()]).unwrap();
    if x.dtype() == DType::F32 {
        return flat;
    }
    let y =
        Tensor::from_f32(cx.device(), flat.shape(), DType::F32, &x.to_f32().unwrap(), MemoryCategory::Inputs).unwrap();
    let kx = flat.clone();
    cx.record("as_f32", &[&flat], y, move |bw| {
        let dy = bw.take_dy();
        let dx = Tensor::from_f32(bw.device(), kx.shape(), kx.dtype(), &dy.to_f32()?, MemoryCategory::Activations)?;
        bw.add_grad(&kx, dx)
    })
}

fn bits(optimizer: &AdamW) -> Vec<Vec<u8>> {
    let of = |s: &CellState| {
        let all = [Some(&s.m), Some(&s.v), s.scales.as_ref(), s.low.as_ref()];
        all.into_iter().flatten().map(|t| t.read_bytes().unwrap()).collect::<Vec<_>>()
    };
    optimizer.parameter_states().flat_map(|(_, _, s)| s.cells.iter().flat_map(of)).collect()
}

/// The mean distance of two weight vectors, divided by the learning rate.
fn distance_in_learning_rates(a: &[f32], b: &[f32]) -> f64 {
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    let off: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / a.len() as f64).sqrt() / HYPER.learning_rate
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn small_moments_stay_close_to_f32_moments(n in 1usize..900, seed: u64) {
        let device = Device::cpu(2);
        for dtype in [DType::F32, DType::BF16] {
            let (want, _) = run(&device, dtype, MomentFormat::F32, 0, n, 6);
            // The limits of the distance, in learning rates. Reading a weight as bf16 rounds it by up to 2^-9, here
            // at most 0.2 learning rates. 8-bit codes are coarse for moments that are far smaller than the largest
            // moment of their block.
            for (moments, limit) in [(MomentFormat::Bf16, 0.3), (MomentFormat::Int8, 1.0)] {
                let (got, _) = run(&device, dtype, moments, seed, n, 6);
                let off = distance_in_learning_rates(&got, &want);
                prop_assert!(off <= limit, "{moments:?} {dtype} n = {n}: {off:.3} learning rates apart");
            }
        }
    }
}

#[test]
fn stochastic_rounding_depends_on_the_seed_only() {
    for moments in [MomentFormat::Bf16, MomentFormat::Int8] {
        for dtype in [DType::F32, DType::BF16] {
            let state_bits =
                |threads: usize, seed: u64| bits(&run(&Device::cpu(threads), dtype, moments, seed, 700, 3).1);
            assert_eq!(state_bits(1, 3), state_bits(3, 3), "{moments:?} {dtype}");
            assert_ne!(state_bits(1, 3), state_bits(1, 4), "{moments:?} {dtype}");
        }
    }
    let streams: std::collections::BTreeSet<u64> =
        (0..50).flat_map(|s| (0..50).map(move |p| rounding_stream(s, p))).collect();
    assert_eq!(streams.len(), 2500);
}

/// Device `sim`; `None` without NVRTC.
fn sim() -> Option<Device> {
    reel_device::compile::skip_without_nvrtc()?;
    Some(Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap())
}

#[test]
fn optimizer_on_sim_is_close_to_cpu() {
    let Some(sim) = sim() else { return };
    for moments in ALL {
        for (dtype, n) in [(DType::F32, 1), (DType::BF16, 257), (DType::F32, 515)] {
            let (got, want) = [&sim, &Device::cpu(1)].map(|d| run(d, dtype, moments, 9, n, 2).0).into();
            let off = distance_in_learning_rates(&got, &want);
            assert!(off <= 0.02, "{moments:?} {dtype} n = {n}: {off:.3} learning rates apart");
        }
    }
}

#[test]
fn optimizer_memory_matches_the_documented_bytes() {
    for (moments, bytes) in
        [(MomentFormat::F32, 8 * 1000), (MomentFormat::Bf16, 4 * 1000), (MomentFormat::Int8, 2 * 1000 + 4 * 8)]
    {
        for (dtype, low) in [(DType::F32, 0), (DType::BF16, 2 * 1000)] {
            let device = Device::cpu(1);
            let p = Tensor::empty(&device, &[10, 100], dtype, MemoryCategory::Weights).unwrap();
            let before = device.memory().current;
            let optimizer = AdamW::new(&[p.into_parameter("p").unwrap()], moments, 0).unwrap();
            // The optimizer has four tables with one entry each, and three lists of one chunk.
            let tables = size_of::<kernel::ParameterEntry>()
                + size_of::<ArrayEntry>()
                + size_of::<fingerprint::ByteRange>()
                + size_of::<kernel::StepEntry>()
                + 3 * size_of::<reel_device::launch::Chunk>();
            assert_eq!(device.memory().current - before, bytes + low + tables, "{moments:?} {dtype}");
            drop(optimizer);
        }
    }
}

/// The gradients of a loss that is linear in each of `parameters`, f32 `[n]`, with slopes 1, 2, …
fn linear_loss_grads(device: &Device, parameters: &[Tensor]) -> Grads {
    let (cx, mut grads) = (Cx::training(device, DType::F32), Grads::new());
    let mut loss: Option<Tensor> = None;
    for (p, slope) in parameters.iter().zip(1u8..) {
        let slopes = vec![f32::from(slope); p.count()];
        let slopes = Tensor::from_f32(device, p.shape(), DType::F32, &slopes, MemoryCategory::Inputs).unwrap();
        let term = ops::weighted_sum(&cx, p, &slopes).unwrap();
        loss = Some(loss.map_or_else(|| term.clone(), |sum| ops::add(&cx, &sum, &term).unwrap()));
    }
    cx.backward(&loss.unwrap(), 1.0, &mut grads).unwrap();
    grads
}

fn parameter(device: &Device, name: &str, n: usize) -> Tensor {
    let t = Tensor::from_f32(device, &[n], DType::F32, &numbers(n, 5), MemoryCategory::Weights).unwrap();
    t.into_parameter(name).unwrap()
}

#[test]
fn a_parameter_without_a_gradient_does_not_change() {
    for device in [Some(Device::cpu(2)), sim()].into_iter().flatten() {
        for moments in ALL {
            let [a, b, c] = ["a", "b", "c"].map(|name| parameter(&device, name, 300));
            let mut optimizer = AdamW::new(&[a.clone(), b.clone(), c.clone()], moments, 0).unwrap();
            let mut step = |trained: &[Tensor]| {
                let grads = linear_loss_grads(&device, trained);
                let clip = optimizer.norm_and_clip_factor(&device, &grads, 1e9).unwrap();
                optimizer.step(&grads, &clip, |_| HYPER).unwrap();
                (clip.to_f32().unwrap()[0], bits(&optimizer))
            };
            let of_b = |state: &[Vec<u8>]| state[state.len() / 3..2 * state.len() / 3].to_vec();
            let (norm, first) = step(&[a.clone(), c.clone()]);
            assert_eq!(norm, (300.0f32 * (1.0 + 4.0)).sqrt());
            assert!(of_b(&first).iter().flatten().all(|&byte| byte == 0), "{moments:?}");
            assert_eq!(b.to_f32().unwrap(), numbers(300, 5));
            assert_ne!(a.to_f32().unwrap(), numbers(300, 5));
            // In the next step, another parameter has a gradient.
            let (norm, second) = step(std::slice::from_ref(&b));
            assert_eq!(norm, 300.0f32.sqrt());
            assert_ne!(of_b(&first), of_b(&second));
            assert_eq!(first[..first.len() / 3], second[..second.len() / 3], "{moments:?}: a had no gradient");
            let counts: Vec<u64> = optimizer.parameter_states().map(|(_, _, state)| state.steps).collect();
            assert_eq!(counts, [1, 1, 1]);
        }
    }
}

#[test]
fn a_gradient_of_another_parameter_is_refused() {
    let device = Device::cpu(1);
    let [a, b] = ["a", "b"].map(|name| parameter(&device, name, 3));
    let mut optimizer = AdamW::new(std::slice::from_ref(&a), MomentFormat::F32, 0).unwrap();
    let grads = linear_loss_grads(&device, &[a, b]);
    let e = optimizer.norm_and_clip_factor(&device, &grads, 1.0).unwrap_err();
    assert!(e.to_string().contains("b has a gradient"), "{e}");
}

#[test]
fn launches_do_not_grow_with_the_number_of_parameters() {
    for dtype in [DType::F32, DType::BF16] {
        for (moments, count) in ALL.into_iter().flat_map(|moments| [1, 100].map(|count| (moments, count))) {
            let device = Device::dry(reel_device::Kernels::Cuda);
            let parameters: Vec<Tensor> = (0..count)
                .map(|i| {
                    let t = Tensor::empty(&device, &[1000 + i], dtype, MemoryCategory::Weights).unwrap();
                    t.into_parameter(&format!("p{i}")).unwrap()
                })
                .collect();
            let mut optimizer = AdamW::new(&parameters, moments, 0).unwrap();
            let mut grads = Grads::new();
            grads.reserve(&parameters).unwrap();
            let cx = Cx::training(&device, dtype);
            let as_column = |p: &Tensor| p.reshape(&[p.count(), 1]).unwrap();
            let mut outputs = parameters.iter().map(|p| ops::linear(&cx, &ones(&device, dtype), &as_column(p), None));
            let x = outputs.next().unwrap().unwrap();
            let rest: Vec<Tensor> = outputs.map(Result::unwrap).collect();
            // Each parameter has a gradient: the outputs are leaves of one op.
            let y = Tensor::empty(&device, &[1], DType::F32, MemoryCategory::Inputs).unwrap();
            let inputs: Vec<Tensor> = std::iter::once(x).chain(rest).collect();
            let all: Vec<&Tensor> = inputs.iter().collect();
            let leaves = inputs.clone();
            let loss = cx.record("sum", &all, y, move |bw| {
                leaves.iter().try_for_each(|x| {
                    let dx = bw.empty_like(x)?;
                    bw.add_grad(x, dx)
                })
            });
            cx.backward(&loss, 1.0, &mut grads).unwrap();
            device.profiler().clear();
            let clip = optimizer.norm_and_clip_factor(&device, &grads, 1.0).unwrap();
            optimizer.step(&grads, &clip, |_| HYPER).unwrap();
            optimizer.parameter_hashes().unwrap();
            let totals = device.profiler().totals().unwrap();
            let launches: Vec<(&str, u64)> = totals.iter().map(|(name, op)| (*name, op.launches)).collect();
            assert!(launches.len() == 4 && launches.iter().all(|(_, n)| *n == 1), "{launches:?}");
            let weights: usize = parameters.iter().map(|p| p.count()).sum();
            assert_eq!(totals["sum_squares"].cost.bytes, 4.0 * weights as f64);
        }
    }
}

#[test]
fn accepts_a_parameter_without_weights() {
    for moments in ALL {
        let (weights, optimizer) = run(&Device::cpu(1), DType::BF16, moments, 0, 0, 2);
        assert!(weights.len() == 3 && optimizer.parameter_states().all(|(_, _, s)| s.steps == 2));
    }
}

/// Trains a matrix `[rows, cols]` for some steps, unpadded or padded to the shape `padded`, with gradients that are 0
/// in the padding. Returns the weights, the optimizer, and the gradient norms.
fn train_matrix(
    device: &Device,
    dtype: DType,
    moments: MomentFormat,
    part: [usize; 2],
    padded: Option<[usize; 2]>,
) -> (Tensor, AdamW, Vec<f32>) {
    let count = part[0] * part[1];
    let empty = |dtype| {
        let t = Tensor::empty(device, &padded.unwrap_or(part), dtype, MemoryCategory::Weights).unwrap();
        t.with_unpadded_shape(&part).unwrap()
    };
    let w = empty(dtype).into_parameter("w").unwrap();
    w.write_unpadded_f32(&numbers(count, 5)).unwrap();
    let mut optimizer = AdamW::new(std::slice::from_ref(&w), moments, 3).unwrap();
    let (mut grads, mut norms) = (Grads::new(), Vec::new());
    for step in 0..4 {
        grads.clear();
        let cx = Cx::training(device, dtype);
        let loss = Tensor::from_f32(device, &[1], DType::F32, &[0.0], MemoryCategory::Inputs).unwrap();
        let (kw, dw) = (w.clone(), empty(DType::F32));
        dw.write_unpadded_f32(&numbers(count, 11 + step)).unwrap();
        let loss = cx.record("linear", &[&w], loss, move |bw| bw.add_grad(&kw, dw));
        cx.backward(&loss, 1.0, &mut grads).unwrap();
        let clip = optimizer.norm_and_clip_factor(device, &grads, 0.5).unwrap();
        norms.push(clip.to_f32().unwrap()[0]);
        optimizer.step(&grads, &clip, |_| HYPER).unwrap();
    }
    (w, optimizer, norms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A padded matrix has the weights, moments, low bits, hashes and norms of the same matrix without padding, and
    /// the padding stays 0.
    #[test]
    fn padding_stays_zero_and_changes_nothing(
        rows in 1usize..9, quads in 1usize..40, more_rows in 0usize..4, more_cols in 1usize..9, on_sim: bool,
    ) {
        let (part, cols) = ([rows, 4 * quads], (4 * quads + more_cols).next_multiple_of(16));
        let device = match sim().filter(|_| on_sim) {
            Some(sim) => sim,
            None => Device::cpu(2),
        };
        let kinds = [
            (DType::F32, MomentFormat::F32), (DType::BF16, MomentFormat::F32), (DType::BF16, MomentFormat::Bf16),
        ];
        let tensors = |s: &ParameterState| [Some(s.cells[0].m.clone()), Some(s.cells[0].v.clone()), s.cells[0].low.clone()];
        for (dtype, moments) in kinds {
            let (want, plain, norms) = train_matrix(&device, dtype, moments, part, None);
            let (got, padded, got_norms) = train_matrix(&device, dtype, moments, part, Some([rows + more_rows, cols]));
            for (norm, want) in got_norms.iter().zip(&norms) {
                prop_assert!((norm / want - 1.0).abs() < 1e-6, "norm {} for {}", norm, want);
            }
            // The random bits of bf16 moments depend on the weight's index, so only these moments differ.
            let exact = moments == MomentFormat::F32 && got_norms == norms;
            let all = |o: &AdamW, w: &Tensor| -> Vec<Tensor> {
                let states = o.parameter_states().flat_map(|(_, _, state)| tensors(state)).flatten();
                states.chain([w.clone()]).collect()
            };
            for (t, want) in all(&padded, &got).iter().zip(all(&plain, &want)) {
                prop_assert_eq!(t.unpadded_shape(), want.shape());
                prop_assert!(!exact || t.read_unpadded_bytes().unwrap() == want.read_bytes().unwrap());
                // The padding is 0, so a checkpoint of the unpadded bytes restores the whole tensor.
                let (whole, size) = (t.read_bytes().unwrap(), t.dtype().size());
                let outside = |i: &usize| i / size % cols >= part[1] || i / size / cols >= part[0];
                prop_assert!(
                    (0..whole.len()).filter(outside).all(|i| whole[i] == 0), "{:?} {}: padding is not 0", moments, dtype
                );
            }
            // Equal unpadded bits give equal hashes.
            let same = want.read_bytes().unwrap() == got.read_unpadded_bytes().unwrap();
            let (a, b) = (plain.parameter_hashes().unwrap(), padded.parameter_hashes().unwrap());
            prop_assert_eq!(a == b, same);
        }
    }
}

#[test]
fn moments_of_8_bits_refuse_filled_up_columns() {
    let device = Device::cpu(1);
    let w = Tensor::empty(&device, &[2, 16], DType::F32, MemoryCategory::Weights).unwrap();
    let w = w.with_unpadded_shape(&[2, 12]).unwrap().into_parameter("w").unwrap();
    let e = AdamW::new(&[w], MomentFormat::Int8, 0).unwrap_err().to_string();
    assert!(e.contains("load its weights without padding"), "{e}");
}

/// Each rank of a job updates its cells. Together the ranks have the weights, moments and hashes of a single process.
/// The norm of the gradients, computed from all ranks' sums of squares in the order of the cells, also agrees.
#[test]
fn cells_of_several_ranks_have_the_bits_of_one_process() {
    let counts = [700, 5, 256, 1300, 0, 513];
    for (device, dtype) in [Some(Device::cpu(2)), sim()]
        .into_iter()
        .flatten()
        .flat_map(|device| [DType::F32, DType::BF16].map(|dtype| (device.clone(), dtype)))
    {
        for (moments, ranks) in ALL.into_iter().flat_map(|moments| [2, 3].map(|ranks| (moments, ranks))) {
            let make = || -> Vec<Tensor> {
                let parameter = |(i, n): (usize, &usize)| {
                    let t = Tensor::from_f32(&device, &[*n], dtype, &numbers(*n, i as u64), MemoryCategory::Weights);
                    t.unwrap().into_parameter(&format!("p{i}")).unwrap()
                };
                counts.iter().enumerate().map(parameter).collect()
            };
            let whole = make();
            let mut one = AdamW::new(&whole, moments, 3).unwrap();
            // The ranks of this test are in one process, so each has a copy of all weights and updates a part of it.
            let mut all: Vec<(Vec<Tensor>, AdamW)> = (0..ranks)
                .map(|rank| {
                    let weights = make();
                    let partition = |sizes: &[ParameterSize]| Partition::with_cell_size(sizes, rank, ranks, 256);
                    let optimizer = AdamW::with_partition(&weights, moments, 3, partition, None).unwrap();
                    (weights, optimizer)
                })
                .collect();
            let gradient = |i: usize, t: u64| numbers(counts[i], 100 * t + i as u64);
            for t in 1..=3 {
                // In step 2 one parameter has no gradient.
                let names: Vec<usize> = (0..counts.len()).filter(|i| t != 2 || *i != 3).collect();
                let gradients = GradientsOfTest(
                    names
                        .iter()
                        .map(|&i| {
                            let values = gradient(i, t);
                            let shape = [values.len()];
                            let category = MemoryCategory::Gradients;
                            let t = Tensor::from_f32(&device, &shape, DType::F32, &values, category).unwrap();
                            (format!("p{i}"), t)
                        })
                        .collect(),
                );
                let clip = one.norm_and_clip_factor(&device, &gradients, 0.5).unwrap();
                one.step(&gradients, &clip, |_| HYPER).unwrap();
                let partials = all.iter_mut().map(|(_, o)| o.sums_of_squares(&device, &gradients).unwrap());
                let mut partials: Vec<std::vec::IntoIter<f32>> =
                    partials.map(|t| t.to_f32().unwrap().into_iter()).collect();
                let mut ordered = Vec::new();
                for cell in all[0].1.partition().cells() {
                    let chunks = cell.range.len().div_ceil(reduce::ELEMENTS_PER_CHUNK);
                    ordered.extend(partials[cell.owner].by_ref().take(2 * chunks));
                }
                let shape = [ordered.len() / 2, 2];
                let ordered = Tensor::from_f32(&device, &shape, DType::F32, &ordered, MemoryCategory::Workspace);
                // Chunks are longer than these cells, so a single process has different partial sums. Only the norm
                // is compared.
                let norm = clip_factor(&device, &ordered.unwrap(), 0.5).unwrap().to_f32().unwrap()[0];
                let want = clip.to_f32().unwrap()[0];
                assert!((norm / want - 1.0).abs() < 1e-6, "{norm}, want {want}");
                for (_, optimizer) in &mut all {
                    optimizer.step(&gradients, &clip, |_| HYPER).unwrap();
                }
                // The owner of a cell sends its weights to all others.
                let cells = all[0].1.partition().cells().to_vec();
                for cell in cells {
                    let view = |weights: &[Tensor]| weights[cell.parameter].rows(cell.range.start, cell.range.len());
                    let new = view(&all[cell.owner].0).unwrap().read_bytes().unwrap();
                    all.iter().for_each(|(weights, _)| view(weights).unwrap().write(&new).unwrap());
                }
            }
            let what = format!("{} {dtype} {moments:?} {ranks} ranks", device.name());
            for (weights, optimizer) in &all {
                assert_eq!(optimizer.parameter_hashes().unwrap(), one.parameter_hashes().unwrap(), "{what}");
                assert!(weights.iter().zip(&whole).all(|(a, b)| a.read_bytes().unwrap() == b.read_bytes().unwrap()));
            }
            for (index, (name, _, state)) in one.parameter_states().enumerate() {
                let mut parts: Vec<&CellState> = Vec::new();
                let of_parameter = |o: &'_ (Vec<Tensor>, AdamW)| -> Vec<CellState> {
                    o.1.parameter_states().nth(index).unwrap().2.cells.clone()
                };
                let cells: Vec<CellState> = all.iter().flat_map(of_parameter).collect();
                parts.extend(&cells);
                parts.sort_by_key(|cell| cell.range.start);
                let fields = |s: &CellState| [Some(s.m.clone()), Some(s.v.clone()), s.scales.clone(), s.low.clone()];
                for field in 0..4 {
                    let bytes = |cell: &CellState| fields(cell)[field].as_ref().map(|t| t.read_bytes().unwrap());
                    let joined: Vec<u8> = parts.iter().filter_map(|cell| bytes(cell)).flatten().collect();
                    assert_eq!(joined, bytes(&state.cells[0]).unwrap_or_default(), "{what}: {name}");
                }
            }
        }
    }
}

struct GradientsOfTest(Vec<(String, Tensor)>);

impl GradientSource for GradientsOfTest {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn address(&self, parameter: &str, start: usize) -> Addr {
        let found = self.0.iter().find(|(name, _)| name == parameter);
        found.map_or(Addr::NULL, |(_, t)| t.addr().offset(4 * start))
    }
}
