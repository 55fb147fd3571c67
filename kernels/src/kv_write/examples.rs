//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{FLOAT_DTYPES, HEAD_DIM, KV_HEADS, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::kv_write;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = kv_write::Params {
        tokens: SEQUENCE_LEN,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        pages: SEQUENCE_LEN / 64,
        page: 64,
        ..placeholder_params()
    };
    FLOAT_DTYPES.map(|t| ("8192 tokens, 4 heads of 128 elements", kv_write::write(t, &p))).into()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// that the `Cost` of each launch states.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use crate::folder::HIDDEN_SIZE;
    let [x, cache] = [(); 2].map(|()| arrays.f32(2 * TRAFFIC_ROWS * HIDDEN_SIZE));
    let p = kv_write::Params {
        k: x,
        v: x,
        k_cache: cache,
        v_cache: cache.offset((2 * TRAFFIC_ROWS * HIDDEN_SIZE * 2) as usize),
        slots: arrays.ids((0..TRAFFIC_ROWS as i32).map(|i| 2 * i)),
        tokens: TRAFFIC_ROWS,
        kv_heads: 4,
        head_dim: 128,
        pages: 4,
        page: 64,
        reserved: 0,
    };
    allow_one_tenth_more(FLOAT_DTYPES.map(|t| kv_write::write(t, &p)))
}
