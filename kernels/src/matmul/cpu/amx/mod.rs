//! Products of two bf16 matrices on the tiles of AMX ([`crate::simd::amx`]): blocks of 32 × 32 sums in four tiles.
//!
//! `tdpbf16ps` multiplies a tile of *rows* (16 rows of 32 elements along k) with a tile of *pairs* (16 columns; each
//! row of the tile has one pair of neighbouring k of every column). Rows are what lies in memory if k is the last
//! dimension; pairs have to be packed. The operand whose rows are read as they lie is B, the weight:
//!
//! ```text
//! B is [n, k]  (forward):   rows = B in place,               pairs = A, packed once per call      sums are [n, m]
//! B is [k, n]  (gradients): rows = A, packed once per call,  pairs = B, packed block by block     sums are [m, n]
//!
//! B is in groups (forward): like B [k, n], but bf16 is not packed: a line of a group has 32 pairs of one k;
//!                           a block of int8 is widened while it is packed
//!
//! for each block of k (512 elements), panel of 32 columns of C, and 32 rows of C:      # a task has up to 8 panels
//!     tiles 0..3 = 0, or the sums of the block of k before
//!     for each 32 elements of k:  load tiles 4, 5 (rows) and 6, 7 (pairs); four tdpbf16ps
//!     store tiles 0..3; after the last block of k:  C = round(scale * sums + bias (+ old C))
//! ```
//!
//! **Order.** k is taken in steps of 32 from 0 on, with one `tdpbf16ps` each; zeros complete the last step. Each step
//! adds one f32 to the sum: its products over even k plus those over odd k. A product of bf16 numbers commutes, and a
//! partial sum that is stored and continued is the same f32, so the order depends on k alone: not on m, on which
//! operand has the rows, on tile, block or thread. It is another order than that of the other instruction sets.
//!
//! **Cost.** A step of a block loads 4 KiB for 65 536 operations. 32 rows of a block of k fill 32 KiB, which stay in
//! the first-level cache while 512 rows of A (512 KiB per block of k) stream from the second. With up to 32 rows of A,
//! all of k is one block, and B is read from memory once, with prefetching: the arithmetic of 32 rows takes less time
//! than that at the rates in `simd/isa.rs`. In groups B is one stream of memory, which a prefetch to the second-level
//! cache and one to the first at half the distance keep memory busier than plain loads do, on large pages.
//! A is packed so that a tile is 1 KiB without gaps: rows that are a multiple of 4 KiB apart would compete for the same
//! few sets of the caches. B's rows are copied block by block if they are so far apart.

mod pack;
mod tiles;

use super::avx512::transpose;
use super::{LAUNCH, PACK_ALONE, Packed, Part, Scratch, Source, TASK, THIN_BYTES, Unit, groups, int8, runs};
use crate::matmul::{Matmul, Operand};
use crate::simd::amx::{TileShape, Tiles};
use crate::view::{OutputArray, slice_at};
use crate::{DType, Element, Team};
use half::bf16;
use pack::{copy_rows, load_lanes, pack_pairs, pack_rows_as_pairs, pack_transposed_rows, store_lanes};
use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::null;
use tiles::{Prefetch, TileCall, multiply, multiply_groups, thin_groups_one, thin_groups_two, thin_one, thin_two};

/// Rows of a tile, and columns of a tile of sums.
const SIDE: usize = 16;
/// Rows and columns of C that four tiles of sums cover.
const BLOCK: usize = 2 * SIDE;
/// Elements along k that one instruction takes.
const STEP: usize = 32;
/// Words (4 bytes) of a tile.
const TILE: usize = 256;
/// Words of the four tiles of sums.
const SUMS: usize = 4 * TILE;
/// Maximum number of panels (32 columns of C) of a task.
const MAX_PANELS: usize = 8;
/// Steps that a product with few rows of A prefetches ahead in rows of B.
const AHEAD: usize = 6;

/// Columns of C that a product with few rows of A and groups of B finishes before it stores them. The stream of B has
/// pushed C out of the near caches, so an ordinary store first reads its line, in the place of a line of B
/// (benches/results/intel-xeon/2026-11-25-amx-decode.json).
const STRIP: usize = 8 * BLOCK;
/// Bytes of B that count as such a stream. A small B leaves C in the caches, where the next launch finds it.
const STREAM: usize = 1 << 20;

/// Sizes of blocks. No bit of a result depends on them.
#[derive(Clone, Copy, Debug)]
pub(in crate::matmul) struct Blocking {
    /// Maximum number of steps along k of a block.
    pub(in crate::matmul) steps: usize,
    /// Maximum number of blocks of 32 rows of A that are multiplied with a panel of B before the next panel.
    pub(in crate::matmul) row_blocks: usize,
    /// Maximum number of panels of a task, at most [`MAX_PANELS`].
    pub(in crate::matmul) panels: usize,
    /// Maximum number of words of A that are packed at a time, if these are at least 128 rows.
    pub(in crate::matmul) packed_words: usize,
    /// Whether a product with up to 32 rows of A has code of its own.
    pub(in crate::matmul) thin: bool,
}

impl Blocking {
    /// The sizes for caches of 48 KiB and 2 MiB per core.
    pub(in crate::matmul) const USUAL: Blocking =
        Blocking { steps: 16, row_blocks: 16, panels: MAX_PANELS, packed_words: super::PACKED_A / 4, thin: true };
}

/// Computes the product of two bf16 operands.
///
/// # Safety
/// The process may use AMX, or the emulator of the tests is installed, and the processor has AVX-512 F, BW and VL; the
/// addresses cover the shapes that [`Matmul`] documents, and nothing else uses C.
pub(in crate::matmul) unsafe fn run(p: &Matmul, team: &Team, blocking: &Blocking) {
    if p.m == 0 || p.n == 0 {
        return;
    }
    LAUNCH.with_borrow_mut(|scratch| {
        // SAFETY: the conditions of this function.
        unsafe {
            match p.c_dtype {
                DType::F32 => Product::<f32>::new(p, team, blocking).run(scratch),
                _ => Product::<bf16>::new(p, team, blocking).run(scratch),
            }
        }
    });
}

/// A product in progress.
struct Product<'a, T> {
    m: usize,
    n: usize,
    k: usize,
    /// Steps of 32 elements along k.
    steps: usize,
    a: Source,
    b: Source,
    c: OutputArray<T>,
    bias: &'a [T],
    /// The scales of an int8 B; else empty.
    b_scale: &'a [f32],
    accumulate: bool,
    scale: f32,
    team: &'a Team,
    blocking: &'a Blocking,
}

/// Where the tiles of a panel of B lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Packed, one after the other.
    Packed,
    /// Rows of B where they lie.
    Rows,
    /// Lines of a group where they lie.
    Group,
}

/// The part of B that a task multiplies with rows of A: one panel and one block of k.
#[derive(Clone, Copy)]
struct Panel {
    /// The two tiles of the first step.
    tiles: [*const u8; 2],
    place: Place,
    /// Steps of full tiles.
    steps: usize,
    /// The two tiles of an incomplete last step, if the others are in place: one after the other, or 16 lines of a group.
    /// Null if k has whole steps only.
    tail: *const u8,
}

impl Panel {
    const NONE: Panel = Panel { tiles: [null(); 2], place: Place::Packed, steps: 0, tail: null() };

    /// The two tiles of the incomplete last step.
    fn tail_tiles(&self) -> [*const u8; 2] {
        match (self.tail.is_null(), self.place) {
            (true, _) => [null(); 2],
            (_, Place::Group) => [self.tail, self.tail.wrapping_add(64)],
            _ => [self.tail, self.tail.wrapping_add(1024)],
        }
    }
}

/// Up to 32 rows of A as two tiles.
#[derive(Clone, Copy)]
struct RowsInTiles {
    /// See [`TileCall`].
    rows: [*const u8; 2],
    row_stride: usize,
    row_step: usize,
    /// The tiles of an incomplete last step, else null.
    tail: [*const u8; 2],
}

// SAFETY: the rows are only read while the product runs.
unsafe impl Sync for RowsInTiles {}

impl RowsInTiles {
    /// Multiplies them with all lines of a group of B. The lines that follow are prefetched.
    ///
    /// # Safety
    /// The tiles exist for all steps; `sums` has room for four tiles; the tiles of this thread have the shape of the
    /// rows, and the second one exists if `both` is true.
    unsafe fn multiply(&self, lines: &Panel, sums: *mut f32, both: bool) {
        let call = TileCall {
            rows: self.rows,
            row_stride: self.row_stride,
            row_step: self.row_step,
            pairs: lines.tiles,
            steps: lines.steps,
            tail_rows: self.tail,
            tail_pairs: lines.tail_tiles(),
            sums,
            add: 0,
            prefetch: Prefetch::NONE,
        };
        // SAFETY: the conditions of this function.
        unsafe { if both { thin_groups_two(&call) } else { thin_groups_one(&call) } }
    }
}

impl<'a, T: Element> Product<'a, T> {
    unsafe fn new(p: &Matmul, team: &'a Team, blocking: &'a Blocking) -> Self {
        let source = |x: &Operand, rows, grouped| Source {
            base: x.addr.0 as *const u8,
            unit: match (x.dtype, grouped) {
                (DType::I8, _) => Unit::Int8Pair,
                (_, true) => Unit::GroupedPair,
                _ => Unit::Pair,
            },
            // Groups have pairs as well.
            transposed: x.transposed || x.dtype == DType::I8 || grouped,
            rows,
            k: p.k,
        };
        // SAFETY: c has `[m, n]` elements of T; bias has `[n]` of them, or is null and read as empty.
        let (c, bias) =
            unsafe { (OutputArray::new(p.c, p.m * p.n), slice_at(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
        // SAFETY: `b_scale` has `[n]` elements, or is null and read as empty.
        let b_scale = unsafe { slice_at(p.b_scale, if p.b_scale.is_null() { 0 } else { p.n }) };
        let (a, b) = (source(&p.a, p.m, false), source(&p.b, p.n, p.b_grouped));
        let (accumulate, scale, steps) = (p.accumulate, p.scale, p.k.div_ceil(STEP));
        Product { m: p.m, n: p.n, k: p.k, steps, a, b, c, bias, b_scale, accumulate, scale, team, blocking }
    }

    /// Words of 32 packed rows of A.
    fn words_per_row_block(&self) -> usize {
        2 * self.steps * TILE
    }

    /// Whether B's pairs are packed block by block: it is stored `[k, n]`, or as int8.
    fn packs_pairs(&self) -> bool {
        self.b.transposed && self.b.unit != Unit::GroupedPair
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        if self.m <= BLOCK && !self.packs_pairs() && self.blocking.thin {
            // SAFETY: the operands are valid as `Matmul` documents; A has few enough rows, and B is read in place.
            return unsafe { if self.b.transposed { self.thin_groups(scratch) } else { self.thin_rows(scratch) } };
        }
        let row_blocks = (self.blocking.packed_words / self.words_per_row_block().max(1)).max(4);
        for row in (0..self.m).step_by(row_blocks * BLOCK) {
            // SAFETY: the operands are valid as `Matmul` documents; the rows lie inside A.
            unsafe { self.rows(row, (row_blocks * BLOCK).min(self.m - row), scratch) }
        }
    }

    /// Packs `rows` rows of A from `row` on, and computes these rows of C.
    unsafe fn rows(&self, row: usize, rows: usize, scratch: &mut Scratch) {
        let row_blocks = rows.div_ceil(BLOCK);
        let words = self.words_per_row_block();
        let packed = Packed(scratch.words(row_blocks * words));
        let pack = |i: usize| {
            // SAFETY: blocks do not overlap, and `packed` has room for them.
            unsafe { self.pack_a(row + i * BLOCK, BLOCK.min(rows - i * BLOCK), packed.at(i * words)) }
        };
        if row_blocks * words < PACK_ALONE {
            (0..row_blocks).for_each(pack);
        } else {
            self.team.run(row_blocks, pack);
        }
        let (panels, threads) = (self.n.div_ceil(BLOCK), self.team.threads());
        let columns = panels.div_ceil(self.blocking.panels).next_multiple_of(threads).min(panels);
        // Partial sums of a task have to fit into its second-level cache; without them a task may have all rows.
        let least = if self.steps <= self.blocking.steps { 1 } else { row_blocks.div_ceil(self.blocking.row_blocks) };
        let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(columns) };
        let parts = least.max(wanted).min(row_blocks);
        self.team.run(columns * parts, |task| {
            let (part, column) = (task / columns, task % columns);
            let row_blocks = part * row_blocks / parts..(part + 1) * row_blocks / parts;
            let panels = column * panels / columns..(column + 1) * panels / columns;
            // SAFETY: tasks own disjoint blocks of C, and A's rows are packed.
            TASK.with_borrow_mut(|s| unsafe { self.task(row, packed, row_blocks, panels, s) });
        });
    }

    /// Multiplies the given blocks of 32 packed rows of A with the given panels of B. Block 0 begins at row
    /// `first_row`.
    unsafe fn task(
        &self,
        first_row: usize,
        a: Packed,
        row_blocks: Range<usize>,
        panels: Range<usize>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: the process may use AMX.
        let _tiles = unsafe { Tiles::configure() };
        let blocks = self.steps.div_ceil(self.blocking.steps).max(1);
        let step = self.steps.div_ceil(blocks);
        let panel_words = 2 * step * TILE;
        let stored = if blocks == 1 { 1 } else { row_blocks.len() * panels.len() };
        let b = scratch.words(panels.len() * panel_words + stored * SUMS);
        // SAFETY: `b` has room for the packed panels and the sums.
        let sums = unsafe { b.add(panels.len() * panel_words).cast::<f32>() };
        let copied = self.competing_rows() && row_blocks.len() >= 4;
        let mut ready = [Panel::NONE; MAX_PANELS];
        for block in 0..blocks {
            let first = block * step;
            let (count, last) = (step.min(self.steps - first), block + 1 == blocks);
            for (i, panel) in panels.clone().enumerate() {
                // SAFETY: the panel and the steps exist, and `b` has room for them.
                ready[i] = unsafe { self.prepare(panel, first..first + count, copied, b.add(i * panel_words)) };
            }
            for part in row_blocks.clone().step_by(self.blocking.row_blocks) {
                let part = part..row_blocks.end.min(part + self.blocking.row_blocks);
                for (i, panel) in panels.clone().enumerate() {
                    // The panel and the step that are prefetched meanwhile, and the blocks of rows that share the
                    // lines.
                    let next = match (self.packs_pairs(), last, panel + 1 < panels.end) {
                        (true, false, _) => (panel, first + count),
                        (true, true, _) => (panel + panels.len(), 0),
                        (false, _, true) => (panel + 1, first),
                        (false, false, false) => (panels.start, first + count),
                        (false, true, false) => (panels.end, 0),
                    };
                    let sharing = if self.packs_pairs() { &row_blocks } else { &part };
                    for row_block in part.clone() {
                        let at = if blocks == 1 { 0 } else { (row_block - row_blocks.start) * panels.len() + i };
                        // SAFETY: the offsets lie inside packed A and inside the sums.
                        unsafe {
                            let sums = sums.add(at * SUMS);
                            let a = a.at(row_block * self.words_per_row_block()).add(first * TILE).cast::<u8>();
                            let tiles = [a.cast_const(), a.add(self.steps * TILE * 4).cast_const()];
                            let lines = lines_of(row_block - sharing.start, sharing.len());
                            let prefetch = self.prefetch(next, lines);
                            self.multiply(&ready[i], tiles, sums, block > 0, prefetch);
                            if last {
                                self.finish(sums, first_row + row_block * BLOCK, panel * BLOCK, None);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds the products of one panel with 32 packed rows of A to the sums, or stores them if `add` is false.
    unsafe fn multiply(&self, panel: &Panel, a: [*const u8; 2], sums: *mut f32, add: bool, prefetch: Prefetch) {
        let a_tail =
            if panel.tail.is_null() { [null(); 2] } else { a.map(|tile| tile.wrapping_add(panel.steps * 1024)) };
        let mut call = TileCall {
            rows: a,
            row_stride: 64,
            row_step: 1024,
            pairs: panel.tiles,
            steps: panel.steps,
            tail_rows: a_tail,
            tail_pairs: panel.tail_tiles(),
            sums,
            add: add.into(),
            prefetch,
        };
        if !self.b.transposed {
            (call.rows, call.pairs) = (panel.tiles, a);
            (call.tail_rows, call.tail_pairs) = (panel.tail_tiles(), a_tail);
            if panel.place == Place::Rows {
                (call.row_stride, call.row_step) = (self.row_bytes(), 64);
            }
        }
        // SAFETY: the tiles exist for all steps, the sums are four tiles, and the tiles of this thread are configured.
        unsafe { if panel.place == Place::Group { multiply_groups(&call) } else { multiply(&call) } }
    }

    /// Bytes of a row of B that lies along k.
    fn row_bytes(&self) -> usize {
        2 * self.k
    }

    /// Whether 32 rows of B that lie along k have their elements of one k in one or two sets of the first-level cache
    /// (64 sets of lines of 64 bytes), which then cannot hold them.
    fn competing_rows(&self) -> bool {
        self.row_bytes().is_multiple_of(2048)
    }

    /// Packs `rows` rows of A (at most 32) from `row` on, as tiles of rows or of pairs: first all steps of 16 of them,
    /// then all steps of the others. What stands in the place of missing rows has no effect on C.
    unsafe fn pack_a(&self, row: usize, rows: usize, dst: *mut u32) {
        // SAFETY: the rows exist, and `dst` has room for two rows of tiles.
        unsafe {
            let halves = [dst, dst.add(self.steps * TILE)];
            match (self.b.transposed, self.a.transposed) {
                (true, true) => pack_transposed_rows(&self.a, row, rows, self.steps, halves),
                (false, true) => pack_pairs(&self.a, row..row + rows, 0..self.steps, halves),
                (_, false) => {
                    for (first, half) in (0..rows).step_by(SIDE).zip(halves) {
                        let (row, rows) = (row + first, SIDE.min(rows - first));
                        if self.b.transposed {
                            copy_rows(&self.a, row, rows, 0..self.steps, half);
                        } else {
                            pack_rows_as_pairs(&self.a, row, rows, self.steps, half);
                        }
                    }
                }
            }
        }
    }

    /// Makes a panel of B ready for some steps along k: packs pairs, or finds rows or lines, copying what lies in place
    /// only in part. `dst` has room for two tiles: of each step, or of one step if B may stay in place.
    unsafe fn prepare(&self, panel: usize, steps: Range<usize>, copied: bool, dst: *mut u32) -> Panel {
        let (row, rows) = (panel * BLOCK, BLOCK.min(self.n - panel * BLOCK));
        let halves = [dst, dst.wrapping_add(steps.len() * TILE)];
        let packed = |halves: [*mut u32; 2], steps: usize| Panel {
            tiles: halves.map(|half| half.cast::<u8>().cast_const()),
            place: Place::Packed,
            steps,
            tail: null(),
        };
        if self.b.unit == Unit::GroupedPair {
            // SAFETY: the panel is a group with these steps, and `dst` has room for one step.
            return unsafe { self.lines_in_place(row, steps, dst) };
        }
        if self.b.unit == Unit::Int8Pair {
            for (i, half) in halves.into_iter().enumerate() {
                let part =
                    Part { row: row + i * SIDE, rows: SIDE, unit: steps.start * SIDE, units: steps.len() * SIDE };
                // SAFETY: `dst` has room for both halves.
                unsafe { int8::avx512::pack(&self.b, part, SIDE, half) };
            }
            return packed(halves, steps.len());
        }
        if self.b.transposed {
            // SAFETY: the columns exist, and `dst` has room for them.
            unsafe { pack_pairs(&self.b, row..row + rows, steps.clone(), halves) };
            return packed(halves, steps.len());
        }
        if rows < BLOCK || copied {
            for (first, half) in (0..rows).step_by(SIDE).zip(halves) {
                // SAFETY: the rows exist, and `dst` has room for them.
                unsafe { copy_rows(&self.b, row + first, SIDE.min(rows - first), steps.clone(), half) };
            }
            return packed(halves, steps.len());
        }
        let full = steps.len().min(self.k / STEP - steps.start);
        let tail = if full == steps.len() {
            null()
        } else {
            for i in 0..2 {
                // SAFETY: the rows exist; `dst` has room for two tiles of at least one step.
                unsafe { copy_rows(&self.b, row + i * SIDE, SIDE, steps.end - 1..steps.end, dst.add(i * TILE)) };
            }
            dst.cast::<u8>().cast_const()
        };
        let at = |row: usize| self.b.base.wrapping_add(row * self.row_bytes() + steps.start * 64);
        Panel { tiles: [at(row), at(row + SIDE)], place: Place::Rows, steps: full, tail }
    }

    /// Some steps of the group of B that begins with row `row`. An incomplete last step is copied to `dst` and completed
    /// with zeros: the lines that follow it belong to other rows, or do not exist.
    unsafe fn lines_in_place(&self, row: usize, steps: Range<usize>, dst: *mut u32) -> Panel {
        let first = groups::line_at(&self.b, row, steps.start * SIDE);
        let full = steps.len().min(self.k / STEP - steps.start);
        let lines = (Unit::GroupedPair.count(self.k) - steps.start * SIDE).min(steps.len() * SIDE);
        let rest = lines - full * SIDE;
        let mut tail = null();
        if rest > 0 {
            // SAFETY: the group has these lines, and `dst` has room for a step of them.
            unsafe {
                dst.copy_from_nonoverlapping(first.add(full * SIDE * BLOCK), rest * BLOCK);
                dst.add(rest * BLOCK).write_bytes(0, (SIDE - rest) * BLOCK);
            }
            tail = dst.cast::<u8>().cast_const();
        }
        let tiles = [first, first.wrapping_add(SIDE)].map(|tile| tile.cast::<u8>());
        Panel { tiles, place: Place::Group, steps: full, tail }
    }

    /// What to prefetch while a block of rows of A is multiplied: some of the 32 lines of a panel of B that each step
    /// along k has, beginning with a step. In a panel of rows the lines of a step are those of 32 columns of C; else,
    /// of 32 k.
    fn prefetch(&self, (panel, step): (usize, usize), lines: Range<usize>) -> Prefetch {
        // The processor prefetches the neighbouring lines of int8 while they are packed.
        if panel * BLOCK >= self.n || self.b.unit == Unit::Int8Pair {
            return Prefetch::NONE;
        }
        if self.b.unit == Unit::GroupedPair {
            let at = groups::line_at(&self.b, panel * BLOCK, step * SIDE).cast::<u8>();
            let (at, advance) = (at.wrapping_add(64 * lines.start), 64 * BLOCK);
            return Prefetch { at, stride: 64, lines: lines.len(), advance, ..Prefetch::NONE };
        }
        let (row, column, stride) = if self.b.transposed {
            (step * STEP + lines.start, panel * BLOCK, 2 * self.n)
        } else {
            (panel * BLOCK + lines.start, step * STEP, self.row_bytes())
        };
        let at = self.b.base.wrapping_add(row * stride + column * 2);
        let advance = if self.b.transposed { STEP * stride } else { 2 * STEP };
        Prefetch { at, stride, lines: lines.len(), advance, ..Prefetch::NONE }
    }

    /// Computes a product with up to 32 rows of A and rows of B. B is read once; each task reads a range of its rows.
    unsafe fn thin_rows(&self, scratch: &mut Scratch) {
        let a = Packed(scratch.words(self.words_per_row_block()));
        // SAFETY: `a` has room for 32 rows.
        unsafe { self.pack_a(0, self.m, a.at(0)) };
        let panels = self.n.div_ceil(BLOCK);
        let panel_bytes = BLOCK * self.row_bytes();
        let runs = runs(panels, (THIN_BYTES / panel_bytes.max(1)).max(1), self.team.threads());
        self.team.run(runs, |run| {
            // SAFETY: `a` holds two rows of tiles.
            let tiles = unsafe { [a.at(0), a.at(self.steps * TILE)].map(|tile| tile.cast::<u8>().cast_const()) };
            TASK.with_borrow_mut(|scratch| {
                let dst = scratch.words(2 * self.blocking.steps * TILE + SUMS);
                // SAFETY: the process may use AMX; `dst` has room for a block of a panel and for the sums.
                unsafe {
                    let sums = dst.add(2 * self.blocking.steps * TILE).cast::<f32>();
                    let _amx = Tiles::configure();
                    for panel in run * panels / runs..(run + 1) * panels / runs {
                        if self.n - panel * BLOCK >= BLOCK {
                            self.thin_in_place(panel, tiles, dst, sums);
                        } else {
                            self.thin_copied(panel, tiles, dst, sums);
                        }
                        self.finish(sums, 0, panel * BLOCK, None);
                    }
                }
            });
        });
    }

    /// Multiplies all of k of a panel of 32 rows of B with up to 32 packed rows of A, and prefetches.
    unsafe fn thin_in_place(&self, panel: usize, a: [*const u8; 2], dst: *mut u32, sums: *mut f32) {
        // SAFETY: the panel exists; `dst` has room for two tiles.
        let ready = unsafe { self.prepare(panel, 0..self.steps, false, dst) };
        let next = ready.tiles[0].wrapping_add(BLOCK * self.row_bytes());
        let prefetch = Prefetch {
            // AHEAD steps further in the same rows; near their end, in the next rows.
            at: if ready.steps > AHEAD {
                ready.tiles[0].wrapping_add(AHEAD * 64)
            } else {
                next.wrapping_add((AHEAD - ready.steps) * 64)
            },
            stride: self.row_bytes(),
            lines: BLOCK,
            advance: 64,
            change: AHEAD,
            next,
        };
        let call = TileCall {
            rows: ready.tiles,
            row_stride: self.row_bytes(),
            row_step: 64,
            pairs: a,
            steps: ready.steps,
            tail_rows: ready.tail_tiles(),
            tail_pairs: a.map(|tile| tile.wrapping_add(ready.steps * 1024)),
            sums,
            add: 0,
            prefetch,
        };
        // SAFETY: the tiles exist for all steps, the sums are four tiles, and the tiles of this thread are configured.
        unsafe { if self.m > SIDE { thin_two(&call) } else { thin_one(&call) } }
    }

    /// Multiplies all of k of a last, incomplete panel of B with up to 32 packed rows of A.
    unsafe fn thin_copied(&self, panel: usize, a: [*const u8; 2], dst: *mut u32, sums: *mut f32) {
        for first in (0..self.steps.max(1)).step_by(self.blocking.steps) {
            let steps = first..self.steps.min(first + self.blocking.steps);
            // SAFETY: the panel and the steps exist, and `dst` has room for them.
            unsafe {
                let ready = self.prepare(panel, steps, false, dst);
                let a = a.map(|tile| tile.wrapping_add(first * TILE * 4));
                self.multiply(&ready, a, sums, first > 0, Prefetch::NONE);
            }
        }
    }

    /// Computes a product with up to 32 rows of A and groups of B. B is read once; each task reads some of its groups.
    /// Rows of A that lie along k stay in place, with tiles of as many rows as there are.
    unsafe fn thin_groups(&self, scratch: &mut Scratch) {
        let in_place = !self.a.transposed;
        let (full, stride) = (self.k / STEP, 2 * self.k);
        let words = if in_place { 2 * TILE } else { self.words_per_row_block() };
        let packed = Packed(scratch.words(words));
        let (mut rows, row_stride, row_step) = match in_place {
            true => ([self.a.base, self.a.base.wrapping_add(SIDE * stride)], stride, 64),
            false => {
                // SAFETY: `packed` has room for 32 rows.
                unsafe { self.pack_a(0, self.m, packed.at(0)) };
                // SAFETY: `packed` holds two rows of tiles.
                (unsafe { [packed.at(0), packed.at(self.steps * TILE)] }.map(|x| x.cast::<u8>().cast_const()), 64, 1024)
            }
        };
        let mut tail_rows = [null(); 2];
        if full < self.steps {
            tail_rows = rows.map(|tile| tile.wrapping_add(full * 1024));
            if in_place {
                for (i, first) in (0..self.m).step_by(SIDE).enumerate() {
                    // SAFETY: the rows exist, and `packed` has room for two tiles.
                    unsafe {
                        let dst = packed.at(i * TILE);
                        copy_rows(&self.a, first, SIDE.min(self.m - first), full..self.steps, dst);
                        tail_rows[i] = dst.cast::<u8>().cast_const();
                    }
                }
            }
        }
        if self.m <= SIDE {
            // The second tile is not used.
            (rows[1], tail_rows[1]) = (rows[0], tail_rows[0]);
        }
        let a = RowsInTiles { rows, row_stride, row_step, tail: tail_rows };
        let groups = self.n.div_ceil(BLOCK);
        let runs = runs(groups, (THIN_BYTES / (self.steps * 2048).max(1)).max(1), self.team.threads());
        let shape = TileShape::with_rows(self.m);
        let past_caches = 2 * self.n * self.k >= STREAM;
        self.team.run(runs, |run| {
            TASK.with_borrow_mut(|scratch| {
                let dst = scratch.words(2 * TILE + SUMS + BLOCK * STRIP);
                let last = (run + 1) * groups / runs;
                // SAFETY: the process may use AMX; `dst` has room for a step of a group, the sums and a strip of C.
                unsafe {
                    let (sums, strip) = (dst.add(2 * TILE).cast::<f32>(), dst.add(2 * TILE + SUMS).cast::<T>());
                    let _amx = Tiles::configure_as(&shape);
                    for first in (run * groups / runs..last).step_by(STRIP / BLOCK) {
                        let columns = first * BLOCK..self.n.min(last.min(first + STRIP / BLOCK) * BLOCK);
                        for column in columns.clone().step_by(BLOCK) {
                            let lines = self.lines_in_place(column, 0..self.steps, dst);
                            a.multiply(&lines, sums, self.m > SIDE);
                            let at = (!self.accumulate).then(|| strip.add(column - columns.start));
                            self.finish(sums, 0, column, at);
                        }
                        if !self.accumulate {
                            self.store_strip(strip, columns, past_caches);
                        }
                    }
                }
            });
        });
    }

    /// Stores all rows of some columns of C, rows of [`STRIP`] elements; whole cache lines past the caches, if asked.
    #[target_feature(enable = "avx512f")]
    unsafe fn store_strip(&self, strip: *const T, columns: Range<usize>, past_caches: bool) {
        for row in 0..self.m {
            // SAFETY: tasks own disjoint columns of C; the strip has the rows and the columns.
            unsafe {
                let c = self.c.part(row * self.n + columns.start, columns.len());
                let from = std::slice::from_raw_parts(strip.add(row * STRIP), columns.len());
                let bytes = size_of_val(c);
                if past_caches && (c.as_ptr() as usize).is_multiple_of(64) && bytes.is_multiple_of(64) {
                    for byte in (0..bytes).step_by(64) {
                        let line = _mm512_loadu_si512(from.as_ptr().byte_add(byte).cast());
                        _mm512_stream_si512(c.as_mut_ptr().byte_add(byte).cast(), line);
                    }
                } else {
                    c.copy_from_slice(from);
                }
            }
        }
        _mm_sfence();
    }

    /// Multiplies sums by the scale, adds bias and old C, rounds once, and stores to C, or to `strip` with rows of
    /// [`STRIP`] elements. The sums are those of up to 32 rows from `row` on and up to 32 columns from `column` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn finish(&self, sums: *const f32, row: usize, column: usize, strip: Option<*mut T>) {
        let scale = _mm512_set1_ps(self.scale);
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (row, column) = (row + i * SIDE, column + j * SIDE);
            if row >= self.m || column >= self.n {
                continue;
            }
            let columns = SIDE.min(self.n - column);
            let mask = ((1u32 << columns) - 1) as u16;
            // The tiles of sums are ordered by rows of the instruction: those of C, or its columns.
            let tile = if self.b.transposed { 2 * i + j } else { 2 * j + i };
            let mut lines = [_mm512_setzero_si512(); SIDE];
            for (x, line) in lines.iter_mut().enumerate() {
                // SAFETY: inside the sums.
                *line = unsafe { _mm512_loadu_si512(sums.add(tile * TILE + x * SIDE).cast()) };
            }
            if !self.b.transposed {
                lines = transpose(lines);
            }
            let b_scale = if self.b_scale.is_empty() { None } else { Some(&self.b_scale[column..column + columns]) };
            let bias = if self.bias.is_empty() { None } else { Some(&self.bias[column..column + columns]) };
            for (x, line) in lines.into_iter().enumerate().take(self.m - row) {
                // SAFETY: tasks own disjoint parts of C; the mask selects the columns of the part and of the bias.
                unsafe {
                    let c = self.c.part((row + x) * self.n + column, columns);
                    let mut sum = _mm512_castsi512_ps(line);
                    if let Some(b_scale) = b_scale {
                        sum = _mm512_mul_ps(sum, load_lanes(b_scale.as_ptr(), mask));
                    }
                    sum = _mm512_mul_ps(sum, scale);
                    if let Some(bias) = bias {
                        sum = _mm512_add_ps(sum, load_lanes(bias.as_ptr(), mask));
                    }
                    if self.accumulate {
                        sum = _mm512_add_ps(load_lanes(c.as_ptr(), mask), sum);
                    }
                    let to = strip.map_or(c.as_mut_ptr(), |strip| strip.add((i * SIDE + x) * STRIP + j * SIDE));
                    store_lanes(to, mask, sum);
                }
            }
        }
    }
}

/// Lines (of 32) that block `index` of `count` blocks prefetches at each step.
fn lines_of(index: usize, count: usize) -> Range<usize> {
    let each = BLOCK.div_ceil(count);
    (index * each).min(BLOCK)..((index + 1) * each).min(BLOCK)
}
