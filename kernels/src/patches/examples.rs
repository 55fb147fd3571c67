//! Example calls of the kernels for `reel kernels list`, `show` and `bench`.

use crate::folder::{Calls, FLOAT_DTYPES, PLACEHOLDER, Sizes};
use crate::patch_embedding::examples::EXAMPLE_FRAMES;
use crate::patches;

/// Returns the example calls, each with a text that describes its size.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let params = EXAMPLE_FRAMES.cut(PLACEHOLDER, PLACEHOLDER);
    FLOAT_DTYPES.map(|t| ("16 frames of 224 x 420", patches::cut(t, &params))).into()
}
