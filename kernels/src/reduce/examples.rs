//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    FLOAT_DTYPES, HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, WEIGHTS_DESCRIPTION,
    placeholder_params,
};
use crate::reduce;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let n = INTERMEDIATE_SIZE as u64 * HIDDEN_SIZE as u64;
    let rows = reduce::WeightedSumParams { n: SEQUENCE_LEN as u64, ..placeholder_params() };
    let squares = reduce::SumSquaresParams { n, ..placeholder_params() };
    let clip = reduce::ClipParams { count: 1 << 17, max_norm: 1.0, ..placeholder_params() };
    let mut all = vec![
        ("the losses of 8192 tokens", reduce::weighted_sum(&rows)),
        ("the partial sums of squares of 2^33 gradient elements", reduce::clip(&clip)),
    ];
    all.extend(FLOAT_DTYPES.map(|t| (WEIGHTS_DESCRIPTION, reduce::sum_squares(t, &squares))));
    all
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// that the `Cost` of each launch states.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let n = TRAFFIC_ELEMENTS;
    let (x, w, out) = (arrays.f32(n), arrays.f32(n), arrays.f32(4usize));
    let partial = arrays.elements(2 * reduce::partial_sum_count(n as usize), 8);
    let squares = FLOAT_DTYPES.map(|t| reduce::sum_squares(t, &reduce::SumSquaresParams { x, partial, n }));
    let sum = reduce::weighted_sum(&reduce::WeightedSumParams { x, w, out, n });
    let clip = reduce::clip(&reduce::ClipParams { partials: x, out, count: n / 2, max_norm: 1.0, reserved: 0 });
    allow_one_tenth_more(squares.into_iter().chain([sum, clip]))
}
