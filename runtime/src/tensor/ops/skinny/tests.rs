use proptest::prelude::*;
use reel_kernels::compile;

use super::*;
use crate::device::{Device, MemoryCategory, SimOptions};
use crate::tensor::ops::tests::{pseudo_random_numbers, relative_distance};

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
    let gated = skinny_swiglu(&cx, &x, &w, &up).unwrap();
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
        // CPU and GPU sum in different orders. In bf16 the GPU rounds the sum once, the CPU twice. Logits are f32 on
        // both.
        let limit = if dtype == DType::BF16 && i != 2 { 1e-2 } else { 1e-5 };
        assert!(off <= limit, "{dtype} {shape:?}, product {i}: relative L2 {off:.2e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn skinny_kernel_equals_cpu(m in 1usize..20, n in 1usize..70, k in 1usize..150, seed: u32) {
        if compile::skip_without_nvrtc().is_some() {
            near(DType::F32, [m, n, k], seed);
            near(DType::BF16, [m, n, k], seed);
        }
    }

    #[test]
    fn bits_of_a_row_do_not_depend_on_other_rows(m in 2usize..=16, n in 1usize..40, k in 1usize..90, seed: u32) {
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
        fails(skinny_swiglu(&cx, &x, &w, &short), "up has shape [3, 5], expected [3, 4]");
        fails(skinny_logits(&cx, &x, &short), "weight has shape [3, 5], but the last dimension of x is 4");
    }
}
