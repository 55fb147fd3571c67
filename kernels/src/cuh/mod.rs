//! The CUDA headers that kernels share ([`headers::HEADERS`]), and functions that plan the launches of kernels that
//! are written with these headers.

pub mod headers;

use crate::{Arch, Stage};

/// (threads of a block, elements of a block): equal to `MAP_THREADS` and `MAP_BLOCK` of `map.cuh`.
const MAP: (u32, u64) = (256, 2048);

/// Plans the launch of an element-by-element kernel (`map.cuh`) over `count` elements.
pub(crate) fn plan_map(symbol: &'static str, count: u64) -> Vec<Stage> {
    plan_blocks(symbol, count.div_ceil(MAP.1), MAP.0)
}

/// Plans a one-dimensional launch of `blocks` blocks. Returns no launch for 0 blocks.
pub(crate) fn plan_blocks(symbol: &'static str, blocks: u64, threads: u32) -> Vec<Stage> {
    // 2^31 blocks would need more elements than the memory of a GPU holds.
    let blocks = u32::try_from(blocks).expect("fewer blocks than 2^31");
    if blocks == 0 { Vec::new() } else { vec![Stage::one_dimensional(symbol, blocks, threads)] }
}

/// Plans the launch of a kernel that copies `rows` rows of `cols` elements (`rows.cuh`). `vector` is the number of
/// elements in 16 bytes. 8 to 256 threads copy one row, four memory accesses per thread in short rows; a
/// block of 256 threads copies several narrow rows.
pub(crate) fn plan_row_copy(symbol: &'static str, rows: u64, cols: u64, vector: u64) -> Vec<Stage> {
    if cols == 0 {
        return Vec::new();
    }
    let accesses = if cols.is_multiple_of(vector) { cols / vector } else { cols };
    let threads = accesses.div_ceil(4).next_power_of_two().clamp(8, 256) as u32;
    let mut stages = plan_blocks(symbol, rows.div_ceil(u64::from(256 / threads)), 256);
    for stage in &mut stages {
        stage.block = [threads, 256 / threads, 1];
    }
    stages
}

/// How many threads share each row of `cols` elements in kernels that keep rows in registers (`held.cuh`).
#[derive(Clone, Copy)]
pub(crate) struct HeldRows {
    cols: u32,
    /// Number of threads per row: 32, 256 or 512.
    threads: u32,
}

impl HeldRows {
    /// Number of elements of a row that one thread keeps in registers; equals `HELD` of `held.cuh`.
    const HELD: u32 = 16;

    /// Chooses the threads per row: one warp if its registers hold the row, else 256 threads if theirs do, else the
    /// 512 threads of a kernel whose symbol ends in `_wide`.
    pub(crate) fn new(cols: u32) -> HeldRows {
        let fits = |threads: u32| cols <= Self::HELD * threads;
        HeldRows { cols, threads: [32, 256].into_iter().find(|&t| fits(t)).unwrap_or(512) }
    }

    /// Returns the second symbol, of the `_wide` kernel, if a row has 512 threads, else the first.
    pub(crate) fn symbol(self, [usual, wide]: [&'static str; 2]) -> &'static str {
        if self.threads == 512 { wide } else { usual }
    }

    /// Plans a launch whose blocks, of at least `block` threads, loop over all rows. It has at most `resident` blocks
    /// per multiprocessor, so that each block reads the weights once for many rows.
    pub(crate) fn plan_row_loop(
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
        plan_blocks(self.symbol(symbols), u64::from(needed.min(arch.multiprocessors * resident)), block)
    }

    /// Plans two launches that sum each of `columns` columns over all rows. In the first, a block of 512 threads sums
    /// each of `parts` groups of rows; the second adds up the groups' sums.
    pub(crate) fn plan_column_sums(
        self,
        symbols: [&'static str; 2],
        sum: &'static str,
        parts: u64,
        columns: u64,
    ) -> Vec<Stage> {
        let mut stages = if self.cols == 0 { Vec::new() } else { plan_blocks(self.symbol(symbols), parts, 512) };
        if !stages.is_empty() {
            stages.extend(plan_blocks(sum, columns.div_ceil(32), 256));
        }
        stages
    }
}
