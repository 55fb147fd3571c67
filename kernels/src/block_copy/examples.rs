use crate::block_copy;
#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{HEAD_DIM, KV_HEADS, LabeledLaunches, Sizes, placeholder_params};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    // The size, in units of 16 bytes, of a block of 64 tokens with 4 heads of 128 bf16 elements.
    let units = 64 * KV_HEADS * HEAD_DIM * 2 / 16;
    let p = block_copy::Params { count: 64, units, copied: units, ..placeholder_params() };
    vec![("64 blocks of 64 tokens, 4 heads of 128 in bf16", block_copy::copy(&p))]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let [k_cache, v_cache] = [(); 2].map(|()| arrays.alloc_elements(8 * 4096, 16));
    let pairs = arrays.alloc_i32([0, 5, 1, 6, 2, 7]);
    allow_one_tenth_more([block_copy::copy(&block_copy::Params {
        k_cache,
        v_cache,
        pairs,
        count: 3,
        units: 4096,
        copied: 4000,
        reserved: 0,
    })])
}
