//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::patch_merge;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (rows, cols) = (4 * SEQUENCE_LEN, 1280);
    let fwd = patch_merge::FwdParams { rows, cols, eps: 1e-6, ..placeholder_params() };
    let bwd = patch_merge::BwdParams { rows, cols, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| [patch_merge::fwd(t, &fwd), patch_merge::bwd(t, &bwd)]);
    calls.into_iter().flatten().map(|launch| ("32768 patches of 1280", launch)).collect()
}
