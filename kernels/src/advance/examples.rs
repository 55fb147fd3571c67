use crate::advance;
use crate::folder::{BATCH_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let p = advance::Params {
        rows: BATCH_SIZE,
        max_blocks: SEQUENCE_LEN / 64,
        page: 64,
        history_cols: SEQUENCE_LEN,
        ..placeholder_params()
    };
    vec![("16 rows of 8192 keys", advance::advance(&p))]
}
