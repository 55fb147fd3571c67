//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

use crate::folder::{FLOAT_DTYPES, LabeledLaunches, SEQUENCE_LEN, Sizes, placeholder_params};
use crate::normalise;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let (rows, cols) = (SEQUENCE_LEN, 1152);
    let fwd = normalise::FwdParams { rows, cols, ..placeholder_params() };
    FLOAT_DTYPES
        .map(|t| normalise::fwd(t, &fwd))
        .into_iter()
        .map(|launch| ("8192 embeddings, as SigLIP normalises them", launch))
        .collect()
}
