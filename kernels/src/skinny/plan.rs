//! Launch plans of skinny GEMM: how blocks divide rows and columns, and their shared memory.

use super::{JoinedParams, Params};
use crate::{Addr, Arch, Stage};

/// The operands of a kernel, as far as its shared memory depends on them.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Bytes of an element of the weight.
    weight_bytes: u32,
    /// Number of 16-byte units of a row of x that are multiplied with one unit of a row of the weight.
    x_units: u32,
    /// Maximum number of rows of x of a block.
    max_rows: u32,
}

pub(super) const BF16: Operands = Operands { weight_bytes: 2, x_units: 1, max_rows: 64 };
pub(super) const BF16_LOGITS: Operands = Operands { weight_bytes: 2, x_units: 1, max_rows: 32 };
pub(super) const F32: Operands = Operands { weight_bytes: 2, x_units: 2, max_rows: 16 };
pub(super) const INT8_BF16: Operands = Operands { weight_bytes: 1, x_units: 2, max_rows: 32 };
pub(super) const INT8_F32: Operands = Operands { weight_bytes: 1, x_units: 4, max_rows: 16 };

/// The symbols of two kernels that differ in the number of tiles of a block.
#[derive(Clone, Copy)]
pub(super) struct Symbols {
    pub one_tile: &'static str,
    pub several_tiles: &'static str,
}

/// Columns of y of a tile; the tiles of a wide variant have twice as many.
const COLUMNS: u32 = 16;

/// Bytes of shared memory for the norm of a row: partial sums of 16 warps, padding, and the scale.
const NORM_BYTES: u32 = (16 + 1 + 1) * 4;

/// Blocks may have several tiles of columns and keep x in shared memory if it has at most this many rows.
const MAX_KEPT_ROWS: u32 = 8;

/// The sizes of a product, or of joined products, as far as the plan depends on them.
#[derive(Clone, Copy)]
struct ProductSizes {
    m: u32,
    k: u32,
    norm: Addr,
    /// Rows of all weights: columns of y, for swiglu twice.
    weight_rows: u32,
}

/// Plans blocks with one tile of columns each, `column_blocks` in all with `tiles` tiles of 8 weight rows each, for as
/// many blocks of rows of x as shared memory requires. Blocks of the same columns are neighbours, so that they read the
/// weight from L2 if there are several.
fn one_tile_stage(
    symbol: &'static str,
    arch: &Arch,
    sizes: ProductSizes,
    column_blocks: u32,
    tiles: u32,
    operands: Operands,
) -> Vec<Stage> {
    let ProductSizes { m, norm, .. } = sizes;
    if m == 0 || column_blocks == 0 {
        return Vec::new();
    }
    // The ring of a block: stages of `unroll` slots for each of 8 warps, with 32 lanes of 16 bytes for each unit. The
    // number of stages and of slots is that of sm80.cu.
    let stages = stages_of_ring(operands);
    let norm_bytes = if norm.is_null() { 0 } else { NORM_BYTES };
    let bytes =
        |rows: u32, unroll: u32| stages * unroll * 8 * 512 * (tiles + rows / 8 * operands.x_units) + rows * norm_bytes;
    let fits = |rows: &u32| bytes(*rows, 1) <= arch.shared_per_block;
    let most = (8..=operands.max_rows).rev().step_by(8).find(fits).unwrap_or(8);
    let row_blocks = m.div_ceil(most);
    let rows = m.div_ceil(row_blocks).next_multiple_of(8);
    // As many slots as let two blocks be resident, up to 48 KiB of weights in flight.
    let unroll = (1..=4 / tiles).rev().find(|&unroll| 2 * bytes(rows, unroll) <= arch.shared_per_block).unwrap_or(1);
    let grid = [row_blocks, column_blocks, 1];
    let stage = Stage { grid, shared: bytes(rows, unroll), ..Stage::one_dimensional(symbol, 1, 256) };
    vec![stage.programmatic_on(arch)]
}

/// Number of stages of the ring.
fn stages_of_ring(operands: Operands) -> u32 {
    if operands.x_units > 2 { 2 } else { 4 }
}

/// Plans blocks that divide the columns evenly and keep x in shared memory, if x is small enough and there are more
/// tiles than such blocks; `tiles_of_columns` is the number of tiles, which have `tiles` tiles of 8 weight rows.
///
/// One block per multiprocessor has enough weights in flight, and its shared memory leaves room for a block of the next
/// launch. A second one shortens the pauses between tiles; it is added if x, which each block reads, is so small beside
/// the weight that the launch still reads at most 4 % more.
fn several_tiles_stage(
    symbol: &'static str,
    arch: &Arch,
    sizes: ProductSizes,
    tiles_of_columns: u32,
    tiles: u32,
    operands: Operands,
) -> Option<Stage> {
    let ProductSizes { m, k, norm, weight_rows } = sizes;
    if m == 0 || m > MAX_KEPT_ROWS {
        return None;
    }
    // As in sm80.cu: a group of k has four units of the weight; runs of four groups are dealt to the 8 warps.
    let groups = u64::from(k.div_ceil(4 * 16 / operands.weight_bytes).div_ceil(4 * 8) * 4);
    let ring = stages_of_ring(operands) * 4 * 8 * 512;
    let partial_sums = 2 * 8 * m * (8 * tiles + 8) * 4;
    // The norm has space for rows up to a multiple of 8.
    let norm_bytes = if norm.is_null() { 0 } else { 8 * NORM_BYTES };
    let kept = 8 * groups * u64::from(operands.x_units * m * 4 * 16);
    let bytes = kept + u64::from(ring + partial_sums + norm_bytes);
    // Bytes of x that two blocks per multiprocessor read, and those of the weight, both for one element of k.
    let x_bytes = u64::from(2 * arch.multiprocessors * m * operands.x_units * operands.weight_bytes);
    let two_read_little = 25 * x_bytes <= u64::from(weight_rows) * u64::from(operands.weight_bytes);
    let two =
        two_read_little && 2 * bytes <= u64::from(arch.shared_per_block) && 2 * arch.multiprocessors < tiles_of_columns;
    let blocks = if two { 2 * arch.multiprocessors } else { arch.multiprocessors };
    let fits = bytes <= u64::from(arch.shared_per_block) && blocks < tiles_of_columns;
    let grid = [1, blocks, 1];
    let stage = || Stage { grid, shared: bytes as u32, ..Stage::one_dimensional(symbol, 1, 256) }.programmatic_on(arch);
    fits.then(stage)
}

/// Plans the blocks of all products, whose columns are numbered one product after the other.
pub(super) fn joined_geometry(p: &JoinedParams, arch: &Arch, symbols: Symbols, operands: Operands) -> Vec<Stage> {
    let tiles: u32 = [p.n0, p.n1, p.n2].iter().map(|n| n.div_ceil(COLUMNS)).sum();
    let sizes = ProductSizes { m: p.m, k: p.k, norm: p.norm, weight_rows: p.n0 + p.n1 + p.n2 };
    match several_tiles_stage(symbols.several_tiles, arch, sizes, tiles, 2, operands) {
        Some(stage) => vec![stage],
        None => one_tile_stage(symbols.one_tile, arch, sizes, tiles, 2, operands),
    }
}

/// Plans the blocks of one product or of swiglu. If blocks have several tiles of columns, the wide variant is used
/// where they still have several of its tiles. If they have one, it is used if its grid still has two blocks per
/// multiprocessor; with more than 16 rows, which each block reads again, three for four multiprocessors are enough.
pub(super) fn geometry(
    p: &Params,
    arch: &Arch,
    narrow: Symbols,
    wide: Option<Symbols>,
    operands: Operands,
) -> Vec<Stage> {
    let Params { m, n, k, norm, .. } = *p;
    // swiglu, which has no wide variant, has two weights.
    let (weights, narrow_weight_tiles) = if wide.is_none() { (2, 4) } else { (1, 2) };
    let sizes = ProductSizes { m, k, norm, weight_rows: weights * n };
    let (narrow_tiles, wide_tiles) = (n.div_ceil(COLUMNS), n.div_ceil(2 * COLUMNS));
    let several_wide = || several_tiles_stage(wide?.several_tiles, arch, sizes, wide_tiles, 4, operands);
    let several_narrow =
        || several_tiles_stage(narrow.several_tiles, arch, sizes, narrow_tiles, narrow_weight_tiles, operands);
    if let Some(stage) = several_wide().or_else(several_narrow) {
        return vec![stage];
    }
    let fills =
        if m > 16 { 4 * wide_tiles >= 3 * arch.multiprocessors } else { wide_tiles >= 2 * arch.multiprocessors };
    match wide {
        Some(wide) if fills => one_tile_stage(wide.one_tile, arch, sizes, wide_tiles, 4, operands),
        _ => one_tile_stage(narrow.one_tile, arch, sizes, narrow_tiles, narrow_weight_tiles, operands),
    }
}
