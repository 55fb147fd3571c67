//! SwiGLU, element by element: `y = silu(gate) * up` with `silu(g) = g / (1 + e^-g)`.
//!
//! Gradient, with `s = 1 / (1 + e^-g)`: `d_gate = dy * up * s * (1 + g * (1 - s))`, `d_up = dy * g * s`.
//!
//! Shapes: all `[count]`, one dtype, f32 or bf16; arithmetic in f32.
//!
//! Numerics: `e^-g` and the quotient are accurate to 2 ulp of f32 (`div.full.f32`; the CUDA library's e^x to 1 ulp);
//! `1 + e^-g` and every product and sum of the gradient round to f32 once; one rounding to T at the store. Tolerance
//! as a multiple of the error of one rounding: 64 for d_gate in f32 (its terms cancel near silu′ = 0), 2.5 otherwise.
//!
//! Memory-bound: 3 reads and writes of `count` elements forward, 5 backward.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Cost, DType, Launch, cuh, kernel, params};

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// `[count]`
        pub gate: Addr,
        /// `[count]`
        pub up: Addr,
        /// `[count]`, written.
        pub y: Addr,
        /// Elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// `[count]`
        pub gate: Addr,
        /// `[count]`
        pub up: Addr,
        /// `[count]`
        pub dy: Addr,
        /// `[count]`, written.
        pub d_gate: Addr,
        /// `[count]`, written.
        pub d_up: Addr,
        /// Elements.
        pub count: u64,
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
    let kernel = if dtype == DType::F32 { &FWD_F32 } else { &FWD_BF16 };
    let n = params.count as f64;
    Launch::kernel(kernel, params, Cost { flops: 5.0 * n, bytes: 3.0 * n * dtype.size() as f64 })
}

/// Returns the launch of the gradient; `dtype` is that of every operand, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let kernel = if dtype == DType::F32 { &BWD_F32 } else { &BWD_BF16 };
    let n = params.count as f64;
    Launch::kernel(kernel, params, Cost { flops: 11.0 * n, bytes: 5.0 * n * dtype.size() as f64 })
}

/// Number of elements and scale of the random inputs, for each case of the checks.
pub fn test_cases_count_scale() -> Vec<(usize, f32)> {
    vec![(1, 1.0), (17, 1.0), (8191, 3.0), (4096 * 5 + 3, 20.0)]
}
