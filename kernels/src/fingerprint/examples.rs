//! Example calls of the kernels, which `reel kernels list`, `show` and `bench` plan, count and time.

use crate::fingerprint;
use crate::folder::{Calls, HIDDEN, INTERMEDIATE, PLACEHOLDER, Sizes};

/// Example calls, each with its size in words.
pub(crate) fn examples(_: &Sizes) -> Calls {
    let bytes = 2 * HIDDEN as u64 * INTERMEDIATE as u64;
    let p = fingerprint::Params { x: PLACEHOLDER, sums: PLACEHOLDER, bytes };
    vec![("a matrix of 3584 by 18944 in bf16", fingerprint::fingerprint(&p))]
}
