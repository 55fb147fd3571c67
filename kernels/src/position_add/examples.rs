//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, Sizes, placeholder_params};
use crate::position_add;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (rows, cols, positions) = (16 * 729, 1152, 729);
    let fwd = position_add::FwdParams { rows, cols, positions, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| position_add::fwd(t, &fwd));
    calls.into_iter().map(|launch| ("SigLIP's 729 positions, 16 images", launch)).collect()
}
