//! Skinny GEMM for decoding: multiplies a few rows of x by a weight, which is read once.
//!
//! - `linear`: `y = x · wᵀ (· scale) (+ bias) (+ residual)`
//! - `swiglu`: `y = silu(x · wᵀ (· scale)) · (x · w2ᵀ (· scale2))` with `silu(z) = z / (1 + e^−z)`
//!
//! The weight is bf16, or int8 with one scale for each of its rows (output channels).
//!
//! Shapes: x `[m, k]`, w and w2 `[n, k]`, scale and scale2 f32 `[n]`, bias `[n]`, residual and y `[m, n]`; x, bias,
//! residual and y are all f32 or all bf16. Designed for m up to 16; for more rows the weight is read again for every
//! 16 rows. `residual` and `y` may be the same array.
//!
//! Numerics: products and sums are in f32. The finished sum is multiplied by the scale, bias and residual are added,
//! and the result is rounded once. On the CPU the product with a bf16 weight is [`crate::matmul`], bit for bit; with
//! an int8 weight a sum consists of sixteen partial sums. In CUDA an f32 x is split into three bf16 (24 bits), whose
//! products with the weight are exact. The order of summation depends on k alone.
//!
//! Tolerance as a multiple of one rounding error: bf16 2.5; f32 `2.5 (1 + ‖Σ|x w|‖ / ‖Σ x w‖)`; for swiglu in f32 the
//! sum of both products' tolerances times √(largest |gate|).
//!
//! Memory-bound by reading the weight. Every block of 16 columns of y (32 if there are many columns) reads x again
//! from L2: with 16 rows as many bytes as the weight.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Arch, Cost, DType, Kernel, Launch, Stage, kernel, params};

params! {
    /// Parameters of the kernels.
    pub struct Params {
        /// f32 or bf16 `[m, k]`
        pub x: Addr,
        /// bf16 or int8 `[n, k]`
        pub w: Addr,
        /// bf16 or int8 `[n, k]`, second weight of `swiglu`; otherwise null.
        pub w2: Addr,
        /// f32 `[n]`, scales of an int8 weight; otherwise null.
        pub scale: Addr,
        /// f32 `[n]`, scales of an int8 second weight; otherwise null.
        pub scale2: Addr,
        /// f32 or bf16 `[n]`, added to each row of y by `linear`; null: no bias.
        pub bias: Addr,
        /// f32 or bf16 `[m, n]`, added to y by `linear`; null: no residual.
        pub residual: Addr,
        /// f32 or bf16 `[m, n]`, written.
        pub y: Addr,
        /// Rows of x.
        pub m: u32,
        /// Rows of the weight.
        pub n: u32,
        /// Length of the sums.
        pub k: u32,
        /// 0
        pub reserved: u32,
    }
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// bf16.
    Bf16,
    /// Signed bytes, with one f32 scale per row.
    Int8,
}

kernel_folder! {
    name: "skinny",
    params: [Params],
}

/// Declares the kernels. An entry has the constant's name, the symbol, the symbol of a variant whose blocks have
/// twice as many columns (used if its grid still fills the GPU), the columns of a block, and the CPU function.
macro_rules! kernels {
    ($($id:ident, $symbol:literal, $wide:expr, $columns:expr, $cpu:expr;)*) => {
        $(kernel!(pub $id, $symbol, Params, $cpu, &SOURCE, |p, arch| geometry(p, arch, $symbol, $wide, $columns));)*
    };
}
kernels! {
    LINEAR_BF16, "skinny_linear_bf16", Some("skinny_linear_bf16_wide"), 16, cpu::linear::<half::bf16>;
    LINEAR_F32, "skinny_linear_f32", Some("skinny_linear_f32_wide"), 16, cpu::linear::<f32>;
    LINEAR_INT8_BF16, "skinny_linear_int8_bf16", Some("skinny_linear_int8_bf16_wide"), 16,
        cpu::linear_int8::<half::bf16>;
    LINEAR_INT8_F32, "skinny_linear_int8_f32", Some("skinny_linear_int8_f32_wide"), 16, cpu::linear_int8::<f32>;
    SWIGLU_BF16, "skinny_swiglu_bf16", None, 16, cpu::swiglu::<half::bf16>;
    SWIGLU_F32, "skinny_swiglu_f32", None, 16, cpu::swiglu::<f32>;
    SWIGLU_INT8_BF16, "skinny_swiglu_int8_bf16", None, 16, cpu::swiglu_int8::<half::bf16>;
    SWIGLU_INT8_F32, "skinny_swiglu_int8_f32", None, 16, cpu::swiglu_int8::<f32>;
}

/// Plans a grid with one block for each 16 rows of x and `columns` columns of y. The blocks of kernel `wide` have
/// twice as many columns; it is used if its grid still has at least two blocks per multiprocessor.
fn geometry(p: &Params, arch: &Arch, narrow: &'static str, wide: Option<&'static str>, columns: u32) -> Vec<Stage> {
    if p.m == 0 || p.n == 0 {
        return Vec::new();
    }
    let (symbol, columns, tiles) = match wide {
        Some(wide) if p.n.div_ceil(2 * columns) >= 2 * arch.multiprocessors => (wide, 2 * columns, 4),
        Some(_) => (narrow, columns, 2),
        None => (narrow, columns, 4),
    };
    // Shared memory for 16 rows of partial sums from each of 8 warps.
    let shared = 8 * 16 * (8 * tiles + 8) * 4;
    vec![Stage { shared, ..Stage::one_dimensional(symbol, p.n.div_ceil(columns) * p.m.div_ceil(16), 256) }]
}

/// Returns the launch that computes `y = x · wᵀ (· scale) (+ bias) (+ residual)`; `dtype` is the type of x, bias,
/// residual and y, F32 or BF16.
pub fn linear(dtype: DType, weight: WeightFormat, params: &Params) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, WeightFormat::Bf16) => &LINEAR_F32,
        (_, WeightFormat::Bf16) => &LINEAR_BF16,
        (DType::F32, WeightFormat::Int8) => &LINEAR_INT8_F32,
        (_, WeightFormat::Int8) => &LINEAR_INT8_BF16,
    };
    launch(kernel, dtype, weight, params, 1.0)
}

/// Returns the launch that computes `y = silu(x · wᵀ (· scale)) · (x · w2ᵀ (· scale2))`; `dtype` is the type of x and
/// y, F32 or BF16.
pub fn swiglu(dtype: DType, weight: WeightFormat, params: &Params) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, WeightFormat::Bf16) => &SWIGLU_F32,
        (_, WeightFormat::Bf16) => &SWIGLU_BF16,
        (DType::F32, WeightFormat::Int8) => &SWIGLU_INT8_F32,
        (_, WeightFormat::Int8) => &SWIGLU_INT8_BF16,
    };
    launch(kernel, dtype, weight, params, 2.0)
}

fn launch(kernel: &'static Kernel, dtype: DType, weight: WeightFormat, p: &Params, weights: f64) -> Launch {
    let (m, n, k, size) = (p.m as f64, p.n as f64, p.k as f64, dtype.size() as f64);
    let (bytes_of_weight, scales) = match weight {
        WeightFormat::Bf16 => (2.0, 0.0),
        WeightFormat::Int8 => (1.0, 4.0),
    };
    let bias = if p.bias.is_null() { 0.0 } else { n * size };
    let residual = if p.residual.is_null() { 0.0 } else { m * n * size };
    let bytes = weights * n * (k * bytes_of_weight + scales) + size * (m * k + m * n) + bias + residual;
    Launch::kernel(kernel, p, Cost { flops: weights * 2.0 * m * n * k, bytes })
}

/// Sizes (m, n, k) that tests and benches share. Some values of k are not a multiple of the 16-byte units that lanes
/// load.
pub fn test_cases_m_n_k() -> Vec<(usize, usize, usize)> {
    vec![
        (1, 1, 1),
        (1, 33, 8),
        (3, 16, 40),
        (16, 40, 1031),
        (5, 17, 1024),
        (17, 24, 272),
        (2, 70, 2064),
        (8, 15, 31),
        (3, 8460, 24),
    ]
}
