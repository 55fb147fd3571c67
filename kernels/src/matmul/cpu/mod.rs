//! Matrix products on the CPU: both operands are packed, a tile of C stays in registers, and there is one fixed order
//! of summation.
//!
//! ```text
//! for each panel of B (nr rows) and block of k:  pack B as [units][nr]          # a task of one thread
//!     for each tile of A (mr rows, packed as [units][mr]):
//!         for each unit u of k:  acc[i][j] = fma(a[u][i], b[u][j], acc[i][j])    # mr x nr lanes in registers
//! after the last block of k:  C = round(scale * acc + bias (+ old C))
//! ```
//!
//! **Order.** Every element of C is one lane of one register. It starts at 0 and takes the *units* of k in order,
//! each with one fused instruction. Then it is multiplied by the scale, bias and (if requested) the old C are added,
//! and it is rounded once to C's dtype. A unit is one k in f32 arithmetic, or two neighbouring k with the bf16 dot
//! product (bf16 × bf16 where the processor has it). The order depends on nothing else: not on tile, thread or block
//! of k (a partial sum that is stored and continued is the same f32).
//!
//! **Data.** A unit has 4 bytes in either arithmetic. A step of the inner loop loads `nr` lanes of B and multiplies
//! them by `mr` single units of A. Transposed and bf16 operands differ only in how they are packed. With few rows of
//! A the time is that of reading B: [`Code::thin`] then transposes B inside registers and stores nothing.
#![allow(unsafe_code)]
// Arrays of registers: loops over constant ranges unroll completely, and an index into two arrays reads best as one
// loop variable.
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

/// Maximum units of k for which B stays packed at a time: 64 columns of it then fill a quarter of a second-level
/// cache.
const UNITS: usize = 1024;
/// Maximum rows of A that one task multiplies with its block of B.
const TASK_ROWS: usize = 512;
/// Maximum units a row for which A is read unpacked: rows further apart would share few sets of the cache.
const DIRECT_UNITS: usize = 512;
/// Tiles of A a thread from which on every thread gets rows of its own.
const OWN_TILES: usize = 4;
/// Bytes of packed A at a time.
const PACKED_A: usize = 16 << 20;
/// Maximum bytes of B that a task of a product with few rows reads: the rows after a group are prefetched, which
/// helps only if the same thread reads them.
const THIN_BYTES: usize = 2048 << 10;
/// Rows of B that a product with few rows of A reads at a time.
const THIN_ROWS: usize = 16;
/// Maximum rows of A for which any instruction set has code for few rows.
const THIN_MOST: usize = 12;
/// Units of A below which packing is not worth a second thread.
const PACK_ALONE: usize = 16 << 10;

/// The stored form of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// An f32.
    F32,
    /// A bf16 that is packed as an f32.
    Widened,
    /// Two neighbouring bf16 of one row; an odd last one is followed by a zero.
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
/// A [`Tile`] that reads A's rows unpacked: `a[i * stride + u]`, rows `stride` words apart.
type Direct = unsafe fn(usize, *const u32, usize, *const u32, *mut f32, bool);
/// `pack(source, part, width, dst)`: `dst[u][i]` is unit `u` of row `i`; lanes from `part.rows` to `width` are 0.
type Pack = unsafe fn(&Source, Part, usize, *mut u32);
/// `thin(m, a, b, row, rows, acc)`: at most [`THIN_ROWS`] rows of B as stored against `m` packed rows of A; `acc` is
/// `[m][THIN_ROWS]`.
type Thin = unsafe fn(usize, *const u32, &Source, usize, usize, *mut f32);

/// The functions for one instruction set and arithmetic.
struct Code {
    mr: usize,
    nr: usize,
    /// Tile functions for 1 to `mr` rows of A, by rows less one.
    tiles: &'static [Tile],
    /// Tile functions for rows of A that need no packing: f32, not transposed.
    direct: Option<&'static [Direct]>,
    pack: Pack,
    /// The function for few rows of A (at most this many, never more than [`THIN_MOST`]) and B not transposed.
    thin: Option<(usize, Thin)>,
}

/// A buffer that grows and never shrinks; it starts at a cache line.
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
    /// Packed A, owned by the thread that launches.
    static LAUNCH: RefCell<Scratch> = RefCell::default();
    /// Packed B and partial sums, owned by the thread that computes.
    static TASK: RefCell<Scratch> = RefCell::default();
}

/// A pointer to packed units that tasks write or read at disjoint offsets.
#[derive(Clone, Copy)]
struct Packed(*mut u32);
// SAFETY: see above; the phases of a product are separated by `Team::run`.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// # Safety
    /// `offset` lies inside the array.
    unsafe fn at(&self, offset: usize) -> *mut u32 {
        // SAFETY: the caller guarantees it (see the function's safety section).
        unsafe { self.0.add(offset) }
    }
}

/// Computes the product.
///
/// # Safety
/// The addresses cover what [`Matmul`] says, and nothing else uses C.
pub unsafe fn run(p: &Matmul, team: &Team) {
    // SAFETY: the caller guarantees it (see the function's safety section).
    unsafe { run_on(isa(), p, team) }
}

/// [`run`] with the code of instruction set `isa`, which this machine must have.
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
        // SAFETY: the caller guarantees it (see the function's safety section).
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
        // SAFETY: the caller guarantees it (see the function's safety section).
        let (c, bias) = unsafe { (Out::new(p.c, p.m * p.n), slice(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
        let (units, accumulate, scale) = (a.unit.count(p.k), p.accumulate, p.scale);
        Product { m: p.m, n: p.n, units, a, b, c, bias, accumulate, scale, code, team }
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        if let Some((most, thin)) = self.code.thin
            && self.m <= most
            && !self.b.transposed
        {
            // SAFETY: the caller guarantees it (see the function's safety section).
            return unsafe { self.thin(thin, scratch) };
        }
        let mr = self.code.mr;
        let rows = (PACKED_A / 4 / self.units.max(1)).max(4 * mr) / mr * mr;
        for row in (0..self.m).step_by(rows) {
            // SAFETY: the caller guarantees it (see the function's safety section).
            unsafe { self.block(row, rows.min(self.m - row), scratch) }
        }
    }

    /// Computes all columns of some rows, whose A is packed completely.
    unsafe fn block(&self, row: usize, rows: usize, scratch: &mut Scratch) {
        let nr = self.code.nr;
        let tiles = rows.div_ceil(self.code.mr);
        // Tiles of equal height, instead of full tiles and a small rest.
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
        // With many rows each thread gets its own, which are then in its cache for the next launch, at the price of
        // packing B once a thread.
        let own = if tiles >= OWN_TILES * threads { threads } else { 1 };
        let wide = if panels.div_ceil(2) * own >= 4 * threads || threads == 1 { 2 } else { 1 };
        let columns = panels.div_ceil(wide);
        // With few columns the rows are divided as well.
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

    /// Returns the tile functions that read A unpacked, if A allows it.
    fn direct(&self) -> Option<&'static [Direct]> {
        let fits = self.a.unit == Unit::F32 && !self.a.transposed && self.units <= DIRECT_UNITS;
        self.code.direct.filter(|_| fits)
    }

    /// Multiplies some tiles of A, of `mr` rows each, with some panels of B.
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
        // Multiples of 32 units are whole cache lines of B's rows.
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

    /// The product for few rows of A: B is read once, unpacked, in runs of whole rows.
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

    /// Applies scale, bias, old C and the one rounding to sums of `width` columns from `[row, column]`.
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

/// Returns the number of runs of at most `most` groups: the same number for each thread, so that threads end
/// together.
fn runs(groups: usize, most: usize, threads: usize) -> usize {
    groups.div_ceil(most).next_multiple_of(threads).min(groups).max(1)
}
