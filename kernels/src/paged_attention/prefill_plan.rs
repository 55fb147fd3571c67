//! Plans the launch of prefill on Hopper, by the kernel that uses wgmma.

use std::mem::offset_of;

use reel_device::{Arch, DType, Stage};

use super::{Params, is_decode, plan_bf16_mma};
use crate::attention::plan::{BLOCK_KEYS, HeadsTensor, QueryCounts};

/// Number of cache slots in the tensor maps: an upper bound, as the number of pages is not known here. The kernel
/// copies only slots of a sequence's pages.
const SLOTS: u64 = 1 << 31;

/// Plans the launches of prefill on Hopper by the kernel that uses wgmma. Decode, GPUs earlier than Hopper, and
/// head_dims other than 64, 80 and 128 get `plan_bf16_mma`.
pub(super) fn plan_bf16_wgmma(p: &Params, arch: &Arch) -> Vec<Stage> {
    let symbol = match p.head_dim {
        64 => "paged_attention_fwd_bf16_wgmma_64",
        80 => "paged_attention_fwd_bf16_wgmma_80",
        128 => "paged_attention_fwd_bf16_wgmma_128",
        _ => return plan_bf16_mma(p, arch),
    };
    if arch.sm < 90 || is_decode(DType::BF16, p) {
        return plan_bf16_mma(p, arch);
    }
    let &Params { tokens, seqs, heads, kv_heads, head_dim, .. } = p;
    let queries = QueryCounts { tokens, seqs, heads, max_queries: tokens.min(p.max_kv_len), has_earlier: true };
    let Some(stage) = queries.plan_stage(symbol, head_dim, arch) else { return Vec::new() };
    let cache = |tensor| {
        let map = HeadsTensor { tensor, tokens: SLOTS, heads: kv_heads, head_dim };
        match p.page_tokens >= BLOCK_KEYS {
            true => map.tensor_map_of_whole_heads(BLOCK_KEYS),
            false => map.tensor_map_of_column_group(p.page_tokens),
        }
    };
    let q = HeadsTensor { tensor: p.q, tokens: tokens.into(), heads, head_dim };
    let tensor_maps = vec![
        (offset_of!(Params, q_map), q.tensor_map_of_whole_heads(64)),
        (offset_of!(Params, k_map), cache(p.k_cache)),
        (offset_of!(Params, v_map), cache(p.v_cache)),
    ];
    vec![Stage { tensor_maps, ..stage }]
}
