//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{FLOAT_DTYPES, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::gelu;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let count = SEQUENCE_LEN as u64 * 5120;
    let fwd = gelu::FwdParams { count, ..placeholder_params() };
    let bwd = gelu::BwdParams { count, ..placeholder_params() };
    let tanh = FLOAT_DTYPES.map(|t| [gelu::tanh_fwd(t, &fwd), gelu::tanh_bwd(t, &bwd)]);
    let erf = FLOAT_DTYPES.map(|t| [gelu::fwd(t, &fwd), gelu::bwd(t, &bwd)]);
    let calls = erf.into_iter().chain(tanh);
    calls.flatten().map(|launch| ("8192 rows of 5120 elements, as in the vision tower's merger", launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let count = TRAFFIC_ELEMENTS;
    let [x, y, z] = [(); 3].map(|()| arrays.alloc_f32(count));
    let (fwd, bwd) = (gelu::FwdParams { x, y, count }, gelu::BwdParams { x, dy: y, dx: z, count });
    let calls = |t| [gelu::fwd(t, &fwd), gelu::bwd(t, &bwd), gelu::tanh_fwd(t, &fwd), gelu::tanh_bwd(t, &bwd)];
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(calls))
}
