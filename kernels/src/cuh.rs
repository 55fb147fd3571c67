//! The CUDA headers that kernels share: one device instruction, one small function.

/// Name as kernels include it, and text.
pub const HEADERS: &[(&str, &str)] = &[
    ("cuh/base.cuh", include_str!("cuh/base.cuh")),
    ("cuh/philox.cuh", include_str!("cuh/philox.cuh")),
    ("cuh/warp.cuh", include_str!("cuh/warp.cuh")),
];
