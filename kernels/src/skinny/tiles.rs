//! Plans the products whose operands are copied to shared memory by tensor copies (compute capability 9.0): a few rows
//! by `sm90.cuh`, more rows of a bf16 weight by `sm90a.cuh`.

use reel_device::{Arch, Stage};

use super::product::{ColumnPartition, NORM_SHARED_BYTES_PER_ROW, SkinnyProduct, tensor_map};
use super::{CopyScheme, Fixed, Operands, Symbols, clusters};

/// Numbers of rows of x per block in the kernels whose names end in `_x1`, `_x2`, `_x4` and `_x8`.
const ROWS: [u32; 4] = [8, 16, 32, 64];
/// Every kernel has shapes of tiles for up to this number of rows of x.
pub(super) const FEW_ROWS: u32 = 16;

/// A shape of tiles; `sm80.cu` has the same numbers.
#[derive(Clone, Copy)]
pub(super) struct TileShape {
    /// Maximum number of weight rows in a box.
    pub(super) max_width: u32,
    /// Maximum number of boxes in a stage; a box holds 128 bytes along k of each of its rows.
    pub(super) boxes: u32,
    /// Number of tiles of 16 weight rows per warp, if there are more than 16 rows of x.
    pub(super) tiles: u32,
    /// The CUDA kernel names for each number of [`ROWS`]; for a bf16 weight only the first two.
    pub(super) symbols: &'static [&'static str],
}

/// Plans the product with the scheme `Tiles`. Returns `None` if another scheme is chosen or tensor copies do not
/// support the operands.
pub(super) fn plan_stage(
    op: &SkinnyProduct,
    arch: &Arch,
    symbols: &Symbols,
    columns: &ColumnPartition,
    operands: Operands,
    fixed: Fixed,
) -> Option<Stage> {
    let wants = op.choose_copy_scheme(arch, fixed) == CopyScheme::Tiles && arch.sm >= 90;
    let aligned = [op.x, op.norm].iter().all(|a| a.0.is_multiple_of(16)) && op.has_aligned_weights(operands);
    let exists = [op.m, op.k, columns.parts, columns.columns].iter().all(|&size| size > 0);
    if !(wants && aligned && exists) {
        return None;
    }
    if op.m > FEW_ROWS && !symbols.clusters.is_empty() {
        return clusters::plan_stage(op, arch, symbols.clusters, columns, fixed);
    }
    by_warps(op, arch, symbols.tiles, columns, operands, fixed)
}

/// Plans the product by `mma.sync` (`sm90.cuh`). `shapes` are in ascending order of width. Returns `None` if there are
/// no shapes, or if the GPU has too little shared memory.
fn by_warps(
    op: &SkinnyProduct,
    arch: &Arch,
    shapes: &[TileShape],
    columns: &ColumnPartition,
    operands: Operands,
    fixed: Fixed,
) -> Option<Stage> {
    let widest = shapes.last()?;
    let kinds = &ROWS[..widest.symbols.len()];
    let kind = kinds.iter().position(|&rows| op.m <= rows).unwrap_or(kinds.len() - 1);
    let (rows, row_blocks) = (ROWS[kind], op.m.div_ceil(ROWS[kind]));
    // With several parts the number of blocks is rounded up. With up to 16 rows two blocks fit on a multiprocessor, so
    // a few blocks too many do not start another wave. With more rows (an int8 weight) only one block fits, so they do,
    // unless there is only one block for every two multiprocessors.
    let rounds_up = columns.parts > 1;
    let blocks_for = |per_2: u32| {
        columns.blocks_per_part(row_blocks, widest.max_width, (arch.multiprocessors * per_2 / 2).max(1), rounds_up)
    };
    // Uses one block for every two multiprocessors if each block would read more bytes of x, from L2, than of the
    // weights.
    let weight_bytes = columns.sets * columns.columns_per_block(blocks_for(2)) * operands.weight_bytes as u32;
    let per_2 = if 2 * rows.min(op.m) > weight_bytes { 1 } else { 2 };
    let blocks = blocks_for(fixed.blocks_per_2_multiprocessors.unwrap_or(per_2));
    let width = columns.columns_per_block(blocks);
    let shape = shapes.iter().find(|shape| width <= shape.max_width)?;
    let grid = [row_blocks, blocks * columns.parts, 1];

    // x_tiles: number of tiles of 8 rows of x. x_of_box: number of boxes of x (64 columns) for one box of the weight. A
    // stage has at most 32 KiB of x.
    let (x_tiles, x_of_box) = (rows / 8, 2 / operands.weight_bytes as u32);
    let boxes = shape.boxes.min(32 / (x_of_box * x_tiles));
    let tiles = if x_tiles > 2 { shape.tiles } else { 1 };
    let groups = width.div_ceil(16 * tiles);
    let multipliers = groups * (x_tiles / 4).max(1);
    let normalisers = if op.normalises { boxes.min(2) * (x_tiles / 2).max(1) } else { 0 };
    // Bytes of shared memory of a stage of the ring, with its three mbarriers.
    let stage_bytes = 1024 * boxes * (2 * columns.sets * groups * tiles + x_of_box * x_tiles) + 24;
    let others = 1024 + if op.norm.is_null() { 0 } else { rows * NORM_SHARED_BYTES_PER_ROW };
    // A multiprocessor has 1 KiB more shared memory than a block may use, and reserves 1 KiB for each of its blocks.
    let stages = |blocks: u32| ((arch.shared_per_block + 1024) / blocks - 1024).saturating_sub(others) / stage_bytes;
    // Two blocks share a multiprocessor if there are several waves and each block then has at least three stages.
    let each = if grid[0] * grid[1] > arch.multiprocessors && stages(2) > 2 { 2 } else { 1 };
    let room = stages(each);
    let needed = (op.k * operands.weight_bytes as u32).div_ceil(128 * boxes);

    let stage = Stage {
        grid,
        shared: others + room.min(needed) * stage_bytes,
        resident_blocks: each * arch.multiprocessors,
        tensor_maps: columns.tensor_maps(
            operands.weight_bytes,
            width,
            tensor_map(op.x, 2, [op.m, op.k], rows)?,
            op.k,
        )?,
        ..Stage::one_dimensional(shape.symbols[kind], 1, 32 * (multipliers + normalisers + 1))
    };
    (room > 0).then(|| stage.programmatic_on(arch))
}
