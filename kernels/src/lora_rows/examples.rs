//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    BATCH_SIZE, FLOAT_DTYPES, HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, Sizes, placeholder_params,
};
use crate::lora_rows::{Params, down, up};

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (m, rank, adapters) = (s.get("batch", BATCH_SIZE), s.get("rank", 16), s.get("adapters", 4));
    let thin = Params { m, n: rank, k: HIDDEN_SIZE, adapters, ..placeholder_params() };
    let wide = Params { m, n: INTERMEDIATE_SIZE, k: rank, adapters, ..placeholder_params() };
    let size = "16 rows with 4 adapters of rank 16 in a feed-forward layer";
    FLOAT_DTYPES.into_iter().flat_map(|t| [(size, down(t, &thin)), (size, up(t, &wide))]).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch. Each row has a different adapter.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (m, rank, adapters) = (4, 16, 4);
    let [x, w, y] = [m * HIDDEN_SIZE, adapters * rank * HIDDEN_SIZE, m * HIDDEN_SIZE].map(|n| arrays.alloc_f32(n));
    let (scale, adapter) = (arrays.alloc_f32(adapters), arrays.alloc_i32(0..m as i32));
    let thin = Params { x, w, adapter, scale, y, m, n: rank, k: HIDDEN_SIZE, adapters };
    let wide = Params { n: HIDDEN_SIZE, k: rank, ..thin };
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(|t| [down(t, &thin), up(t, &wide)]))
}
