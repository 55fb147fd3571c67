#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::column_sum;
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = column_sum::Params { rows: SEQUENCE_LEN as u64, cols0: HIDDEN_SIZE, ..placeholder_params() };
    FLOAT_DTYPES.map(|t| (ACTIVATIONS_DESCRIPTION, column_sum::column_sums(t, &p))).into()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let mut matrix = |accumulate: bool| column_sum::SummedMatrix {
        x: arrays.alloc_f32(TRAFFIC_ROWS * HIDDEN_SIZE),
        sum: arrays.alloc_f32(HIDDEN_SIZE),
        cols: HIDDEN_SIZE,
        accumulate,
    };
    let (written, added) = (matrix(false), matrix(true));
    let launches = [vec![written], vec![added], vec![added, written]];
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(|t| {
        launches.each_ref().map(|all| column_sum::column_sums(t, &column_sum::Params::new(TRAFFIC_ROWS.into(), all)))
    }))
}
