//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` plan, count and time.

use crate::folder::{Calls, FLOAT_DTYPES, PLACEHOLDER, Sizes};
use crate::patches;

/// Example calls, each with its size in words.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let params = patches::Params {
        frames: PLACEHOLDER,
        patches: PLACEHOLDER,
        rescale: (1.0f64 / 255.0).to_bits(),
        count: 16,
        height: 224,
        width: 420,
        patch: 14,
        temporal: 2,
        merge: 2,
        mean0: 0.5,
        mean1: 0.5,
        mean2: 0.5,
        std0: 0.25,
        std1: 0.25,
        std2: 0.25,
    };
    FLOAT_DTYPES.map(|t| ("16 frames of 224 x 420", patches::cut(t, &params))).into()
}
