//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::folder::{FLOAT_DTYPES, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::layer_norm;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (rows, cols) = (SEQUENCE_LEN, 1152);
    let fwd = layer_norm::FwdParams { rows, cols, eps: 1e-6, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| layer_norm::fwd(t, &fwd));
    calls.into_iter().map(|launch| ("8192 patches of 1152 elements, as in SigLIP", launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use crate::folder::HIDDEN_SIZE;
    let mut calls = Vec::new();
    // The columns of a row beyond the first 8192 do not fit in registers and are read again. The weights are read
    // again for each row.
    for (rows, cols, ratio) in [(TRAFFIC_ROWS, HIDDEN_SIZE, 1.1), (16, 10_240, 2.1)] {
        let [x, y] = [(); 2].map(|()| arrays.alloc_f32(rows * cols));
        let [w, b] = [(); 2].map(|()| arrays.alloc_f32(cols));
        let fwd = layer_norm::FwdParams { x, w, b, y, rows, cols, eps: 1e-6, reserved: 0 };
        calls.extend(FLOAT_DTYPES.map(|t| (layer_norm::fwd(t, &fwd), ratio)));
    }
    calls
}
