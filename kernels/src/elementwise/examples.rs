#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::elementwise;
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes,
    placeholder_params,
};
use bytemuck::Zeroable;
use reel_device::DType::{BF16, F32};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let count = SEQUENCE_LEN as u64 * HIDDEN_SIZE as u64;
    let (src, dst) = (PLACEHOLDER_ADDRESS, PLACEHOLDER_ADDRESS);
    let accumulate = elementwise::AccumulateParams { src, dst, count };
    let cast = elementwise::CastParams { src, dst, count };
    let fill = elementwise::FillParams { dst, count, ..Zeroable::zeroed() };
    let mut calls = vec![
        elementwise::accumulate(F32, F32, &accumulate),
        elementwise::accumulate(BF16, BF16, &accumulate),
        elementwise::accumulate(BF16, F32, &accumulate),
        elementwise::cast(F32, BF16, &cast),
        elementwise::cast(BF16, F32, &cast),
        elementwise::mul_scalar(&elementwise::MulScalarParams { count, ..placeholder_params() }),
        elementwise::copy(&elementwise::CopyParams { src, dst, bytes: 2 * count }),
    ];
    for t in FLOAT_DTYPES {
        calls.push(elementwise::add(t, &elementwise::AddParams { count, ..placeholder_params() }));
        calls.push(elementwise::fill(t, &fill));
    }
    calls.into_iter().map(|launch| (ACTIVATIONS_DESCRIPTION, launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let count = TRAFFIC_ELEMENTS;
    let [x, y, z, scalar] = [(); 4].map(|()| arrays.alloc_f32(count));
    let accumulate = elementwise::AccumulateParams { src: x, dst: y, count };
    let cast = elementwise::CastParams { src: x, dst: y, count };
    let mut all = vec![
        elementwise::accumulate(F32, F32, &accumulate),
        elementwise::accumulate(BF16, BF16, &accumulate),
        elementwise::accumulate(BF16, F32, &accumulate),
        elementwise::cast(F32, BF16, &cast),
        elementwise::cast(BF16, F32, &cast),
        elementwise::mul_scalar(&elementwise::MulScalarParams { x, scalar, y, count }),
        elementwise::copy(&elementwise::CopyParams { src: x, dst: y, bytes: 2 * count }),
    ];
    for t in FLOAT_DTYPES {
        all.push(elementwise::add(t, &elementwise::AddParams { a: x, b: y, y: z, count }));
        all.push(elementwise::fill(t, &elementwise::FillParams { dst: y, count, value: 1.0, reserved: 0 }));
    }
    allow_one_tenth_more(all)
}
