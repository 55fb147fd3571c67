//! The CUDA headers that kernels share ([`headers::HEADER_NAMES_AND_TEXTS`]), and launch plans for kernels that use
//! these headers.

pub mod headers;

use reel_device::{Arch, Stage};

/// Number of threads of a block; equal to `MAP_THREADS` of `map.cuh`.
const MAP_THREADS: u32 = 256;
/// Number of elements that a block computes; equal to `MAP_BLOCK` of `map.cuh`.
const MAP_BLOCK: u64 = 2048;

/// Plans the launch of an element-by-element kernel (`map.cuh`) over `count` elements.
pub(crate) fn plan_elementwise(symbol: &'static str, count: u64) -> Vec<Stage> {
    plan_blocks(symbol, count.div_ceil(MAP_BLOCK), MAP_THREADS)
}

/// Plans the launch of an element-by-element kernel over `chunks` chunks. Each block computes one chunk (`map_range` of
/// `map.cuh`).
pub(crate) fn plan_chunks(symbol: &'static str, chunks: u64) -> Vec<Stage> {
    plan_blocks(symbol, chunks, MAP_THREADS)
}

/// Plans a one-dimensional launch of `blocks` blocks. Returns no launch for 0 blocks.
pub(crate) fn plan_blocks(symbol: &'static str, blocks: u64, threads_per_block: u32) -> Vec<Stage> {
    // 2^31 blocks would need more elements than the memory of a GPU holds.
    let blocks = u32::try_from(blocks).expect("fewer blocks than 2^31");
    if blocks == 0 { Vec::new() } else { vec![Stage::one_dimensional(symbol, blocks, threads_per_block)] }
}

/// Plans the launch of a kernel that copies `rows` rows of `cols` elements (`rows.cuh`). `elements_per_vector` is the
/// number of elements in 16 bytes. 8 to 256 threads copy a row; within these limits, each thread makes at most four
/// memory accesses. A block has 256 threads, which copy several rows if rows are short.
pub(crate) fn plan_row_copy(symbol: &'static str, rows: u64, cols: u64, elements_per_vector: u64) -> Vec<Stage> {
    if cols == 0 {
        return Vec::new();
    }
    let accesses = if cols.is_multiple_of(elements_per_vector) { cols / elements_per_vector } else { cols };
    let threads = accesses.div_ceil(4).next_power_of_two().clamp(8, 256) as u32;
    let mut stages = plan_blocks(symbol, rows.div_ceil(u64::from(256 / threads)), 256);
    for stage in &mut stages {
        stage.block = [threads, 256 / threads, 1];
    }
    stages
}

/// How many threads share each row of `cols` elements in kernels that keep rows in registers (`held.cuh`).
#[derive(Clone, Copy)]
pub(crate) struct ThreadsPerRow {
    cols: u32,
    /// Number of threads per row: 32, 256 or 512.
    threads: u32,
}

impl ThreadsPerRow {
    /// Number of elements of a row that one thread keeps in registers; equals `HELD` of `held.cuh`.
    const HELD: u32 = 16;

    /// Chooses the threads per row: one warp if the registers of 32 threads hold the row, 256 threads if their
    /// registers do, otherwise the 512 threads of a kernel whose symbol ends in `_wide`.
    pub(crate) fn new(cols: u32) -> ThreadsPerRow {
        let fits = |threads: u32| cols <= Self::HELD * threads;
        ThreadsPerRow { cols, threads: [32, 256].into_iter().find(|&t| fits(t)).unwrap_or(512) }
    }

    /// Returns the symbol of the `_wide` kernel if 512 threads share a row, else the symbol of the usual kernel.
    pub(crate) fn choose_symbol(self, [usual, wide]: [&'static str; 2]) -> &'static str {
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
        plan_blocks(self.choose_symbol(symbols), u64::from(needed.min(arch.multiprocessors * resident)), block)
    }

    /// Plans two launches that sum each of `columns` columns over all rows. The rows form `parts` groups. In the
    /// first launch a block of 512 threads sums the rows of one group; the second launch (kernel `sum`) adds up the
    /// sums of the groups.
    pub(crate) fn plan_column_sums(
        self,
        symbols: [&'static str; 2],
        sum: &'static str,
        parts: u64,
        columns: u64,
    ) -> Vec<Stage> {
        let mut stages = if self.cols == 0 { Vec::new() } else { plan_blocks(self.choose_symbol(symbols), parts, 512) };
        if !stages.is_empty() {
            stages.extend(plan_blocks(sum, columns.div_ceil(32), 256));
        }
        stages
    }
}
