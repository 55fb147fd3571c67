use crate::advance;
#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{BATCH_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = advance::Params {
        rows: BATCH_SIZE,
        max_blocks: SEQUENCE_LEN / 64,
        page_tokens: 64,
        history_cols: SEQUENCE_LEN,
        ..placeholder_params()
    };
    vec![("16 rows of 8192 keys", advance::advance(&p))]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch. Block tables and histories have one column, so that the rows' elements fill whole
/// sectors.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let mut calls = Vec::new();
    for history_cols in [0, 1] {
        let mut column = |value: i32| arrays.alloc_i32((0..TRAFFIC_ROWS).map(|_| value));
        calls.push(advance::advance(&advance::Params {
            chosen: column(7),
            ids: column(0),
            positions: column(3),
            kv_lens: column(4),
            kv_limits: column(9),
            block_tables: column(2),
            slots: column(0),
            draws: column(1),
            history: column(0),
            history_lens: column(0),
            rows: TRAFFIC_ROWS,
            max_blocks: 1,
            page_tokens: 16,
            history_cols,
        }));
    }
    allow_one_tenth_more(calls)
}
