//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` use.

use crate::fingerprint;
use crate::folder::{HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, Sizes, placeholder_params};

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let bytes = 2 * HIDDEN_SIZE as u64 * INTERMEDIATE_SIZE as u64;
    let p = fingerprint::Params { bytes, ..placeholder_params() };
    vec![("a matrix of 3584 by 18944 in bf16", fingerprint::fingerprint(&p))]
}
