//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};
use crate::rope_kv_write;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = rope_kv_write::Params {
        tokens: SEQUENCE_LEN,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        pages: SEQUENCE_LEN / 64,
        page_tokens: 64,
        ..placeholder_params()
    };
    FLOAT_DTYPES.map(|t| ("8192 tokens, 28 query and 4 key heads of 128 elements", rope_kv_write::write(t, &p))).into()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (tokens, heads, kv_heads, head_dim) = (TRAFFIC_ROWS, HEADS, KV_HEADS, HEAD_DIM);
    let [cos, sin] = [(); 2].map(|()| arrays.alloc_f32(tokens * head_dim / 2));
    let [k, v] = [(); 2].map(|()| arrays.alloc_f32(tokens * kv_heads * head_dim));
    let [k_cache, v_cache] = [(); 2].map(|()| arrays.alloc_f32(4 * 64 * kv_heads * head_dim));
    let p = rope_kv_write::Params {
        q: arrays.alloc_f32(tokens * heads * head_dim),
        k,
        v,
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
    };
    allow_one_tenth_more(FLOAT_DTYPES.map(|t| rope_kv_write::write(t, &p)))
}
