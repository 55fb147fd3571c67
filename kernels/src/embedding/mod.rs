//! Embedding: `y[t] = table[ids[t]]`, and the gradient of the table, `dw[ids[t]] += dy[t]`, adding tokens in order.
//!
//! With a vision index, pad tokens take rows of the vision tower's output: where `r = vision_index[t] ≥ 0`, `y[t] =
//! vision[r]`; in the backward pass such a token adds nothing to dw, and `d_vision[r] = dy[t]`.
//!
//! Shapes: table W `[vocab, hidden]`, y and dy T `[tokens, hidden]`, ids and vision_index i32 `[tokens]`, vision and
//! d_vision T `[placed, hidden]`, dw f32 `[vocab, hidden]`; W and T f32 or bf16 (f32 to bf16 rounds to nearest even).
//! Each vision row occurs once; rows of d_vision that no token names are not written. An id outside `0..vocab`, or a
//! vision row beyond `placed`, gives a row of zeros and no gradient; callers check ids beforehand. Outputs must not
//! overlap inputs.
//!
//! Numerics: the gradient is added in f32, with one rounding per token. The tokens with one id are summed first and
//! then added to the old value, so dw equals `old + new` bit for bit. For ten tokens with the same id the error may
//! be 4 times that of one rounding.
//!
//! Memory-bound. The CUDA backward kernel has no sorted list of ids. Each thread block, which has 32 tokens and a
//! strip of 2048 columns, reads all ids from L2: `tokens / 8` bytes per token and strip, in addition to the `hidden ·
//! (8 + size)` bytes that must move. That is a tenth more at 14 000 tokens of 3584 bf16 columns. A token whose id
//! occurs again later reads the ids after it once more.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use half::bf16;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// f32 or bf16 `[vocab, hidden]`
        pub table: Addr,
        /// i32 `[tokens]`
        pub ids: Addr,
        /// The embeddings, f32 or bf16 `[tokens, hidden]`; the kernel writes them.
        pub y: Addr,
        /// Output rows of the vision tower, `[placed, hidden]`, of the type of `y`. They are not read if `vision_index`
        /// is null.
        pub vision: Addr,
        /// i32 `[tokens]`: index of the vision row that replaces each token; negative: the token takes its table row;
        /// null: all tokens take their table rows.
        pub vision_index: Addr,
        /// Number of tokens.
        pub tokens: u32,
        /// Number of elements of a row.
        pub hidden: u32,
        /// Rows of the table.
        pub vocab: u32,
        /// Number of rows of `vision`.
        pub placed: u32,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// i32 `[tokens]`
        pub ids: Addr,
        /// f32 or bf16 `[tokens, hidden]`
        pub dy: Addr,
        /// The gradient of the table, f32 `[vocab, hidden]`, to which the kernel adds; null if the table is frozen.
        pub dw: Addr,
        /// i32 `[tokens]`, the vision index given to the forward kernel; null: none.
        pub vision_index: Addr,
        /// `[placed, hidden]` of the type of `dy`: gradient of the vision rows. Only rows that a token names are
        /// written; null: the gradient is not computed.
        pub d_vision: Addr,
        /// Number of tokens.
        pub tokens: u32,
        /// Number of elements of a row.
        pub hidden: u32,
        /// Rows of the table.
        pub vocab: u32,
        /// Number of rows of `vision`.
        pub placed: u32,
    }
}

kernel_folder! {
    name: "embedding",
    params: [FwdParams, BwdParams],
    traffic: traffic_launches,
}

kernel!(pub FWD_F32_F32, "embedding_fwd_f32_f32", FwdParams, cpu::fwd::<f32, f32>, &SOURCE, |p, _| cuh::plan_row_copy("embedding_fwd_f32_f32", p.tokens.into(), p.hidden.into(), 4));
kernel!(pub FWD_F32_BF16, "embedding_fwd_f32_bf16", FwdParams, cpu::fwd::<f32, bf16>, &SOURCE, |p, _| cuh::plan_row_copy("embedding_fwd_f32_bf16", p.tokens.into(), p.hidden.into(), 4));
kernel!(pub FWD_BF16_F32, "embedding_fwd_bf16_f32", FwdParams, cpu::fwd::<bf16, f32>, &SOURCE, |p, _| cuh::plan_row_copy("embedding_fwd_bf16_f32", p.tokens.into(), p.hidden.into(), 4));
kernel!(pub FWD_BF16_BF16, "embedding_fwd_bf16_bf16", FwdParams, cpu::fwd::<bf16, bf16>, &SOURCE, |p, _| cuh::plan_row_copy("embedding_fwd_bf16_bf16", p.tokens.into(), p.hidden.into(), 8));
kernel!(pub BWD_F32, "embedding_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, |p, _| plan_bwd("embedding_bwd_f32", p));
kernel!(pub BWD_BF16, "embedding_bwd_bf16", BwdParams, cpu::bwd::<bf16>, &SOURCE, |p, _| plan_bwd("embedding_bwd_bf16", p));

/// Tokens (`OWN`) and columns (`STRIP`) of one thread block of the backward kernel, as in sm80.cu.
const OWN: u32 = 32;
const STRIP: u32 = 2048;

fn plan_bwd(symbol: &'static str, p: &BwdParams) -> Vec<Stage> {
    cuh::plan_blocks(symbol, u64::from(p.tokens.div_ceil(OWN)) * u64::from(p.hidden.div_ceil(STRIP)), 256)
}

/// Launches the forward kernel; table and output are each F32 or BF16.
///
/// # Panics
/// For any other dtype.
pub fn fwd(table: DType, out: DType, params: &FwdParams) -> Launch {
    let kernel = match table {
        DType::F32 => kernel_for_dtype(out, &FWD_F32_F32, &FWD_F32_BF16),
        DType::BF16 => kernel_for_dtype(out, &FWD_BF16_F32, &FWD_BF16_BF16),
        other => panic!("embedding: the table must be f32 or bf16, not {other}"),
    };
    let n = params.tokens as f64 * params.hidden as f64;
    let indices = if params.vision_index.is_null() { 4.0 } else { 8.0 };
    let placed = if params.vision_index.is_null() {
        0.0
    } else {
        (params.placed.min(params.tokens) as f64) * params.hidden as f64
    };
    let read = (n - placed) * table.size() as f64 + placed * out.size() as f64;
    let bytes = read + n * out.size() as f64 + indices * params.tokens as f64;
    Launch::kernel(kernel, params, Cost { flops: 0.0, bytes })
}

/// Launches the backward kernel; `dtype` is that of dy, F32 or BF16.
pub fn bwd(dtype: DType, params: &BwdParams) -> Launch {
    let (tokens, hidden, size) = (params.tokens as f64, params.hidden as f64, dtype.size() as f64);
    let placed = if params.vision_index.is_null() { 0.0 } else { params.placed.min(params.tokens) as f64 };
    let added = if params.dw.is_null() { 0.0 } else { tokens - placed };
    let copied = if params.d_vision.is_null() { 0.0 } else { placed };
    let indices = if params.vision_index.is_null() { 4.0 } else { 8.0 };
    let bytes = (added * (size + 8.0) + copied * 2.0 * size) * hidden + indices * tokens;
    let cost = Cost { flops: added * hidden, bytes };
    Launch::kernel(kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16), params, cost)
}

/// Returns shapes (tokens, hidden, vocab) that the checks use.
pub fn test_cases_tokens_hidden_vocab() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 1), (17, 19, 3), (0, 8, 5), (517, 3, 60), (65, 2048, 33), (5, 513, 1000)]
}
