//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, Sizes, placeholder_params};
use crate::pool_attention;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (tokens, images, heads, head_dim, scale) = (16 * 729, 16, 16, 72, 1.0);
    let fwd = pool_attention::FwdParams { tokens, images, heads, head_dim, scale, ..placeholder_params() };
    FLOAT_DTYPES
        .map(|t| pool_attention::fwd(t, &fwd))
        .into_iter()
        .map(|launch| ("16 images of 729 patches, as in SigLIP's attention pooling", launch))
        .collect()
}
