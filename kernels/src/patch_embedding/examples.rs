//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use reel_device::Addr;

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, Sizes, placeholder_params};
use crate::patch_embedding::{self, Pixels};

/// The frames of the example calls.
pub(crate) const EXAMPLE_FRAMES: Pixels = Pixels {
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

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let fwd =
        patch_embedding::FwdParams { bias: Addr::NULL, pixels: EXAMPLE_FRAMES, embed: 1280, ..placeholder_params() };
    let dw = patch_embedding::DwParams { pixels: EXAMPLE_FRAMES, embed: 1280, ..placeholder_params() };
    let calls = FLOAT_DTYPES.map(|t| [patch_embedding::fwd(t, &fwd), patch_embedding::dw(t, &dw)]);
    calls
        .into_iter()
        .flatten()
        .map(|launch| ("16 frames of 224 x 420 pixels, embeddings of 1280 elements", launch))
        .collect()
}
