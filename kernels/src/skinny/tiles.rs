//! Plans the products whose operands are copied to shared memory by tensor copies (compute capability 9.0): a few rows
//! by `sm90.cuh`, more rows of a bf16 weight by `sm90a.cuh`.

use reel_device::{Addr, Arch, Stage};
use reel_sim::tensor_map::{DataType, L2Promotion, Swizzle, TensorMap};

use super::plan::{NORM_SHARED_BYTES_PER_ROW, SkinnyProduct};
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

/// The columns of a product, and the weights that they need.
pub(super) struct ColumnPartition<'a> {
    /// Number of parts of the columns: the heads of `qkv`, otherwise 1. A block has columns of one part only.
    pub(super) parts: u32,
    /// Number of columns of a part; in `qkv`, number of pairs of columns of a head.
    pub(super) columns: u32,
    /// Number of sets of weight rows that a block's columns need: 2 in `qkv` and `swiglu`, otherwise 1.
    pub(super) sets: u32,
    /// For each weight, the offset of its tensor map in the parameters, its address and its number of rows.
    pub(super) weights: &'a [(usize, Addr, u32)],
    /// The offset of the tensor map of x in the parameters.
    pub(super) x_slot: usize,
}

impl ColumnPartition<'_> {
    /// Returns the number of columns per block if `blocks` blocks divide a part; the same as `width` in `products.cuh`.
    pub(super) fn columns_per_block(&self, blocks: u32) -> u32 {
        self.columns.div_ceil(blocks).next_multiple_of(4)
    }

    /// Returns how many blocks divide a part. A wave is `resident_blocks` blocks, which run at the same time. The
    /// number of waves is the least with which blocks have at most `max_width` columns, and all waves are full. If the
    /// blocks do not divide evenly among the parts, there are a few too many (`rounds_up`) or too few.
    pub(super) fn blocks_per_part(
        &self,
        row_blocks: u32,
        max_width: u32,
        resident_blocks: u32,
        rounds_up: bool,
    ) -> u32 {
        let (others, resident_blocks) = (u64::from(self.parts) * u64::from(row_blocks), u64::from(resident_blocks));
        let least = u64::from(self.columns.div_ceil(max_width));
        let in_waves = (least * others).div_ceil(resident_blocks) * resident_blocks;
        let blocks = if rounds_up { in_waves.div_ceil(others) } else { in_waves / others };
        let most = self.columns.div_ceil(4);
        self.columns.div_ceil(self.columns_per_block(blocks.clamp(least, u64::from(most)) as u32))
    }

    /// Returns the tensor maps of the weights, with boxes of `width` rows and elements of `weight_bytes` bytes, and the
    /// map of x. `None` if tensor copies do not support one of the arrays.
    pub(super) fn tensor_maps(
        &self,
        weight_bytes: u64,
        width: u32,
        x: TensorMap,
        k: u32,
    ) -> Option<Vec<(usize, TensorMap)>> {
        let weight = |&(slot, w, n): &(usize, Addr, u32)| Some((slot, tensor_map(w, weight_bytes, [n, k], width)?));
        self.weights.iter().map(weight).chain([Some((self.x_slot, x))]).collect()
    }
}

/// Returns the tensor map of an array `[rows, k]` of elements of 1 or 2 bytes, in boxes of `box_rows` rows of 128
/// bytes. `None` if tensor copies do not support the array.
pub(super) fn tensor_map(at: Addr, bytes: u64, [rows, k]: [u32; 2], box_rows: u32) -> Option<TensorMap> {
    let data_type = if bytes == 1 { DataType::U8 } else { DataType::Bf16 };
    let (dims, strides) = ([u64::from(k), u64::from(rows)], [u64::from(k) * bytes]);
    let map =
        TensorMap::tiled(data_type, at.0, &dims, &strides, &[128 / bytes as u32, box_rows], Swizzle::B128).ok()?;
    Some(TensorMap { l2_promotion: L2Promotion::B256, ..map })
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
    // With several parts the number of blocks is rounded up: two blocks fit on a multiprocessor, so a few blocks too
    // many do not start another wave.
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
