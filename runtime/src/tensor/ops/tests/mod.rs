//! Compares the backward rule of every op with finite differences of the op, through the tape; and tests the tape.
//! The kernels' own tests compare each gradient kernel with its formula in f64; the tests here check that the
//! backward rules call the kernels correctly.

mod fused;
pub(super) mod kv;

use std::collections::BTreeMap;

use reel_device::{Device, Kernels, MemoryCategory};

use super::*;
use crate::tensor::cx::{Checkpointing, Cx};
use crate::tensor::tape::Grads;

/// Pseudo-random numbers between about -1 and 1, a function of the seed.
pub(super) fn pseudo_random_numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 24) as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The relative L2 distance of two vectors of finite numbers, or the absolute distance if `want` is zero.
pub(super) fn relative_distance(got: &[f32], want: &[f32]) -> f64 {
    assert!(got.len() == want.len() && got.iter().chain(want).all(|x| x.is_finite()), "{got:?} {want:?}");
    let sum = |f: &dyn Fn(f64, f64) -> f64| got.iter().zip(want).map(|(g, w)| f(*g as f64, *w as f64)).sum::<f64>();
    let (off, size) = (sum(&|g, w| (g - w).powi(2)), sum(&|_, w| w * w));
    if size == 0.0 { off.sqrt() } else { (off / size).sqrt() }
}

/// A function of input tensors that returns one tensor.
type Op = Box<dyn Fn(&Cx, &[Tensor]) -> Result<Tensor>>;

struct Case {
    op: &'static str,
    shapes: Vec<Vec<usize>>,
    f: Op,
}

fn case(op: &'static str, shapes: &[&[usize]], f: impl Fn(&Cx, &[Tensor]) -> Result<Tensor> + 'static) -> Case {
    Case { op, shapes: shapes.iter().map(|s| s.to_vec()).collect(), f: Box::new(f) }
}

fn index(cx: &Cx, ids: &[i32]) -> Result<Tensor> {
    Tensor::from_i32(cx.device(), &[ids.len()], ids)
}

/// A video with an odd number of frames, and an image.
fn videos(cx: &Cx) -> Result<Vec<DeviceFrames>> {
    let patching = PatchingParams {
        rescale: 1.0 / 255.0,
        mean: [0.5, 0.4, 0.3],
        std: [0.3, 0.25, 0.2],
        patch: 2,
        temporal: 2,
        merge: 1,
    };
    let level =
        |n: usize| -> Vec<u8> { pseudo_random_numbers(n, 80).iter().map(|x| (x * 127.0 + 128.0) as u8).collect() };
    let one =
        |size: [usize; 3]| DeviceFrames::new(cx.device(), &level(3 * size.iter().product::<usize>()), size, &patching);
    Ok(vec![one([3, 4, 4])?, one([1, 2, 6])?])
}

/// The GRPO loss of three completions of 4, 0 and 5 tokens, of which the first 3, 0 and 5 tokens count. Old and
/// reference log-probabilities are so close that no ratio is near a clipping bound, where the loss has no derivative.
///
/// With `entropies`, tokens with an entropy of at least 0.1 are in the loss, and their entropies.
fn grpo(cx: &Cx, log_probs: &Tensor, entropies: Option<&Tensor>, level: RatioLevel) -> Result<Tensor> {
    let f32s = |x: &[f32]| Tensor::from_f32(cx.device(), &[x.len()], DType::F32, x, MemoryCategory::Inputs);
    let near = |by: f32| {
        pseudo_random_numbers(9, 1).iter().enumerate().map(|(i, x)| x + by * (i as f32 - 4.3)).collect::<Vec<_>>()
    };
    let policy = GrpoInputs {
        completions: CuSeqlens::from_lengths(cx.device(), &[4, 0, 5])?,
        completion_lens: Tensor::from_i32(cx.device(), &[3], &[3, 0, 5])?,
        advantages: f32s(&[1.0, 0.3, -0.7])?,
        weights: f32s(&[0.3, 0.2, 0.5])?,
        old_log_probs: Some(f32s(&near(0.1))?),
        ref_log_probs: Some(f32s(&near(-0.2))?),
        correction: entropies.is_some().then_some(SamplingCorrection {
            sampled_log_probs: f32s(&near(0.15))?,
            per_sequence: false,
            masks: false,
            min: 0.9,
            max: 1.1,
        }),
        entropy: entropies.map(|entropies| EntropyTerm { entropies: entropies.clone(), min: 0.1, weight: 0.4 }),
        level,
        cispo: false,
        epsilon_low: 0.2,
        epsilon_high: 0.2,
        beta: 0.1,
        kl_limit: 10.0,
    };
    Ok(grpo_loss(cx, log_probs, &policy)?.0)
}

/// The rotation angles of three tokens with heads of eight elements.
fn small_rotary_table(cx: &Cx) -> Result<RotaryTable> {
    let at = Tensor::from_i32(cx.device(), &[2, 3], &[0, 1, 5, 2, 7, 1])?;
    rotary_table(cx, &at, &[1.0, 0.3, 0.1, 0.02], &[0, 1, 0, 1])
}

fn cases() -> Vec<Case> {
    vec![
        case("add", &[&[3, 5], &[3, 5]], |cx, x| add(cx, &x[0], &x[1])),
        // Both inputs of the outer sum come from one tensor: gradients that share memory must still be summed.
        case("add", &[&[4]], |cx, x| add(cx, &add(cx, &x[0], &x[0])?, &x[0])),
        // Two cases: the tensor is an activation that nothing else uses, and one that another op reads in its rule.
        case("add_rows", &[&[5, 3], &[2, 3]], |cx, x| {
            add_rows(cx, add(cx, &x[0], &x[0])?, &index(cx, &[3, 0])?, &x[1])
        }),
        case("add_rows", &[&[4, 3], &[3, 3]], |cx, x| {
            let h = add(cx, &x[0], &x[0])?;
            let y = swiglu(cx, &h, &x[0])?;
            add(cx, &y, &add_rows(cx, h, &index(cx, &[2, -1, 0])?, &x[1])?)
        }),
        case("attention", &[&[7, 4, 8], &[7, 2, 8], &[7, 2, 8]], |cx, x| {
            attention(cx, &x[0], &x[1], &x[2], &CuSeqlens::from_lengths(cx.device(), &[5, 0, 2])?, true)
        }),
        case("attention", &[&[6, 2, 12], &[6, 2, 12], &[6, 2, 12]], |cx, x| {
            attention(cx, &x[0], &x[1], &x[2], &CuSeqlens::from_lengths(cx.device(), &[4, 2])?, false)
        }),
        case("embedding", &[&[9, 6]], |cx, x| embedding(cx, &x[0], &index(cx, &[3, 0, 3, 8])?)),
        case("embedding_with_vision_tokens", &[&[9, 6], &[2, 6]], |cx, x| {
            embedding_with_vision_tokens(
                cx,
                &x[0],
                &index(cx, &[3, 0, 3, 8, 1])?,
                &x[1],
                &index(cx, &[-1, 1, -1, -1, 0])?,
            )
        }),
        // The second sequence is the shared prefix of the third and the fourth.
        case("attention", &[&[9, 4, 8], &[9, 2, 8], &[9, 2, 8]], |cx, x| {
            let seqs = CuSeqlens::from_lengths(cx.device(), &[1, 4, 3, 1])?;
            let seqs = seqs.with_prefixes(&[(0, 0), (0, 0), (1, 4), (1, 4)])?;
            attention(cx, &x[0], &x[1], &x[2], &seqs, true)
        }),
        case("gather_rows", &[&[5, 3]], |cx, x| gather_rows(cx, &x[0], &index(cx, &[4, 0, 2])?)),
        case("gelu", &[&[17]], |cx, x| gelu(cx, &x[0])),
        case("gelu_tanh", &[&[17]], |cx, x| gelu_tanh(cx, &x[0])),
        case("gelu_tanh", &[&[5, 4], &[3, 4]], |cx, x| linear(cx, &gelu_tanh(cx, &x[0])?, &x[1], None)),
        case("grpo_loss", &[&[9]], |cx, x| grpo(cx, &x[0], None, RatioLevel::Token)),
        case("grpo_loss", &[&[9]], |cx, x| grpo(cx, &x[0], None, RatioLevel::Sequence)),
        case("grpo_loss", &[&[9], &[9]], |cx, x| grpo(cx, &x[0], Some(&x[1]), RatioLevel::Sequence)),
        case("layer_norm", &[&[4, 10], &[10], &[10]], |cx, x| layer_norm(cx, &x[0], &x[1], &x[2], 1e-6)),
        // Two test cases: the sum of two norms, one with a frozen bias and one with a frozen weight; then a norm with
        // both frozen, whose output `linear` keeps.
        case("layer_norm", &[&[3, 7], &[7]], |cx, x| {
            let fixed =
                Tensor::from_f32(cx.device(), &[7], DType::F32, &pseudo_random_numbers(7, 81), MemoryCategory::Inputs)?;
            add(cx, &layer_norm(cx, &x[0], &x[1], &fixed, 1e-6)?, &layer_norm(cx, &x[0], &fixed, &x[1], 1e-6)?)
        }),
        case("layer_norm", &[&[2, 9], &[4, 9]], |cx, x| {
            let fixed =
                Tensor::from_f32(cx.device(), &[9], DType::F32, &pseudo_random_numbers(9, 82), MemoryCategory::Inputs)?;
            linear(cx, &layer_norm(cx, &x[0], &fixed, &fixed, 1e-6)?, &x[1], None)
        }),
        // `h` is the input of three products and a sum. In the backward pass, the first product rule must not add to
        // the gradient of h in place, because this gradient shares its memory with other gradients of the sum. The
        // two later rules add in place.
        case("linear", &[&[3, 4], &[4, 4], &[4, 4], &[4, 4]], |cx, x| {
            let h = swiglu(cx, &x[0], &x[0])?;
            let of = |w: &Tensor| linear(cx, &h, w, None);
            add(cx, &add(cx, &of(&x[1])?, &of(&x[2])?)?, &add(cx, &of(&x[3])?, &h)?)
        }),
        case("linear", &[&[5, 7], &[4, 7], &[4]], |cx, x| linear(cx, &x[0], &x[1], Some(&x[2]))),
        case("linear", &[&[3, 2, 6], &[5, 6]], |cx, x| linear(cx, &x[0], &x[1], None)),
        case("linear_log_prob", &[&[4, 6], &[9, 6]], |cx, x| {
            linear_log_prob(cx, &x[0], &x[1], &index(cx, &[2, -1, 8, 0])?, 0.7)
        }),
        case("linear_log_prob", &[&[4, 6], &[9, 6]], |cx, x| {
            let (lp, entropy) = linear_log_prob_with_entropy(cx, &x[0], &x[1], &index(cx, &[2, -1, 8, 0])?, 0.7)?;
            add(cx, &lp, &entropy)
        }),
        case("lora_linear", &[&[5, 7], &[4, 7], &[4], &[2, 7], &[4, 2]], |cx, x| {
            let lora = Lora { down: x[3].clone(), up: x[4].clone(), scale: 1.7 };
            lora_linear(cx, &x[0], &x[1], Some(&x[2]), &lora)
        }),
        // The weight is frozen, as in LoRA training.
        case("lora_linear", &[&[2, 4, 6], &[3, 6], &[5, 3]], |cx, x| {
            let w = Tensor::from_f32(
                cx.device(),
                &[5, 6],
                DType::F32,
                &pseudo_random_numbers(30, 83),
                MemoryCategory::Inputs,
            )?;
            let lora = Lora { down: x[1].clone(), up: x[2].clone(), scale: 0.3 };
            lora_linear(cx, &x[0], &w, None, &lora)
        }),
        case("patch_embedding", &[&[3, 24]], |cx, x| patch_embedding(cx, &videos(cx)?, &x[0], None)),
        case("patch_embedding", &[&[3, 24], &[3]], |cx, x| patch_embedding(cx, &videos(cx)?, &x[0], Some(&x[1]))),
        case("patch_merge", &[&[4, 10], &[10]], |cx, x| {
            patch_merge(cx, &x[0], &index(cx, &[2, 0, 3, 1])?, &x[1], 1e-6, 2)
        }),
        case("rms_norm", &[&[4, 10], &[10]], |cx, x| rms_norm(cx, &x[0], &x[1], 1e-6)),
        // Three cases: the loss uses both outputs, the norm alone, the sum alone.
        case("rms_norm_add", &[&[4, 10], &[4, 10], &[10]], |cx, x| {
            let (sum, y) = rms_norm_add(cx, &x[0], &x[1], &x[2], 1e-6)?;
            swiglu(cx, &sum, &y)
        }),
        case("rms_norm_add", &[&[3, 7], &[3, 7], &[7]], |cx, x| Ok(rms_norm_add(cx, &x[0], &x[1], &x[2], 1e-6)?.1)),
        case("rms_norm_add", &[&[3, 7], &[3, 7]], |cx, x| {
            let w =
                Tensor::from_f32(cx.device(), &[7], DType::F32, &pseudo_random_numbers(7, 79), MemoryCategory::Inputs)?;
            Ok(rms_norm_add(cx, &x[0], &x[1], &w, 1e-6)?.0)
        }),
        case("rms_norm_branch", &[&[4, 10], &[10]], |cx, x| {
            let (stream, y) = rms_norm_branch(cx, &x[0], &x[1], 1e-6)?;
            swiglu(cx, &stream, &y)
        }),
        case("rms_norm_branch", &[&[2, 5], &[5]], |cx, x| Ok(rms_norm_branch(cx, &x[0], &x[1], 1e-6)?.1)),
        // Two cases: the loss uses both outputs, and only one of them.
        case("rotary", &[&[3, 2, 8], &[3, 1, 8]], |cx, x| {
            let (q, k) = apply_rotary(cx, &x[0], &x[1], &small_rotary_table(cx)?)?;
            attention(cx, &q, &k, &x[1], &CuSeqlens::from_lengths(cx.device(), &[3])?, false)
        }),
        case("rotary", &[&[3, 2, 8]], |cx, x| {
            let k = Tensor::from_f32(cx.device(), &[3, 1, 8], DType::F32, &[0.5; 24], MemoryCategory::Inputs)?;
            Ok(apply_rotary(cx, &x[0], &k, &small_rotary_table(cx)?)?.0)
        }),
        case("split_and_rotate", &[&[3, 48]], |cx, x| {
            let parts = split_and_rotate(cx, &x[0], [2, 2], &small_rotary_table(cx)?)?;
            attention(cx, &parts[0], &parts[1], &parts[2], &CuSeqlens::from_lengths(cx.device(), &[3])?, false)
        }),
        case("split_and_rotate", &[&[3, 24]], |cx, x| {
            let parts = split_and_rotate(cx, &x[0], [1, 1], &small_rotary_table(cx)?)?;
            swiglu(cx, &parts[1], &parts[2])
        }),
        case("split_and_rotate", &[&[3, 40]], |cx, x| {
            let parts = split_and_rotate(cx, &x[0], [3, 1], &small_rotary_table(cx)?)?;
            attention(cx, &parts[0], &parts[1], &parts[2], &CuSeqlens::from_lengths(cx.device(), &[3])?, true)
        }),
        // `linear` saves a function that computes its input, the output of swiglu, again; it does not save the
        // input's memory.
        case("swiglu", &[&[5, 4], &[5, 4], &[3, 4]], |cx, x| linear(cx, &swiglu(cx, &x[0], &x[1])?, &x[2], None)),
        case("rms_norm", &[&[4, 10], &[10], &[3, 10], &[2, 10], &[3, 2]], |cx, x| {
            let normed = rms_norm(cx, &x[0], &x[1], 1e-6)?;
            lora_linear(cx, &normed, &x[2], None, &Lora { down: x[3].clone(), up: x[4].clone(), scale: 0.5 })
        }),
        // The norm of each head before the rotation.
        case("rms_norm", &[&[3, 2, 8], &[8], &[3, 1, 8], &[8]], |cx, x| {
            let (q, k) = (rms_norm(cx, &x[0], &x[1], 1e-6)?, rms_norm(cx, &x[2], &x[3], 1e-6)?);
            let (q, k) = apply_rotary(cx, &q, &k, &small_rotary_table(cx)?)?;
            attention(cx, &q, &k, &x[2], &CuSeqlens::from_lengths(cx.device(), &[3])?, false)
        }),
        case("rms_norm_add", &[&[4, 10], &[4, 10], &[10], &[3, 10]], |cx, x| {
            let (sum, normed) = rms_norm_add(cx, &x[0], &x[1], &x[2], 1e-6)?;
            let (a, b) = (linear(cx, &normed, &x[3], None)?, linear(cx, &sum, &x[3], None)?);
            swiglu(cx, &a, &b)
        }),
        case("rms_norm_branch", &[&[4, 10], &[10], &[10, 10]], |cx, x| {
            let (stream, normed) = rms_norm_branch(cx, &x[0], &x[1], 1e-6)?;
            add(cx, &stream, &linear(cx, &normed, &x[2], None)?)
        }),
        case("swiglu", &[&[13], &[13]], |cx, x| swiglu(cx, &x[0], &x[1])),
        case("swiglu_linear", &[&[5, 8], &[3, 4]], |cx, x| swiglu_linear(cx, &x[0], &x[1], None)),
        case("swiglu_linear", &[&[2, 3, 14], &[4, 7], &[4]], |cx, x| swiglu_linear(cx, &x[0], &x[1], Some(&x[2]))),
        // Two cases: the table is a parameter of two sums, the second onto a tensor; the table is an activation.
        case("weighted_rows", &[&[4, 5], &[3, 5]], |cx, x| {
            let a = RowLists::new(cx, &[0, 2, 2, 5], &[3, 0, 1, 0, 0], &[0.3, 0.7, -0.2, 0.5, 1.5], 4)?;
            let b = RowLists::new(cx, &[0, 1, 2, 3], &[2, 2, 0], &[1.0, 0.5, -1.5], 4)?;
            let sum = weighted_rows(cx, &x[0], &a, None)?;
            swiglu(cx, &sum, &weighted_rows(cx, &x[0], &b, Some(&x[1]))?)
        }),
        case("weighted_rows", &[&[2, 3]], |cx, x| {
            let lists = RowLists::new(cx, &[0, 2, 3], &[1, 0, 1], &[0.3, 0.7, -0.2], 2)?;
            weighted_rows(cx, &add(cx, &x[0], &x[0])?, &lists, None)
        }),
        case("weighted_sum", &[&[6]], |cx, x| {
            let w =
                Tensor::from_f32(cx.device(), &[6], DType::F32, &pseudo_random_numbers(6, 77), MemoryCategory::Inputs)?;
            weighted_sum(cx, &x[0], &w)
        }),
    ]
}

/// The loss whose gradient is checked: `Σ f(inputs) · weights`.
fn loss(cx: &Cx, f: &Op, inputs: &[Tensor]) -> Result<Tensor> {
    let y = f(cx, inputs)?;
    let flat = y.reshape(&[y.count()])?;
    let w = Tensor::from_f32(
        cx.device(),
        &[y.count()],
        DType::F32,
        &pseudo_random_numbers(y.count(), 99),
        MemoryCategory::Inputs,
    )?;
    weighted_sum(cx, &flat, &w)
}

fn tensors(device: &Device, shapes: &[Vec<usize>], values: &[Vec<f32>], trainable: bool) -> Vec<Tensor> {
    let one = |(i, (s, v)): (usize, (&Vec<usize>, &Vec<f32>))| {
        let t = Tensor::from_f32(device, s, DType::F32, v, MemoryCategory::Weights).unwrap();
        if trainable { t.into_parameter(&format!("p{i}")).unwrap() } else { t }
    };
    shapes.iter().zip(values).enumerate().map(one).collect()
}

fn gradients(device: &Device, c: &Case, values: &[Vec<f32>]) -> BTreeMap<String, Vec<f32>> {
    let inputs = tensors(device, &c.shapes, values, true);
    let cx = Cx::training(device, DType::F32);
    let total = loss(&cx, &c.f, &inputs).unwrap();
    let mut grads = Grads::new();
    cx.backward(&total, 1.0, &mut grads).unwrap();
    grads.iter().map(|(k, g)| (k.to_string(), g.to_f32().unwrap())).collect()
}

#[test]
fn every_backward_rule_equals_finite_differences() {
    let device = Device::cpu(2);
    let names: std::collections::BTreeSet<&str> = cases().iter().map(|c| c.op).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), OPS_WITH_BACKWARD, "an op without a case");
    for c in cases() {
        let values: Vec<Vec<f32>> =
            c.shapes.iter().enumerate().map(|(i, s)| pseudo_random_numbers(s.iter().product(), i as u32 + 1)).collect();
        let grads = gradients(&device, &c, &values);
        let value = |values: &[Vec<f32>]| {
            let inputs = tensors(&device, &c.shapes, values, false);
            loss(&Cx::inference(&device, DType::F32), &c.f, &inputs).unwrap().to_f32().unwrap()[0] as f64
        };
        for (i, v) in values.iter().enumerate() {
            let got = &grads[&format!("p{i}")];
            let (mut off, mut size) = (0.0, 0.0);
            for j in 0..v.len() {
                let h = 1e-2;
                let moved = |by: f32| {
                    let mut all = values.clone();
                    all[i][j] += by;
                    value(&all)
                };
                // With a fourth-order difference formula, the step can be large enough for f32.
                let want = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h as f64);
                off += (got[j] as f64 - want).powi(2);
                size += want * want;
            }
            let rel = (off / size).sqrt();
            assert!(rel <= 1e-3, "{} input {i}: relative L2 {rel:.2e}", c.op);
        }
    }
}

#[test]
fn sim_gradients_equal_cpu() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let (cpu, sim) =
        (Device::cpu(1), Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap());
    for c in cases() {
        let values: Vec<Vec<f32>> =
            c.shapes.iter().enumerate().map(|(i, s)| pseudo_random_numbers(s.iter().product(), i as u32 + 1)).collect();
        let (got, want) = (gradients(&sim, &c, &values), gradients(&cpu, &c, &values));
        for ((name, g), w) in got.iter().zip(want.values()) {
            let off = relative_distance(g, w);
            assert!(off <= 1e-5, "{} {name}: relative L2 {off:.2e}", c.op);
        }
    }
}

#[test]
fn checkpointing_does_not_change_gradient_bits() {
    let device = Device::cpu(2);
    for c in cases().iter().filter(|c| !c.op.contains("embedding")) {
        let values: Vec<Vec<f32>> =
            c.shapes.iter().enumerate().map(|(i, s)| pseudo_random_numbers(s.iter().product(), i as u32 + 5)).collect();
        let kept = gradients_through_activations(&device, c, &values, Checkpointing::None);
        for checkpointing in [Checkpointing::Selective, Checkpointing::Full] {
            let again = gradients_through_activations(&device, c, &values, checkpointing);
            assert_eq!(kept, again, "{} {checkpointing:?}", c.op);
        }
    }
}

/// Gradients of an op whose first input is an activation. The other inputs are captured by the closure, like the
/// weights of a layer.
fn gradients_through_activations(
    device: &Device,
    c: &Case,
    values: &[Vec<f32>],
    checkpointing: Checkpointing,
) -> BTreeMap<String, Vec<f32>> {
    let inputs = tensors(device, &c.shapes, values, true);
    let cx = Cx::training(device, DType::F32).with_checkpointing(checkpointing);
    let first = add(&cx, &inputs[0], &inputs[0]).unwrap();
    let rest: Vec<Tensor> = inputs[1..].to_vec();
    let case = cases().into_iter().find(|k| k.op == c.op && k.shapes == c.shapes).unwrap();
    let f = move |cx: &Cx, x: &[Tensor]| {
        let all: Vec<Tensor> = x.iter().cloned().chain(rest.iter().cloned()).collect();
        (case.f)(cx, &all)
    };
    let y = if checkpointing == Checkpointing::Full {
        cx.recompute(&[&first], f).unwrap()
    } else {
        f(&cx, &[first]).unwrap()
    };
    let total = loss(&cx, &(Box::new(move |_: &Cx, _: &[Tensor]| Ok(y.clone())) as Op), &[]).unwrap();
    let mut grads = Grads::new();
    cx.backward(&total, 1.0, &mut grads).unwrap();
    grads.iter().map(|(k, g)| (k.to_string(), g.to_f32().unwrap())).collect()
}

/// Returns the outputs and all gradients of `x · wᵀ + b` in two micro-batches. w and b consist of the parameters p and
/// q; `joined` says for each micro-batch whether one product uses both or each has its own product.
fn gradients_of_two_products(device: &Device, joined: [bool; 2]) -> BTreeMap<String, Vec<f32>> {
    let numbers = |n, seed| pseudo_random_numbers(n, seed);
    let new = |shape: &[usize], seed| {
        let values = numbers(shape.iter().product(), seed);
        Tensor::from_f32(device, shape, DType::F32, &values, MemoryCategory::Weights).unwrap()
    };
    let (w, w_parts) = new(&[7, 5], 1).into_joined_parameters([("p", 4), ("q", 3)]).unwrap();
    let (b, b_parts) = new(&[7], 2).into_joined_parameters([("b.p", 4), ("b.q", 3)]).unwrap();
    let mut grads = Grads::new();
    grads.reserve(w_parts.iter().chain(&b_parts)).unwrap();
    for (batch, joined) in (0u32..).zip(joined) {
        let cx = Cx::training(device, DType::F32);
        let x = new(&[6, 5], 3 + batch);
        // Each column has its own weight in the loss, so that one joined product and two separate products give the
        // same loss.
        let column_weights = numbers(7, 9);
        let weighted = |y: &Tensor, columns: std::ops::Range<usize>| {
            let w: Vec<f32> = (0..6).flat_map(|_| column_weights[columns.clone()].to_vec()).collect();
            let w = Tensor::from_f32(device, &[6, columns.len()], DType::F32, &w, MemoryCategory::Inputs).unwrap();
            weighted_sum(&cx, y, &w).unwrap()
        };
        let loss = if joined {
            weighted(&linear(&cx, &x, &w, Some(&b)).unwrap(), 0..7)
        } else {
            let part = |i: usize| linear(&cx, &x, &w_parts[i], Some(&b_parts[i])).unwrap();
            add(&cx, &weighted(&part(0), 0..4), &weighted(&part(1), 4..7)).unwrap()
        };
        cx.backward(&loss, 1.0, &mut grads).unwrap();
    }
    grads.iter().map(|(name, g)| (name.to_string(), g.to_f32().unwrap())).collect()
}

#[test]
fn joined_parameters_have_the_gradients_of_their_parts() {
    let device = Device::cpu(1);
    let apart = gradients_of_two_products(&device, [false, false]);
    assert_eq!(apart.keys().collect::<Vec<_>>(), ["b.p", "b.q", "p", "q"]);
    assert_eq!(apart["q"].len(), 3 * 5);
    for joined in [[true, true], [true, false], [false, true]] {
        assert_eq!(gradients_of_two_products(&device, joined), apart, "{joined:?}");
    }
}

#[test]
fn a_joined_parameter_clears_the_gradients_of_parts_that_were_not_used_alone() {
    let device = Device::cpu(1);
    let ones = |shape: &[usize]| {
        let values = vec![1.0; shape.iter().product()];
        Tensor::from_f32(&device, shape, DType::F32, &values, MemoryCategory::Weights).unwrap()
    };
    let (w, parts) = ones(&[3, 2]).into_joined_parameters([("p", 2), ("q", 1)]).unwrap();
    let mut grads = Grads::new();
    for step in 0..2 {
        grads.clear();
        for weight in [&parts[0], &w] {
            let cx = Cx::training(&device, DType::F32);
            let y = linear(&cx, &ones(&[4, 2]), weight, None).unwrap();
            let loss = weighted_sum(&cx, &y, &ones(y.shape())).unwrap();
            cx.backward(&loss, 1.0, &mut grads).unwrap();
        }
        let of = |name: &str| grads.get(name).unwrap().to_f32().unwrap();
        assert_eq!((of("p"), of("q")), (vec![8.0; 4], vec![4.0; 2]), "step {step}");
    }
    assert!(ones(&[3, 2]).into_joined_parameters([("p", 2), ("q", 2)]).is_err());
}

#[test]
fn selective_checkpointing_frees_the_outputs_of_norms() {
    let device = Device::cpu(1);
    let held = |checkpointing| {
        let rows = tensors(
            &device,
            &[vec![512, 64], vec![64], vec![8, 64]],
            &[512 * 64, 64, 8 * 64].map(|n| pseudo_random_numbers(n, 3)),
            true,
        );
        let cx = Cx::training(&device, DType::F32).with_checkpointing(checkpointing);
        let held = || device.memory().now.iter().find(|(name, _)| *name == "activations").unwrap().1;
        let before = held();
        let y = linear(&cx, &rms_norm(&cx, &rows[0], &rows[1], 1e-6).unwrap(), &rows[2], None).unwrap();
        (held() - before, y.bytes() + 512 * 4)
    };
    let ((kept, least), (selective, _)) = (held(Checkpointing::None), held(Checkpointing::Selective));
    assert_eq!((kept, selective), (least + 512 * 64 * 4, least));
}

#[test]
fn error_names_a_parameter_without_backward_rule() {
    let device = Device::cpu(1);
    let p = tensors(&device, &[vec![4]], &[pseudo_random_numbers(4, 1)], true).remove(0);
    let cx = Cx::training(&device, DType::F32);
    let y = cx.empty(&[1], DType::F32).unwrap();
    let y = cx.record("broken", &[&p], y, |bw| {
        bw.take_dy();
        Ok(())
    });
    let e = cx.backward(&y, 1.0, &mut Grads::new()).unwrap_err().to_string();
    assert!(e.starts_with("p0:"), "{e}");
}

#[test]
fn rejects_a_loss_without_trained_parameters() {
    let device = Device::cpu(1);
    let cx = Cx::training(&device, DType::F32);
    let x = tensors(&device, &[vec![1]], &[vec![1.0]], false).remove(0);
    assert!(cx.backward(&x, 1.0, &mut Grads::new()).is_err());
}

#[test]
fn dry_device_counts_equal_cpu_counts() {
    for c in cases() {
        let values: Vec<Vec<f32>> = c.shapes.iter().map(|s| pseudo_random_numbers(s.iter().product(), 3)).collect();
        let (cpu, dry) = (Device::cpu(1), Device::dry(Kernels::Cpu));
        cpu.profiler().collect_totals(true);
        gradients(&cpu, &c, &values);
        gradients(&dry, &c, &values);
        assert_eq!(cpu.memory(), dry.memory(), "{}", c.op);
        let launches = |d: &Device| -> Vec<_> {
            d.profiler().totals().unwrap().into_iter().map(|(k, t)| (k, t.launches, t.cost)).collect()
        };
        assert_eq!(launches(&cpu), launches(&dry), "{}", c.op);
        assert_eq!(cpu.memory().current, 0, "{}: something is not freed", c.op);
    }
}

#[test]
fn add_rows_writes_to_memory_that_nothing_else_uses() {
    let device = Device::cpu(1);
    for cx in [Cx::inference(&device, DType::F32), Cx::training(&device, DType::F32)] {
        let new = |shape: &[usize]| {
            let ones = vec![1.0; shape.iter().product()];
            Tensor::from_f32(&device, shape, DType::F32, &ones, MemoryCategory::Activations).unwrap()
        };
        let (index, f, x) = (index(&cx, &[2, 0]).unwrap(), new(&[2, 3]), new(&[4, 3]));
        let at = x.addr();
        let y = add_rows(&cx, x, &index, &f).unwrap();
        assert_eq!(y.addr(), at);
        let kept = y.clone();
        let z = add_rows(&cx, y, &index, &f).unwrap();
        let rows = |of: [f32; 4]| of.iter().flat_map(|&value| [value; 3]).collect::<Vec<f32>>();
        assert_eq!(
            (kept.to_f32().unwrap(), z.to_f32().unwrap()),
            (rows([2.0, 1.0, 2.0, 1.0]), rows([3.0, 1.0, 3.0, 1.0]))
        );
        let weight = new(&[4, 3]).into_parameter("w").unwrap();
        let at = weight.addr();
        assert_ne!(add_rows(&cx, weight, &index, &f).unwrap().addr(), at, "a parameter never changes");
    }
}

#[test]
fn row_lists_refuse_wrong_entries_and_need_a_tape_for_gradients() {
    let device = Device::cpu(1);
    let (inference, training) = (Cx::inference(&device, DType::F32), Cx::training(&device, DType::F32));
    let refused = |offsets: &[i32], index: &[i32], weight: &[f32]| {
        RowLists::new(&inference, offsets, index, weight, 3).unwrap_err().to_string()
    };
    assert!(refused(&[0, 2], &[0, 3], &[1.0; 2]).contains("row 3"));
    assert!(refused(&[0, 2], &[0, -1], &[1.0; 2]).contains("row -1"));
    assert!(refused(&[0, 2], &[0, 1], &[1.0; 3]).contains("3 weights"));
    for offsets in [&[][..], &[0, 1], &[1, 2], &[0, 3, 2]] {
        assert!(refused(offsets, &[0, 1], &[1.0; 2]).contains("offsets"), "{offsets:?}");
    }
    let table = tensors(&device, &[vec![3, 2]], &[vec![1.0; 6]], true).remove(0);
    let lists = RowLists::new(&inference, &[0, 1], &[0], &[1.0], 3).unwrap();
    assert!(weighted_rows(&inference, &table, &lists, None).is_ok());
    let text = weighted_rows(&training, &table, &lists, None).unwrap_err().to_string();
    assert!(text.contains("without a tape"), "{text}");
}

#[test]
fn shape_errors_name_the_op() {
    let device = Device::cpu(1);
    let cx = Cx::inference(&device, DType::F32);
    let t = |shape: &[usize]| Tensor::empty(&device, shape, DType::F32, MemoryCategory::Inputs).unwrap();
    let starts = |e: Result<Tensor>, name: &str| assert!(e.unwrap_err().to_string().starts_with(name));
    starts(add(&cx, &t(&[2]), &t(&[3])), "add:");
    starts(linear(&cx, &t(&[2, 3]), &t(&[4, 5]), None), "linear:");
    starts(linear(&cx, &t(&[2, 3]), &t(&[4, 3]), Some(&t(&[5]))), "linear:");
    starts(rms_norm(&cx, &t(&[2, 3]), &t(&[4]), 1e-6), "rms_norm:");
    starts(swiglu(&cx, &t(&[2]), &t(&[3])), "swiglu:");
    starts(embedding(&cx, &t(&[2, 3]), &t(&[4])), "embedding:");
    let seqs = CuSeqlens::from_lengths(&device, &[2]).unwrap();
    starts(attention(&cx, &t(&[2, 3, 4]), &t(&[2, 2, 4]), &t(&[2, 2, 4]), &seqs, true), "attention:");
    starts(attention(&cx, &t(&[3, 2, 4]), &t(&[3, 2, 4]), &t(&[3, 2, 4]), &seqs, true), "attention:");
}
