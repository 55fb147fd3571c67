//! Plans a skinny GEMM: with the scheme `Tiles` if it is chosen and the GPU's tensor copies can read the operands
//! (`tiles.rs`), otherwise with blocks that copy units.

use std::mem::offset_of;

use reel_device::{Arch, Stage};

use super::choices::{FEW_ROWS, plan_choices};
use super::product::{ColumnPartition, NORM_SHARED_BYTES_PER_ROW, SkinnyProduct};
use super::tiles;
use super::{Fixed, Operands, Params, QkvParams, Symbols};

/// Number of columns of y per block. Wide variants have twice this number.
const COLUMNS: u32 = 16;

/// Warps of a block.
const WARPS: u32 = 8;

/// Plans `column_blocks` blocks of columns, for as many blocks of rows of x as shared memory requires. If there are
/// several blocks of rows, blocks of the same columns are neighbours in the grid, so that all but one read the weight
/// from L2.
fn stage(
    op: &SkinnyProduct,
    arch: &Arch,
    (tiles, symbol): (u32, &'static str),
    column_blocks: u32,
    operands: Operands,
    fixed: Fixed,
) -> Vec<Stage> {
    if op.m == 0 || column_blocks == 0 {
        return Vec::new();
    }
    let norm_bytes = if op.norm.is_null() { 0 } else { NORM_SHARED_BYTES_PER_ROW };
    // The rings of a block's warps: stages of `depth` slots. A slot has 32 lanes of 16 bytes for each unit of the
    // weight and of x. sm80.cu has the same numbers.
    let stages = if operands.x_units > 2 { 2 } else { 4 };
    let ring = |rows: u32, depth: u32| stages * depth * 512 * (tiles + rows / 8 * operands.x_units);
    let bytes = |rows: u32, depth: u32| WARPS * ring(rows, depth) + rows * norm_bytes;
    // A multiprocessor has 1 KiB more shared memory than a block may use, and reserves 1 KiB for each of its blocks.
    let fits =
        |rows: u32, depth: u32, blocks: u32| blocks * (bytes(rows, depth) + 1024) <= arch.shared_per_block + 1024;
    let most = (8..=operands.max_rows).rev().step_by(8).find(|&rows| fits(rows, 1, 1)).unwrap_or(8);
    let row_blocks = op.m.div_ceil(most);
    let rows = op.m.div_ceil(row_blocks).next_multiple_of(8);
    // Takes the largest number of slots with which `fixed.blocks` blocks (usually two) are resident; each has up to 48
    // KiB of weights in flight.
    let depths: &[u32] = match 8 / tiles / fixed.blocks {
        4 => &[4, 2],
        2 => &[2],
        _ => &[],
    };
    let depth = depths.iter().copied().find(|&depth| fits(rows, depth, fixed.blocks)).unwrap_or(1);
    let grid = [row_blocks, column_blocks, 1];
    let each = if fits(rows, depth, fixed.blocks) { fixed.blocks } else { 1 };
    let (shared, resident_blocks) = (bytes(rows, depth), each * arch.multiprocessors);
    let stage = Stage { grid, shared, resident_blocks, ..Stage::one_dimensional(symbol, 1, 32 * WARPS) };
    vec![stage.programmatic_on(arch)]
}

/// Plans the blocks of all heads. A block that copies units has 8 columns of each half of a head.
pub(super) fn plan_qkv(p: &QkvParams, arch: &Arch, symbols: Symbols, operands: Operands, fixed: Fixed) -> Vec<Stage> {
    let (heads, half_head) = (p.heads + 2 * p.kv_heads, p.head_dim / 2);
    let op = SkinnyProduct { x: p.x, m: p.m, k: p.k, norm: p.norm, weights: &[p.w_q, p.w_k, p.w_v], normalises: true };
    let (queries, keys) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
    let weights = [
        (offset_of!(QkvParams, q_map), p.w_q, queries),
        (offset_of!(QkvParams, k_map), p.w_k, keys),
        (offset_of!(QkvParams, v_map), p.w_v, keys),
    ];
    let x_slot = offset_of!(QkvParams, x_map);
    let columns = ColumnPartition { parts: heads, columns: half_head, sets: 2, weights: &weights, x_slot };
    if let Some(stage) = tiles::plan_stage(&op, arch, &symbols, &columns, operands, fixed) {
        return vec![stage];
    }
    stage(&op, arch, symbols.units[0], heads * half_head.div_ceil(8), operands, fixed)
}

/// Plans the blocks of one product or of swiglu. In the scheme `Units`, the second kernel name, if there is one, has
/// blocks of twice as many columns. It is used if its grid still fills the GPU ([`MinWideBlocks`]); a smaller grid is
/// enough with more than 16 rows, because each block reads all rows again.
pub(super) fn plan_product(p: &Params, arch: &Arch, symbols: Symbols, operands: Operands, fixed: Fixed) -> Vec<Stage> {
    // Only swiglu has two weights, and it has no wide blocks.
    let is_pair = symbols.units.len() == 1;
    let op = SkinnyProduct { x: p.x, m: p.m, k: p.k, norm: p.norm, weights: &[p.w, p.w2], normalises: is_pair };
    let weights = [(offset_of!(Params, w_map), p.w, p.n), (offset_of!(Params, w2_map), p.w2, p.n)];
    let weights = if is_pair { &weights[..] } else { &weights[..1] };
    let x_slot = offset_of!(Params, x_map);
    let columns = ColumnPartition { parts: 1, columns: p.n, sets: weights.len() as u32, weights, x_slot };
    if let Some(stage) = tiles::plan_stage(&op, arch, &symbols, &columns, operands, fixed) {
        return vec![stage];
    }
    let narrow_blocks = p.n.div_ceil(COLUMNS);
    let &[narrow, wide] = symbols.units else {
        return stage(&op, arch, symbols.units[0], narrow_blocks, operands, fixed);
    };
    let wide_blocks = p.n.div_ceil(2 * COLUMNS);
    let [few, many] = (operands.wide_blocks)(&plan_choices(arch.sm).wide_blocks);
    let enough = if p.m > FEW_ROWS { many } else { few };
    let fills = 4 * u64::from(wide_blocks) >= enough * u64::from(arch.multiprocessors);
    if fixed.wide.unwrap_or(fills) {
        stage(&op, arch, wide, wide_blocks, operands, fixed)
    } else {
        stage(&op, arch, narrow, narrow_blocks, operands, fixed)
    }
}
