//! The CUDA headers that kernels share: in `cuh/` one device instruction, one small function; in a folder what its kernels
//! and others are made of.

use crate::Stage;

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
    ("cuh/rows.cuh", include_str!("cuh/rows.cuh")),
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

/// The launch of a kernel that moves rows (`rows.cuh`): a row of `cols` elements, of which `vector` are 16 bytes, by up to 256
/// threads with four accesses each, more rows a block if they are narrow.
pub(crate) fn rows(symbol: &'static str, rows: u64, cols: u64, vector: u64) -> Vec<Stage> {
    if cols == 0 {
        return Vec::new();
    }
    let accesses = if cols.is_multiple_of(vector) { cols / vector } else { cols };
    let threads = accesses.div_ceil(4).next_power_of_two().clamp(8, 256) as u32;
    let mut stages = blocks(symbol, rows.div_ceil(u64::from(256 / threads)), 256);
    for stage in &mut stages {
        stage.block = [threads, 256 / threads, 1];
    }
    stages
}
