//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

use crate::folder::{Calls, FLOAT_DTYPES, PLACEHOLDER, Sizes};
use crate::position_add;
use bytemuck::Zeroable;

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let (rows, cols, positions) = (16 * 729, 1152, 729);
    let fwd = position_add::FwdParams {
        x: PLACEHOLDER,
        pos: PLACEHOLDER,
        y: PLACEHOLDER,
        rows,
        cols,
        positions,
        ..Zeroable::zeroed()
    };
    let bwd =
        position_add::BwdParams { dy: PLACEHOLDER, d_pos: PLACEHOLDER, rows, cols, positions, ..Zeroable::zeroed() };
    let calls = FLOAT_DTYPES.map(|t| [position_add::fwd(t, &fwd), position_add::bwd(t, &bwd)]);
    calls.into_iter().flatten().map(|launch| ("SigLIP's 729 positions, 16 pictures", launch)).collect()
}
