//! The CUDA headers that kernels share: one device instruction, one small function.

/// Name as kernels include it, and text.
pub const HEADERS: &[(&str, &str)] = &[
    ("cuh/base.cuh", include_str!("cuh/base.cuh")),
    ("cuh/cp_async.cuh", include_str!("cuh/cp_async.cuh")),
    ("cuh/exp2.cuh", include_str!("cuh/exp2.cuh")),
    ("cuh/mma.cuh", include_str!("cuh/mma.cuh")),
    ("cuh/online_softmax.cuh", include_str!("cuh/online_softmax.cuh")),
    ("cuh/philox.cuh", include_str!("cuh/philox.cuh")),
    ("cuh/warp.cuh", include_str!("cuh/warp.cuh")),
];
