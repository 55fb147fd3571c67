//! Softmax attention over a packed batch, and its gradient, for training and the vision tower.
//!
//! For each sequence, head and query `i`, over the keys `j` of the sequence (`j <= i` if causal): `s_j = scale * q_i
//! . k_j`, `lse_i = ln sum_j e^(s_j)`, `p_j = e^(s_j - lse_i)`, `o_i = sum_j p_j v_j`. Query head `h` uses key head
//! `h / (heads / kv_heads)`.
//!
//! Gradient: `delta_i = d_o_i . o_i`, `dv_j = sum_i p_ij d_o_i`, `ds_ij = p_ij (d_o_i . v_j - delta_i)`, `dq_i =
//! scale * sum_j ds_ij k_j`, `dk_j = scale * sum_i ds_ij q_i`. The gradients of a key head sum over the query heads
//! that use it.
//!
//! Shapes: q, o `[tokens, heads, head_dim]`, k, v `[tokens, kv_heads, head_dim]`, f32 or bf16. Sequence `n` consists
//! of the tokens `cu_seqlens[n] .. cu_seqlens[n + 1]` and may be empty. Outputs of tokens outside every sequence are
//! not written. In CUDA `scale` must be positive.
//!
//! # Shared prefix
//! A sequence may have a prefix: a range of other sequences' tokens whose keys come before its own. All queries of
//! the sequence see all keys of the prefix. Example, a GRPO group with a prompt of 3 tokens and two completions of 2
//! tokens each:
//!
//! ```text
//! tokens      P P P A A B B          cu_seqlens = [0, 3, 5, 7]
//! prefix      (0,0) (0,3) (0,3)      first token and number of tokens, for each sequence
//! keys of A's second query: P P P A A          keys of B's second query: P P P B B
//! ```
//!
//! The gradients of the prompt's keys sum over the three sequences in ascending order.
//!
//! # Order of summation
//! ```text
//! for each query row:
//!   total = empty
//!   for each segment of 512 keys, counted from the first key (of the prefix, if there is one):
//!     row = empty
//!     for each block of 64 keys: row = online_softmax(row, block)      # running maximum, sum of exponentials, output
//!     total = merge(total, row)
//!   o = total.output / total.sum
//! ```
//!
//! The wgmma kernel (`FWD_BF16_WGMMA`, on compute capability 9.0 for head_dim 64, 72, 80 and 128) sums in another order,
//! because its masked block has to come first. `row_state.cuh` defines this order for the forward pass and for paged
//! prefill and decode:
//!
//! ```text
//! for each query row:
//!   total = none
//!   for each segment of 512 keys, counted from the first key (of the prefix, if there is one), descending:
//!     row = empty
//!     for each block of 128 keys, descending:
//!       row = lazy_softmax(row, block)              # the reference of the weights moves only if it grows by 2^8
//!     total = merge(total, row)
//!   o = total.output / total.sum
//! ```
//!
//! A row never reads a key that it may not see. So its result depends, bit for bit, only on its own query and keys,
//! not on other rows, sequences or threads, and [`crate::paged_attention`], which runs the same code, gives the same
//! bits. The gradients have a fixed order too: `dq` sums over keys in ascending order; `dk` and `dv` sum over
//! sequences ascending, tiles of 64 queries descending, heads ascending. With wgmma, `dq` sums over blocks of 128
//! keys in descending order, counted from the first key of the prefix, and within a block in ascending order; `dk` and
//! `dv` sum in this way over the heads of each part of a group, then over the parts. How many parts there are follows
//! from the length of the keys' own sequence ([`KeyParts`]). Whether a call uses wgmma depends on head_dim, and on
//! whether its longest sequence has more than 64 tokens (`choices.rs`).
//!
//! # Numerics
//! Everything between load and store is f32, the probabilities too, with one exception: bf16 on tensor cores (forward
//! for head_dim up to 256; backward for 64, 72, 80 and 128), and on a CPU with bf16 dot products or the tiles of AMX
//! (an even head_dim), rounds the factors of matrix products to bf16. In the forward pass these are the probabilities
//! relative to the largest score so far, in the backward pass `p` and `p (d_o . v - delta)`. On tensor cores and
//! tiles a key that a query does not see, but a later query of the same rows does, is multiplied by 0 (departure 2 in
//! `sm80.cu`). The wgmma kernels round probabilities that are relative to an earlier maximum, so they may be up to
//! 2^8 times as large. This does not change their relative error.
//!
//! In f32 every addition rounds; `2^x` has an error of up to 2 ulp (`ex2.approx.ftz.f32`). Tolerance as a multiple of
//! one rounding error: bf16 2.5; f32 20 for o and 300 for gradients, in which `d_o . v` and delta cancel, and more
//! where scores are large and the softmax saturates.
//!
//! # Bound
//! Multiply-adds in f32 (f32, and bf16 on a CPU without a unit for it) or matrix products of bf16: per pair of query
//! and key `4 * head_dim` operations forward and `10 * head_dim` backward. The backward pass does `14 * head_dim`: two
//! passes, one for dk and dv and one for dq, compute the scores and `d_o . v` each.
//!
//! # Gradients by products of warpgroups: why seven products
//! A prototype had both ways on an H200 (heads 28/4, head_dim 128, causal, two runs, TFLOP/s of five products, with
//! delta and all conversions): seven products in two passes, and five products that pass on the sums of `dq` in f32,
//! in the two best schedules.
//!
//! | tokens | seven | five, pipelined | five, simple |
//! |---|---|---|---|
//! | 8192 | 497, 524 | 521, 506 | 508, 503 |
//! | 4096 | 431, 460 | 430, 444 | 490, 467 |
//! | 16384 | 467, 464 | 460, 462 | 475, 497 |
//! | 16 x 1024 | 360, 368 | 304, 326 | 327, 326 |
//!
//! With 8192 tokens, and in many short sequences, five products are not faster. They need a workspace of `dq` in f32,
//! waits between blocks of threads, and cannot have prefixes. With one sequence of 4096 tokens the simple schedule was
//! faster by 7 % on average; there the prototype of seven products ran its passes one after the other, and split the
//! heads of a group by the work of the whole batch, which would make a row's bits depend on the batch.
//! `backward_wgmma.cuh` has both passes in one launch instead, so that tiles of `dq` fill the time in which the longest
//! tiles of keys run, and splits heads by the length of the own sequence. That, and head_dim 64, 72 and 80 by
//! seven products, was not measured.
//!
//! # Balance of gradients
//! The work of the mean multiprocessor, divided by that of the busiest of 132, and the f32 sums of parts, which are
//! written once and read once in each launch (computed from the kernel's own numbering, `check/cuda/tile_order.rs`):
//!
//! | heads | tokens | parts | without parts | with parts | sums of parts |
//! |---|---|---|---|---|---|
//! | 28 / 4 | 8192 | 1 | 1.00 | 1.00 | none |
//! | 28 / 4 | 16 x 1024 | 1 | 1.00 | 1.00 | none |
//! | 28 / 4 | 4096 | 2 | 0.88 | 0.995 | 34 MB |
//! | 28 / 4 | 2048 | 3 | 0.45 | 0.98 | 25 MB |
//! | 16 / 2 | 8192 | 2 | 0.86 | 0.997 | 34 MB |
//! | 16 / 2 | 4096 | 3 | 0.44 | 0.99 | 25 MB |
//! | 16 / 2 | 2048 | 4 | 0.23 | 0.90 | 17 MB |

pub(crate) mod check;
pub(crate) mod choices;
pub(crate) mod cpu;
mod examples;
pub(crate) mod formula;
pub(crate) mod parts;
pub(crate) mod plan;

pub use parts::KeyParts;
use reel_device::launch::{Padding, TensorMapSlot, kernel_for_dtype};
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::folder::kernel_folder;

params! {
    /// Parameters of the forward kernel.
    pub struct FwdParams {
        /// Tensor map of q. Launches of kernels that use tensor copies fill it in.
        pub q_map: TensorMapSlot,
        /// Tensor map of k.
        pub k_map: TensorMapSlot,
        /// Tensor map of v.
        pub v_map: TensorMapSlot,
        /// `[tokens, heads, head_dim]`
        pub q: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// The output, `[tokens, heads, head_dim]`; the kernel writes it.
        pub o: Addr,
        /// f32 `[tokens, heads]`, written: the log-sum-exp of each row's scores; may be null.
        pub lse: Addr,
        /// i32 `[seqs + 1]`: first token of each sequence, and the end of the last one. The values do not decrease
        /// and lie between 0 and `tokens`.
        pub cu_seqlens: Addr,
        /// i32 `[seqs, 2]`: first token and number of tokens of each sequence's prefix, which may span several
        /// sequences; every prefix token belongs to a sequence. Null: no prefixes.
        pub prefix: Addr,
        /// u32, 0 before and after the launch: the atomic counter from which the blocks of the wgmma kernels take tile
        /// numbers. Launches with the same counter must follow one another. Null: the grid has a block for each tile.
        pub tile_counter: Addr,
        /// Number of tokens in q, k and v.
        pub tokens: u32,
        /// Sequences.
        pub seqs: u32,
        /// Number of query heads, a multiple of `kv_heads`.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head.
        pub head_dim: u32,
        /// 1: a query sees the keys up to its own position; 0: all keys of its sequence.
        pub causal: u32,
        /// Softmax scale: the positive factor by which scores (q · k) are multiplied.
        pub scale: f32,
        /// Number of tokens of the longest sequence.
        pub max_seqlen: u32,
        /// `scale * log2(e)`, which [`fwd`] fills in. Kernels read this number from the parameters where they use it,
        /// so it needs no register.
        pub score_factor: f32,
        /// Number of query heads of a section of the order of tiles, a divisor of `heads`; [`fwd`] fills it in.
        pub section_heads: u32,
        /// Zeros.
        pub reserved: Padding<6>,
    }
}

params! {
    /// Parameters of the backward kernel.
    pub struct BwdParams {
        /// Tensor map of q. Launches of kernels that use tensor copies fill it in.
        pub q_map: TensorMapSlot,
        /// Tensor map of d_o.
        pub d_o_map: TensorMapSlot,
        /// Tensor map of k.
        pub k_map: TensorMapSlot,
        /// Tensor map of v.
        pub v_map: TensorMapSlot,
        /// `[tokens, heads, head_dim]`
        pub q: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub k: Addr,
        /// `[tokens, kv_heads, head_dim]`
        pub v: Addr,
        /// The output, `[tokens, heads, head_dim]`, as the forward kernel wrote it.
        pub o: Addr,
        /// The log-sum-exp of each row's scores, f32 `[tokens, heads]`, as the forward kernel wrote it.
        pub lse: Addr,
        /// `[tokens, heads, head_dim]`
        pub d_o: Addr,
        /// The gradient of q, `[tokens, heads, head_dim]`; the kernel writes it.
        pub dq: Addr,
        /// The gradient of k, `[tokens, kv_heads, head_dim]`; the kernel writes it.
        pub dk: Addr,
        /// The gradient of v, `[tokens, kv_heads, head_dim]`; the kernel writes it.
        pub dv: Addr,
        /// f32 `[tokens, heads]`, workspace for `d_o . o` of each row.
        pub delta: Addr,
        /// A workspace of [`workspace_bytes`] bytes, aligned to 16, for the wgmma kernels: the atomic counter from
        /// which blocks take tile numbers, and f32 sums of the parts of tiles of keys. May be null if no tile has
        /// several parts, and on device `cpu`.
        pub workspace: Addr,
        /// i32 `[seqs + 1]`: first token of each sequence, and the end of the last one. The values do not decrease
        /// and lie between 0 and `tokens`.
        pub cu_seqlens: Addr,
        /// i32 `[seqs, 2]`: first token and number of tokens of each sequence's prefix, which may span several
        /// sequences; every prefix token belongs to a sequence. Null: no prefixes.
        pub prefix: Addr,
        /// Number of tokens in q, k and v.
        pub tokens: u32,
        /// Sequences.
        pub seqs: u32,
        /// Number of query heads, a multiple of `kv_heads`.
        pub heads: u32,
        /// Number of key and value heads.
        pub kv_heads: u32,
        /// Number of elements of a head.
        pub head_dim: u32,
        /// 1: a query sees the keys up to its own position; 0: all keys of its sequence.
        pub causal: u32,
        /// Softmax scale: the positive factor by which scores (q · k) are multiplied.
        pub scale: f32,
        /// Number of tokens of the longest sequence.
        pub max_seqlen: u32,
        /// `scale * log2(e)`. [`bwd`] fills in this number and the next, as [`fwd`] does in [`FwdParams`].
        pub score_factor: f32,
        /// Number of query heads of a section of the order of tiles of queries.
        pub section_heads: u32,
        /// [`KeyParts::undivided_tiles`], which [`bwd`] fills in, as the next two numbers.
        pub undivided_tiles: u32,
        /// [`KeyParts::part_visits`].
        pub part_visits: u32,
        /// No tile of keys has more parts.
        pub max_parts: u32,
        /// Zeros.
        pub reserved: Padding<9>,
    }
}

impl BwdParams {
    /// Returns the parameters of the forward launch that this backward launch differentiates.
    pub(crate) fn forward_params(&self) -> FwdParams {
        let BwdParams { q, k, v, o, lse, cu_seqlens, prefix, .. } = *self;
        let BwdParams { tokens, seqs, heads, kv_heads, head_dim, causal, scale, max_seqlen, .. } = *self;
        FwdParams {
            q,
            k,
            v,
            o,
            lse,
            cu_seqlens,
            prefix,
            tokens,
            seqs,
            heads,
            kv_heads,
            head_dim,
            causal,
            scale,
            max_seqlen,
            ..FwdParams::EMPTY
        }
    }
}

kernel_folder! {
    name: "attention",
    params: [FwdParams, BwdParams],
    headers: [
        "backward_fma.cuh", "backward_keys.cuh", "backward_mma.cuh", "backward_parts.cuh", "backward_producer.cuh",
        "backward_wgmma.cuh", "backward_wgmma_keys.cuh", "backward_wgmma_queries.cuh", "fma_tile.cuh",
        "forward_fma.cuh", "forward_mma.cuh", "forward_producer.cuh", "forward_wgmma.cuh", "forward_windows.cuh",
        "head_copy.cuh",
        "packed_source.cuh", "packed_tiles.cuh", "position_tiles.cuh", "row_state.cuh", "sequences.cuh", "tile.cuh",
        "visits.cuh"
    ],
    variants: choices::VARIANTS,
}

kernel!(pub FWD_F32, "attention_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, plan::fwd_f32);
kernel!(pub FWD_BF16, "attention_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, plan::fwd_bf16);
kernel!(pub FWD_BF16_MMA, "attention_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, plan::fwd_bf16_mma);
kernel!(pub FWD_BF16_WGMMA, "attention_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE, plan::fwd_bf16_wgmma);
kernel!(
    pub FWD_BF16_WGMMA_EVICT_NORMAL, "attention_fwd_bf16", FwdParams, cpu::fwd::<half::bf16>, &SOURCE,
    plan::fwd_bf16_wgmma_evict_normal
);
kernel!(pub BWD_F32, "attention_bwd_f32", BwdParams, cpu::bwd::<f32>, &SOURCE, plan::bwd_f32);
kernel!(pub BWD_BF16, "attention_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, plan::bwd_bf16);
kernel!(pub BWD_BF16_MMA, "attention_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, plan::bwd_bf16_mma);
kernel!(pub BWD_BF16_WGMMA, "attention_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, plan::bwd_bf16_wgmma);
kernel!(pub BWD_BF16_EARLY, "attention_bwd_bf16", BwdParams, cpu::bwd::<half::bf16>, &SOURCE, plan::bwd_bf16_early);

/// Makes the forward launch. `dtype` is the type of q, k, v and o, F32 or BF16. `pairs` is the number of (query, key)
/// pairs that one head computes (see [`query_key_pair_count`]).
pub fn fwd(dtype: DType, params: &FwdParams, pairs: f64) -> Launch {
    let kernel = kernel_for_dtype(dtype, &FWD_F32, &FWD_BF16);
    let section_heads = plan::section_heads(params.tokens.into(), params.heads, params.kv_heads, params.head_dim);
    let params = &FwdParams { score_factor: params.scale * std::f32::consts::LOG2_E, section_heads, ..*params };
    let (tokens, heads, kv_heads) = (params.tokens as f64, params.heads as f64, params.kv_heads as f64);
    let d = params.head_dim as f64;
    let lse = if params.lse.is_null() { 0.0 } else { 4.0 * tokens * heads };
    let bytes = 2.0 * tokens * (heads + kv_heads) * d * dtype.size() as f64 + lse;
    Launch::kernel(kernel, params, Cost { flops: 4.0 * d * heads * pairs, bytes })
}

/// Returns the size in bytes of the workspace of the wgmma kernels. Returns 0 if no kernel would use it: for f32, for a
/// head_dim without a wgmma kernel, and for a device before compute capability 9.0 or without a GPU (0).
pub fn workspace_bytes(dtype: DType, p: &BwdParams, compute_capability: u32) -> usize {
    let is_used = dtype == DType::BF16 && compute_capability >= 90 && plan::has_wgmma_backward(p.head_dim);
    if is_used { KeyParts::OF_TRAINING.workspace_bytes(p) } else { 0 }
}

/// Makes the backward launch. `dtype` is the type of q, k, v, o and their gradients, F32 or BF16. `pairs` is the
/// number of (query, key) pairs that one head computes.
pub fn bwd(dtype: DType, params: &BwdParams, pairs: f64) -> Launch {
    bwd_in_parts(dtype, params, pairs, KeyParts::OF_TRAINING)
}

/// Makes the backward launch with another rule for the parts of tiles of keys.
pub(crate) fn bwd_in_parts(dtype: DType, params: &BwdParams, pairs: f64, parts: KeyParts) -> Launch {
    let kernel = kernel_for_dtype(dtype, &BWD_F32, &BWD_BF16);
    let params = &BwdParams { max_parts: parts.max_count(params), ..*params };
    let params = &BwdParams { undivided_tiles: parts.undivided_tiles, part_visits: parts.part_visits, ..*params };
    let section_heads = plan::section_heads(params.tokens.into(), params.heads, params.kv_heads, params.head_dim);
    let params = &BwdParams { score_factor: params.scale * std::f32::consts::LOG2_E, section_heads, ..*params };
    let (tokens, heads, kv_heads) = (params.tokens as f64, params.heads as f64, params.kv_heads as f64);
    let d = params.head_dim as f64;
    let bytes = 4.0 * tokens * (heads + kv_heads) * d * dtype.size() as f64 + 4.0 * tokens * heads;
    Launch::kernel(kernel, params, Cost { flops: 10.0 * d * heads * pairs, bytes })
}

/// Returns the number of (query, key) pairs that one head computes for sequences of these lengths without prefixes.
pub fn query_key_pair_count(lengths: impl IntoIterator<Item = usize>, causal: bool) -> f64 {
    lengths.into_iter().map(|n| n as f64).map(|n| if causal { n * (n + 1.0) / 2.0 } else { n * n }).sum()
}

/// The shape of a packed batch of sequences, for checks and benches.
#[derive(Clone, Debug)]
pub struct PackedBatch {
    /// Length of each sequence.
    pub lengths: Vec<usize>,
    /// Query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Number of elements of a head.
    pub head_dim: usize,
    /// Whether a query sees only the keys up to its own position.
    pub causal: bool,
    /// Standard deviation of the random queries: at 20 the softmax saturates, at 0 all scores are equal.
    pub spread: f32,
    /// First token and number of tokens of each sequence's prefix; empty: no prefixes.
    pub prefix: Vec<(usize, usize)>,
}

impl PackedBatch {
    /// Returns the index of the first token of sequence `n`.
    pub fn first_token(&self, n: usize) -> usize {
        self.lengths[..n].iter().sum()
    }

    /// Returns the tokens whose keys sequence `n` sees, in order: the tokens of its prefix, then its own tokens.
    pub fn visible_tokens(&self, n: usize) -> Vec<usize> {
        let (first, count) = self.prefix.get(n).copied().unwrap_or((0, 0));
        (first..first + count).chain(self.first_token(n)..self.first_token(n) + self.lengths[n]).collect()
    }

    /// Returns the number of keys that query `i` of sequence `n` sees.
    pub fn visible_key_count(&self, n: usize, i: usize) -> usize {
        let keys = self.lengths[n] + self.prefix.get(n).map_or(0, |p| p.1);
        if self.causal { keys - self.lengths[n] + i + 1 } else { keys }
    }

    /// Returns the number of (query, key) pairs that one head computes.
    pub fn query_key_pair_count(&self) -> f64 {
        (0..self.lengths.len())
            .flat_map(|n| (0..self.lengths[n]).map(move |i| self.visible_key_count(n, i) as f64))
            .sum()
    }
}

/// Batches that checks and benches share: lengths around the block sizes, key heads that several query heads use, and
/// head_dims that are not a multiple of the vector width.
pub fn test_shapes() -> Vec<PackedBatch> {
    let case = |lengths: &[usize], (heads, kv_heads), head_dim, causal, spread| PackedBatch {
        lengths: lengths.to_vec(),
        heads,
        kv_heads,
        head_dim,
        causal,
        spread,
        prefix: Vec::new(),
    };
    let group =
        PackedBatch { prefix: vec![(0, 0), (0, 70), (0, 70), (0, 70)], ..case(&[70, 9, 65, 1], (4, 2), 64, true, 1.0) };
    let odd = PackedBatch { prefix: vec![(3, 20), (0, 0), (1, 40)], ..case(&[5, 43, 30], (3, 1), 80, false, 1.0) };
    vec![
        case(&[0, 1, 17, 0, 63], (6, 3), 12, true, 1.0),
        case(&[64, 65, 1], (4, 1), 24, true, 1.0),
        case(&[130, 3], (8, 1), 64, true, 1.0),
        case(&[64, 64, 16, 0, 130], (4, 4), 80, false, 1.0),
        case(&[65, 17], (2, 1), 128, true, 20.0),
        case(&[63, 2], (3, 1), 16, false, 20.0),
        case(&[130], (6, 3), 32, true, 0.0),
        case(&[33, 100], (2, 1), 256, true, 1.0),
        case(&[70, 3], (2, 1), 96, true, 1.0),
        case(&[9, 66], (1, 1), 100, true, 1.0),
        case(&[35, 66], (2, 1), 260, true, 1.0),
        case(&[7, 70], (1, 1), 8, true, 5.0),
        case(&[90, 5], (2, 1), 72, true, 1.0),
        case(&[20, 81], (2, 2), 7, true, 1.0),
        PackedBatch { head_dim: 20, ..group.clone() },
        PackedBatch { head_dim: 128, ..group.clone() },
        group,
        odd,
        case(&[&[0; 120][..], &[64, 200], &[0; 90]].concat(), (2, 1), 20, true, 1.0),
    ]
}
