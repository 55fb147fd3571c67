//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::add_rows::{Params, add_rows};
#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = Params { m: SEQUENCE_LEN, cols: HIDDEN_SIZE, n: SEQUENCE_LEN, ..placeholder_params() };
    FLOAT_DTYPES.map(|t| (ACTIVATIONS_DESCRIPTION, add_rows(t, &p))).into()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (m, n, cols) = (TRAFFIC_ROWS, 2 * TRAFFIC_ROWS, HIDDEN_SIZE);
    let [x, y] = [m, n].map(|rows| arrays.alloc_f32(rows * cols));
    let index = arrays.alloc_i32((0..m as i32).map(|i| 2 * i));
    let p = Params { x, index, y, m, cols, n, reserved: 0 };
    allow_one_tenth_more(FLOAT_DTYPES.map(|t| add_rows(t, &p)))
}
