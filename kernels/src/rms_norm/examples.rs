//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes,
    placeholder_params,
};
use crate::rms_norm;
use reel_device::Addr;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (rows, cols) = (s.get("tokens", SEQUENCE_LEN), s.get("hidden", HIDDEN_SIZE));
    let fwd =
        rms_norm::FwdParams { residual: Addr::NULL, sum: Addr::NULL, rows, cols, eps: 1e-6, ..placeholder_params() };
    let bwd = rms_norm::BwdParams { d_sum: Addr::NULL, rows, cols, ..placeholder_params() };
    let add_fwd = rms_norm::FwdParams { residual: PLACEHOLDER_ADDRESS, sum: PLACEHOLDER_ADDRESS, ..fwd };
    let add_bwd = rms_norm::BwdParams { d_sum: PLACEHOLDER_ADDRESS, ..bwd };
    let calls = FLOAT_DTYPES.map(|t| {
        [rms_norm::fwd(t, &fwd), rms_norm::bwd(t, &bwd), rms_norm::fwd(t, &add_fwd), rms_norm::bwd(t, &add_bwd)]
    });
    calls.into_iter().flatten().map(|launch| (ACTIVATIONS_DESCRIPTION, launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use bytemuck::Zeroable;
    let mut calls = Vec::new();
    // The columns of a row beyond the first 8192 do not fit in registers: x and dy are read twice there, dw is added
    // up in the workspace row by row, and the weights are read again for each row.
    for (rows, cols, [fwd_ratio, bwd_ratio]) in [(TRAFFIC_ROWS, HIDDEN_SIZE, [1.1, 1.1]), (16, 10_240, [1.25, 1.8])] {
        let [x, y, z, s] = [(); 4].map(|()| arrays.alloc_f32(rows * cols));
        let [w, rstd, dw] = [(); 3].map(|()| arrays.alloc_f32(cols));
        let partial = arrays.alloc_f32(2 * rms_norm::row_block_count(rows as usize) * cols as usize);
        let fwd = rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps: 1e-6, ..Zeroable::zeroed() };
        let bwd = rms_norm::BwdParams { x, w, rstd, dy: y, dx: z, dw, partial, rows, cols, ..Zeroable::zeroed() };
        let frozen = rms_norm::BwdParams { dw: Addr::NULL, partial: Addr::NULL, ..bwd };
        let add_fwd = rms_norm::FwdParams { residual: y, sum: s, y: z, ..fwd };
        let add_bwd = rms_norm::BwdParams { d_sum: s, ..bwd };
        for t in FLOAT_DTYPES {
            calls.push((rms_norm::fwd(t, &fwd), fwd_ratio));
            calls.push((rms_norm::bwd(t, &frozen), bwd_ratio));
            calls.push((rms_norm::bwd(t, &add_bwd), bwd_ratio));
            if cols == HIDDEN_SIZE {
                calls.extend([(rms_norm::bwd(t, &bwd), bwd_ratio), (rms_norm::fwd(t, &add_fwd), fwd_ratio)]);
            }
        }
    }
    calls
}
