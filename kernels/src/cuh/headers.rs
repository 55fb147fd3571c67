//! The text of each header of `cuh/`.

/// Declares headers of this folder: name as sources include it, and text.
macro_rules! headers {
    ($($name:literal)*) => { &[$((concat!("cuh/", $name), include_str!($name))),*] };
}

/// Every header of `cuh/`: name as sources include it, and text.
pub const HEADERS: &[(&str, &str)] = headers!(
    "base.cuh" "cp_async.cuh" "exp2.cuh" "held.cuh" "map.cuh" "math.cuh" "mma.cuh" "norm_rows.cuh" "online_softmax.cuh" "philox.cuh"
    "rows.cuh" "warp.cuh"
);
