//! GELU in its exact form and in its tanh form, and their gradients.
//!
//! Exact: `y = x · Φ(x)`, `Φ(x) = (1 + erf(x / √2)) / 2`; `dx = dy · (Φ(x) + x · φ(x))`, `φ(x) = e^(−x²/2) / √(2π)`.
//!
//! Tanh: `y = x · (1 + tanh u) / 2 = x · s` with `u = √(2/π) · (x + 0.044715 x³)`, `s = 1 / (1 + e^(−2u))`; `dx = dy
//! · (s + x · s · (1 − s) · 2 · du/dx)`, `du/dx = √(2/π) · (1 + 3 · 0.044715 x²)`.
//!
//! Shapes: all `[count]`, one dtype, f32 or bf16; outputs must not overlap inputs. Arithmetic in f32.
//!
//! Numerics, with `R(|x|) = Φ(−|x|) / e^(−x²/2)`: x² rounds to f32; `e^(−x²/2)` and R are accurate to 2 ulp; their
//! product and its difference from 1 round; one rounding to T at the store. Tolerance in f32: 64 roundings for
//! gradients (their terms cancel near slope 0), 5 for the exact form (its R is a fit), 2.5 otherwise.
//!
//! Memory-bound: 2 reads and writes of `count` elements forward, 3 backward.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// `[count]`
        pub x: Addr,
        /// `[count]`, written.
        pub y: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// `[count]`
        pub x: Addr,
        /// `[count]`
        pub dy: Addr,
        /// `[count]`, written.
        pub dx: Addr,
        /// Number of elements.
        pub count: u64,
    }
}

kernel_folder! {
    name: "gelu",
    params: [FwdParams, BwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32, "gelu_fwd_f32", FwdParams, cpu::fwd::<f32, false>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_fwd_f32", p.count));
kernel!(pub FWD_BF16, "gelu_fwd_bf16", FwdParams, cpu::fwd::<half::bf16, false>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_fwd_bf16", p.count));
kernel!(pub BWD_F32, "gelu_bwd_f32", BwdParams, cpu::bwd::<f32, false>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_bwd_f32", p.count));
kernel!(pub BWD_BF16, "gelu_bwd_bf16", BwdParams, cpu::bwd::<half::bf16, false>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_bwd_bf16", p.count));

kernel!(pub TANH_FWD_F32, "gelu_tanh_fwd_f32", FwdParams, cpu::fwd::<f32, true>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_tanh_fwd_f32", p.count));
kernel!(pub TANH_FWD_BF16, "gelu_tanh_fwd_bf16", FwdParams, cpu::fwd::<half::bf16, true>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_tanh_fwd_bf16", p.count));
kernel!(pub TANH_BWD_F32, "gelu_tanh_bwd_f32", BwdParams, cpu::bwd::<f32, true>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_tanh_bwd_f32", p.count));
kernel!(pub TANH_BWD_BF16, "gelu_tanh_bwd_bf16", BwdParams, cpu::bwd::<half::bf16, true>, &SOURCE, |p, _| cuh::plan_elementwise("gelu_tanh_bwd_bf16", p.count));

/// Returns the launch of the exact form; `dtype` is that of every operand, F32 or BF16.
pub fn fwd(dtype: DType, params: &FwdParams) -> Launch {
    let n = params.count as f64;
    let cost = Cost { flops: 30.0 * n, bytes: 2.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16), params, cost)
}

/// Returns the launch of the gradient of the exact form; `dtype` is that of every operand, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let n = params.count as f64;
    let cost = Cost { flops: 50.0 * n, bytes: 3.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), params, cost)
}

/// Returns the launch of the tanh form; `dtype` is that of every operand, F32 or BF16.
pub fn tanh_fwd(dtype: DType, params: &FwdParams) -> Launch {
    let n = params.count as f64;
    let cost = Cost { flops: 20.0 * n, bytes: 2.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &TANH_FWD_F32, &TANH_FWD_BF16), params, cost)
}

/// Returns the launch of the gradient of the tanh form; `dtype` is that of every operand, F32 or BF16.
pub fn tanh_bwd(dtype: DType, params: &BwdParams) -> Launch {
    let n = params.count as f64;
    let cost = Cost { flops: 30.0 * n, bytes: 3.0 * n * dtype.size() as f64 };
    Launch::kernel(kernel_for_dtype(dtype, &TANH_BWD_F32, &TANH_BWD_BF16), params, cost)
}

/// Returns, for each case of the checks: number of elements, and scale of the random inputs.
pub fn test_cases_count_scale() -> Vec<(usize, f32)> {
    vec![(1, 1.0), (17, 1.0), (8191, 3.0), (4096 * 5 + 3, 0.1)]
}
