use proptest::prelude::*;
use reel_device::{Device, MemoryCategory, SimOptions, compile};

use super::*;
use crate::tensor::ops::tests::kv::SmallKvCache;
use crate::tensor::ops::tests::{pseudo_random_numbers, relative_distance};
use crate::tensor::ops::{HeadNorms, LoraStack, UnrotatedRows};

/// The results of `skinny_linear` with bias and residual, `skinny_swiglu`, `skinny_logits`, and `skinny_lora_linear`.
fn products(device: &Device, dtype: DType, [m, n, k]: [usize; 3], seed: u32) -> [Vec<f32>; 4] {
    let cx = Cx::inference(device, dtype);
    let tensor = |shape: &[usize], dtype, salt: u32| {
        let values = pseudo_random_numbers(shape.iter().product(), seed ^ salt);
        Tensor::from_f32(device, shape, dtype, &values, MemoryCategory::Weights).unwrap()
    };
    let (x, w, up) = (tensor(&[m, k], dtype, 1), tensor(&[n, k], DType::BF16, 2), tensor(&[n, k], DType::BF16, 3));
    let (b, r) = (tensor(&[n], dtype, 4), tensor(&[m, n], dtype, 5));
    let linear = skinny_linear(&cx, &x, &w, Some(&b), Some(&r)).unwrap();
    let gated = skinny_swiglu(&cx, &x, None, &w, &up).unwrap();
    let logits = skinny_logits(&cx, &x, &w).unwrap();
    let lora = Lora { down: tensor(&[3, k], dtype, 6), up: tensor(&[n, 3], dtype, 7), scale: 0.6 };
    let adapted = skinny_lora_linear(&cx, &x, &w, Some(&b), &lora, Some(&r)).unwrap();
    assert_eq!((linear.dtype(), gated.dtype(), logits.dtype(), adapted.dtype()), (dtype, dtype, DType::F32, dtype));
    assert!([&linear, &gated, &logits, &adapted].iter().all(|t| t.shape() == [m, n]));
    [linear, gated, logits, adapted].map(|t| t.to_f32().unwrap())
}

/// Compares the GPU kernel (on the simulator) with the CPU, for row counts below and above the kernel's maximum.
fn near(dtype: DType, shape: [usize; 3], seed: u32) {
    let sim = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
    let (got, want) = (products(&sim, dtype, shape, seed), products(&Device::cpu(1), dtype, shape, seed));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let off = relative_distance(got, want);
        // CPU and GPU add in different orders, so some sums are rounded to different bf16 values. Logits are f32 on
        // both.
        let limit = if dtype == DType::BF16 && i != 2 { 1e-2 } else { 1e-5 };
        assert!(off <= limit, "{dtype} {shape:?}, product {i}: relative L2 {off:.2e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn skinny_kernel_equals_cpu(m in 1usize..70, n in 1usize..70, k in 1usize..150, seed: u32) {
        if compile::skip_without_nvrtc().is_some() {
            near(DType::F32, [m, n, k], seed);
            near(DType::BF16, [m, n, k], seed);
        }
    }

    #[test]
    fn bits_of_a_row_do_not_depend_on_other_rows(m in 2usize..=64, n in 1usize..40, k in 1usize..90, seed: u32) {
        let Some(()) = compile::skip_without_nvrtc() else { return Ok(()) };
        let sim = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
        let cx = Cx::inference(&sim, DType::F32);
        let tensor = |shape: &[usize], dtype, salt: u32| {
            let values = pseudo_random_numbers(shape.iter().product(), seed ^ salt);
            Tensor::from_f32(&sim, shape, dtype, &values, MemoryCategory::Weights).unwrap()
        };
        let (x, w) = (tensor(&[m, k], DType::F32, 1), tensor(&[n, k], DType::BF16, 2));
        let all = skinny_linear(&cx, &x, &w, None, None).unwrap().to_f32().unwrap();
        let last = skinny_linear(&cx, &x.rows(m - 1, 1).unwrap(), &w, None, None).unwrap().to_f32().unwrap();
        prop_assert!(all[(m - 1) * n..] == last);
    }
}

/// The products of three rows with adapter 1, none and adapter 0: computed together, and computed for each row alone.
fn products_with_row_adapters(device: &Device, dtype: DType, [n, k]: [usize; 2], seed: u32) -> [Vec<f32>; 2] {
    let cx = Cx::inference(device, dtype);
    let (ranks, most) = ([3, 5], 8);
    let numbers = |count, salt: u32| pseudo_random_numbers(count, seed ^ salt);
    let put = |shape: &[usize], dtype, values: &[f32]| {
        Tensor::from_f32(device, shape, dtype, values, MemoryCategory::Weights).unwrap()
    };
    let (x, w) = (put(&[3, k], dtype, &numbers(3 * k, 1)), put(&[n, k], DType::BF16, &numbers(n * k, 2)));
    let (b, r) = (put(&[n], dtype, &numbers(n, 3)), put(&[3, n], dtype, &numbers(3 * n, 4)));
    let matrices =
        [5, 6].map(|salt| (numbers(ranks[salt - 5] * k, salt as u32), numbers(n * ranks[salt - 5], 9 + salt as u32)));
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for ((small_down, small_up), rank) in matrices.iter().zip(ranks) {
        down.extend([&small_down[..], &vec![0.0; (most - rank) * k]].concat());
        up.extend(small_up.chunks_exact(rank).flat_map(|row| [row, &vec![0.0; most - rank]].concat()));
    }
    let stack = LoraStack {
        down: put(&[2, most, k], dtype, &down),
        up: put(&[2, n, most], dtype, &up),
        scale: put(&[2], DType::F32, &[0.6, 1.7]),
    };
    let order = Tensor::from_i32(device, &[3], &[1, -1, 0]).unwrap();
    let together = RowAdapters { stack: &stack, numbers: &order };
    let together = skinny_linear_with_row_adapters(&cx, &x, &w, Some(&b), together, Some(&r)).unwrap();
    let alone = [Some(1), None, Some(0)].into_iter().enumerate().flat_map(|(row, adapter)| {
        let (x, r) = (x.rows(row, 1).unwrap(), r.rows(row, 1).unwrap());
        let y = match adapter {
            Some(a) => {
                let (down, up) = &matrices[a];
                let lora = Lora {
                    down: put(&[ranks[a], k], dtype, down),
                    up: put(&[n, ranks[a]], dtype, up),
                    scale: [0.6, 1.7][a],
                };
                skinny_lora_linear(&cx, &x, &w, Some(&b), &lora, Some(&r))
            }
            None => skinny_linear(&cx, &x, &w, Some(&b), Some(&r)),
        };
        y.unwrap().to_f32().unwrap()
    });
    [together.to_f32().unwrap(), alone.collect()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn rows_with_different_adapters_are_as_alone(n in 1usize..70, k in 1usize..150, seed: u32) {
        for dtype in [DType::F32, DType::BF16] {
            let [together, alone] = products_with_row_adapters(&Device::cpu(2), dtype, [n, k], seed);
            prop_assert_eq!(&together, &alone, "{} {} {}", dtype, n, k);
            if compile::skip_without_nvrtc().is_some() {
                let sim = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
                let [on_sim, _] = products_with_row_adapters(&sim, dtype, [n, k], seed);
                let (off, limit) = (relative_distance(&on_sim, &together), if dtype == DType::BF16 { 2e-2 } else { 1e-5 });
                prop_assert!(off <= limit, "{} {} {}: relative L2 {:.2e}", dtype, n, k, off);
            }
        }
    }
}

/// On a GPU the launch of the products normalises x, with the bits of `rms_norm`.
#[test]
fn a_norm_before_products_has_the_bits_of_rms_norm() {
    let sim = compile::skip_without_nvrtc()
        .map(|()| Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap());
    for device in [Device::cpu(2)].into_iter().chain(sim) {
        for (dtype, m) in [(DType::F32, 2), (DType::BF16, 64), (DType::BF16, 65)] {
            let (cx, k) = (Cx::inference(&device, dtype), 136);
            let tensor = |shape: &[usize], dtype, salt: u32| {
                let values = pseudo_random_numbers(shape.iter().product(), 77 ^ salt);
                Tensor::from_f32(&device, shape, dtype, &values, MemoryCategory::Weights).unwrap()
            };
            let (x, weight) = (tensor(&[m, k], dtype, 1), tensor(&[k], dtype, 2));
            let [q, up] = [3, 4].map(|seed| tensor(&[24, k], DType::BF16, seed));
            let [key, v] = [5, 7].map(|seed| tensor(&[8, k], DType::BF16, seed));
            let b = tensor(&[24], dtype, 6);
            let layers = [(&q, Some(&b)), (&key, None), (&v, None)];
            let of = |x: &Tensor, norm: Option<InputNorm>| {
                let qkv = SmallKvCache::new(&cx, dtype, [m, 1, 8]).results(|to| skinny_qkv(&cx, x, norm, layers, to));
                (qkv, skinny_swiglu(&cx, x, norm, &q, &up).unwrap().to_f32().unwrap())
            };
            let normed = rms_norm(&cx, &x, &weight, 1e-6).unwrap();
            let norm = Some(InputNorm { weight: &weight, eps: 1e-6 });
            assert_eq!(of(&x, norm), of(&normed, None), "{device:?} {m}");
            // Norms of heads follow one launch of all three products, or a launch of each.
            let (of_q, of_k) = (tensor(&[8], dtype, 8), tensor(&[8], dtype, 9));
            let rows = UnrotatedRows::new(&device, m, 8).unwrap();
            let with_head_norms = |unrotated| {
                let head_norms = Some(HeadNorms { q: &of_q, k: &of_k, eps: 1e-6, unrotated });
                SmallKvCache::new(&cx, dtype, [m, 1, 8])
                    .results(|to| skinny_qkv(&cx, &x, norm, layers, KvDestination { head_norms, ..to }))
            };
            assert_eq!(with_head_norms(None), with_head_norms(Some(&rows)), "{device:?} {m}");
        }
    }
}

/// Without a thread-block cluster, each block of threads would normalise all rows again, so a separate launch
/// normalises many rows.
#[test]
fn many_rows_are_normalised_by_a_launch_of_their_own_without_clusters() {
    for (compute_capability, rows, launches) in [(80, 16, 0), (80, 17, 2), (89, 64, 2), (90, 64, 0)] {
        let device = Device::dry_with_capability(Kernels::Cuda, compute_capability);
        let cx = Cx::inference(&device, DType::BF16);
        let of = |shape: &[usize]| Tensor::empty(&device, shape, DType::BF16, MemoryCategory::Weights).unwrap();
        let (x, w) = (of(&[rows, 32]), of(&[16, 32]));
        let norm = Some(InputNorm { weight: &of(&[32]), eps: 1e-6 });
        let layers = [(&w, None), (&w, None), (&w, None)];
        let kv = SmallKvCache::new(&cx, DType::BF16, [rows, 2, 8]);
        device.profiler().collect_totals(true);
        skinny_qkv(&cx, &x, norm, layers, kv.destination()).unwrap();
        skinny_swiglu(&cx, &x, norm, &w, &w).unwrap();
        let totals = device.profiler().totals().unwrap();
        let norms = totals.get("rms_norm_fwd_bf16").map_or(0, |total| total.launches);
        assert_eq!(norms, launches, "{rows} rows on compute capability {compute_capability}");
        assert_eq!(totals["skinny_qkv_bf16"].launches, 1);
        assert_eq!(totals["skinny_swiglu_bf16"].launches, 1);
    }
}

#[test]
fn rejects_shapes_that_do_not_match() {
    for device in [Device::cpu(1), Device::dry(Kernels::Cuda)] {
        let cx = Cx::inference(&device, DType::F32);
        let of = |shape: &[usize], dtype| Tensor::empty(&device, shape, dtype, MemoryCategory::Weights).unwrap();
        let (x, w, short) = (of(&[2, 4], DType::F32), of(&[3, 4], DType::BF16), of(&[3, 5], DType::BF16));
        let fails = |r: Result<Tensor>, words: &str| {
            let e = r.unwrap_err().to_string();
            assert!(e.contains(words), "{words} in {e}");
        };
        fails(skinny_linear(&cx, &x, &short, None, None), "weight has shape [3, 5], but the last dimension of x is 4");
        fails(skinny_linear(&cx, &x, &w, Some(&of(&[4], DType::F32)), None), "bias has shape [4], expected [3]");
        fails(skinny_linear(&cx, &x, &w, None, Some(&of(&[2, 4], DType::F32))), "expected [2, 3]");
        let lora = |r: usize, k: usize, n: usize| Lora {
            down: of(&[r, k], DType::F32),
            up: of(&[n, r], DType::F32),
            scale: 1.0,
        };
        fails(skinny_lora_linear(&cx, &x, &w, None, &lora(2, 5, 3), None), "down has shape [2, 5], expected [2, 4]");
        fails(skinny_lora_linear(&cx, &x, &w, None, &lora(2, 4, 4), None), "up has shape [4, 2], expected [3, 2]");
        fails(skinny_swiglu(&cx, &x, None, &w, &short), "up has shape [3, 5], expected [3, 4]");
        let norm = Some(InputNorm { weight: &of(&[5], DType::F32), eps: 1e-6 });
        fails(skinny_swiglu(&cx, &x, norm, &w, &w), "[5]");
        let even = of(&[4, 4], DType::BF16);
        let kv = SmallKvCache::new(&cx, DType::F32, [2, 1, 4]);
        let qkv = |norm, q, k, v| skinny_qkv(&cx, &x, norm, [(q, None), (k, None), (v, None)], kv.destination());
        fails(qkv(norm, &even, &even, &even), "[5]");
        fails(qkv(None, &w, &even, &even), "the queries have 3 columns, which are not heads of 4 elements");
        fails(
            qkv(None, &even, &w, &even),
            "keys and values have 3 and 4 columns, but the cache has 1 heads of 4 elements",
        );
        let other = SmallKvCache::new(&cx, DType::F32, [3, 1, 4]);
        let layers = [(&even, None), (&even, None), (&even, None)];
        fails(skinny_qkv(&cx, &x, None, layers, other.destination()), "slots has shape [3], expected [2]");
        fails(skinny_logits(&cx, &x, &short), "weight has shape [3, 5], but the last dimension of x is 4");
    }
}
