//! Skinny GEMM for decoding: multiplies a few rows of x by a weight, which is read once.
//!
//! - `linear`: `y = x · wᵀ (· scale) (+ bias) (+ residual)`
//! - `logits`: `y = x · wᵀ (· scale)` with f32 y
//! - `joined`: up to three `linear` products of the same x with different weights, without residual, in one launch
//! - `swiglu`: `y = silu(x · wᵀ (· scale)) · (x · w2ᵀ (· scale2))` with `silu(z) = z / (1 + e^−z)`
//!
//! `joined` and `swiglu` can normalise the rows of x first: `x ← norm · x / sqrt(mean(x²) + eps)`, with the bits and
//! roundings of [`crate::rms_norm`].
//!
//! The weight is bf16, or int8 with one scale for each of its rows (output channels).
//!
//! Shapes: x `[m, k]`, w and w2 `[n, k]`, scale and scale2 f32 `[n]`, bias `[n]`, norm `[k]`, residual and y `[m, n]`;
//! x, norm, bias, residual and y (but that of `logits`) are all f32 or all bf16. Designed for m up to 64. `residual`
//! and `y` may be the same array.
//!
//! Numerics: products and sums are in f32. The finished sum is multiplied by the scale, bias and residual are added,
//! and the result is rounded once. On the CPU the product with a bf16 weight is [`crate::matmul`], bit for bit; with
//! an int8 weight a sum consists of sixteen partial sums. In CUDA an f32 x is split into three bf16 (24 bits), whose
//! products with the weight are exact. The order of summation depends on k alone.
//!
//! Tolerance as a multiple of one rounding error: bf16 2.5; f32 `2.5 (1 + ‖Σ|x w|‖ / ‖Σ x w‖)`; for swiglu in f32 the
//! sum of both products' tolerances times √(largest |gate|).
//!
//! Memory-bound by reading the weight. A block has up to 64 rows of x (int8 and logits 32, f32 16); with more rows, or
//! on a GPU with little shared memory, neighbouring blocks read the same part of the weight, all but one from L2. Every
//! block of 16 columns of y (32 if there are many columns) reads x again from L1 or L2: with 16 rows as many bytes as
//! the weight, with 64 rows four times as many, and with a norm twice that, besides the norm's weight.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use crate::folder::kernel_folder;
use crate::{Addr, Arch, Cost, DType, Launch, Stage, kernel, params};

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
        /// f32 or bf16 `[k]`, the weight of the norm of x in `swiglu`; null: no norm.
        pub norm: Addr,
        /// f32 or bf16 `[m, n]`, written; f32 in `logits`.
        pub y: Addr,
        /// Rows of x.
        pub m: u32,
        /// Rows of the weight.
        pub n: u32,
        /// Length of the sums.
        pub k: u32,
        /// The norm adds it to the mean square.
        pub eps: f32,
    }
}

params! {
    /// Parameters of `joined`: three products, of which the last ones may have no columns.
    pub struct JoinedParams {
        /// f32 or bf16 `[m, k]`
        pub x: Addr,
        /// f32 or bf16 `[k]`, the weight of the norm of x; null: no norm.
        pub norm: Addr,
        /// bf16 or int8 `[n0, k]`
        pub w0: Addr,
        /// bf16 or int8 `[n1, k]`
        pub w1: Addr,
        /// bf16 or int8 `[n2, k]`
        pub w2: Addr,
        /// f32 `[n0]`, scales of an int8 weight; otherwise null.
        pub scale0: Addr,
        /// f32 `[n1]`, scales of an int8 weight; otherwise null.
        pub scale1: Addr,
        /// f32 `[n2]`, scales of an int8 weight; otherwise null.
        pub scale2: Addr,
        /// f32 or bf16 `[n0]`; null: no bias.
        pub bias0: Addr,
        /// f32 or bf16 `[n1]`; null: no bias.
        pub bias1: Addr,
        /// f32 or bf16 `[n2]`; null: no bias.
        pub bias2: Addr,
        /// f32 or bf16 `[m, n0]`, written.
        pub y0: Addr,
        /// f32 or bf16 `[m, n1]`, written.
        pub y1: Addr,
        /// f32 or bf16 `[m, n2]`, written.
        pub y2: Addr,
        /// Rows of x.
        pub m: u32,
        /// Rows of the first weight.
        pub n0: u32,
        /// Rows of the second weight.
        pub n1: u32,
        /// Rows of the third weight.
        pub n2: u32,
        /// Length of the sums.
        pub k: u32,
        /// The norm adds it to the mean square.
        pub eps: f32,
    }
}

impl JoinedParams {
    /// Joins three products of the same x. Their second weights and residuals are left out.
    pub fn of([a, b, c]: [Params; 3]) -> JoinedParams {
        JoinedParams {
            x: a.x,
            norm: a.norm,
            w0: a.w,
            w1: b.w,
            w2: c.w,
            scale0: a.scale,
            scale1: b.scale,
            scale2: c.scale,
            bias0: a.bias,
            bias1: b.bias,
            bias2: c.bias,
            y0: a.y,
            y1: b.y,
            y2: c.y,
            m: a.m,
            n0: a.n,
            n1: b.n,
            n2: c.n,
            k: a.k,
            eps: a.eps,
        }
    }

    /// The parameters of each product alone, whose x is normalised already.
    pub fn products(&self) -> [Params; 3] {
        [
            (self.w0, self.scale0, self.bias0, self.y0, self.n0),
            (self.w1, self.scale1, self.bias1, self.y1, self.n1),
            (self.w2, self.scale2, self.bias2, self.y2, self.n2),
        ]
        .map(|(w, scale, bias, y, n)| Params {
            x: self.x,
            w,
            w2: Addr::NULL,
            scale,
            scale2: Addr::NULL,
            bias,
            residual: Addr::NULL,
            norm: Addr::NULL,
            y,
            m: self.m,
            n,
            k: self.k,
            eps: 0.0,
        })
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
    params: [Params, JoinedParams],
    headers_of: [rms_norm],
}

/// The operands of a kernel, as far as its shared memory depends on them.
#[derive(Clone, Copy)]
struct Operands {
    /// Number of 16-byte units of a row of x that are multiplied with one unit of a row of the weight.
    x_units: u32,
    /// Maximum number of rows of x of a block.
    max_rows: u32,
}

const BF16: Operands = Operands { x_units: 1, max_rows: 64 };
const BF16_LOGITS: Operands = Operands { x_units: 1, max_rows: 32 };
const F32: Operands = Operands { x_units: 2, max_rows: 16 };
const INT8_BF16: Operands = Operands { x_units: 2, max_rows: 32 };
const INT8_F32: Operands = Operands { x_units: 4, max_rows: 16 };

/// Declares the kernels. An entry has the constant's name, the symbol, the symbol of a variant whose blocks have
/// twice as many columns (used if its grid still fills the GPU), the operands, and the CPU function.
macro_rules! kernels {
    ($($id:ident, $symbol:literal, $wide:expr, $operands:expr, $cpu:expr;)*) => {
        $(kernel!(pub $id, $symbol, Params, $cpu, &SOURCE, |p, arch| geometry(p, arch, $symbol, $wide, $operands));)*
    };
}
kernels! {
    LINEAR_BF16, "skinny_linear_bf16", Some("skinny_linear_bf16_wide"), BF16, cpu::linear::<half::bf16>;
    LINEAR_F32, "skinny_linear_f32", Some("skinny_linear_f32_wide"), F32, cpu::linear::<f32>;
    LINEAR_INT8_BF16, "skinny_linear_int8_bf16", Some("skinny_linear_int8_bf16_wide"), INT8_BF16,
        cpu::linear_int8::<half::bf16>;
    LINEAR_INT8_F32, "skinny_linear_int8_f32", Some("skinny_linear_int8_f32_wide"), INT8_F32, cpu::linear_int8::<f32>;
    LOGITS_BF16, "skinny_logits_bf16", Some("skinny_logits_bf16_wide"), BF16_LOGITS, cpu::logits::<half::bf16>;
    LOGITS_INT8_BF16, "skinny_logits_int8_bf16", Some("skinny_logits_int8_bf16_wide"), INT8_BF16,
        cpu::logits_int8::<half::bf16>;
    SWIGLU_BF16, "skinny_swiglu_bf16", None, BF16, cpu::swiglu::<half::bf16>;
    SWIGLU_F32, "skinny_swiglu_f32", None, F32, cpu::swiglu::<f32>;
    SWIGLU_INT8_BF16, "skinny_swiglu_int8_bf16", None, INT8_BF16, cpu::swiglu_int8::<half::bf16>;
    SWIGLU_INT8_F32, "skinny_swiglu_int8_f32", None, INT8_F32, cpu::swiglu_int8::<f32>;
}

/// Declares the kernels of `joined`: the constant's name, the symbol, the operands and the CPU function.
macro_rules! joined_kernels {
    ($($id:ident, $symbol:literal, $operands:expr, $cpu:expr;)*) => {
        $(kernel!(pub $id, $symbol, JoinedParams, $cpu, &SOURCE, |p, arch| joined_geometry(p, arch, $symbol, $operands));)*
    };
}
joined_kernels! {
    JOINED_BF16, "skinny_joined_bf16", BF16, cpu::joined::<half::bf16>;
    JOINED_F32, "skinny_joined_f32", F32, cpu::joined::<f32>;
    JOINED_INT8_BF16, "skinny_joined_int8_bf16", INT8_BF16, cpu::joined_int8::<half::bf16>;
    JOINED_INT8_F32, "skinny_joined_int8_f32", INT8_F32, cpu::joined_int8::<f32>;
}

/// Columns of y of a block; the blocks of a wide variant have twice as many.
const COLUMNS: u32 = 16;

/// Bytes of shared memory for the norm of a row: partial sums of 16 warps, padding, and the scale.
const NORM_BYTES: u32 = (16 + 1 + 1) * 4;

/// Plans `column_blocks` blocks of columns with `tiles` tiles of 8 weight rows each, for as many blocks of rows of x as
/// shared memory requires. Blocks of the same columns are neighbours, so that they read the weight from L2 if there
/// are several.
fn stage(
    symbol: &'static str,
    arch: &Arch,
    (m, norm): (u32, Addr),
    column_blocks: u32,
    tiles: u32,
    operands: Operands,
) -> Vec<Stage> {
    if m == 0 || column_blocks == 0 {
        return Vec::new();
    }
    // The ring of a block: stages of `unroll` slots for each of 8 warps, with 32 lanes of 16 bytes for each unit. The
    // number of stages and of slots is that of sm80.cu.
    let stages = if operands.x_units > 2 { 2 } else { 4 };
    let norm_bytes = if norm.is_null() { 0 } else { NORM_BYTES };
    let bytes =
        |rows: u32, unroll: u32| stages * unroll * 8 * 512 * (tiles + rows / 8 * operands.x_units) + rows * norm_bytes;
    let fits = |rows: &u32| bytes(*rows, 1) <= arch.shared_per_block;
    let most = (8..=operands.max_rows).rev().step_by(8).find(fits).unwrap_or(8);
    let row_blocks = m.div_ceil(most);
    let rows = m.div_ceil(row_blocks).next_multiple_of(8);
    // As many slots as let two blocks be resident, up to 48 KiB of weights in flight.
    let unroll = (1..=4 / tiles).rev().find(|&unroll| 2 * bytes(rows, unroll) <= arch.shared_per_block).unwrap_or(1);
    let grid = [row_blocks, column_blocks, 1];
    let stage = Stage { grid, shared: bytes(rows, unroll), ..Stage::one_dimensional(symbol, 1, 256) };
    vec![stage.programmatic_on(arch)]
}

/// Plans the blocks of all products, one product after the other.
fn joined_geometry(p: &JoinedParams, arch: &Arch, symbol: &'static str, operands: Operands) -> Vec<Stage> {
    let blocks: u32 = [p.n0, p.n1, p.n2].iter().map(|n| n.div_ceil(COLUMNS)).sum();
    stage(symbol, arch, (p.m, p.norm), blocks, 2, operands)
}

/// Plans the blocks of one product or of swiglu. The wide variant is used if its grid still has two blocks per
/// multiprocessor; with more than 16 rows, which each block reads again, three for four multiprocessors are enough.
fn geometry(
    p: &Params,
    arch: &Arch,
    narrow: &'static str,
    wide: Option<&'static str>,
    operands: Operands,
) -> Vec<Stage> {
    let wide_blocks = p.n.div_ceil(2 * COLUMNS);
    let fills =
        if p.m > 16 { 4 * wide_blocks >= 3 * arch.multiprocessors } else { wide_blocks >= 2 * arch.multiprocessors };
    match wide {
        Some(wide) if fills => stage(wide, arch, (p.m, p.norm), wide_blocks, 4, operands),
        Some(_) => stage(narrow, arch, (p.m, p.norm), p.n.div_ceil(COLUMNS), 2, operands),
        None => stage(narrow, arch, (p.m, p.norm), p.n.div_ceil(COLUMNS), 4, operands),
    }
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
    Launch::kernel(kernel, params, cost(dtype, weight, params, 1.0))
}

/// Returns the launch that computes `y = x · wᵀ (· scale)` with f32 y, without bias and residual; `dtype` is the type
/// of x, F32 or BF16. The bits are those of [`linear`] for the same x in f32.
pub fn logits(dtype: DType, weight: WeightFormat, params: &Params) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, _) => return linear(dtype, weight, params),
        (_, WeightFormat::Bf16) => &LOGITS_BF16,
        (_, WeightFormat::Int8) => &LOGITS_INT8_BF16,
    };
    // y has 4 bytes an element where the cost of a product counts the 2 of x.
    let y = Cost { flops: 0.0, bytes: 2.0 * params.m as f64 * params.n as f64 };
    Launch::kernel(kernel, params, add_costs(cost(dtype, weight, params, 1.0), y))
}

/// Returns the launch that computes `y = silu(x · wᵀ (· scale)) · (x · w2ᵀ (· scale2))`, with x normalised first if
/// there is a norm; `dtype` is the type of x and
/// y, F32 or BF16.
pub fn swiglu(dtype: DType, weight: WeightFormat, params: &Params) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, WeightFormat::Bf16) => &SWIGLU_F32,
        (_, WeightFormat::Bf16) => &SWIGLU_BF16,
        (DType::F32, WeightFormat::Int8) => &SWIGLU_INT8_F32,
        (_, WeightFormat::Int8) => &SWIGLU_INT8_BF16,
    };
    let cost = add_costs(cost(dtype, weight, params, 2.0), norm_cost(dtype, params.norm, [params.m, params.k]));
    Launch::kernel(kernel, params, cost)
}

/// Returns the launch that computes the three products of [`JoinedParams`], each with the bits of [`linear`] of the
/// normalised x; `dtype` is the type of x, the biases and the results, F32 or BF16.
pub fn joined(dtype: DType, weight: WeightFormat, params: &JoinedParams) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, WeightFormat::Bf16) => &JOINED_F32,
        (_, WeightFormat::Bf16) => &JOINED_BF16,
        (DType::F32, WeightFormat::Int8) => &JOINED_INT8_F32,
        (_, WeightFormat::Int8) => &JOINED_INT8_BF16,
    };
    let x_bytes = params.m as f64 * params.k as f64 * dtype.size() as f64;
    let products = params.products().into_iter().filter(|p| p.n > 0);
    let costs = products.map(|p| cost(dtype, weight, &p, 1.0));
    let Cost { flops, bytes } = costs.fold(Cost { flops: 0.0, bytes: x_bytes }, |all, one| Cost {
        flops: all.flops + one.flops,
        bytes: all.bytes + one.bytes - x_bytes,
    });
    let cost = add_costs(Cost { flops, bytes }, norm_cost(dtype, params.norm, [params.m, params.k]));
    Launch::kernel(kernel, params, cost)
}

fn add_costs(a: Cost, b: Cost) -> Cost {
    Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes }
}

/// The cost of the norm of x `[m, k]`, besides reading x; nothing if `norm`, its weight, is null.
fn norm_cost(dtype: DType, norm: Addr, [m, k]: [u32; 2]) -> Cost {
    match norm {
        Addr::NULL => Cost { flops: 0.0, bytes: 0.0 },
        _ => Cost { flops: 4.0 * m as f64 * k as f64, bytes: k as f64 * dtype.size() as f64 },
    }
}

/// The cost of the product with one weight, or with two (swiglu).
fn cost(dtype: DType, weight: WeightFormat, p: &Params, weights: f64) -> Cost {
    let (m, n, k, size) = (p.m as f64, p.n as f64, p.k as f64, dtype.size() as f64);
    let (bytes_of_weight, scales) = match weight {
        WeightFormat::Bf16 => (2.0, 0.0),
        WeightFormat::Int8 => (1.0, 4.0),
    };
    let bias = if p.bias.is_null() { 0.0 } else { n * size };
    let residual = if p.residual.is_null() { 0.0 } else { m * n * size };
    let bytes = weights * n * (k * bytes_of_weight + scales) + size * (m * k + m * n) + bias + residual;
    Cost { flops: weights * 2.0 * m * n * k, bytes }
}

/// Sizes (m, n, k) that tests and benches share. Some values of k are not a multiple of the 16-byte units that lanes
/// load.
pub fn test_cases_m_n_k() -> Vec<(usize, usize, usize)> {
    vec![
        (1, 1, 1),
        (1, 33, 8),
        (3, 16, 40),
        (16, 40, 1031),
        (33, 20, 264),
        (64, 33, 88),
        (67, 9, 40),
        (5, 17, 1024),
        (17, 24, 272),
        (2, 70, 2064),
        (8, 15, 31),
        (3, 8460, 80),
    ]
}
