use half::bf16;
use proptest::prelude::*;
use reel_device::{SimOptions, compile};
use reel_kernels::int8::quantize_row;

use super::*;
use crate::tensor::ops::tests::kv::SmallKvCache;
use crate::tensor::ops::tests::{pseudo_random_numbers, relative_distance};
use crate::tensor::ops::{
    InputNorm, Lora, rms_norm, skinny_linear, skinny_logits, skinny_lora_linear, skinny_qkv, skinny_swiglu,
};

/// A random weight `[n, k]`: its int8 elements and its scales.
fn quantised([n, k]: [usize; 2], seed: u32) -> (Vec<i8>, Vec<f32>) {
    let mut elements = vec![0; n * k];
    let rows = pseudo_random_numbers(n * k, seed);
    let scales =
        rows.chunks_exact(k).zip(elements.chunks_exact_mut(k)).map(|(row, q)| quantize_row(row, q).unwrap()).collect();
    (elements, scales)
}

fn weight(device: &Device, shape: [usize; 2], seed: u32) -> PackedWeight {
    let (elements, scales) = quantised(shape, seed);
    let w = PackedWeight::new_int8(device, shape).unwrap();
    // The rows are written by two calls, the last rows first.
    let first = shape[0] / 2 / PackedWeight::ROW_GRANULARITY * PackedWeight::ROW_GRANULARITY;
    w.write_int8_rows(first, &elements[first * shape[1]..], &scales[first..]).unwrap();
    w.write_int8_rows(0, &elements[..first * shape[1]], &scales[..first]).unwrap();
    w
}

fn tensor(device: &Device, shape: &[usize], dtype: DType, seed: u32) -> Tensor {
    let values = pseudo_random_numbers(shape.iter().product(), seed);
    Tensor::from_f32(device, shape, dtype, &values, MemoryCategory::Weights).unwrap()
}

/// The results of all ops: `skinny_linear` with bias and residual, `skinny_swiglu`, `skinny_logits` and
/// `skinny_lora_linear`.
fn products(device: &Device, dtype: DType, [m, n, k]: [usize; 3], seed: u32) -> [Vec<f32>; 4] {
    let cx = Cx::inference(device, dtype);
    let of = |shape: &[usize], salt| tensor(device, shape, dtype, seed ^ salt);
    let (w, up) = (weight(device, [n, k], seed ^ 2), weight(device, [n, k], seed ^ 3));
    let (x, b, r) = (of(&[m, k], 1), of(&[n], 4), of(&[m, n], 5));
    let lora = Lora { down: of(&[3, k], 6), up: of(&[n, 3], 7), scale: 0.6 };
    let all = [
        skinny_linear(&cx, &x, &w, Some(&b), Some(&r)).unwrap(),
        skinny_swiglu(&cx, &x, None, &w, &up).unwrap(),
        skinny_logits(&cx, &x, &w).unwrap(),
        skinny_lora_linear(&cx, &x, &w, Some(&b), &lora, Some(&r)).unwrap(),
    ];
    let dtypes = [dtype, dtype, DType::F32, dtype];
    assert!(all.iter().zip(dtypes).all(|(t, dtype)| t.shape() == [m, n] && t.dtype() == dtype));
    all.map(|t| t.to_f32().unwrap())
}

/// Computes the results of `products` in f64 from the same rounded inputs. Each result comes with the sum of the
/// magnitudes of its terms.
fn formulas(dtype: DType, [m, n, k]: [usize; 3], seed: u32) -> [Vec<(f64, f64)>; 4] {
    let cpu = Device::cpu(1);
    let of = |shape: &[usize], salt| -> Vec<f64> {
        tensor(&cpu, shape, dtype, seed ^ salt).to_f32().unwrap().into_iter().map(f64::from).collect()
    };
    let (x, b, r, down, up_factor) = (of(&[m, k], 1), of(&[n], 4), of(&[m, n], 5), of(&[3, k], 6), of(&[n, 3], 7));
    let product = |salt: u32| -> Vec<(f64, f64)> {
        let (q, scales) = quantised([n, k], seed ^ salt);
        let terms = |row: usize, column: usize| {
            let (x, q) = (&x[row * k..][..k], &q[column * k..][..k]);
            let scale = scales[column] as f64;
            x.iter().zip(q).map(|(x, &q)| x * q as f64 * scale).fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()))
        };
        (0..m * n).map(|i| terms(i / n, i % n)).collect()
    };
    let (gate, up) = (product(2), product(3));
    let with = |more: &dyn Fn(usize) -> (f64, f64)| -> Vec<(f64, f64)> {
        gate.iter().enumerate().map(|(i, (y, size))| (y + more(i).0, size + more(i).1)).collect()
    };
    let sum = |i: usize| (b[i % n] + r[i], b[i % n].abs() + r[i].abs());
    let adapter = |i: usize| {
        let (row, column) = (i / n, i % n);
        let thin = |j: usize| x[row * k..][..k].iter().zip(&down[j * k..][..k]).map(|(a, b)| a * b).sum::<f64>();
        let y: f64 = (0..3).map(|j| 0.6 * thin(j) * up_factor[column * 3 + j]).sum();
        // A bound on the adapter's sum of magnitudes: each of its 3 ranks has k terms below 1, multiplied by a factor
        // below 1.
        (y + sum(i).0, 3.0 * k as f64 + sum(i).1)
    };
    let gated = gate.iter().zip(&up).map(|((g, gate_size), (u, up_size))| {
        let silu = g / (1.0 + (-g).exp());
        (silu * u, 1.1 * gate_size * u.abs() + silu.abs() * up_size)
    });
    [with(&sum), gated.collect(), gate.clone(), with(&adapter)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The bound allows k roundings of f32 for each sum of magnitudes, and four roundings of the result to its dtype.
    #[test]
    fn products_equal_the_formula(m in 1usize..40, n in 1usize..70, k in 1usize..200, seed: u32) {
        for dtype in [DType::F32, DType::BF16] {
            let got = products(&Device::cpu(2), dtype, [m, n, k], seed);
            let want = formulas(dtype, [m, n, k], seed);
            for (which, (got, want)) in got.iter().zip(&want).enumerate() {
                let rounding = if dtype == DType::BF16 && which != 2 { 2f64.powi(-8) } else { 2f64.powi(-24) };
                for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
                    let bound = size * ((k + 8) as f64 * 2f64.powi(-24) + 4.0 * rounding) + 1e-30;
                    prop_assert!((*got as f64 - want).abs() <= bound, "{dtype} product {which} [{i}]: {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn bits_of_a_row_do_not_depend_on_other_rows(m in 2usize..60, n in 1usize..90, k in 1usize..90, seed: u32) {
        for dtype in [DType::F32, DType::BF16] {
            let device = Device::cpu(2);
            let cx = Cx::inference(&device, dtype);
            let (x, w) = (tensor(&device, &[m, k], dtype, seed), weight(&device, [n, k], seed ^ 1));
            let all = skinny_linear(&cx, &x, &w, None, None).unwrap().to_f32().unwrap();
            for row in [0, m / 2, m - 1] {
                let alone = skinny_linear(&cx, &x.rows(row, 1).unwrap(), &w, None, None).unwrap().to_f32().unwrap();
                prop_assert_eq!(&all[row * n..][..n], &alone[..]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// The GPU's kernel, run on the simulator, gives nearly the CPU's results. It adds in another order than the CPU,
    /// and rounds a sum once where the CPU rounds twice.
    #[test]
    fn simulator_is_near_the_cpu_and_batch_invariant(m in 1usize..36, n in 1usize..50, k in 1usize..100, seed: u32) {
        let Some(()) = compile::skip_without_nvrtc() else { return Ok(()) };
        let sim = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let (got, want) = (products(&sim, dtype, [m, n, k], seed), products(&Device::cpu(1), dtype, [m, n, k], seed));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let limit = if dtype == DType::BF16 && i != 2 { 1.5e-2 } else { 1e-5 };
                let off = relative_distance(got, want);
                prop_assert!(off <= limit, "{dtype} {m} {n} {k}, product {i}: relative L2 {off:.2e}");
            }
            let cx = Cx::inference(&sim, dtype);
            let (x, w) = (tensor(&sim, &[m, k], dtype, seed), weight(&sim, [n, k], seed ^ 1));
            let all = skinny_linear(&cx, &x, &w, None, None).unwrap().to_f32().unwrap();
            let last = skinny_linear(&cx, &x.rows(m - 1, 1).unwrap(), &w, None, None).unwrap().to_f32().unwrap();
            prop_assert_eq!(&all[(m - 1) * n..], &last[..]);
        }
    }
}

fn weight_in_groups<T: Element>(device: &Device, shape: [usize; 2], seed: u32) -> (Tensor, PackedWeight) {
    let plain = tensor(device, &shape, T::DTYPE, seed);
    let rows: Vec<T> = plain.to_f32().unwrap().into_iter().map(T::from_f32).collect();
    let w = PackedWeight::new_in_groups(device, shape, T::DTYPE).unwrap();
    // The rows are written by two calls, the last rows first.
    let first = shape[0] / 2 / PackedWeight::ROW_GRANULARITY * PackedWeight::ROW_GRANULARITY;
    w.write_rows(first, &rows[first * shape[1]..], shape[0] - first).unwrap();
    w.write_rows(0, &rows[..first * shape[1]], first).unwrap();
    (plain, w)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn groups_have_the_bits_of_the_plain_weight(m in 1usize..60, n in 1usize..90, k in 1usize..200, seed: u32) {
        let device = Device::cpu(2);
        let dtypes = [(DType::F32, DType::BF16), (DType::BF16, DType::BF16), (DType::F32, DType::F32)];
        for (dtype, of_weights) in dtypes {
            let cx = Cx::inference(&device, dtype);
            let of = |shape: &[usize], salt| tensor(&device, shape, dtype, seed ^ salt);
            let weight = |salt| match of_weights {
                DType::F32 => weight_in_groups::<f32>(&device, [n, k], seed ^ salt),
                _ => weight_in_groups::<bf16>(&device, [n, k], seed ^ salt),
            };
            let ((plain, w), (plain_up, up)) = (weight(2), weight(3));
            let copied = PackedWeight::copy_in_groups(&cx, &plain).unwrap();
            let words = |w: &PackedWeight| w.tensors().map(|t| t.read_bytes().unwrap()).collect::<Vec<_>>();
            prop_assert_eq!(words(&copied), words(&w));
            let (x, b, r, norm) = (of(&[m, k], 1), of(&[n], 4), of(&[m, n], 5), of(&[k], 8));
            let lora = Lora { down: of(&[3, k], 6), up: of(&[n, 3], 7), scale: 0.6 };
            let norm = || Some(InputNorm { weight: &norm, eps: 1e-6 });
            let (b, r) = (Some(&b), Some(&r));
            let got = [
                skinny_linear(&cx, &x, &w, b, r).unwrap(),
                skinny_swiglu(&cx, &x, norm(), &w, &up).unwrap(),
                skinny_logits(&cx, &x, &w).unwrap(),
                skinny_lora_linear(&cx, &x, &w, b, &lora, r).unwrap(),
            ];
            let want = [
                skinny_linear(&cx, &x, &plain, b, r).unwrap(),
                skinny_swiglu(&cx, &x, norm(), &plain, &plain_up).unwrap(),
                skinny_logits(&cx, &x, &plain).unwrap(),
                skinny_lora_linear(&cx, &x, &plain, b, &lora, r).unwrap(),
            ];
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert_eq!(got.dtype(), want.dtype());
                prop_assert_eq!(got.to_f32().unwrap(), want.to_f32().unwrap(), "{} product {}", dtype, i);
            }
            let kv = || SmallKvCache::new(&cx, dtype, [m, 1, n]);
            if n % 2 == 0 {
                let got = kv().results(|to| skinny_qkv(&cx, &x, norm(), [(&w, b), (&up, None), (&w, None)], to));
                let plain = [(&plain, b), (&plain_up, None), (&plain, None)];
                prop_assert_eq!(got, kv().results(|to| skinny_qkv(&cx, &x, norm(), plain, to)));
            }
        }
    }
}

#[test]
fn groups_are_for_the_cpu_and_are_written_whole() {
    let gpu = Device::dry(Kernels::Cuda);
    for dtype in [DType::F32, DType::BF16] {
        let e = PackedWeight::new_in_groups(&gpu, [4, 4], dtype).unwrap_err().to_string();
        assert!(e.contains("on device cpu only"), "{e}");
        assert!(!PackedWeight::is_faster_on(&gpu));
    }
    let device = Device::cpu(1);
    let vector = Tensor::empty(&device, &[4], DType::F32, MemoryCategory::Weights).unwrap();
    let e = PackedWeight::copy_in_groups(&Cx::inference(&device, DType::F32), &vector).unwrap_err().to_string();
    assert!(e.contains("copy_in_groups: weight has shape [4], expected [N, K]"), "{e}");
    let w = PackedWeight::new_in_groups(&device, [70, 3], DType::BF16).unwrap();
    assert_eq!((w.shape(), w.is_int8()), ([70, 3], false));
    assert_eq!(w.tensors().map(|t| t.bytes()).collect::<Vec<_>>(), [96 * 4 * 2]);
    for (first, elements, count, right) in
        [(0, 96, 32, true), (64, 18, 6, true), (64, 15, 5, false), (16, 96, 32, false), (0, 95, 32, false)]
    {
        let done = w.write_rows(first, &vec![bf16::ONE; elements], count);
        assert_eq!(done.is_ok(), right, "{first} {elements} {count}");
    }
    let e = w.write_int8_rows(0, &[0; 96], &[1.0; 32]).unwrap_err().to_string();
    assert!(e.contains("96 i8 elements cannot be written as rows 0 .. 32 of a bf16 weight of shape [70, 3]"), "{e}");
}

#[test]
fn takes_one_byte_for_each_element() {
    for device in [Device::cpu(1), Device::dry(Kernels::Cpu), Device::dry(Kernels::Cuda)] {
        let before = device.memory().current;
        let w = PackedWeight::new_int8(&device, [64, 48]).unwrap();
        assert_eq!(w.tensors().map(|t| t.bytes()).collect::<Vec<_>>(), [64 * 48, 4 * 64]);
        assert!(device.memory().current - before >= 64 * 48 + 4 * 64);
    }
}

#[test]
fn a_norm_before_products_has_the_bits_of_rms_norm() {
    let sim = compile::skip_without_nvrtc()
        .map(|()| Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap());
    for device in [Device::cpu(2)].into_iter().chain(sim) {
        for (dtype, m) in [(DType::F32, 2), (DType::BF16, 17)] {
            let (cx, k) = (Cx::inference(&device, dtype), 144);
            let of = |shape: &[usize], salt| tensor(&device, shape, dtype, salt);
            let (x, norm_weight, b) = (of(&[m, k], 1), of(&[k], 2), of(&[24], 3));
            let [q, up] = [4, 5].map(|seed| weight(&device, [24, k], seed));
            let [key, v] = [6, 7].map(|seed| weight(&device, [8, k], seed));
            let layers = [(&q, Some(&b)), (&key, None), (&v, None)];
            let all = |x: &Tensor, norm: Option<InputNorm>| {
                let qkv = SmallKvCache::new(&cx, dtype, [m, 1, 8]).results(|to| skinny_qkv(&cx, x, norm, layers, to));
                (qkv, skinny_swiglu(&cx, x, norm, &q, &up).unwrap().to_f32().unwrap())
            };
            let normed = rms_norm(&cx, &x, &norm_weight, 1e-6).unwrap();
            assert_eq!(all(&x, Some(InputNorm { weight: &norm_weight, eps: 1e-6 })), all(&normed, None), "{device:?}");
        }
    }
}

#[test]
fn rejects_operands_that_do_not_match() {
    for device in [Device::cpu(1), Device::dry(Kernels::Cuda)] {
        let cx = Cx::inference(&device, DType::F32);
        let of = |shape: &[usize]| Tensor::empty(&device, shape, DType::F32, MemoryCategory::Weights).unwrap();
        let int8 = |shape| PackedWeight::new_int8(&device, shape).unwrap();
        let fails = |r: Result<Tensor>, words: &str| {
            let e = r.unwrap_err().to_string();
            assert!(e.contains(words), "{words} in {e}");
        };
        let (x, w, short) = (of(&[2, 4]), int8([3, 4]), int8([3, 5]));
        fails(skinny_linear(&cx, &x, &short, None, None), "weight has shape [3, 5], but the last dimension of x is 4");
        fails(skinny_logits(&cx, &x, &short), "weight has shape [3, 5], but the last dimension of x is 4");
        fails(skinny_linear(&cx, &x, &w, Some(&of(&[4])), None), "bias has shape [4], expected [3]");
        fails(skinny_linear(&cx, &x, &w, None, Some(&of(&[2, 4]))), "expected [2, 3]");
        fails(skinny_swiglu(&cx, &x, None, &w, &short), "up has shape [3, 5], expected [3, 4]");
        let norm = Some(InputNorm { weight: &of(&[5]), eps: 1e-6 });
        fails(skinny_swiglu(&cx, &x, norm, &w, &w), "[5]");
        let training = Cx::training(&device, DType::F32);
        fails(skinny_linear(&training, &x.detach_requiring_grad(), &w, None, None), "x needs a gradient");
        let large = int8([80, 2]);
        for (first, elements, scales) in [(0, 6, 1), (0, 4, 2), (8, 64, 32), (32, 64, 32), (32, 50, 25), (96, 64, 32)] {
            let done = large.write_int8_rows(first, &vec![0; elements], &vec![1.0; scales]);
            // Only the fourth write, 32 rows from row 32 on, is valid.
            assert_eq!(done.is_ok(), (first, elements, scales) == (32, 64, 32), "{first} {elements} {scales}");
            assert!(done.is_ok() || done.unwrap_err().to_string().contains(&format!("rows {first} .. ")));
        }
    }
}
