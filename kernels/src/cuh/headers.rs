//! The CUDA headers in the folder `cuh/`, as text that is part of the binary.

/// Makes a list of (name in `#include` lines, text) from the names of the header files in this folder.
macro_rules! headers {
    ($($name:literal)*) => { &[$((concat!("cuh/", $name), include_str!($name))),*] };
}

/// Every header of `cuh/` as (name in `#include` lines, text).
pub const HEADER_NAMES_AND_TEXTS: &[(&str, &str)] = headers!(
    "base.cuh" "bulk_copy.cuh" "cluster.cuh" "cp_async.cuh" "dependent.cuh" "exp2.cuh" "exp_sum.cuh" "held.cuh" "map.cuh"
    "math.cuh" "mma.cuh" "norm_rows.cuh" "online_softmax.cuh" "philox.cuh" "rotary.cuh" "rows.cuh" "tma.cuh" "warp.cuh" "wgmma.cuh"
);
