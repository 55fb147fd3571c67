//! SwiGLU, element by element: `y = silu(gate) * up` with `silu(g) = g / (1 + e^-g)`.
//!
//! Gradient, with `s = 1 / (1 + e^-g)`: `d_gate = dy * up * s * (1 + g * (1 - s))`, `d_up = dy * g * s`.
//!
//! Shapes: y and dy `[count]`; gate, up and their gradients have `count` elements in rows of `cols`, `stride` elements
//! from one row to the next. So gate and up can be the halves of the rows of one matrix, the product with gate and up
//! weights that follow each other. One dtype, f32 or bf16; arithmetic in f32.
//!
//! Numerics: `e^-g` and the quotient are accurate to 2 ulp of f32 (`div.full.f32`; the CUDA library's e^x to 1 ulp);
//! `1 + e^-g` and every product and sum of the gradient round to f32 once; one rounding to T at the store. Tolerance
//! as a multiple of the error of one rounding: 64 for d_gate in f32 (its terms cancel near silu′ = 0), 2.5 otherwise.
//!
//! Memory-bound: 3 reads and writes of `count` elements forward, 5 backward. The backward kernel can write y again, so
//! that training need not keep it: this takes 6 reads and writes, a backward and another forward pass would take 8.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
pub(crate) mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// `[count]`, in rows of `cols`.
        pub gate: Addr,
        /// `[count]`, in rows of `cols`.
        pub up: Addr,
        /// `[count]`, written.
        pub y: Addr,
        /// Number of elements, a multiple of `cols`.
        pub count: u64,
        /// Number of elements in a row of gate and up; greater than 0.
        pub cols: u64,
        /// Stride of gate and up: number of elements from one row to the next.
        pub stride: u64,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// `[count]`, in rows of `cols`.
        pub gate: Addr,
        /// `[count]`, in rows of `cols`.
        pub up: Addr,
        /// `[count]`
        pub dy: Addr,
        /// The gradient of gate, `[count]` in rows of `cols` elements; the kernel writes it.
        pub d_gate: Addr,
        /// The gradient of up, `[count]` in rows of `cols` elements; the kernel writes it.
        pub d_up: Addr,
        /// The result of the forward pass, `[count]`, which the kernel computes and writes again; null: not written.
        pub y: Addr,
        /// Number of elements, a multiple of `cols`.
        pub count: u64,
        /// Number of elements in a row of gate, up and their gradients; greater than 0.
        pub cols: u64,
        /// Stride of gate, up and their gradients: number of elements from one row to the next.
        pub stride: u64,
    }
}

kernel_folder! {
    name: "swiglu",
    params: [FwdParams, BwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32, "swiglu_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, |p, _| cuh::plan_elementwise("swiglu_fwd_f32", p.count));
kernel!(pub FWD_BF16, "swiglu_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, |p, _| cuh::plan_elementwise("swiglu_fwd_bf16", p.count));
kernel!(pub BWD_F32, "swiglu_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, _| cuh::plan_elementwise("swiglu_bwd_f32", p.count));
kernel!(pub BWD_BF16, "swiglu_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, |p, _| cuh::plan_elementwise("swiglu_bwd_bf16", p.count));

/// Returns the launch of the forward kernel; `dtype` is that of every operand, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let kernel = kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16);
    let n = params.count as f64;
    Launch::kernel(kernel, params, Cost { flops: 5.0 * n, bytes: 3.0 * n * dtype.size() as f64 })
}

/// Returns the launch of the gradient; `dtype` is that of every operand, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let kernel = kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16);
    let n = params.count as f64;
    let arrays = if params.y.is_null() { 5.0 } else { 6.0 };
    Launch::kernel(kernel, params, Cost { flops: 11.0 * n, bytes: arrays * n * dtype.size() as f64 })
}

/// Rows, columns, elements between the ends of rows, and scale of the random inputs, for each case of the checks.
pub fn test_cases_rows_cols_gap_scale() -> Vec<(usize, usize, usize, f32)> {
    vec![
        (1, 1, 0, 1.0),
        (17, 1, 0, 1.0),
        (1, 8191, 0, 3.0),
        (5, 4096, 0, 20.0),
        (3, 7, 7, 3.0),
        (9, 520, 520, 3.0),
        (70, 96, 104, 20.0),
    ]
}
