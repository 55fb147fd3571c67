//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{ACTIVATIONS, FLOAT_DTYPES, HIDDEN, LabeledLaunches, Sizes, TOKENS, placeholders};
use crate::rows;

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let gather = rows::GatherParams { m: TOKENS, cols: HIDDEN, n: TOKENS, ..placeholders() };
    let scatter = rows::ScatterParams { m: TOKENS, cols: HIDDEN, n: TOKENS, ..placeholders() };
    let calls = FLOAT_DTYPES.map(|t| [rows::gather(t, &gather), rows::scatter(t, &scatter)]);
    calls.into_iter().flatten().map(|launch| (ACTIVATIONS, launch)).collect()
}

/// Returns launches whose memory traffic a test compares with the traffic that their `Cost` states.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (m, n, cols) = (TRAFFIC_ROWS, 2 * TRAFFIC_ROWS, HIDDEN);
    let [x, y] = [(); 2].map(|()| arrays.f32(n * cols));
    let index = arrays.ids((0..m as i32).map(|i| 2 * i));
    let gather = rows::GatherParams { x, index, y, m, cols, n, reserved: 0 };
    let scatter = rows::ScatterParams { src: x, index, dst: y, m, cols, n, reserved: 0 };
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(|t| [rows::gather(t, &gather), rows::scatter(t, &scatter)]))
}
