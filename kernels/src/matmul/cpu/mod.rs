//! Matrix products on the cpu: both operands packed, a tile of C in registers, one fixed order of summation.
//!
//! The order. Every element of C is one lane of one register. It starts at 0 and takes the *units* of k one after the other, each
//! with one fused instruction; then it is multiplied by the scale; then bias, then (if asked) the old C is added, then it is rounded once to C's dtype. A unit is one k with
//! f32 arithmetic, or two neighbouring k with the bf16 dot product (bf16 × bf16 where the processor has it). Nothing else enters: neither
//! tile nor thread nor the block of k (a partial sum that is put aside and taken up again is the same f32).
//!
//! The data. A unit is 4 bytes in either arithmetic. `mr` rows of A are packed as `[units][mr]`, `nr` rows of B as `[units][nr]`: so a
//! step of the inner loop loads `nr` lanes of B and multiplies them by `mr` single units of A. Transposed and bf16 operands differ only in
//! how they are packed. With few rows of A the time is that of reading B: [`Code::thin`] then transposes B inside registers and stores nothing.
#![allow(unsafe_code)]
// Arrays of registers: loops over constant ranges unroll whole, and what is an index into two of them reads best as one.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{Matmul, Operand};
use crate::simd::{Isa, isa};
use crate::view::{Out, slice};
use crate::{DType, Element, Team, simd_fn};
use half::bf16;
use std::cell::RefCell;

/// Most units of k whose B stays packed at a time: 64 columns of it then fill a quarter of a second-level cache.
const UNITS: usize = 1024;
/// Most rows of A that one task takes through its block of B.
const TASK_ROWS: usize = 512;
/// Most units of A's rows that are read where they are: rows further apart would meet in few sets of the cache.
const DIRECT_UNITS: usize = 512;
/// Tiles of A for each thread from which on every thread has rows of its own.
const OWN_TILES: usize = 4;
/// Bytes of packed A at a time.
const PACKED_A: usize = 16 << 20;
/// Bytes of B that a task of a thin product reads at most: the rows after a group are fetched ahead, which is of use only
/// where the same thread takes them.
const THIN_BYTES: usize = 2048 << 10;
/// Rows of B that a thin product takes at a time.
const THIN_ROWS: usize = 16;
/// Most rows of A that any code has a thin product for.
const THIN_MOST: usize = 12;
/// Units of A below which packing is not worth a second thread.
const PACK_ALONE: usize = 16 << 10;

/// What a unit is made of in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// An f32.
    F32,
    /// A bf16 that is packed as an f32.
    Widened,
    /// Two neighbouring bf16 of one row; a zero follows an odd last one.
    Pair,
}

impl Unit {
    /// Units in a row of `k` elements.
    fn count(self, k: usize) -> usize {
        if self == Unit::Pair { k.div_ceil(2) } else { k }
    }

    /// Bytes of one unit in memory.
    fn bytes(self) -> usize {
        if self == Unit::Widened { 2 } else { 4 }
    }

    /// Bytes of one element in memory.
    fn element(self) -> usize {
        if self == Unit::F32 { 4 } else { 2 }
    }
}

/// An operand in memory.
#[derive(Clone, Copy)]
struct Source {
    base: *const u8,
    unit: Unit,
    transposed: bool,
    rows: usize,
    k: usize,
}

// SAFETY: read-only for as long as the product runs.
unsafe impl Sync for Source {}

/// A part of an operand: some rows, some units of each.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    rows: usize,
    unit: usize,
    units: usize,
}

/// `tile(units, a, b, acc, add)`: `acc[i][j] = (add ? acc[i][j] : 0) + sum over u of a[u][i] * b[u][j]`.
type Tile = unsafe fn(usize, *const u32, *const u32, *mut f32, bool);
/// [`Tile`] with `a[i * stride + u]`: rows of A as they lie, `stride` words apart.
type Direct = unsafe fn(usize, *const u32, usize, *const u32, *mut f32, bool);
/// `pack(source, part, width, dst)`: `dst[u][i]` is unit `u` of row `i`; lanes from `part.rows` to `width` are 0.
type Pack = unsafe fn(&Source, Part, usize, *mut u32);
/// `thin(m, a, b, row, rows, acc)`: at most [`THIN_ROWS`] rows of B as stored against `m` packed rows of A; `acc` is `[m][THIN_ROWS]`.
type Thin = unsafe fn(usize, *const u32, &Source, usize, usize, *mut f32);

/// The code of one instruction set and arithmetic.
struct Code {
    mr: usize,
    nr: usize,
    /// By rows of A less one: `mr` of them.
    tiles: &'static [Tile],
    /// The same for rows of A that need no packing: f32, not transposed.
    direct: Option<&'static [Direct]>,
    pack: Pack,
    /// For at most so many rows of A (never more than [`THIN_MOST`]), and B not transposed.
    thin: Option<(usize, Thin)>,
}

/// Grows and never shrinks; starts at a cache line.
#[derive(Default)]
struct Scratch(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "looked at only through a pointer to the first word")] [u32; 16]);

impl Scratch {
    /// At least `len` words.
    fn words(&mut self, len: usize) -> *mut u32 {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 16]));
        }
        self.0.as_mut_ptr().cast()
    }
}

thread_local! {
    /// Packed A, of the thread that launches.
    static LAUNCH: RefCell<Scratch> = RefCell::default();
    /// Packed B and partial sums, of the thread that computes.
    static TASK: RefCell<Scratch> = RefCell::default();
}

/// A pointer to packed units that tasks fill or read at places of their own.
#[derive(Clone, Copy)]
struct Packed(*mut u32);
// SAFETY: see above; the phases of a product are separated by `Team::run`.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// # Safety
    /// Inside the array.
    unsafe fn at(&self, offset: usize) -> *mut u32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// Computes the product.
///
/// # Safety
/// The addresses cover what [`Matmul`] says, and nothing else uses C.
pub unsafe fn run(p: &Matmul, team: &Team) {
    // SAFETY: the caller's promise.
    unsafe { run_on(isa(), p, team) }
}

/// [`run`] with the code of `isa`, which this machine must have.
pub(super) unsafe fn run_on(isa: Isa, p: &Matmul, team: &Team) {
    let both_bf16 = p.a.dtype == DType::BF16 && p.b.dtype == DType::BF16;
    let (code, pairs): (&Code, bool) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if both_bf16 => (&avx512::BF16, true),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512 => (&avx512::F32, false),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (&avx2::F32, false),
        _ => (&portable::PLAIN, false),
    };
    let source = |x: &Operand, rows| Source {
        base: x.addr.0 as *const u8,
        unit: match (pairs, x.dtype) {
            (true, _) => Unit::Pair,
            (false, DType::BF16) => Unit::Widened,
            _ => Unit::F32,
        },
        transposed: x.transposed,
        rows,
        k: p.k,
    };
    let (a, b) = (source(&p.a, p.m), source(&p.b, p.n));
    if p.m == 0 || p.n == 0 {
        return;
    }
    LAUNCH.with_borrow_mut(|scratch| {
        // SAFETY: the caller's promise.
        unsafe {
            match p.c_dtype {
                DType::F32 => Product::<f32>::new(p, code, a, b, team).run(scratch),
                _ => Product::<bf16>::new(p, code, a, b, team).run(scratch),
            }
        }
    });
}

/// One product being computed.
struct Product<'a, T> {
    m: usize,
    n: usize,
    /// Units of k.
    units: usize,
    a: Source,
    b: Source,
    c: Out<T>,
    bias: &'a [T],
    accumulate: bool,
    scale: f32,
    code: &'static Code,
    team: &'a Team,
}

impl<'a, T: Element> Product<'a, T> {
    unsafe fn new(p: &Matmul, code: &'static Code, a: Source, b: Source, team: &'a Team) -> Self {
        // SAFETY: the caller's promise.
        let (c, bias) = unsafe { (Out::new(p.c, p.m * p.n), slice(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
        let (units, accumulate, scale) = (a.unit.count(p.k), p.accumulate, p.scale);
        Product { m: p.m, n: p.n, units, a, b, c, bias, accumulate, scale, code, team }
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        if let Some((most, thin)) = self.code.thin
            && self.m <= most
            && !self.b.transposed
        {
            // SAFETY: the caller's promise.
            return unsafe { self.thin(thin, scratch) };
        }
        let mr = self.code.mr;
        let rows = (PACKED_A / 4 / self.units.max(1)).max(4 * mr) / mr * mr;
        for row in (0..self.m).step_by(rows) {
            // SAFETY: the caller's promise.
            unsafe { self.block(row, rows.min(self.m - row), scratch) }
        }
    }

    /// All columns of some rows, whose A is packed as a whole.
    unsafe fn block(&self, row: usize, rows: usize, scratch: &mut Scratch) {
        let nr = self.code.nr;
        let tiles = rows.div_ceil(self.code.mr);
        // Tiles of one height, not full ones and a rest.
        let mr = rows.div_ceil(tiles);
        let packed = Packed(scratch.words(tiles * mr * self.units));
        let pack = |tile: usize| {
            let rows = mr.min(rows - tile * mr);
            let part = Part { row: row + tile * mr, rows, unit: 0, units: self.units };
            // SAFETY: tiles do not overlap; `packed` has room for them.
            unsafe { (self.code.pack)(&self.a, part, rows, packed.at(tile * mr * self.units)) }
        };
        if self.direct().is_some() {
            // Read where it lies.
        } else if rows * self.units < PACK_ALONE {
            (0..tiles).for_each(pack);
        } else {
            self.team.run(tiles, pack);
        }
        let panels = self.n.div_ceil(nr);
        let threads = self.team.threads();
        // Many rows: each thread has its own, which are then in its cache for what follows, at the price of packing B once more.
        let own = if tiles >= OWN_TILES * threads { threads } else { 1 };
        let wide = if panels.div_ceil(2) * own >= 4 * threads || threads == 1 { 2 } else { 1 };
        let columns = panels.div_ceil(wide);
        // Few columns: rows are divided as well.
        let least = if columns * own >= 2 * threads || threads == 1 { own } else { (2 * threads).div_ceil(columns) };
        let parts = rows.div_ceil(TASK_ROWS).max(least).next_multiple_of(own).min(tiles);
        self.team.run(columns * parts, |task| {
            let (part, column) = (task / columns, task % columns);
            let (first, last) = (part * tiles / parts, (part + 1) * tiles / parts);
            let (p0, p1) = (column * wide, panels.min((column + 1) * wide));
            // SAFETY: tasks own disjoint tiles of C.
            TASK.with_borrow_mut(|s| unsafe { self.task(row, rows, mr, packed, first..last, p0..p1, s) });
        });
    }

    /// The tiles that read A where it lies, if it can be.
    fn direct(&self) -> Option<&'static [Direct]> {
        let fits = self.a.unit == Unit::F32 && !self.a.transposed && self.units <= DIRECT_UNITS;
        self.code.direct.filter(|_| fits)
    }

    /// Some tiles of A, of `mr` rows, against some panels of B.
    #[allow(clippy::too_many_arguments)]
    unsafe fn task(
        &self,
        row: usize,
        rows: usize,
        mr: usize,
        a: Packed,
        tiles: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let nr = self.code.nr;
        let blocks = self.units.div_ceil(UNITS).max(1);
        // Multiples of 32 units: whole cache lines of B's rows.
        let step = self.units.div_ceil(blocks).next_multiple_of(32);
        let area = mr * nr;
        let b_words = panels.len() * step * nr;
        let sums = if blocks == 1 { area } else { area * tiles.len() * panels.len() };
        let b = scratch.words(b_words + sums);
        // SAFETY: as much was asked for.
        let sums = unsafe { b.add(b_words).cast::<f32>() };
        for block in 0..blocks {
            let unit = block * step;
            let units = step.min(self.units.saturating_sub(unit));
            for (i, panel) in panels.clone().enumerate() {
                let part = Part { row: panel * nr, rows: nr.min(self.n - panel * nr), unit, units };
                // SAFETY: panel `i` of the packed block.
                unsafe { (self.code.pack)(&self.b, part, nr, b.add(i * step * nr)) };
            }
            for (t, tile) in tiles.clone().enumerate() {
                let tile_rows = mr.min(rows - tile * mr);
                // SAFETY: inside packed A; a tile's stride is its number of rows.
                let a = unsafe { a.at(tile * mr * self.units + unit * tile_rows) };
                for (i, panel) in panels.clone().enumerate() {
                    let at = if blocks == 1 { 0 } else { (t * panels.len() + i) * area };
                    // SAFETY: inside the sums; the code has a tile for each number of rows up to `mr`.
                    let acc = unsafe {
                        let (acc, b) = (sums.add(at), b.add(i * step * nr));
                        match self.direct() {
                            Some(direct) => {
                                let k = self.a.k;
                                let a = self.a.base.cast::<u32>().add((row + tile * mr) * k + unit);
                                direct[tile_rows - 1](units, a, k, b, acc, block > 0);
                            }
                            None => self.code.tiles[tile_rows - 1](units, a, b, acc, block > 0),
                        }
                        std::slice::from_raw_parts(acc, tile_rows * nr)
                    };
                    if block + 1 == blocks {
                        self.finish(acc, nr, row + tile * mr, panel * nr);
                    }
                }
            }
        }
    }

    /// Few rows of A: B is read once, as stored, in runs of whole rows.
    unsafe fn thin(&self, thin: Thin, scratch: &mut Scratch) {
        let a = Packed(scratch.words(self.m * self.units));
        let part = Part { row: 0, rows: self.m, unit: 0, units: self.units };
        // SAFETY: room for `m` rows of all units.
        unsafe { (self.code.pack)(&self.a, part, self.m, a.at(0)) };
        let groups = self.n.div_ceil(THIN_ROWS);
        let group_bytes = THIN_ROWS * self.b.k * self.b.unit.element();
        let runs = runs(groups, (THIN_BYTES / group_bytes.max(1)).max(1), self.team.threads());
        self.team.run(runs, |run| {
            let mut acc = [0.0f32; THIN_MOST * THIN_ROWS];
            let acc = &mut acc[..self.m * THIN_ROWS];
            for group in run * groups / runs..(run + 1) * groups / runs {
                let (row, rows) = (group * THIN_ROWS, THIN_ROWS.min(self.n - group * THIN_ROWS));
                // SAFETY: rows of B that exist; room for the sums.
                unsafe { thin(self.m, a.at(0), &self.b, row, rows, acc.as_mut_ptr()) };
                self.finish(acc, THIN_ROWS, 0, row);
            }
        });
    }

    /// Scale, bias, old C and the one rounding, for sums of `width` columns from `[row, column]` on.
    fn finish(&self, acc: &[f32], width: usize, row: usize, column: usize) {
        let columns = width.min(self.n - column);
        let bias = if self.bias.is_empty() { &[] } else { &self.bias[column..column + columns] };
        for (i, acc) in acc.chunks_exact(width).enumerate() {
            // SAFETY: a task owns its part of C.
            let c = unsafe { self.c.part((row + i) * self.n + column, columns) };
            store(&acc[..columns], self.scale, bias, self.accumulate, c);
        }
    }
}

simd_fn! {
    fn store<T: Element>(acc: &[f32], scale: f32, bias: &[T], accumulate: bool, c: &mut [T]) {
        let acc = acc.iter().map(|x| x * scale);
        match (bias.is_empty(), accumulate) {
            (true, false) => acc.zip(c).for_each(|(x, c)| *c = T::from_f32(x)),
            (true, true) => acc.zip(c).for_each(|(x, c)| *c = T::from_f32(c.to_f32() + x)),
            (false, false) => {
                acc.zip(bias).zip(c).for_each(|((x, b), c)| *c = T::from_f32(x + b.to_f32()));
            }
            (false, true) => acc.zip(bias).zip(c).for_each(|((x, b), c)| {
                *c = T::from_f32(c.to_f32() + (x + b.to_f32()));
            }),
        }
    }
}

/// How many runs of groups, none longer than `most`: as many for each thread, so that threads end together.
fn runs(groups: usize, most: usize, threads: usize) -> usize {
    groups.div_ceil(most).next_multiple_of(threads).min(groups).max(1)
}
