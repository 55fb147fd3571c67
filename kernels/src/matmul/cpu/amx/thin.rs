//! Products with up to 32 rows of A, which take as long as reading B from memory: B is read once, with prefetches. B is
//! stored row by row or in groups of 32 rows.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr::null;

use reel_device::Element;
use reel_device::cpu::simd::amx::{TileShape, Tiles};

use super::pack::copy_rows;
use super::panel::Panel;
use super::split::{SPLIT_BUFFER_WORDS, SplitProductArgs, split_one, split_two};
use super::tiles::{
    PrefetchPlan, TileProductArgs, thin_f32_and_groups_one, thin_f32_and_groups_two, thin_f32_pairs_one,
    thin_f32_pairs_two, thin_groups_one, thin_groups_two, thin_one, thin_two,
};
use super::{BLOCK, PARTS, Product, SIDE, STEP, SUMS, TILE};
use crate::matmul::cpu::{MAX_TASK_BYTES, Packed, Scratch, TASK, groups, run_count};

/// Prefetch distance, in steps of 32 elements along k, for the rows of a bf16 B in products with few rows of A.
const AHEAD: usize = 6;

/// Prefetch distance, in steps along k, for the rows of an f32 B: one block. A product with few rows of A copies
/// these rows block by block.
const AHEAD_OF_COPY: usize = 4;

/// Number of steps along k of an int8 panel that a product with few rows of A converts to bf16 at a time: 4 KiB, which
/// stay in the first-level cache.
const WIDENED_STEPS: usize = 2;

/// Columns of C that a product with few rows of A and groups of B finishes before it stores them. Reading B has evicted
/// C from the near caches, so an ordinary store would first read its cache line of C, which evicts a line of B
/// (tools/benches/results/intel-xeon/2026-11-25-amx-decode.json).
pub(super) const STRIP_COLUMNS: usize = 8 * BLOCK;
/// If B has at least this many bytes, C is stored past the caches. A smaller B leaves C in the caches, where the next
/// launch finds it.
const STREAM: usize = 1 << 20;

/// Up to 32 rows of A as two tiles.
#[derive(Clone, Copy)]
struct RowsInTiles {
    /// See [`TileProductArgs`].
    rows: [*const u8; 2],
    row_stride: usize,
    row_step: usize,
    /// The tiles of an incomplete last step along k; null if the last step is complete.
    tail: [*const u8; 2],
    /// 1, or [`PARTS`] of f32.
    parts: usize,
}

impl RowsInTiles {
    /// Multiplies these rows of A with all lines of a group of B (32 rows, interleaved in lines of 128 bytes), and
    /// prefetches the lines that follow.
    ///
    /// # Safety
    /// The tiles exist for all steps; `sums` has room for four tiles; the tiles of this thread have the shape of the
    /// rows, and the second one exists if `both` is true.
    unsafe fn multiply(&self, lines: &Panel, sums: *mut f32, both: bool) {
        let call = TileProductArgs {
            rows: self.rows,
            row_stride: self.row_stride,
            row_step: self.row_step,
            pairs: lines.tiles,
            steps: lines.steps,
            tail_rows: self.tail,
            tail_pairs: lines.tail_tiles(),
            sums,
            add: 0,
            prefetch: PrefetchPlan::NONE,
        };
        // SAFETY: the conditions of this function.
        unsafe {
            match (self.parts, both) {
                (1, true) => thin_groups_two(&call),
                (1, false) => thin_groups_one(&call),
                (_, true) => thin_f32_and_groups_two(&call),
                (_, false) => thin_f32_and_groups_one(&call),
            }
        }
    }
}

impl<T: Element> Product<'_, T> {
    /// Computes a product with up to 32 rows of A and a B that is stored row by row. B is read once; each task reads a
    /// range of its rows.
    pub(super) unsafe fn multiply_few_rows_by_plain(&self, scratch: &mut Scratch) {
        let a = Packed(scratch.words(self.words_per_row_block()));
        // SAFETY: `a` has room for 32 rows.
        unsafe { self.pack_a(0, self.m, a.at(0)) };
        let panels = self.n.div_ceil(BLOCK);
        let panel_bytes = BLOCK * self.row_bytes();
        let runs = run_count(panels, (MAX_TASK_BYTES / panel_bytes.max(1)).max(1), self.team.threads());
        self.team.run(runs, |run| {
            // SAFETY: `a` holds two rows of tiles.
            let tiles =
                unsafe { [a.at(0), a.at(self.steps * self.a_parts * TILE)].map(|tile| tile.cast::<u8>().cast_const()) };
            TASK.with_borrow_mut(|scratch| {
                let words = 2 * self.blocking.steps * self.b_parts * TILE;
                let dst = scratch.words(words + SUMS);
                // SAFETY: the process may use AMX; `dst` has room for a block of a panel and for the sums.
                unsafe {
                    let sums = dst.add(words).cast::<f32>();
                    let _amx = Tiles::configure();
                    for panel in run * panels / runs..(run + 1) * panels / runs {
                        if self.n - panel * BLOCK >= BLOCK && self.b_parts == 1 {
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

    /// Multiplies all of k of a panel of 32 rows of B with up to 32 packed rows of A, and prefetches rows of B.
    unsafe fn thin_in_place(&self, panel: usize, a: [*const u8; 2], dst: *mut u32, sums: *mut f32) {
        // SAFETY: the panel exists; `dst` has room for two tiles.
        let ready = unsafe { self.pack_or_locate_panel(panel, 0..self.steps, false, dst) };
        let next = ready.tiles[0].wrapping_add(BLOCK * self.row_bytes());
        let prefetch = PrefetchPlan {
            // Prefetches the same rows of B, AHEAD steps further along k. If the rows have fewer steps, prefetches
            // the rows of the next panel.
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
        let call = TileProductArgs {
            rows: ready.tiles,
            row_stride: self.row_bytes(),
            row_step: 64,
            pairs: a,
            steps: ready.steps,
            tail_rows: ready.tail_tiles(),
            tail_pairs: a.map(|tile| tile.wrapping_add(ready.steps * self.a_parts * 1024)),
            sums,
            add: 0,
            prefetch,
        };
        // SAFETY: the tiles exist for all steps, the sums are four tiles, and the tiles of this thread are configured.
        unsafe {
            match (self.a_parts, self.m > SIDE) {
                (1, true) => thin_two(&call),
                (1, false) => thin_one(&call),
                (_, true) => thin_f32_pairs_two(&call),
                (_, false) => thin_f32_pairs_one(&call),
            }
        }
    }

    /// Multiplies all of k of a panel of B with up to 32 packed rows of A. The panel is copied block by block, because
    /// it has fewer than 32 rows or is f32. The next blocks of an f32 panel are prefetched.
    unsafe fn thin_copied(&self, panel: usize, a: [*const u8; 2], dst: *mut u32, sums: *mut f32) {
        for first in (0..self.steps.max(1)).step_by(self.blocking.steps) {
            let steps = first..self.steps.min(first + self.blocking.steps);
            let coming = first + AHEAD_OF_COPY;
            let prefetch = match self.b_parts {
                1 => PrefetchPlan::NONE,
                _ if coming < self.steps => self.prefetch((panel, coming), 0..BLOCK),
                _ => self.prefetch((panel + 1, coming - self.steps), 0..BLOCK),
            };
            // SAFETY: the panel and the steps exist, and `dst` has room for them.
            unsafe {
                let ready = self.pack_or_locate_panel(panel, steps, false, dst);
                let a = a.map(|tile| tile.wrapping_add(first * self.a_parts * TILE * 4));
                self.multiply(&ready, a, sums, first > 0, prefetch);
            }
        }
    }

    /// Computes a product with up to 32 rows of A and a bf16 B in groups of 32 rows. B is read once; each task reads
    /// some of its groups. A bf16 A that is not transposed is read in place, in tiles of as many rows as A has. Any
    /// other A is packed by each task for itself, because data that another thread has written takes longer to read.
    pub(super) unsafe fn multiply_few_rows_by_bf16_groups(&self) {
        let in_place = !self.a.transposed && self.a_parts == 1;
        let (full, stride) = (self.k / STEP, 2 * self.k);
        let a_words = if in_place { 2 * TILE } else { self.words_per_row_block() };
        let task = |dst: *mut u32| {
            // SAFETY: `dst` has room for packed A, or for two tiles.
            let a =
                unsafe { if in_place { self.rows_in_place(full, stride, dst) } else { self.packed_rows(full, dst) } };
            move |column, sums| {
                // SAFETY: `dst` has room for a step of a group behind A, `sums` for four tiles; the tiles have the
                // shape of the rows.
                unsafe {
                    a.multiply(
                        &self.panel_of_lines_in_place(column, 0..self.steps, dst.add(a_words)),
                        sums,
                        self.m > SIDE,
                    )
                }
            }
        };
        // SAFETY: the operands are valid as `Matmul` documents, and B is in groups.
        unsafe { self.each_group(a_words + 2 * TILE, task) }
    }

    /// Returns the rows of an A that is not transposed as tiles in place, with `full` whole steps along k. Copies an
    /// incomplete last step to `dst`.
    unsafe fn rows_in_place(&self, full: usize, stride: usize, dst: *mut u32) -> RowsInTiles {
        let second = if self.m > SIDE { SIDE } else { 0 };
        let mut tail = [null(); 2];
        if full < self.steps {
            for (i, first) in (0..self.m).step_by(SIDE).enumerate() {
                // SAFETY: the rows exist, and `dst` has room for two tiles.
                unsafe { copy_rows(&self.a, first, SIDE.min(self.m - first), full..self.steps, dst.add(i * TILE)) };
            }
            tail = [0, second / SIDE].map(|i| dst.wrapping_add(i * TILE).cast::<u8>().cast_const());
        }
        let rows = [self.a.base, self.a.base.wrapping_add(second * stride)];
        RowsInTiles { rows, row_stride: stride, row_step: 64, tail, parts: 1 }
    }

    /// Packs up to 32 rows of A to `dst`.
    unsafe fn packed_rows(&self, full: usize, dst: *mut u32) -> RowsInTiles {
        // SAFETY: `dst` has room for 32 rows.
        unsafe { self.pack_a(0, self.m, dst) };
        let rows = [0, self.steps * self.a_parts * TILE].map(|word| dst.wrapping_add(word).cast::<u8>().cast_const());
        let row_step = self.a_parts * 1024;
        let tail = if full < self.steps { rows.map(|tile| tile.wrapping_add(full * row_step)) } else { [null(); 2] };
        RowsInTiles { rows, row_stride: 64, row_step, tail, parts: self.a_parts }
    }

    /// Computes a product with up to 32 rows of an f32 A and an f32 B in groups of 32 rows. B is read once; each task
    /// reads some of its groups and splits them into bf16 parts step by step. Each task also splits A for itself,
    /// because data that another thread has written takes longer to read.
    pub(super) unsafe fn multiply_few_rows_by_f32_groups(&self) {
        let a_words = self.words_per_row_block();
        let full = self.k / STEP;
        let rest = (self.k - full * STEP) * BLOCK;
        let task = |dst: *mut u32| {
            // SAFETY: `dst` has room for 32 rows.
            unsafe { self.pack_a(0, self.m, dst) };
            move |column, sums| {
                let lines = groups::unit_address_in_group(&self.b, column, 0).cast::<f32>();
                // SAFETY: `dst` has room for two rows of tiles, for the buffers, and for a step of lines, which the
                // group has in part; the tiles have the shape of the rows.
                unsafe {
                    let rows = [dst, dst.add(self.steps * PARTS * TILE)].map(|tile| tile.cast::<u8>().cast_const());
                    let buffer = dst.add(a_words);
                    let mut call = SplitProductArgs { rows, lines, steps: self.steps, tail: null(), buffer, sums };
                    if rest > 0 {
                        let tail = buffer.add(SPLIT_BUFFER_WORDS).cast::<f32>();
                        tail.copy_from_nonoverlapping(lines.add(full * STEP * BLOCK), rest);
                        tail.add(rest).write_bytes(0, STEP * BLOCK - rest);
                        *(if full == 0 { &mut call.lines } else { &mut call.tail }) = tail;
                    }
                    if self.m > SIDE { split_two(&call) } else { split_one(&call) }
                }
            }
        };
        // SAFETY: the operands are valid as `Matmul` documents, and B is in groups.
        unsafe { self.each_group(a_words + SPLIT_BUFFER_WORDS + STEP * BLOCK, task) }
    }

    /// Computes a product with up to 32 rows of A and an int8 B in groups of 16 rows. B is read once; each task reads
    /// some of its groups and converts them to bf16 block by block. Each task also packs A for itself, because data
    /// that another thread has written takes longer to read.
    pub(super) unsafe fn multiply_few_rows_by_int8(&self) {
        let a_words = self.words_per_row_block();
        let task = |dst: *mut u32| {
            // SAFETY: `dst` has room for 32 rows.
            unsafe { self.pack_a(0, self.m, dst) };
            move |column: usize, sums| {
                for first in (0..self.steps).step_by(WIDENED_STEPS) {
                    let steps = first..self.steps.min(first + WIDENED_STEPS);
                    // SAFETY: `dst` has room for two rows of tiles and for a block of B, whose panel has these steps;
                    // the tiles have the shape of the rows.
                    unsafe {
                        let a = [0, self.steps].map(|step| dst.add((step + first) * self.a_parts * TILE));
                        let ready = self.pack_or_locate_panel(column / BLOCK, steps, false, dst.add(a_words));
                        let a = a.map(|tile| tile.cast::<u8>().cast_const());
                        self.multiply(&ready, a, sums, first > 0, PrefetchPlan::NONE);
                    }
                }
            }
        };
        // SAFETY: the operands are valid as `Matmul` documents, and B is in groups.
        unsafe { self.each_group(a_words + 2 * WIDENED_STEPS * TILE, task) }
    }

    /// Computes the sums of every group of B, on all threads, and stores C. `task` is called once in each task, with an
    /// address of `words` 32-bit words, and returns a function. That function computes the sums of the group that
    /// begins with a given column; its AMX tiles have as many rows as A.
    ///
    /// # Safety
    /// The operands are valid as `Matmul` documents; B is in groups.
    unsafe fn each_group<F: FnMut(usize, *mut f32)>(&self, words: usize, task: impl Fn(*mut u32) -> F + Sync) {
        let groups = self.n.div_ceil(BLOCK);
        let group_bytes = self.b.unit.element() * self.k * BLOCK;
        let runs = run_count(groups, (MAX_TASK_BYTES / group_bytes.max(1)).max(1), self.team.threads());
        let shape = TileShape::with_rows(self.m);
        let past_caches = self.b.unit.element() * self.n * self.k >= STREAM;
        self.team.run(runs, |run| {
            TASK.with_borrow_mut(|scratch| {
                let dst = scratch.words(words + SUMS + BLOCK * STRIP_COLUMNS);
                let last = (run + 1) * groups / runs;
                // SAFETY: the process may use AMX; `dst` has room for these words, the sums and a strip of C.
                unsafe {
                    let (sums, strip) = (dst.add(words).cast::<f32>(), dst.add(words + SUMS).cast::<T>());
                    let _amx = Tiles::configure_as(&shape);
                    let mut multiply = task(dst);
                    for first in (run * groups / runs..last).step_by(STRIP_COLUMNS / BLOCK) {
                        let columns = first * BLOCK..self.n.min(last.min(first + STRIP_COLUMNS / BLOCK) * BLOCK);
                        for column in columns.clone().step_by(BLOCK) {
                            multiply(column, sums);
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

    /// Copies some columns of all rows of C from `strip`, whose rows have [`STRIP_COLUMNS`] elements. With
    /// `past_caches`, rows that are whole cache lines are stored with non-temporal stores.
    #[target_feature(enable = "avx512f")]
    unsafe fn store_strip(&self, strip: *const T, columns: Range<usize>, past_caches: bool) {
        for row in 0..self.m {
            // SAFETY: tasks own disjoint columns of C; the strip has the rows and the columns.
            unsafe {
                let c = self.c.part(row * self.n + columns.start, columns.len());
                let from = std::slice::from_raw_parts(strip.add(row * STRIP_COLUMNS), columns.len());
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
}
