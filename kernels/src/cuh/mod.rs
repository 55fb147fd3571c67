//! The CUDA headers that kernels share, each around one device instruction or one small function, and the grids and blocks of
//! kernels that are written with them. [`headers::HEADERS`] has the text of the headers.

pub mod headers;

use crate::{Arch, Stage};

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

/// How rows of `cols` elements that are kept in registers (`held.cuh`) are spread over threads.
#[derive(Clone, Copy)]
pub(crate) struct HeldRows {
    cols: u32,
    /// Threads of a row.
    threads: u32,
}

impl HeldRows {
    /// Elements of a row that a thread keeps (`HELD`).
    const HELD: u32 = 16;

    /// A row by a warp, by 256 threads, or by the 512 of a wide symbol's block.
    pub(crate) fn new(cols: u32) -> HeldRows {
        let fits = |threads: u32| cols <= Self::HELD * threads;
        HeldRows { cols, threads: [32, 256].into_iter().find(|&t| fits(t)).unwrap_or(512) }
    }

    /// Of a usual and a wide symbol the one for these rows.
    pub(crate) fn symbol(self, [usual, wide]: [&'static str; 2]) -> &'static str {
        if self.threads == 512 { wide } else { usual }
    }

    /// Blocks of at least `block` threads that walk over all rows: enough to fill the GPU with `resident` blocks a
    /// multiprocessor, so few that a block reads weights once for many rows.
    pub(crate) fn walk(
        self,
        symbols: [&'static str; 2],
        rows: u32,
        block: u32,
        resident: u32,
        arch: &Arch,
    ) -> Vec<Stage> {
        if self.cols == 0 {
            return Vec::new();
        }
        let block = block.max(self.threads);
        let needed = rows.div_ceil(block / self.threads);
        blocks(self.symbol(symbols), u64::from(needed.min(arch.multiprocessors * resident)), block)
    }

    /// A block of 512 threads a part of the rows, then a stage that adds up the parts' sums of `columns` columns.
    pub(crate) fn parts(self, symbols: [&'static str; 2], sum: &'static str, parts: u64, columns: u64) -> Vec<Stage> {
        let mut stages = if self.cols == 0 { Vec::new() } else { blocks(self.symbol(symbols), parts, 512) };
        if !stages.is_empty() {
            stages.extend(blocks(sum, columns.div_ceil(32), 256));
        }
        stages
    }
}
