//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes};
use crate::patch_embedding::examples::EXAMPLE_FRAMES;
use crate::patches;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let params = EXAMPLE_FRAMES.patch_params(PLACEHOLDER_ADDRESS, PLACEHOLDER_ADDRESS);
    FLOAT_DTYPES.map(|t| ("16 frames of 224 x 420", patches::cut_patches(t, &params))).into()
}
