//! Plans the products of many rows by clusters of blocks (`sm90a.cuh`, compute capability 9.0).

use reel_device::{Arch, Stage};

use super::Fixed;
use super::product::{ColumnPartition, NORM_SHARED_BYTES_PER_ROW, SkinnyProduct, tensor_map};

/// ROWS is the number of rows of x of a block, and CLUSTER the number of blocks of a cluster. Each of these blocks
/// copies SHARE rows of x to all blocks of the cluster.
const ROWS: u32 = 64;
const CLUSTER: u32 = 4;
const SHARE: u32 = ROWS / CLUSTER;

/// WARPS is the number of warps of a block: four multiply, one copies. Kernels that can normalise x have NORMALISERS
/// more warps for that.
const WARPS: u32 = 5;
const NORMALISERS: u32 = 2;

/// A shape of tiles; `sm80.cu` has the same numbers.
#[derive(Clone, Copy)]
pub(super) struct TileShape {
    /// Maximum number of weight rows in a box, which is the number of columns that a block computes of each product.
    pub(super) max_width: u32,
    /// Boxes of 64 k of a stage.
    pub(super) boxes: u32,
    pub(super) symbol: &'static str,
}

/// Plans the product. `shapes` are in ascending order of width. Returns `None` if the GPU has too little shared memory.
pub(super) fn plan_stage(
    op: &SkinnyProduct,
    arch: &Arch,
    shapes: &[TileShape],
    columns: &ColumnPartition,
    fixed: Fixed,
) -> Option<Stage> {
    let row_blocks = op.m.div_ceil(ROWS);
    // Multiprocessors that can run clusters of eight blocks can also run clusters of four.
    let known = if arch.clusters_of_8 > 0 { 8 * arch.clusters_of_8 } else { u32::MAX };
    let resident_blocks = known.min(arch.multiprocessors) * fixed.blocks_per_2_multiprocessors.unwrap_or(2) / 2;
    let widest = shapes.last()?.max_width;
    let blocks = columns.parts
        * columns.blocks_per_part(row_blocks, widest, (resident_blocks / CLUSTER * CLUSTER).max(1), false);
    let blocks = blocks.next_multiple_of(CLUSTER);
    let width = columns.columns_per_block(blocks / columns.parts);
    let shape = shapes.iter().find(|shape| width <= shape.max_width)?;

    // Bytes of shared memory of a stage of the ring, with its three mbarriers.
    let stage_bytes = shape.boxes * 128 * (columns.sets * shape.max_width + ROWS) + 24;
    let others = 1024 + if op.norm.is_null() { 0 } else { SHARE * NORM_SHARED_BYTES_PER_ROW };
    let stages = arch.shared_per_block.saturating_sub(others) / stage_bytes;
    let needed = op.k.div_ceil(64 * shape.boxes);
    let warps = WARPS + if op.normalises { NORMALISERS } else { 0 };
    let stage = Stage {
        grid: [row_blocks, blocks, 1],
        cluster: [1, CLUSTER, 1],
        shared: others + stages.min(needed) * stage_bytes,
        resident_blocks: known.min(arch.multiprocessors),
        tensor_maps: columns.tensor_maps(2, width, tensor_map(op.x, 2, [op.m, op.k], SHARE)?, op.k)?,
        ..Stage::one_dimensional(shape.symbol, 1, 32 * warps)
    };
    // At least two stages are needed, if k is long enough for two: a stage is freed only when the products of the
    // next stage have started.
    (stages >= needed.min(2)).then(|| stage.programmatic_on(arch))
}
