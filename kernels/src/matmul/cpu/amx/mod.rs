//! Products on the tiles of AMX ([`reel_device::cpu::simd::amx`]): blocks of 32 × 32 sums in four tiles.
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
//! for each block of k, panel of 32 columns of C, and 32 rows of C:       # sizes and order of the loops: Blocking
//!     tiles 0..3 = 0, or the sums of the block of k before
//!     for each 32 elements of k:  load tiles 4, 5 (rows) and 6, 7 (pairs); four tdpbf16ps
//!     store tiles 0..3; after the last block of k:  C = round(scale * sums + bias (+ old C))
//! ```
//!
//! **f32.** An f32 operand is split while it is packed: it is the sum of three bf16 [`PARTS`], high, middle and low,
//! exactly. Two of them multiply with six `tdpbf16ps` a step, f32 and bf16 with three:
//!
//! ```text
//! a · b = high·low + high·middle + middle·middle + middle·high + high·high + low·high     # part of a · part of b
//! ```
//!
//! The products that are left out, of a middle and a low part or of two low parts, are at most some 2^-24 of `a · b`,
//! as much as one rounding to f32. So a sum is as close to the exact one as a sum of f32 multiply-adds. By the rates of
//! single instructions (`cpu/simd/isa.rs` of the crate `device`), six `tdpbf16ps` take 0.4 of the time of the
//! multiply-adds that they replace; products of 512 rows take 0.54 to 0.68
//! (tools/benches/results/intel-xeon/2026-11-26-amx-f32-2.json). Products with a k below `MIN_K_FOR_AMX_F32` use
//! multiply-adds. Two limits: a part below 2^-126 counts as zero (numbers below 2^-103 may lose bits), and an infinite
//! element, or one that rounds to infinity in bf16 (from 3.39e38 on), gives NaN or infinity.
//!
//! **Order.** k is taken in steps of 32 from 0 on, with one `tdpbf16ps` each for every product of parts; zeros complete
//! the last step. Each adds one f32 to the sum: its products over even k plus those over odd k. A product of bf16
//! numbers commutes, and a partial sum that is stored and continued is the same f32, so the order depends on k alone:
//! not on m, on which operand has the rows, on tile, block or thread. It is another order than that of the other
//! instruction sets.
//!
//! **Cost.** A step of a block loads 4 KiB for 65 536 operations, with two f32 operands 14 KiB for six times as many of
//! bf16. One operand stays in the first-level cache while the other streams from the second. With bf16, 32 rows of a
//! block of k of B take 16 KiB and stay for 512 rows of A. With f32, the tiles of four steps of an operand take 24 KiB,
//! and 32 rows of A stay for 14 panels of B. The other half of the first-level cache is for the sums: with blocks of
//! twice the steps their stores miss it. Rows that all threads read come from the third-level cache, so a task has all
//! panels whose sums fit into the second.
//!
//! With up to 32 rows of A, all of k is one block, and B is read from memory once, with prefetching: the arithmetic of
//! 32 rows takes less time than that at the rates in `cpu/simd/isa.rs`. In groups B is one stream of memory, which a
//! prefetch to the second-level cache and one to the first at half the distance keep memory busier than plain loads do,
//! on large pages. Groups of f32 are split while the tiles multiply (`split`); int8 is widened two steps at a time. A
//! is packed so that a tile is 1 KiB without gaps: rows that are a multiple of 4 KiB apart would compete for the same
//! few sets of the caches. B's rows are copied block by block if they are so far apart.

mod pack;
mod panel;
mod split;
mod thin;
mod tiles;

use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::null;

use half::bf16;
use reel_device::cpu::simd::amx::Tiles;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{Matmul, Operand, RightLayout};
use reel_device::{DType, Element, Team};

use super::avx512::transpose;
use super::{LAUNCH, PACK_ALONE, Packed, Scratch, Source, TASK, Unit};
use pack::{copy_rows, load_lanes, pack_pairs, pack_rows_as_pairs, pack_transposed_rows, store_lanes};
use panel::{Panel, PanelLayout};
use thin::STRIP_COLUMNS;
use tiles::{PrefetchPlan, TileProductArgs};

/// Rows of a tile, and columns of a tile of sums.
const SIDE: usize = 16;
/// Number of rows and columns of C that four tiles of sums cover.
const BLOCK: usize = 2 * SIDE;
/// Number of elements along k that one AMX instruction multiplies for each sum.
const STEP: usize = 32;
/// Words (4 bytes) of a tile.
const TILE: usize = 256;
/// Number of bf16 numbers (parts) whose sum is an f32 element. A bf16 or int8 operand has one part.
const PARTS: usize = 3;
/// Number of 32-bit words in the four tiles of sums.
const SUMS: usize = 4 * TILE;
/// Maximum number of panels (32 columns of C) of a task.
const MAX_PANELS: usize = 14;

/// Block sizes. They affect speed only: results have the same bits with all sizes.
#[derive(Clone, Copy, Debug)]
pub(in crate::matmul) struct Blocking {
    /// Maximum number of steps along k of a block.
    pub(in crate::matmul) steps: usize,
    /// Maximum number of blocks of 32 rows of A that a task processes if it stores partial sums; also the number of row
    /// blocks during which a panel of B stays in the first-level cache.
    pub(in crate::matmul) row_blocks: usize,
    /// Maximum number of panels of a task, at most [`MAX_PANELS`].
    pub(in crate::matmul) panels: usize,
    /// Maximum number of 32-bit words of A that are packed at a time. At least 128 rows are packed even if they have
    /// more words.
    pub(in crate::matmul) packed_words: usize,
    /// Maximum number of 32-bit words of a packed A that all threads read.
    pub(in crate::matmul) shared_words: usize,
    /// Whether products with up to 32 rows of A use separate code.
    pub(in crate::matmul) thin: bool,
}

impl Blocking {
    /// Block sizes for products of two bf16 operands, on cores whose first-level cache has 48 KiB and whose
    /// second-level cache has 2 MiB.
    const OF_BF16: Blocking = Blocking {
        steps: 8,
        row_blocks: 16,
        panels: 8,
        packed_words: super::PACKED_A / 4,
        // A second-level cache.
        shared_words: 512 << 10,
        thin: true,
    };
    /// Block sizes for products with an f32 operand, whose tiles take three times as many bytes as those of a bf16
    /// operand.
    const OF_F32: Blocking = Blocking { steps: 4, row_blocks: 8, panels: MAX_PANELS, ..Self::OF_BF16 };

    /// The sizes for a product.
    pub(in crate::matmul) fn usual(p: &Matmul) -> &'static Blocking {
        if p.a.dtype == DType::F32 || p.b.dtype == DType::F32 { &Self::OF_F32 } else { &Self::OF_BF16 }
    }
}

/// Number of tiles that hold 16 rows or columns of an operand for one step along k: one tile for each bf16 part.
fn parts(unit: Unit) -> usize {
    if matches!(unit, Unit::F32 | Unit::GroupedF32) { PARTS } else { 1 }
}

/// Computes the product.
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
    a_parts: usize,
    b: Source,
    b_parts: usize,
    c: OutputArray<T>,
    bias: &'a [T],
    /// The scales of an int8 B; empty for other types.
    b_scale: &'a [f32],
    accumulate: bool,
    scale: f32,
    team: &'a Team,
    blocking: &'a Blocking,
}

impl<'a, T: Element> Product<'a, T> {
    unsafe fn new(p: &Matmul, team: &'a Team, blocking: &'a Blocking) -> Self {
        let source = |x: &Operand, rows, grouped| Source {
            base: x.addr.0 as *const u8,
            unit: match (x.dtype, grouped) {
                (DType::I8, _) => Unit::Int8Pair,
                (DType::F32, true) => Unit::GroupedF32,
                (DType::F32, false) => Unit::F32,
                (_, true) => Unit::GroupedPair,
                _ => Unit::Pair,
            },
            // Operands in groups count as transposed: they hold pairs of neighbouring k, or are packed into such pairs,
            // as transposed operands are.
            transposed: x.transposed || x.dtype == DType::I8 || grouped,
            rows,
            k: p.k,
        };
        // SAFETY: c has `[m, n]` elements of T; bias has `[n]` of them, or is null and read as empty.
        let (c, bias) =
            unsafe { (OutputArray::new(p.c, p.m * p.n), slice_at(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
        // SAFETY: `b_scale` has `[n]` elements, or is null and read as empty.
        let b_scale = unsafe { slice_at(p.b_scale, if p.b_scale.is_null() { 0 } else { p.n }) };
        let (a, b) = (source(&p.a, p.m, false), source(&p.b, p.n, p.b_layout == RightLayout::Groups));
        let (accumulate, scale, steps) = (p.accumulate, p.scale, p.k.div_ceil(STEP));
        let (a_parts, b_parts) = (parts(a.unit), parts(b.unit));
        Product {
            m: p.m,
            n: p.n,
            k: p.k,
            steps,
            a,
            a_parts,
            b,
            b_parts,
            c,
            bias,
            b_scale,
            accumulate,
            scale,
            team,
            blocking,
        }
    }

    /// Words of 32 packed rows of A.
    fn words_per_row_block(&self) -> usize {
        2 * self.steps * self.a_parts * TILE
    }

    /// Whether pairs of B are packed block by block. This is so if B is stored as `[k, n]`, as int8, or in groups of
    /// f32.
    fn packs_pairs(&self) -> bool {
        self.b.transposed && self.b.unit != Unit::GroupedPair
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        if self.m <= BLOCK && self.k > 0 && self.blocking.thin {
            // SAFETY: the operands are valid as `Matmul` documents; A has few enough rows, and B has these units.
            unsafe {
                match (self.b.unit, self.b.transposed) {
                    (Unit::GroupedPair, _) => return self.multiply_few_rows_by_bf16_groups(),
                    (Unit::GroupedF32, _) if self.a_parts > 1 => return self.multiply_few_rows_by_f32_groups(),
                    (Unit::Int8Pair, _) => return self.multiply_few_rows_by_int8(),
                    (Unit::Pair | Unit::F32, false) => return self.multiply_few_rows_by_plain(scratch),
                    _ => {}
                }
            }
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
        let least_columns = panels.div_ceil(self.blocking.panels);
        // By default the threads divide the columns, and each thread reads the whole packed A. If the packed A is too
        // large for a second-level cache and B is not larger than A, the threads divide the rows instead: each packs
        // its own rows of A, and all of B.
        let has_own_rows =
            row_blocks * words > self.blocking.shared_words && self.m >= self.n && row_blocks >= 2 * threads;
        let columns = if has_own_rows { least_columns } else { least_columns.next_multiple_of(threads).min(panels) };
        // Partial sums of a task must fit into the second-level cache. A task without partial sums may have all rows.
        let least = if self.steps <= self.blocking.steps { 1 } else { row_blocks.div_ceil(self.blocking.row_blocks) };
        let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(columns) };
        let parts = least.max(wanted).next_multiple_of(if has_own_rows { threads } else { 1 }).min(row_blocks);
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
        let panel_words = 2 * step * self.b_parts * TILE;
        let stored = if blocks == 1 { 1 } else { row_blocks.len() * panels.len() };
        let b = scratch.words(panels.len() * panel_words + stored * SUMS);
        // SAFETY: `b` has room for the packed panels and the sums.
        let sums = unsafe { b.add(panels.len() * panel_words).cast::<f32>() };
        let copied = self.competing_rows() && row_blocks.len() >= 4;
        let mut ready = [Panel::NONE; MAX_PANELS];
        // If an operand is f32, A is kept in the first-level cache, otherwise B is. The module's documentation gives
        // the reason.
        let by_rows = self.a_parts * self.b_parts > 1;
        // If B is streamed, or packed block by block, the next lines of B are needed only for the next block of k.
        let ahead_is_next_block = by_rows || self.packs_pairs();
        for block in 0..blocks {
            let first = block * step;
            let (count, last) = (step.min(self.steps - first), block + 1 == blocks);
            for (i, panel) in panels.clone().enumerate() {
                // SAFETY: the panel and the steps exist, and `b` has room for them.
                ready[i] =
                    unsafe { self.pack_or_locate_panel(panel, first..first + count, copied, b.add(i * panel_words)) };
            }
            for part in row_blocks.clone().step_by(self.blocking.row_blocks) {
                let part = part..row_blocks.end.min(part + self.blocking.row_blocks);
                for pair in 0..part.len() * panels.len() {
                    let (row_block, i) = if by_rows {
                        (part.start + pair / panels.len(), pair % panels.len())
                    } else {
                        (part.start + pair % part.len(), pair / part.len())
                    };
                    let panel = panels.start + i;
                    // `next`: the panel and the step of B that are prefetched during this multiplication. `sharing`:
                    // the blocks of rows among which that panel's cache lines are divided.
                    let next = match (ahead_is_next_block, last, panel + 1 < panels.end) {
                        (true, false, _) => (panel, first + count),
                        (true, true, _) => (panel + panels.len(), 0),
                        (false, _, true) => (panel + 1, first),
                        (false, false, false) => (panels.start, first + count),
                        (false, true, false) => (panels.end, 0),
                    };
                    let sharing = if ahead_is_next_block { &row_blocks } else { &part };
                    let at = if blocks == 1 { 0 } else { (row_block - row_blocks.start) * panels.len() + i };
                    // SAFETY: the offsets lie inside packed A and inside the sums.
                    unsafe {
                        let sums = sums.add(at * SUMS);
                        let a = a.at(row_block * self.words_per_row_block());
                        let tiles = [a, a.add(self.steps * self.a_parts * TILE)]
                            .map(|tile| tile.add(first * self.a_parts * TILE).cast::<u8>().cast_const());
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

    /// Adds the products of one panel with 32 packed rows of A to the sums, or stores them if `add` is false.
    unsafe fn multiply(&self, panel: &Panel, a: [*const u8; 2], sums: *mut f32, add: bool, prefetch: PrefetchPlan) {
        let a_tail = if panel.tail.is_null() {
            [null(); 2]
        } else {
            a.map(|tile| tile.wrapping_add(panel.steps * self.a_parts * 1024))
        };
        let mut call = TileProductArgs {
            rows: a,
            row_stride: 64,
            row_step: self.a_parts * 1024,
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
            (call.row_stride, call.row_step) =
                if panel.layout == PanelLayout::Rows { (self.row_bytes(), 64) } else { (64, self.b_parts * 1024) };
        }
        let multiply = match (panel.layout == PanelLayout::Group, self.a_parts, self.b_parts, self.b.transposed) {
            (false, 1, 1, _) => tiles::multiply,
            (true, 1, ..) => tiles::multiply_groups,
            (true, ..) => tiles::multiply_f32_rows_and_groups,
            (false, 1, _, false) | (false, _, 1, true) => tiles::multiply_f32_rows,
            (false, 1, _, true) | (false, _, 1, false) => tiles::multiply_f32_pairs,
            (false, _, _, true) => tiles::multiply_f32_a_is_rows,
            (false, _, _, false) => tiles::multiply_f32_a_is_pairs,
        };
        // SAFETY: the tiles exist for all steps, the sums are four tiles, and the tiles of this thread are configured.
        unsafe { multiply(&call) }
    }

    /// Size in bytes of a row of B, for a B stored `[n, k]`.
    fn row_bytes(&self) -> usize {
        self.b.unit.element() * self.k
    }

    /// Whether rows of a B that is stored `[n, k]` compete for the first-level cache. The cache has 64 sets. If a row
    /// is a multiple of 2048 bytes, the elements of one k in all rows lie in only one or two of these sets, which
    /// cannot hold lines of 32 rows.
    fn competing_rows(&self) -> bool {
        self.row_bytes().is_multiple_of(2048)
    }

    /// Packs `rows` rows of A (at most 32) from `row` on, as tiles of rows or of pairs (VNNI layout): first all steps
    /// of the first 16 rows, then all steps of the other rows. The values in missing rows have no effect on C.
    unsafe fn pack_a(&self, row: usize, rows: usize, dst: *mut u32) {
        // SAFETY: the rows exist, and `dst` has room for two rows of tiles.
        unsafe {
            let halves = [dst, dst.add(self.steps * self.a_parts * TILE)];
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

    /// Multiplies sums by the scale, adds bias and old C, rounds once, and stores to C, or to `strip` with rows of
    /// [`STRIP_COLUMNS`] elements. The sums are those of up to 32 rows from `row` on and up to 32 columns from `column`
    /// on.
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
            // The order of the four tiles of sums depends on which operand has the tiles of rows: A (rows of C) or B
            // (columns of C).
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
                    let to = strip.map_or(c.as_mut_ptr(), |strip| strip.add((i * SIDE + x) * STRIP_COLUMNS + j * SIDE));
                    store_lanes(to, mask, sum);
                }
            }
        }
    }
}

/// Returns which of a panel's 32 cache lines per step are prefetched by row block `index` of `count` row blocks.
fn lines_of(index: usize, count: usize) -> Range<usize> {
    let each = BLOCK.div_ceil(count);
    (index * each).min(BLOCK)..((index + 1) * each).min(BLOCK)
}
