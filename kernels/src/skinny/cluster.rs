//! Plans the products whose sums are divided among the blocks of clusters (`cluster.cuh`, compute capability 9.0).

use super::{Fixed, NORM_BYTES, Operands, Operation, Scheme, Symbols, WARPS};
use crate::{Arch, Stage};

/// Blocks of a cluster.
const BLOCKS: u32 = 8;
/// Tiles of 8 weight rows of a step, at most.
const MAX_TILES: u32 = 5 * WARPS;
/// Maximum number of rows of x of a block.
const MAX_ROWS: u32 = 64;
/// Stages of a block's ring.
const STAGES: u32 = 5;

/// Plans as many clusters as the GPU runs at a time, if the product is computed by clusters. `units` is the number of
/// units of eight columns of y, and the number of weights that each of them has. The numbers are those of
/// `cluster.cuh`.
pub(super) fn stage(
    op: &Operation,
    arch: &Arch,
    symbols: Symbols,
    [units, weights]: [u32; 2],
    operands: Operands,
    fixed: Fixed,
) -> Option<Stage> {
    let wants = op.scheme(arch, fixed) == Scheme::Clusters;
    let aligned = [op.x, op.norm].iter().all(|a| a.0.is_multiple_of(16)) && op.has_aligned_weights(operands);
    let symbol = symbols.cluster.filter(|_| wants && aligned && arch.clusters_of_8 > 0 && op.m > 0 && units > 0)?;
    let clusters = arch.clusters_of_8.min(units);
    let most = units.div_ceil(clusters);
    let tiles = most.div_ceil(most.div_ceil(MAX_TILES / weights)) * weights;
    let row_blocks = op.m.div_ceil(MAX_ROWS);
    let rows = op.m.div_ceil(row_blocks).next_multiple_of(8);
    // Sets of 16 rows that are multiplied together: 1, 2 or 4.
    let sets = rows.div_ceil(16).next_power_of_two();
    let ring = STAGES * 512 * (tiles + 2 * sets * operands.x_units);
    let partial_sums = 4 * 16 * sets * 8 * (tiles | 1);
    let norm = if op.norm.is_null() { 0 } else { rows * NORM_BYTES };
    let shared = ring + partial_sums + norm;
    let stage = Stage {
        grid: [BLOCKS, row_blocks, clusters],
        cluster: [BLOCKS, 1, 1],
        shared,
        ..Stage::one_dimensional(symbol, 1, 32 * WARPS)
    };
    (shared <= arch.shared_per_block).then(|| stage.programmatic_on(arch))
}
