//! Skinny GEMM for decoding: multiplies a few rows of x by a weight, which is read once.
//!
//! - `linear`: `y = x · wᵀ (· scale) (+ bias) (+ residual)`
//! - `logits`: `y = x · wᵀ (· scale)` with f32 y
//! - `qkv`: the `linear` products of x to queries, keys and values, without residual; then [`crate::rope_kv_write`]
//! - `swiglu`: `y = silu(x · wᵀ (· scale)) · (x · w2ᵀ (· scale2))` with `silu(z) = z / (1 + e^−z)`
//!
//! `qkv` and `swiglu` can normalise the rows of x first: `x ← norm · x / sqrt(mean(x²) + eps)`, with the bits and
//! roundings of [`crate::rms_norm`].
//!
//! The weight is bf16, or int8 with one scale for each of its rows (output channels).
//!
//! Shapes: x `[m, k]`, w and w2 `[n, k]`, scale and scale2 f32 `[n]`, bias `[n]`, norm `[k]`, residual and y `[m, n]`;
//! x, norm, bias, residual and y (but that of `logits`) are all f32 or all bf16. Designed for m up to 64. `residual`
//! and `y` may be the same array. [`QkvParams`] has the shapes of `qkv`.
//!
//! Numerics: products and sums are in f32. The finished sum is multiplied by the scale, the bias is added, and the
//! product is rounded to the type of x. What follows it has the bits of a launch of its own: the residual addition, the
//! rotation, or SwiGLU ([`crate::swiglu`]), and one more rounding. So a decode step rounds where training does. On the
//! CPU the product with a bf16 weight is [`crate::matmul`], bit for bit; with an int8 weight a sum consists of sixteen
//! partial sums. In CUDA an f32 x is split into three bf16 (24 bits), whose products with the weight are exact.
//! [`CopyScheme`] names the ways to divide a product among blocks:
//!
//! - Tiles (`sm90.cuh`; `sm90a.cuh` for more than 16 rows with a bf16 weight), bf16 x on compute capability 9.0 if all
//!   addresses and the bytes of rows are multiples of 16: a sum is one accumulator, to which the products of 16
//!   consecutive k are added in ascending order from 0 on, as `wgmma` adds them. It has the same bits for every number
//!   of rows, every shape of tiles and every row beside it.
//! - Units (`sm80.cu`), all else: the warps of a block divide a sum, and their partial sums are added in order. The
//!   order depends on k alone.
//!
//! Tolerance as a multiple of one rounding error: bf16 2.5; f32 `2.5 (1 + ‖Σ|x w|‖ / ‖Σ x w‖)`; for swiglu in f32 the
//! sum of both products' tolerances times √(largest |gate|). Logits of bf16 x have `k / 8` more: tensor cores truncate
//! a sum to f32 after each 16 terms, by up to two rounding errors (measured on an H200: sums of 1024 terms were off by
//! 4e-6).
//!
//! Memory-bound by reading the weight.
//!
//! - Tiles: a block has 8 or 16 rows of x, with an int8 weight also 32 or 64, and up to 144 rows of each weight, so
//!   many that blocks occupy all multiprocessors in as few waves as possible: 28 rows of 3584, 144 of 18944, 16 pairs
//!   of q, k and v of a 7B model on an H200; with half as many blocks if each would read more of x than of the weight.
//!   Each block reads its rows of x once, with a norm twice, from L2. With 144 rows of the weight and one row that adds
//!   0.7 % to its bytes, with 16 rows 11 %; with 28 rows of the weight five times as much. With more rows than a block
//!   has, neighbouring blocks read the same part of the weight, all but one from L2.
//! - Tiles in clusters, for more than 16 rows with a bf16 weight: a block has 64 rows of x and up to 160 rows of each
//!   weight. Four blocks share x, each of which reads 16 rows. On the 120 multiprocessors of an H200 that run such
//!   clusters a block has 32 rows of 3584, 160 of 18944 and 24 pairs of q, k and v. That x adds 50, 10 and 33 % to the
//!   bytes of the weight, with a norm twice as much.
//! - Units: a block has up to 64 rows of x (int8 and logits 32, f32 16); with more rows, or on a GPU with little shared
//!   memory, neighbouring blocks read the same part of the weight, all but one from L2. Every block of 16 columns of y
//!   (32 if there are many columns) reads x again from L1 or L2: with 16 rows as many bytes as the weight, with 64 rows
//!   four times as many, and with a norm twice that, besides the norm's weight.

pub(crate) mod check;
mod choices;
mod clusters;
mod cpu;
mod examples;
mod formula;
mod plan;
mod product;
mod tiles;

use bytemuck::Zeroable;
use reel_device::launch::{Padding, TensorMapSlot};
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::folder::kernel_folder;
use crate::rope_kv_write;
use crate::tuning::Variant;
use choices::MinWideBlocks;
use plan::{plan_product, plan_qkv};
use tiles::TileShape;

pub use choices::{CopyScheme, PlanChoices, plan_choices};

params! {
    /// Parameters of the kernels. The slots of tensor maps are empty and `reserved` is 0 in a call.
    pub struct Params {
        /// Tensor map of w. The launch plan fills it in if its kernel uses tensor copies.
        pub w_map: TensorMapSlot,
        /// Tensor map of w2.
        pub w2_map: TensorMapSlot,
        /// Tensor map of x.
        pub x_map: TensorMapSlot,
        /// f32 or bf16 `[m, k]`
        pub x: Addr,
        /// bf16 or int8 `[n, k]`
        pub w: Addr,
        /// The second weight of `swiglu`, bf16 or int8 `[n, k]`; null in other kernels.
        pub w2: Addr,
        /// f32 `[n]`, scales of an int8 weight; otherwise null.
        pub scale: Addr,
        /// f32 `[n]`, scales of an int8 second weight; otherwise null.
        pub scale2: Addr,
        /// The bias, f32 or bf16 `[n]`, which `linear` adds to each row of y; null: no bias.
        pub bias: Addr,
        /// The residual, f32 or bf16 `[m, n]`, which `linear` adds to y; null: no residual.
        pub residual: Addr,
        /// f32 or bf16 `[k]`, the weight of the norm of x in `swiglu`; null: no norm.
        pub norm: Addr,
        /// The result, f32 or bf16 `[m, n]` (f32 in `logits`); the kernel writes it.
        pub y: Addr,
        /// Rows of x.
        pub m: u32,
        /// Rows of the weight.
        pub n: u32,
        /// Length of the sums (the inner dimension of the product).
        pub k: u32,
        /// eps of the normalisation: is added to the mean square before the square root.
        pub eps: f32,
        /// Padding.
        pub reserved: Padding<10>,
    }
}

params! {
    /// Parameters of `qkv`. The queries have `heads * head_dim` columns, keys and values `kv_heads * head_dim` each.
    /// The slots of tensor maps are empty and `reserved` is 0 in a call.
    pub struct QkvParams {
        /// Tensor map of w_q. The launch plan fills it in if its kernel uses tensor copies.
        pub q_map: TensorMapSlot,
        /// Tensor map of w_k.
        pub k_map: TensorMapSlot,
        /// Tensor map of w_v.
        pub v_map: TensorMapSlot,
        /// Tensor map of x.
        pub x_map: TensorMapSlot,
        /// f32 or bf16 `[m, k]`
        pub x: Addr,
        /// f32 or bf16 `[k]`, the weight of the norm of x; null: no norm.
        pub norm: Addr,
        /// The weight of the queries, bf16 or int8 `[heads * head_dim, k]`.
        pub w_q: Addr,
        /// The weight of the keys, bf16 or int8 `[kv_heads * head_dim, k]`.
        pub w_k: Addr,
        /// The weight of the values, bf16 or int8 `[kv_heads * head_dim, k]`.
        pub w_v: Addr,
        /// The scales of an int8 `w_q`, f32 `[heads * head_dim]`; null for a bf16 weight.
        pub scale_q: Addr,
        /// The scales of an int8 `w_k`, f32 `[kv_heads * head_dim]`; null for a bf16 weight.
        pub scale_k: Addr,
        /// The scales of an int8 `w_v`, f32 `[kv_heads * head_dim]`; null for a bf16 weight.
        pub scale_v: Addr,
        /// The bias of the queries, f32 or bf16 `[heads * head_dim]`; null: no bias.
        pub bias_q: Addr,
        /// The bias of the keys, f32 or bf16 `[kv_heads * head_dim]`; null: no bias.
        pub bias_k: Addr,
        /// The bias of the values, f32 or bf16 `[kv_heads * head_dim]`; null: no bias.
        pub bias_v: Addr,
        /// f32 `[m, head_dim / 2]`
        pub cos: Addr,
        /// f32 `[m, head_dim / 2]`
        pub sin: Addr,
        /// i32 `[m]`: the slot of each row in the caches, `page * page_tokens + row of the page`. Slots are different
        /// and within the cache. The key and value of a row with a negative slot are not written.
        pub slots: Addr,
        /// The rotated queries, f32 or bf16 `[m, heads, head_dim]`; the kernel writes them.
        pub q: Addr,
        /// The cache of keys, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the slots of the
        /// rows.
        pub k_cache: Addr,
        /// The cache of values, `[pages, page_tokens, kv_heads, head_dim]`, which the kernel writes at the slots of the
        /// rows.
        pub v_cache: Addr,
        /// Rows of x: new tokens.
        pub m: u32,
        /// Length of the sums (the inner dimension of the product).
        pub k: u32,
        /// Query heads.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head; even.
        pub head_dim: u32,
        /// Pages of the cache.
        pub pages: u32,
        /// Number of tokens per page of the caches: 16, 32, 64, 128 or 256.
        pub page_tokens: u32,
        /// eps of the normalisation: is added to the mean square before the square root.
        pub eps: f32,
        /// Padding.
        pub reserved: Padding<6>,
    }
}

impl QkvParams {
    /// Returns the parameters of three separate products, of normalised rows `x` to q, k and v. Each writes `[m,
    /// columns]` to its address in `results`.
    pub(crate) fn product_params(&self, x: Addr, results: [Addr; 3]) -> [Params; 3] {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layers = [
            (self.w_q, self.scale_q, self.bias_q, queries),
            (self.w_k, self.scale_k, self.bias_k, keys),
            (self.w_v, self.scale_v, self.bias_v, keys),
        ];
        std::array::from_fn(|i| {
            let (w, scale, bias, n) = layers[i];
            Params { x, w, scale, bias, y: results[i], m: self.m, n, k: self.k, ..Zeroable::zeroed() }
        })
    }

    /// Returns the parameters of a launch that rotates q and `k` and writes `k` and `v` to the caches.
    pub(crate) fn kv_write_params(&self, [k, v]: [Addr; 2]) -> rope_kv_write::Params {
        rope_kv_write::Params {
            q: self.q,
            k,
            v,
            cos: self.cos,
            sin: self.sin,
            k_cache: self.k_cache,
            v_cache: self.v_cache,
            slots: self.slots,
            tokens: self.m,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            pages: self.pages,
            page_tokens: self.page_tokens,
        }
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
    params: [Params, QkvParams],
    headers: ["products.cuh", "sm90.cuh", "sm90a.cuh", "weights.cuh"],
    headers_of: [rms_norm],
    variants: VARIANTS,
}

/// The properties of a kernel's operands that its launch plan depends on.
#[derive(Clone, Copy)]
struct Operands {
    /// Number of 16-byte units of a row of x that are multiplied with one unit of a row of the weight.
    x_units: u32,
    /// Maximum number of rows of x per block.
    max_rows: u32,
    /// Bytes of an element of the weight.
    weight_bytes: u64,
    /// Selects the numbers of [`MinWideBlocks`] for these operands. They decide when blocks have 32 columns instead
    /// of 16.
    wide_blocks: fn(&MinWideBlocks) -> [u64; 2],
}

const BF16: Operands = Operands { x_units: 1, max_rows: 64, weight_bytes: 2, wide_blocks: |w| w.bf16 };
const BF16_LOGITS: Operands = Operands { max_rows: 32, ..BF16 };
const F32: Operands = Operands { x_units: 2, max_rows: 16, weight_bytes: 2, wide_blocks: |w| w.f32 };
const INT8_BF16: Operands = Operands { x_units: 2, max_rows: 32, weight_bytes: 1, wide_blocks: |w| w.int8 };
const INT8_F32: Operands = Operands { x_units: 4, max_rows: 16, weight_bytes: 1, wide_blocks: |w| w.f32 };

/// The CUDA kernel names of a kernel. `units`: kernels that copy 16-byte units, each with its number of tiles (8 weight
/// rows) per block. `tiles`: tile shapes of the scheme `Tiles`. `clusters`: tile shapes of kernels with clusters.
#[derive(Clone, Copy)]
struct Symbols {
    units: &'static [(u32, &'static str)],
    tiles: &'static [TileShape],
    clusters: &'static [clusters::TileShape],
}

/// The choices that a kernel variant fixes; `None` leaves a choice to [`choices`].
#[derive(Clone, Copy)]
struct Fixed {
    /// Blocks of the scheme `Units` have 32 columns if this is true and 16 if it is false; `None` leaves the choice to
    /// [`choices`].
    wide: Option<bool>,
    scheme: Option<CopyScheme>,
    /// For products of few rows: number of thread blocks of [`CopyScheme::Units`] that fit into the shared memory of
    /// one multiprocessor.
    blocks: u32,
    /// Number of blocks of the scheme `Tiles` for every two multiprocessors.
    blocks_per_2_multiprocessors: Option<u32>,
}

const CHOSEN: Fixed = Fixed { wide: None, scheme: None, blocks: 2, blocks_per_2_multiprocessors: None };
const UNITS: Fixed = Fixed { scheme: Some(CopyScheme::Units), ..CHOSEN };
const NARROW: Fixed = Fixed { wide: Some(false), ..UNITS };
const WIDE: Fixed = Fixed { wide: Some(true), ..UNITS };
const TILES: Fixed = Fixed { scheme: Some(CopyScheme::Tiles), blocks_per_2_multiprocessors: Some(2), ..CHOSEN };
const MANY_TILES: Fixed = Fixed { blocks_per_2_multiprocessors: Some(4), ..TILES };
const FEW_TILES: Fixed = Fixed { blocks_per_2_multiprocessors: Some(1), ..TILES };

/// Declares kernels and their variants. A kernel has a constant, a name in profiles, parameters, a plan, a CPU
/// function, CUDA kernel names and operands. In brackets are its variants, each with a constant, a name and the choices
/// that it fixes.
macro_rules! kernels {
    ($($id:ident: $symbol:literal, $params:ty, $plan:ident, $cpu:expr, $symbols:expr, $operands:expr
        $(, [$($variant:ident: $name:literal, $fixed:expr;)*])?;)*) => {
        $(
            kernel!(pub $id, $symbol, $params, $cpu, &SOURCE, |p, arch| $plan(p, arch, $symbols, $operands, CHOSEN));
            $($(kernel!(pub $variant, $symbol, $params, $cpu, &SOURCE, |p, arch| $plan(
                p, arch, $symbols, $operands, $fixed
            ));)*)?
        )*
        const VARIANTS: &[Variant] =
            &[$($($(Variant { of: &$id, name: $name, kernel: &$variant },)*)?)*];
    };
}

/// Returns a [`TileShape`] from the kernel's name and the maximum number of weight rows in a box. `many` gives a shape
/// for up to 64 rows of x. `few` gives a shape for up to 16 rows, because with more rows the kernel uses clusters.
macro_rules! shape {
    ($rows:ident, $name:expr, 64) => {
        TileShape { max_width: 64, boxes: 4, tiles: 1, symbols: shape!($rows, concat!($name, "_64")) }
    };
    ($rows:ident, $name:expr, 144) => {
        TileShape { max_width: 144, boxes: 1, tiles: 3, symbols: shape!($rows, concat!($name, "_144")) }
    };
    (few, $name:expr) => {
        &[concat!($name, "_x1"), concat!($name, "_x2")]
    };
    (many, $name:expr) => {
        &[concat!($name, "_x1"), concat!($name, "_x2"), concat!($name, "_x4"), concat!($name, "_x8")]
    };
}

/// Returns the [`Symbols`] of a kernel from its name. A number in parentheses is the number of tiles (8 weight rows)
/// per block in the scheme `Units`; without it there are kernels with two and with four tiles. The numbers after a
/// comma are the maximum widths of the tile shapes. The pairs after a semicolon are the width and the number of boxes
/// of each shape with clusters.
macro_rules! symbols {
    ($name:literal $(, $max_width:tt)* $(; $($columns:literal: $boxes:literal),*)?) => {
        symbols!(@ $name, &[(2, $name), (4, concat!($name, "_wide"))], [$($max_width),*], $($($columns: $boxes),*)?)
    };
    ($name:literal ($tiles:literal) $(, $max_width:tt)* $(; $($columns:literal: $boxes:literal),*)?) => {
        symbols!(@ $name, &[($tiles, $name)], [$($max_width),*], $($($columns: $boxes),*)?)
    };
    (@ $name:literal, $units:expr, [$($max_width:tt),*],) => {
        Symbols { units: $units, tiles: &[$(shape!(many, $name, $max_width)),*], clusters: &[] }
    };
    (@ $name:literal, $units:expr, [$($max_width:tt),*], $($columns:literal: $boxes:literal),*) => {
        Symbols {
            units: $units,
            tiles: &[$(shape!(few, $name, $max_width)),*],
            clusters: &[$(clusters::TileShape {
                max_width: $columns,
                boxes: $boxes,
                symbol: concat!($name, "_clusters_", $columns),
            }),*],
        }
    };
}

kernels! {
    LINEAR_BF16: "skinny_linear_bf16", Params, plan_product, cpu::linear::<half::bf16>,
        symbols!("skinny_linear_bf16", 64, 144; 32: 4, 160: 1), BF16, [
            LINEAR_BF16_16_COLUMNS: "16 columns", NARROW;
            LINEAR_BF16_32_COLUMNS: "32 columns", WIDE;
            LINEAR_BF16_ONE_BLOCK: "one block per multiprocessor", Fixed { blocks: 1, ..UNITS };
            LINEAR_BF16_TILES: "tiles", TILES;
            LINEAR_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            LINEAR_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    LINEAR_F32: "skinny_linear_f32", Params, plan_product, cpu::linear::<f32>, symbols!("skinny_linear_f32"), F32;
    LINEAR_INT8_BF16: "skinny_linear_int8_bf16", Params, plan_product, cpu::linear_int8::<half::bf16>,
        symbols!("skinny_linear_int8_bf16", 64, 144), INT8_BF16, [
            LINEAR_INT8_BF16_16_COLUMNS: "16 columns", NARROW;
            LINEAR_INT8_BF16_32_COLUMNS: "32 columns", WIDE;
            LINEAR_INT8_BF16_TILES: "tiles", TILES;
            LINEAR_INT8_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            LINEAR_INT8_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    LINEAR_INT8_F32: "skinny_linear_int8_f32", Params, plan_product, cpu::linear_int8::<f32>,
        symbols!("skinny_linear_int8_f32"), INT8_F32;
    LOGITS_BF16: "skinny_logits_bf16", Params, plan_product, cpu::logits::<half::bf16>,
        symbols!("skinny_logits_bf16", 144; 160: 1), BF16_LOGITS, [
            LOGITS_BF16_16_COLUMNS: "16 columns", NARROW;
            LOGITS_BF16_32_COLUMNS: "32 columns", WIDE;
            LOGITS_BF16_TILES: "tiles", TILES;
            LOGITS_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            LOGITS_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    LOGITS_INT8_BF16: "skinny_logits_int8_bf16", Params, plan_product, cpu::logits_int8::<half::bf16>,
        symbols!("skinny_logits_int8_bf16", 144), INT8_BF16, [
            LOGITS_INT8_BF16_16_COLUMNS: "16 columns", NARROW;
            LOGITS_INT8_BF16_32_COLUMNS: "32 columns", WIDE;
            LOGITS_INT8_BF16_TILES: "tiles", TILES;
            LOGITS_INT8_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            LOGITS_INT8_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    SWIGLU_BF16: "skinny_swiglu_bf16", Params, plan_product, cpu::swiglu::<half::bf16>,
        symbols!("skinny_swiglu_bf16" (4), 144; 160: 1), BF16, [
            SWIGLU_BF16_UNITS: "copies of 16 bytes", UNITS;
            SWIGLU_BF16_ONE_BLOCK: "one block per multiprocessor", Fixed { blocks: 1, ..UNITS };
            SWIGLU_BF16_TILES: "tiles", TILES;
            SWIGLU_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            SWIGLU_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    SWIGLU_F32: "skinny_swiglu_f32", Params, plan_product, cpu::swiglu::<f32>,
        symbols!("skinny_swiglu_f32" (4)), F32;
    SWIGLU_INT8_BF16: "skinny_swiglu_int8_bf16", Params, plan_product, cpu::swiglu_int8::<half::bf16>,
        symbols!("skinny_swiglu_int8_bf16" (4), 144), INT8_BF16, [
            SWIGLU_INT8_BF16_UNITS: "copies of 16 bytes", UNITS;
            SWIGLU_INT8_BF16_TILES: "tiles", TILES;
            SWIGLU_INT8_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            SWIGLU_INT8_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    SWIGLU_INT8_F32: "skinny_swiglu_int8_f32", Params, plan_product, cpu::swiglu_int8::<f32>,
        symbols!("skinny_swiglu_int8_f32" (4)), INT8_F32;
    QKV_BF16: "skinny_qkv_bf16", QkvParams, plan_qkv, cpu::qkv::<half::bf16>,
        symbols!("skinny_qkv_bf16" (2), 64; 32: 2, 64: 2), BF16, [
            QKV_BF16_UNITS: "copies of 16 bytes", UNITS;
            QKV_BF16_TILES: "tiles", TILES;
            QKV_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            QKV_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    QKV_F32: "skinny_qkv_f32", QkvParams, plan_qkv, cpu::qkv::<f32>, symbols!("skinny_qkv_f32" (2)), F32;
    QKV_INT8_BF16: "skinny_qkv_int8_bf16", QkvParams, plan_qkv, cpu::qkv_int8::<half::bf16>,
        symbols!("skinny_qkv_int8_bf16" (2), 64), INT8_BF16, [
            QKV_INT8_BF16_UNITS: "copies of 16 bytes", UNITS;
            QKV_INT8_BF16_TILES: "tiles", TILES;
            QKV_INT8_BF16_MANY_TILES: "tiles with half as many columns", MANY_TILES;
            QKV_INT8_BF16_FEW_TILES: "tiles with twice as many columns", FEW_TILES;
        ];
    QKV_INT8_F32: "skinny_qkv_int8_f32", QkvParams, plan_qkv, cpu::qkv_int8::<f32>,
        symbols!("skinny_qkv_int8_f32" (2)), INT8_F32;
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
/// of x, F32 or BF16.
pub fn logits(dtype: DType, weight: WeightFormat, params: &Params) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, _) => return linear(dtype, weight, params),
        (_, WeightFormat::Bf16) => &LOGITS_BF16,
        (_, WeightFormat::Int8) => &LOGITS_INT8_BF16,
    };
    // An element of y has 4 bytes, but the cost of a product counts 2, as for x.
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

/// Returns the launch that computes the projections of [`QkvParams`], bit-identical to [`linear`] of the normalised x
/// followed by [`rope_kv_write::write`]. `dtype` is the type of x, the biases, q and the caches, F32 or BF16.
pub fn qkv(dtype: DType, weight: WeightFormat, params: &QkvParams) -> Launch {
    let kernel = match (dtype, weight) {
        (DType::F32, WeightFormat::Bf16) => &QKV_F32,
        (_, WeightFormat::Bf16) => &QKV_BF16,
        (DType::F32, WeightFormat::Int8) => &QKV_INT8_F32,
        (_, WeightFormat::Int8) => &QKV_INT8_BF16,
    };
    // The three products together read x once, and k and v are written to the caches only.
    let x_bytes = params.m as f64 * params.k as f64 * dtype.size() as f64;
    let products = params.product_params(params.x, [Addr::NULL; 3]).map(|p| cost(dtype, weight, &p, 1.0));
    let sums = products.into_iter().fold(Cost { flops: 0.0, bytes: -2.0 * x_bytes }, add_costs);
    let half_head = params.m as f64 * (params.head_dim / 2) as f64;
    let rotation = Cost {
        flops: 6.0 * half_head * (params.heads + params.kv_heads) as f64,
        bytes: 8.0 * half_head + 4.0 * params.m as f64,
    };
    let cost = add_costs(add_costs(sums, rotation), norm_cost(dtype, params.norm, [params.m, params.k]));
    Launch::kernel(kernel, params, cost)
}

fn add_costs(a: Cost, b: Cost) -> Cost {
    Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes }
}

/// Returns the cost of the norm of x `[m, k]`, without reading x; zero if the norm's weight `norm` is null.
fn norm_cost(dtype: DType, norm: Addr, [m, k]: [u32; 2]) -> Cost {
    match norm {
        Addr::NULL => Cost { flops: 0.0, bytes: 0.0 },
        _ => Cost { flops: 4.0 * m as f64 * k as f64, bytes: k as f64 * dtype.size() as f64 },
    }
}

/// Returns the cost of the product with one weight, or with two (swiglu).
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
        (3, 8460, 144),
    ]
}
