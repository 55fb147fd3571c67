//! The CUDA headers that kernels share: one device instruction, one small function.

use crate::Stage;

/// Name as kernels include it, and text.
pub const HEADERS: &[(&str, &str)] = &[
    ("cuh/base.cuh", include_str!("cuh/base.cuh")),
    ("cuh/map.cuh", include_str!("cuh/map.cuh")),
    ("cuh/math.cuh", include_str!("cuh/math.cuh")),
    ("cuh/philox.cuh", include_str!("cuh/philox.cuh")),
    ("cuh/warp.cuh", include_str!("cuh/warp.cuh")),
];

/// `MAP_THREADS` and `MAP_BLOCK` of `map.cuh`.
const MAP: (u32, u64) = (256, 2048);

/// The launch of an element-by-element kernel (`map.cuh`) over `count` elements.
pub(crate) fn map(symbol: &'static str, count: u64) -> Vec<Stage> {
    blocks(symbol, count.div_ceil(MAP.1), MAP.0)
}

/// A launch of so many blocks in one dimension; none without blocks.
pub(crate) fn blocks(symbol: &'static str, blocks: u64, threads: u32) -> Vec<Stage> {
    // More blocks than a grid can have would need more elements than a device's memory holds.
    let blocks = u32::try_from(blocks).expect("fewer blocks than 2^31");
    if blocks == 0 { Vec::new() } else { vec![Stage::linear(symbol, blocks, threads)] }
}
