//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};
use crate::rows;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let gather = rows::GatherParams { m: SEQUENCE_LEN, cols: HIDDEN_SIZE, n: SEQUENCE_LEN, ..placeholder_params() };
    let scatter = rows::ScatterParams { m: SEQUENCE_LEN, cols: HIDDEN_SIZE, n: SEQUENCE_LEN, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| [rows::gather(t, &gather), rows::scatter(t, &scatter)]);
    calls.into_iter().flatten().map(|launch| (ACTIVATIONS_DESCRIPTION, launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (m, n, cols) = (TRAFFIC_ROWS, 2 * TRAFFIC_ROWS, HIDDEN_SIZE);
    let [x, y] = [(); 2].map(|()| arrays.alloc_f32(n * cols));
    let index = arrays.alloc_i32((0..m as i32).map(|i| 2 * i));
    let gather = rows::GatherParams { x, index, y, m, cols, n, reserved: 0 };
    let scatter = rows::ScatterParams { src: x, index, dst: y, m, cols, n, reserved: 0 };
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(|t| [rows::gather(t, &gather), rows::scatter(t, &scatter)]))
}
