#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ROWS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::embedding;
use crate::folder::{
    ACTIVATIONS_DESCRIPTION, FLOAT_DTYPES, HIDDEN_SIZE, LabeledLaunches, SEQUENCE_LEN, Sizes, VOCAB_SIZE,
    placeholder_params,
};
use reel_device::Addr;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let fwd = embedding::FwdParams {
        vision: Addr::NULL,
        vision_index: Addr::NULL,
        tokens: SEQUENCE_LEN,
        hidden: HIDDEN_SIZE,
        vocab: VOCAB_SIZE,
        ..placeholder_params()
    };
    let bwd = embedding::BwdParams {
        vision_index: Addr::NULL,
        d_vision: Addr::NULL,
        tokens: SEQUENCE_LEN,
        hidden: HIDDEN_SIZE,
        vocab: VOCAB_SIZE,
        ..placeholder_params()
    };
    let fwd = FLOAT_DTYPES.map(|table| FLOAT_DTYPES.map(|out| embedding::fwd(table, out, &fwd)));
    let bwd = FLOAT_DTYPES.map(|t| embedding::bwd(t, &bwd));
    fwd.into_iter().flatten().chain(bwd).map(|launch| (ACTIVATIONS_DESCRIPTION, launch)).collect()
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use bytemuck::Zeroable;
    use reel_device::DType::{BF16, F32};
    let (tokens, hidden, vocab) = (TRAFFIC_ROWS, HIDDEN_SIZE, 2 * TRAFFIC_ROWS);
    let [x, y] = [(); 2].map(|()| arrays.alloc_f32(vocab * hidden));
    let ids = arrays.alloc_i32((0..tokens as i32).map(|i| 2 * i));
    let fwd = embedding::FwdParams { table: x, ids, y, tokens, hidden, vocab, ..Zeroable::zeroed() };
    let bwd = embedding::BwdParams { ids, dy: x, dw: y, tokens, hidden, vocab, ..Zeroable::zeroed() };
    let calls = |t| [embedding::fwd(t, F32, &fwd), embedding::fwd(t, BF16, &fwd), embedding::bwd(t, &bwd)];
    allow_one_tenth_more(FLOAT_DTYPES.into_iter().flat_map(calls))
}
