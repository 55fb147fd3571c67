#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::dequantize::{CodeValues, Params, dequantize};
use crate::folder::{FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, Sizes, placeholder_params};
use reel_device::Addr;

/// The sizes of the example calls: 4-bit codes in groups of 128 with zero points, and 8-bit codes in blocks of 128 x
/// 128 without.
fn calls(p: &Params) -> impl Iterator<Item = reel_device::Launch> {
    let blocks = p.k.div_ceil(128);
    let groups = Params { column_blocks: Addr::NULL, block_rows: 1, block_columns: 128, blocks, ..*p };
    let kind = CodeValues::E4m3.kind();
    let tiles = Params { values: Addr::NULL, zeros: Addr::NULL, block_rows: 128, kind, ..groups };
    let call = move |dtype| [dequantize(dtype, &groups), dequantize(dtype, &tiles)];
    FLOAT_DTYPES.into_iter().flat_map(call)
}

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = Params { n: HIDDEN_SIZE, k: HIDDEN_SIZE, ..placeholder_params() };
    calls(&p).map(|launch| ("a weight of 3584 x 3584", launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (n, k) = (TRAFFIC_ROWS, HIDDEN_SIZE);
    let [values, scales, zeros, y] = [16, n * k / 128, n * k / 128, n * k].map(|count| arrays.alloc_f32(count));
    let codes = arrays.alloc_elements(n * k, 1);
    let p = Params { codes, values, scales, zeros, y, n, k, ..bytemuck::Zeroable::zeroed() };
    // Each thread reads the scale and the zero point of its 16 bytes of y: 4 or 8 bytes, which other threads have read
    // before it.
    calls(&p).map(|launch| (launch, 1.43)).collect()
}
