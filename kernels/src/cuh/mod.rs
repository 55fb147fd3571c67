//! The CUDA headers that kernels share, each around one device instruction or one small function, and the grids and
//! blocks of kernels that are written with them. [`headers::HEADERS`] has the text of the headers.

pub mod headers;

use crate::{Arch, Stage};

/// `MAP_THREADS` and `MAP_BLOCK` of `map.cuh`.
const MAP: (u32, u64) = (256, 2048);

/// The launch of an element-by-element kernel (`map.cuh`) over `count` elements.
pub(crate) fn map(symbol: &'static str, count: u64) -> Vec<Stage> {
    blocks(symbol, count.div_ceil(MAP.1), MAP.0)
}

/// A one-dimensional launch of `blocks` blocks; none if there are no blocks.
pub(crate) fn blocks(symbol: &'static str, blocks: u64, threads: u32) -> Vec<Stage> {
    // 2^31 blocks would need more elements than the memory of a device holds.
    let blocks = u32::try_from(blocks).expect("fewer blocks than 2^31");
    if blocks == 0 { Vec::new() } else { vec![Stage::linear(symbol, blocks, threads)] }
}

/// The launch of a kernel that moves rows (`rows.cuh`) of `cols` elements; `vector` is the number of elements in 16
/// bytes. Up to 256 threads with four accesses each move a row; a block has several rows if they are narrow.
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

/// How rows of `cols` elements that stay in registers (`held.cuh`) are distributed over threads.
#[derive(Clone, Copy)]
pub(crate) struct HeldRows {
    cols: u32,
    /// Number of threads of a row.
    threads: u32,
}

impl HeldRows {
    /// Number of elements of a row that a thread keeps; equals `HELD` of `held.cuh`.
    const HELD: u32 = 16;

    /// Chooses a warp for a row, 256 threads, or the 512 threads of a `_wide` symbol's block.
    pub(crate) fn new(cols: u32) -> HeldRows {
        let fits = |threads: u32| cols <= Self::HELD * threads;
        HeldRows { cols, threads: [32, 256].into_iter().find(|&t| fits(t)).unwrap_or(512) }
    }

    /// Returns the usual or the `_wide` symbol, whichever fits these rows.
    pub(crate) fn symbol(self, [usual, wide]: [&'static str; 2]) -> &'static str {
        if self.threads == 512 { wide } else { usual }
    }

    /// A launch whose blocks, of at least `block` threads, stride over all rows. At most `resident` blocks a
    /// multiprocessor are launched, so that a block reads the weights once for many rows.
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

    /// A launch with a block of 512 threads for each part of the rows, and one that adds up the parts' sums of
    /// `columns` columns.
    pub(crate) fn parts(self, symbols: [&'static str; 2], sum: &'static str, parts: u64, columns: u64) -> Vec<Stage> {
        let mut stages = if self.cols == 0 { Vec::new() } else { blocks(self.symbol(symbols), parts, 512) };
        if !stages.is_empty() {
            stages.extend(blocks(sum, columns.div_ceil(32), 256));
        }
        stages
    }
}
