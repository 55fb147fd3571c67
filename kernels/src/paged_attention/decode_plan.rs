//! Plans the CUDA launches of decode in bf16.

use std::mem::offset_of;

use reel_device::{Addr, Arch, DType, Stage};
use reel_sim::tensor_map::{DataType, L2Promotion, Swizzle, TensorMap};

use super::{Params, Shape, segments, smallest_shape};

/// Number of query heads of a token that a block of threads computes in decode; equal to `MAX_HEADS` of
/// `decode_work.cuh`.
const DECODE_HEADS: u32 = 16;

/// Largest number of blocks of threads per multiprocessor in a decode launch. It is a multiple of the number that is
/// resident at a time, so that a new block starts when a block with a short segment has ended.
const DECODE_BLOCKS: u32 = 8;

/// Whether a launch runs the kernel for decode, which is meant for about one new token per sequence. This kernel is
/// correct for any number of new tokens, but it may read a sequence's keys again for each new token.
pub(super) fn is_decode(dtype: DType, p: &Params) -> bool {
    dtype == DType::BF16 && !p.counters.is_null() && p.tokens <= p.seqs
}

/// Plans one launch whose blocks of threads divide the items of work. An item is one segment of a token's keys (without
/// a workspace: all keys), for one key head and at most 16 of its query heads.
pub(super) fn plan_decode(p: &Params, arch: &Arch) -> Vec<Stage> {
    // Returns the bytes of shared memory: a ring of `stages` tiles of 64 keys or 64 values, and the scores of 16 rows.
    // Rows of a tile start an odd number of 16-byte chunks apart.
    const fn bytes(chunks: u32, stages: u32) -> u32 {
        stages * 64 * chunks * 16 + 16 * 72 * 4
    }
    const SHAPES: [Shape<&str>; 4] = [
        (64, "paged_attention_fwd_bf16_decode_64", bytes(9, 5)),
        (80, "paged_attention_fwd_bf16_decode_80", bytes(11, 5)),
        (128, "paged_attention_fwd_bf16_decode_128", bytes(17, 5)),
        (256, "paged_attention_fwd_bf16_decode_256", bytes(33, 2)),
    ];
    if p.tokens == 0 {
        return Vec::new();
    }
    let (_, symbol, shared) = smallest_shape(p, &SHAPES);
    let blocks = items(p).min(u64::from(arch.multiprocessors * DECODE_BLOCKS)) as u32;
    vec![Stage { shared: *shared, ..Stage::one_dimensional(symbol, blocks, 128) }]
}

/// Returns an upper bound on the number of items of work: the number if every token has `max_kv_len` keys.
fn items(p: &Params) -> u64 {
    let segments = if p.workspace.is_null() { 1 } else { u64::from(segments(p).max(1)) };
    u64::from(p.tokens) * segments * u64::from(counters_per_token(p.heads, p.kv_heads))
}

/// Number of keys (and of values) in a stage of the ring buffer in shared memory; equal to `STAGE_KEYS` of
/// `decode_producer.cuh`.
const STAGE_KEYS: u32 = 64;

/// Returns the bytes of shared memory of a block of threads, the size of `DecodeShared` of `decode_producer.cuh`.
const fn decode_rows_shared(head_dim: u32) -> u32 {
    let (stages, query_slots) = (6, 4);
    let keys_and_values = stages * 2 * STAGE_KEYS * head_dim * 2;
    let queries = query_slots * 16 * (2 * head_dim + 16);
    let scores = 2 * 2 * 8 * 128 * 4;
    let work = 108;
    keys_and_values + queries + scores + 16 * stages + 16 * (stages + query_slots) + work
}

/// Plans decode on Hopper, with the order of sums of `attention/row_state.cuh`: one persistent block of threads per
/// multiprocessor and, with a workspace, a second launch that merges each row's segments. Earlier GPUs, other head_dims
/// and prefill get [`super::plan_bf16_mma`].
pub(super) fn plan_bf16_decode_rows(p: &Params, arch: &Arch) -> Vec<Stage> {
    let symbol = match p.head_dim {
        64 => "paged_attention_fwd_bf16_decode_rows_64",
        80 => "paged_attention_fwd_bf16_decode_rows_80",
        128 => "paged_attention_fwd_bf16_decode_rows_128",
        _ => return super::plan_bf16_mma(p, arch),
    };
    if arch.sm < 90 || !is_decode(DType::BF16, p) {
        return super::plan_bf16_mma(p, arch);
    }
    if p.tokens == 0 {
        return Vec::new();
    }
    let blocks = items(p).min(u64::from(arch.multiprocessors)) as u32;
    let tensor_maps = vec![
        (offset_of!(Params, k_map), cache_map(p, p.k_cache)),
        (offset_of!(Params, v_map), cache_map(p, p.v_cache)),
    ];
    let decode = Stage {
        shared: decode_rows_shared(p.head_dim),
        tensor_maps,
        ..Stage::one_dimensional(symbol, blocks, 288).programmatic_on(arch)
    };
    if p.workspace.is_null() {
        return vec![decode];
    }
    let rows = p.tokens * p.heads;
    let combine = Stage::one_dimensional("paged_attention_fwd_bf16_combine_rows", rows.div_ceil(4), 128);
    vec![decode, combine.programmatic_on(arch)]
}

/// Returns the tensor map of a cache as `[kv_heads, groups of columns, slots, columns of a group]`. With pages of 64
/// tokens or more, a box has 64 slots and all columns of one head; with smaller pages, the slots of one page and the
/// columns of one group (`DecodeProducer::copy_stage`).
fn cache_map(p: &Params, cache: Addr) -> TensorMap {
    /// Upper bound on the number of slots, as the number of pages is not known here. The kernel copies only slots of a
    /// sequence's pages.
    const SLOTS: u64 = 1 << 31;
    let (columns, swizzle) = if p.head_dim.is_multiple_of(64) { (64, Swizzle::B128) } else { (16, Swizzle::B32) };
    let (groups, head_bytes) = (p.head_dim / columns, 2 * u64::from(p.head_dim));
    let (rows, box_groups) = if p.page_tokens >= STAGE_KEYS { (STAGE_KEYS, groups) } else { (p.page_tokens, 1) };
    let dims = [u64::from(columns), SLOTS, u64::from(groups), u64::from(p.kv_heads)];
    let strides = [head_bytes * u64::from(p.kv_heads), 2 * u64::from(columns), head_bytes];
    let map = TensorMap::tiled(DataType::Bf16, 0, &dims, &strides, &[columns, rows, box_groups, 1], swizzle);
    let map =
        map.expect("the tensor map of the KV cache is valid: strides are multiples of 32 bytes, and sizes are not 0");
    TensorMap { address: cache.0, l2_promotion: L2Promotion::B256, ..map }
}

/// Returns the number of elements of [`Params::counters`] for each token: one for each key head and each 16 of its
/// query heads.
pub const fn counters_per_token(heads: u32, kv_heads: u32) -> u32 {
    kv_heads * (heads / kv_heads).div_ceil(DECODE_HEADS)
}
