//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::folder::{FLOAT_DTYPES, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::layer_norm;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (rows, cols) = (SEQUENCE_LEN, 1152);
    let fwd = layer_norm::FwdParams { rows, cols, eps: 1e-6, ..placeholder_params() };
    let bwd = layer_norm::BwdParams { rows, cols, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| [layer_norm::fwd(t, &fwd), layer_norm::bwd(t, &bwd)]);
    calls
        .into_iter()
        .flatten()
        .map(|launch| ("8192 patches of 1152 elements, as in the vision tower of Qwen3-VL 8B", launch))
        .collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use crate::folder::HIDDEN_SIZE;
    let mut calls = Vec::new();
    // The columns of a row beyond the first 8192 do not fit in registers and are read again. The weights are read
    // again for each row.
    for (rows, cols, [fwd_ratio, bwd_ratio]) in [(TRAFFIC_ROWS, HIDDEN_SIZE, [1.1, 1.1]), (16, 10_240, [2.1, 2.3])] {
        let [x, y, z] = [(); 3].map(|()| arrays.alloc_f32(rows * cols));
        let [w, b, mean, rstd, dw, db] = [(); 6].map(|()| arrays.alloc_f32(cols));
        let partial = arrays.alloc_f32(2 * layer_norm::row_block_count(rows as usize) * cols as usize);
        let fwd = layer_norm::FwdParams { x, w, b, y, mean, rstd, rows, cols, eps: 1e-6, reserved: 0 };
        let [accumulate_w, accumulate_b] = [1, 0];
        let bwd = layer_norm::BwdParams {
            x,
            w,
            mean,
            rstd,
            dy: y,
            dx: z,
            dw,
            db,
            partial,
            rows,
            cols,
            accumulate_w,
            accumulate_b,
        };
        let call = |t| [(layer_norm::fwd(t, &fwd), fwd_ratio), (layer_norm::bwd(t, &bwd), bwd_ratio)];
        calls.extend(FLOAT_DTYPES.into_iter().flat_map(call));
    }
    calls
}
