//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::folder::{FLOAT_DTYPES, HEAD_DIM, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::rope_kv_write_norm::{Params, write};

/// Number of query heads of Qwen3-VL-8B.
const HEADS: u32 = 32;
/// Number of key heads of Qwen3-VL-8B, and of value heads.
const KV_HEADS: u32 = 8;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = Params {
        tokens: SEQUENCE_LEN,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        pages: SEQUENCE_LEN / 64,
        page_tokens: 64,
        ..placeholder_params()
    };
    FLOAT_DTYPES.map(|t| ("8192 tokens, 32 query and 8 key heads of 128 elements", write(t, &p))).into()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (tokens, heads, kv_heads, head_dim) = (TRAFFIC_ROWS, HEADS, KV_HEADS, HEAD_DIM);
    let [cos, sin] = [(); 2].map(|()| arrays.alloc_f32(tokens * head_dim / 2));
    let [k, v] = [(); 2].map(|()| arrays.alloc_f32(tokens * kv_heads * head_dim));
    let [k_cache, v_cache] = [(); 2].map(|()| arrays.alloc_f32(4 * 64 * kv_heads * head_dim));
    let [q_norm, k_norm] = [(); 2].map(|()| arrays.alloc_f32(head_dim));
    let p = Params {
        q: arrays.alloc_f32(tokens * heads * head_dim),
        k,
        v,
        q_norm,
        k_norm,
        cos,
        sin,
        k_cache,
        v_cache,
        slots: arrays.alloc_i32((0..tokens as i32).map(|i| 2 * i)),
        tokens,
        heads,
        kv_heads,
        head_dim,
        pages: 4,
        page_tokens: 64,
        eps: 1e-6,
        reserved: 0,
    };
    // Each thread reads the weights of the norms once for up to eight heads.
    FLOAT_DTYPES.map(|t| (write(t, &p), 1.2)).into()
}
