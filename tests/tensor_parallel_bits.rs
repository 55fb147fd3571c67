//! The bits of an element of a matrix product do not depend on the number of columns of the product. Therefore a
//! divided model, in which each rank computes some of the columns, has the same bits as one process.

use std::ops::Range;

use reel_device::{Arch, DType, Device, MemoryCategory, SimOptions, compile};
use reel_kernels::int8::quantize_row;
use reel_runtime::ops::{self, InputNorm, Lora, PackedWeight};
use reel_runtime::{Cx, Tensor};

/// Returns a pseudo-random number below `end` for index `i`.
fn number(i: u64, end: u64) -> u64 {
    (i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % end
}

/// Returns a matrix of pseudo-random numbers between -1 and 1.
fn matrix(device: &Device, shape: [usize; 2], dtype: DType, seed: u64) -> Tensor {
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| number(seed * 1_000_003 + i as u64, 65_521) as f32 / 32_760.5 - 1.0).collect();
    Tensor::from_f32(device, &shape, dtype, &values, MemoryCategory::Weights).expect("a tensor")
}

/// Returns the bits of the columns `own` of y `[rows, columns]`.
fn columns(y: &Tensor, own: Range<usize>) -> Vec<u32> {
    let values = y.to_f32().expect("numbers");
    let rows = values.chunks_exact(y.shape()[1]);
    rows.flat_map(|row| row[own.clone()].iter().map(|value| value.to_bits())).collect()
}

/// Quantizes the rows of a matrix to int8.
fn int8(w: &Tensor) -> PackedWeight {
    let [n, k] = [w.shape()[0], w.shape()[1]];
    let mut elements = vec![0; n * k];
    let values = w.to_f32().expect("numbers");
    let rows = values.chunks_exact(k).zip(elements.chunks_exact_mut(k));
    let scales: Vec<f32> = rows.map(|(row, elements)| quantize_row(row, elements).expect("finite numbers")).collect();
    let packed = PackedWeight::new_int8(w.device(), [n, k]).expect("a weight");
    packed.write_int8_rows(0, &elements, &scales).expect("written");
    packed
}

/// Divides the columns of each kind of matrix product into `count` parts. Checks that each part has the same bits as
/// in the whole product.
fn check(device: &Device, dtype: DType, [rows, n, k]: [usize; 3], count: usize) {
    let cx = Cx::inference(device, dtype);
    let x = matrix(device, [rows, k], dtype, 1);
    let (w, up) = (matrix(device, [n, k], dtype, 2), matrix(device, [n, k], dtype, 3));
    let bias = matrix(device, [1, n], dtype, 4).reshape(&[n]).expect("a vector");
    let weight = &matrix(device, [1, k], dtype, 5).reshape(&[k]).expect("a vector");
    let norm = InputNorm { weight, eps: 1e-6 };
    let (down, b) = (matrix(device, [8, k], dtype, 6), matrix(device, [n, 8], dtype, 7));
    // The rows `own` of the weights determine the columns `own` of each product.
    let products = |own: Range<usize>| {
        let part = |t: &Tensor| t.rows(own.start, own.len()).expect("rows");
        let (w, up, bias) = (part(&w), part(&up), part(&bias));
        let lora = Lora { down: down.clone(), up: part(&b), scale: 0.5 };
        [
            ("linear", ops::linear(&cx, &x, &w, Some(&bias))),
            ("logits of a prompt", ops::matmul(&cx, &x, &w, DType::F32)),
            ("linear with an adapter", ops::lora_linear(&cx, &x, &w, Some(&bias), &lora)),
            ("skinny linear", ops::skinny_linear(&cx, &x, &w, Some(&bias), None)),
            ("skinny linear with an adapter", ops::skinny_lora_linear(&cx, &x, &w, None, &lora, None)),
            ("skinny logits", ops::skinny_logits(&cx, &x, &w)),
            ("skinny swiglu", ops::skinny_swiglu(&cx, &x, Some(norm), &w, &up)),
            ("int8 linear", ops::skinny_linear(&cx, &x, &int8(&w), Some(&bias), None)),
            ("int8 logits", ops::skinny_logits(&cx, &x, &int8(&w))),
        ]
        .map(|(name, y)| (name, y.expect("a product")))
    };
    let whole = products(0..n);
    for index in 0..count {
        let own = n * index / count..n * (index + 1) / count;
        for ((name, of_rank), (_, whole)) in products(own.clone()).iter().zip(&whole) {
            let same = columns(of_rank, 0..own.len()) == columns(whole, own.clone());
            assert!(same, "{name} on {device:?}, {dtype}, [{rows}, {n}, {k}], part {index} of {count}");
        }
    }
}

#[test]
fn products_on_a_cpu_have_the_bits_of_their_columns() {
    let device = Device::cpu(2);
    for case in 0..60 {
        let [rows, parts, k, count] = [40, 12, 80, 4].map(|end| number(7 * case + end, end) as usize + 1);
        for dtype in [DType::F32, DType::BF16] {
            check(&device, dtype, [rows, parts * count * 8, k * 8], count);
        }
    }
}

#[test]
fn products_on_the_simulator_have_the_bits_of_their_columns() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for arch in [Arch::A100, Arch::H100] {
        let device = Device::sim(SimOptions { arch, threads: 1, ..SimOptions::default() }).expect("a simulator");
        for dtype in [DType::BF16, DType::F32] {
            for (rows, n, k) in [(1, 96, 64), (9, 48, 128), (20, 96, 64)] {
                check(&device, dtype, [rows, n, k], 2);
            }
        }
    }
}
