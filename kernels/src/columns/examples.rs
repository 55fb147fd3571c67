#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::columns;
use crate::folder::{
    FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params,
};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (width, all) = (HEADS * HEAD_DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM);
    let p = columns::CopyParams { rows: SEQUENCE_LEN, width, src_cols: all, dst_cols: width, ..placeholder_params() };
    FLOAT_DTYPES.map(|t| ("the queries of 8192 tokens out of a fused qkv projection", columns::copy(t, &p))).into()
}

/// Returns launches whose memory traffic a test compares with the traffic that their `Cost` states.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use crate::folder::HIDDEN_SIZE;
    let [src, dst] = [(); 2].map(|()| arrays.f32(2 * TRAFFIC_ROWS * HIDDEN_SIZE));
    let p = columns::CopyParams {
        src,
        dst,
        rows: TRAFFIC_ROWS,
        width: HIDDEN_SIZE,
        src_cols: 2 * HIDDEN_SIZE,
        src_start: 512,
        dst_cols: HIDDEN_SIZE,
        dst_start: 0,
    };
    allow_one_tenth_more(FLOAT_DTYPES.map(|t| columns::copy(t, &p)))
}
