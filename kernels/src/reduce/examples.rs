//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes, WEIGHTS_DESCRIPTION,
    placeholder_params,
};
use crate::reduce;
#[cfg(test)]
use reel_device::launch::chunks;
use reel_device::launch::{AddressTable, ArrayEntry};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let n = INTERMEDIATE_SIZE as u64 * HIDDEN_SIZE as u64;
    let rows = reduce::WeightedSumParams { n: SEQUENCE_LEN as u64, ..placeholder_params() };
    let chunk_count = n.div_ceil(reduce::ELEMENTS_PER_CHUNK as u64);
    let squares = reduce::SumSquaresParams { chunk_count, ..placeholder_params() };
    let array = AddressTable::new(&[ArrayEntry { x: PLACEHOLDER_ADDRESS, len: n }]);
    let clip = reduce::ClipParams { count: 1 << 17, max_norm: 1.0, ..placeholder_params() };
    vec![
        ("the losses of 8192 tokens", reduce::weighted_sum(&rows)),
        ("the partial sums of squares of 2^33 gradient elements", reduce::clip(&clip)),
        (WEIGHTS_DESCRIPTION, reduce::sum_squares(&squares, array, n)),
    ]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let n = TRAFFIC_ELEMENTS;
    let (x, w, out) = (arrays.alloc_f32(n), arrays.alloc_f32(n), arrays.alloc_f32(4usize));
    let entries = [ArrayEntry { x, len: n }, ArrayEntry { x: w, len: n }];
    let chunks = chunks([n as usize; 2], reduce::ELEMENTS_PER_CHUNK);
    let squares = reduce::SumSquaresParams {
        arrays: arrays.alloc_structs(&entries),
        chunks: arrays.alloc_structs(&chunks),
        partials: arrays.alloc_elements(chunks.len(), 8),
        chunk_count: chunks.len() as u64,
    };
    let squares = reduce::sum_squares(&squares, AddressTable::new(&entries), 2 * n);
    let sum = reduce::weighted_sum(&reduce::WeightedSumParams { x, w, out, n });
    let clip = reduce::clip(&reduce::ClipParams { partials: x, out, count: n / 2, max_norm: 1.0, reserved: 0 });
    allow_one_tenth_more([squares, sum, clip])
}
