//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{FLOAT_DTYPES, INTERMEDIATE_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::swiglu;
use reel_device::Addr;

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let cols = s.get("intermediate", INTERMEDIATE_SIZE) as u64;
    let (count, stride) = (s.get("tokens", SEQUENCE_LEN) as u64 * cols, cols);
    let fwd = swiglu::FwdParams { count, cols, stride, ..placeholder_params() };
    let bwd = swiglu::BwdParams { y: Addr::NULL, count, cols, stride, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| [swiglu::fwd(t, &fwd), swiglu::bwd(t, &bwd)]);
    calls.into_iter().flatten().map(|launch| ("8192 tokens of 18944", launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let count = TRAFFIC_ELEMENTS;
    let [gate, up, y, d_gate, d_up, again] = [(); 6].map(|()| arrays.alloc_f32(2 * count));
    // Gate and up are separate arrays, or the halves of the rows of one matrix.
    let strides = [(count, count), (count / 32, count / 16)];
    allow_one_tenth_more(strides.into_iter().flat_map(|(cols, stride)| {
        let fwd = swiglu::FwdParams { gate, up, y, count, cols, stride };
        let bwd = |again| swiglu::BwdParams { gate, up, dy: y, d_gate, d_up, y: again, count, cols, stride };
        let calls = |t| [swiglu::fwd(t, &fwd), swiglu::bwd(t, &bwd(Addr::NULL)), swiglu::bwd(t, &bwd(again))];
        FLOAT_DTYPES.map(calls).into_iter().flatten()
    }))
}
