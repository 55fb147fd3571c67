//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` plan, count and time.

use crate::column_sum;
use crate::folder::{ACTIVATIONS, Calls, FLOAT_DTYPES, HIDDEN, PLACEHOLDER, Sizes, TOKENS};

/// Example calls, each with its size in words.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let p = column_sum::Params { x: PLACEHOLDER, sum: PLACEHOLDER, rows: TOKENS as u64, cols: HIDDEN as u64 };
    FLOAT_DTYPES.map(|t| (ACTIVATIONS, column_sum::add(t, &p))).into()
}

/// Calls whose memory traffic is counted.
#[cfg(test)]
pub(crate) fn traffic(a: &mut crate::checks::traffic::Arrays) -> crate::checks::traffic::Traffic {
    use crate::checks::traffic::{ROWS, within_a_tenth};
    let p = column_sum::Params { x: a.f32(ROWS * HIDDEN), sum: a.f32(HIDDEN), rows: ROWS.into(), cols: HIDDEN.into() };
    within_a_tenth(FLOAT_DTYPES.map(|t| column_sum::add(t, &p)))
}
