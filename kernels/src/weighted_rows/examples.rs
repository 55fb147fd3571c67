//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use reel_device::DType::{BF16, F32};

#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches};
use crate::folder::{LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::weighted_rows::{Params, weighted_rows};

/// Number of rows of the position table of Qwen3-VL, 48 x 48.
const POSITIONS: u32 = 2304;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let sizes = Params { cols: 1152, entries: 4 * SEQUENCE_LEN, ..placeholder_params() };
    let fwd = Params { rows: SEQUENCE_LEN, rows_x: POSITIONS, ..sizes };
    let bwd = Params { rows: POSITIONS, rows_x: SEQUENCE_LEN, ..sizes };
    vec![
        ("8192 patches of 1152 elements, each with 4 rows of a position table", weighted_rows(F32, F32, &fwd)),
        ("8192 patches of 1152 elements, each with 4 rows of a position table", weighted_rows(BF16, BF16, &fwd)),
        ("the gradient of 2304 positions of 1152 elements from 8192 patches", weighted_rows(BF16, F32, &bwd)),
    ]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch. Each row of x occurs once, because the counts have no cache for rows that occur again.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (rows, cols, each) = (TRAFFIC_ROWS, crate::folder::HIDDEN_SIZE, 4);
    let entries = each * rows;
    let offsets = arrays.alloc_i32((0..=rows as i32).map(|i| i * each as i32));
    let index = arrays.alloc_i32((0..entries as i32).rev());
    let weight = arrays.alloc_f32(entries);
    let [x, y, add] = [entries, rows, rows].map(|rows| arrays.alloc_f32(rows * cols));
    let p = Params { x, offsets, index, weight, add, y, rows, cols, rows_x: entries, entries };
    let plain = Params { add: reel_device::Addr::NULL, ..p };
    // The count has the index and the weight of an entry once for each thread; a warp reads them in one access.
    vec![
        (weighted_rows(F32, F32, &p), 1.4),
        (weighted_rows(BF16, BF16, &plain), 1.5),
        (weighted_rows(BF16, F32, &Params { add: y, ..p }), 1.6),
    ]
}
