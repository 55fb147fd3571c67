//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

use crate::embedding;
use crate::folder::{ACTIVATIONS, Calls, FLOAT_DTYPES, HIDDEN, PLACEHOLDER, Sizes, TOKENS, VOCAB};
use bytemuck::Zeroable;

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let fwd = embedding::FwdParams {
        table: PLACEHOLDER,
        ids: PLACEHOLDER,
        y: PLACEHOLDER,
        tokens: TOKENS,
        hidden: HIDDEN,
        vocab: VOCAB,
        ..Zeroable::zeroed()
    };
    let bwd = embedding::BwdParams {
        ids: PLACEHOLDER,
        dy: PLACEHOLDER,
        dw: PLACEHOLDER,
        tokens: TOKENS,
        hidden: HIDDEN,
        vocab: VOCAB,
        ..Zeroable::zeroed()
    };
    let fwd = FLOAT_DTYPES.map(|table| FLOAT_DTYPES.map(|out| embedding::fwd(table, out, &fwd)));
    let bwd = FLOAT_DTYPES.map(|t| embedding::bwd(t, &bwd));
    fwd.into_iter().flatten().chain(bwd).map(|launch| (ACTIVATIONS, launch)).collect()
}

/// Returns launches whose memory traffic a test compares with their cost.
#[cfg(test)]
pub(crate) fn traffic(a: &mut crate::checks::traffic::Arrays) -> crate::checks::traffic::Traffic {
    use crate::DType::{BF16, F32};
    use crate::checks::traffic::{ROWS, within_a_tenth};
    let (tokens, hidden, vocab) = (ROWS, HIDDEN, 2 * ROWS);
    let [x, y] = [(); 2].map(|()| a.f32(vocab * hidden));
    let ids = a.ids((0..tokens as i32).map(|i| 2 * i));
    let fwd = embedding::FwdParams { table: x, ids, y, tokens, hidden, vocab, ..Zeroable::zeroed() };
    let bwd = embedding::BwdParams { ids, dy: x, dw: y, tokens, hidden, vocab, ..Zeroable::zeroed() };
    let calls = |t| [embedding::fwd(t, F32, &fwd), embedding::fwd(t, BF16, &fwd), embedding::bwd(t, &bwd)];
    within_a_tenth(FLOAT_DTYPES.into_iter().flat_map(calls))
}
