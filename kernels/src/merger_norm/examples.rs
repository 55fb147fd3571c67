//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` plan, count and time.

use crate::folder::{Calls, FLOAT_DTYPES, PLACEHOLDER, Sizes, TOKENS};
use crate::merger_norm;
use bytemuck::Zeroable;

/// Example calls, each with its size in words.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let (rows, cols) = (4 * TOKENS, 1280);
    let fwd = merger_norm::FwdParams {
        x: PLACEHOLDER,
        index: PLACEHOLDER,
        w: PLACEHOLDER,
        y: PLACEHOLDER,
        rstd: PLACEHOLDER,
        rows,
        cols,
        eps: 1e-6,
        ..Zeroable::zeroed()
    };
    let bwd = merger_norm::BwdParams {
        x: PLACEHOLDER,
        index: PLACEHOLDER,
        w: PLACEHOLDER,
        rstd: PLACEHOLDER,
        dy: PLACEHOLDER,
        dx: PLACEHOLDER,
        dw: PLACEHOLDER,
        partial: PLACEHOLDER,
        rows,
        cols,
        ..Zeroable::zeroed()
    };
    let calls = FLOAT_DTYPES.map(|t| [merger_norm::fwd(t, &fwd), merger_norm::bwd(t, &bwd)]);
    calls.into_iter().flatten().map(|launch| ("32768 patches of 1280", launch)).collect()
}
