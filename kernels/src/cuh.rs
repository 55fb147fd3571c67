//! The CUDA headers that kernels share: in `cuh/` one device instruction, one small function; in a folder what its kernels
//! and others are made of.

/// Name as kernels include it, and text.
pub const HEADERS: &[(&str, &str)] = &[
    ("attention/backward_fma.cuh", include_str!("attention/backward_fma.cuh")),
    ("attention/backward_mma.cuh", include_str!("attention/backward_mma.cuh")),
    ("attention/fma_tile.cuh", include_str!("attention/fma_tile.cuh")),
    ("attention/forward_fma.cuh", include_str!("attention/forward_fma.cuh")),
    ("attention/forward_mma.cuh", include_str!("attention/forward_mma.cuh")),
    ("attention/sequences.cuh", include_str!("attention/sequences.cuh")),
    ("attention/tile.cuh", include_str!("attention/tile.cuh")),
    ("attention/visits.cuh", include_str!("attention/visits.cuh")),
    ("cuh/base.cuh", include_str!("cuh/base.cuh")),
    ("cuh/cp_async.cuh", include_str!("cuh/cp_async.cuh")),
    ("cuh/exp2.cuh", include_str!("cuh/exp2.cuh")),
    ("cuh/mma.cuh", include_str!("cuh/mma.cuh")),
    ("cuh/online_softmax.cuh", include_str!("cuh/online_softmax.cuh")),
    ("cuh/philox.cuh", include_str!("cuh/philox.cuh")),
    ("cuh/warp.cuh", include_str!("cuh/warp.cuh")),
];
