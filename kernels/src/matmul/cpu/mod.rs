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
//! **Order.** Every element of C is summed in one lane of one register. The sum starts at 0 and takes the *units* of
//! k in order, each with one fused instruction. Then it is multiplied by the scale, bias and (if requested) the old C
//! are added, and it is rounded once to C's dtype. A unit is one k in f32 arithmetic, or two neighbouring k with the
//! bf16 dot product (bf16 × bf16 where the processor has it). The order depends on nothing else: not on tile, thread
//! or block of k (a partial sum that is stored and continued is the same f32). Products on the tiles of
//! AMX have another order and code of their own (`amx`).
//!
//! **Data.** A unit has 4 bytes in either arithmetic. A step of the inner loop loads `nr` lanes of B and multiplies
//! them by `mr` single units of A. Transposed and bf16 operands differ only in how they are packed. With few rows of
//! A, reading B takes most of the time: `Code::thin` then transposes B inside registers and stores no packed copy
//! (`thin`). A B that is stored in groups (`groups`) is packed already, and A can mostly be read where it lies
//! ([`Product::direct`]). While a thread computes, it prefetches the part of B that it needs next ([`PrefetchCursor`]).
#![allow(unsafe_code)]
// Loops over constant ranges index arrays of registers: the compiler unrolls them completely.
#![allow(clippy::needless_range_loop)]

mod ahead;
#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod groups;
mod int8;
mod portable;
mod quantized;
mod store;
mod thin;

use std::cell::RefCell;

use half::bf16;
use reel_device::cpu::simd::{Isa, isa, prefetch};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{GROUP_ROWS, Matmul, Operand, RightLayout, WeightGroups};
use reel_device::{Addr, DType, Element, Team};

use ahead::PrefetchCursor;
pub use quantized::MAX_ROWS as MAX_ROWS_OF_QUANTIZED_PRODUCT;
use store::{Destination, scale_add_bias_and_store, scale_columns};
use thin::{
    DEFAULT_PASSES, FewRowsProduct, FewRowsProductFn, MAX_TASK_BYTES, RowsOfMatrixA, SumRows,
    few_rows_product_for_plain_b, run_count,
};

/// Maximum number of units along k (elements, or pairs of bf16) that are packed at a time. 64 packed rows of B of
/// this length fill a quarter of a second-level cache.
const UNITS: usize = 1024;
/// Maximum number of rows of A by which one task multiplies its block of B.
const TASK_ROWS: usize = 512;
/// Maximum number of units (f32 elements) per row for which A is always read without packing. Longer rows may compete
/// for the same few sets of the cache: see [`Product::direct`].
const DIRECT_UNITS: usize = 512;
/// Maximum number of bytes of a transposed f32 A that is read without packing. Each unit of k of a tile lies in a
/// different cache line, so reading is only fast if A is in a cache. Packing takes up to a tenth of the time of a small
/// product, and little of that of a large one (tools/benches/results/amd-epyc/2026-11-25-few-rows-and-columns.json).
const DIRECT_COLUMNS: usize = 2 << 20;
/// If there are at least this many tiles of A per thread, the rows of A are divided among the threads.
const OWN_TILES: usize = 4;
/// Maximum number of bytes of B that every thread packs for itself, so that it can have its own rows of A. Products
/// of bf16 pairs have no such limit: there B has half as many bytes, and reading A takes a larger part of the time.
const OWN_BYTES: usize = 1 << 20;
/// Maximum number of bytes of A that are packed at a time.
const PACKED_A: usize = 16 << 20;
/// The least k of products with an f32 operand that tiles of AMX compute if the instruction set is [`Isa::AmxF32`].
/// Weights with a shorter k are mostly in the caches; with few rows of A, splitting such weights into bf16 parts takes
/// longer than f32 multiply-adds do (tools/benches/results/intel-xeon/2026-11-26-amx-f32.json, products with one copy of B).
/// The choice depends on k alone, and so does the order of a sum.
pub(super) const MIN_K_FOR_AMX_F32: usize = 512;
/// If A has fewer units (f32 elements or pairs of bf16) than this, one thread packs all of them.
const PACK_ALONE: usize = 16 << 10;

/// The unit of a sum along k: one element, or a pair of neighbouring bf16 elements. The variants say how units are
/// stored in an operand and how they are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// An f32.
    F32,
    /// A bf16 that is packed as an f32.
    Widened,
    /// Two neighbouring bf16 of one row; if k is odd, the last one is paired with a zero.
    Pair,
    /// An int8 that is packed as an f32, stored in groups of 16 rows (`int8`).
    Int8,
    /// Two neighbouring int8 of one row that are packed as a pair of bf16, stored in groups of 16 rows.
    Int8Pair,
    /// An f32, stored in groups of 32 rows (`groups`).
    GroupedF32,
    /// A pair of bf16 as [`Unit::Pair`], stored in groups of 32 rows.
    GroupedPair,
    /// A bf16 that is packed as an f32, stored in groups of 32 rows (`groups`).
    GroupedWidened,
}

impl Unit {
    /// Returns the number of units (elements or pairs of elements) in a row of `k` elements.
    fn count(self, k: usize) -> usize {
        if matches!(self, Unit::Pair | Unit::Int8Pair | Unit::GroupedPair) { k.div_ceil(2) } else { k }
    }

    /// Bytes of one unit in memory.
    fn bytes(self) -> usize {
        match self {
            Unit::F32 | Unit::Pair | Unit::GroupedF32 | Unit::GroupedPair => 4,
            Unit::Widened | Unit::Int8Pair | Unit::GroupedWidened => 2,
            Unit::Int8 => 1,
        }
    }

    /// Bytes of one element in memory.
    fn element(self) -> usize {
        match self {
            Unit::F32 | Unit::GroupedF32 => 4,
            Unit::Widened | Unit::Pair | Unit::GroupedPair | Unit::GroupedWidened => 2,
            Unit::Int8 | Unit::Int8Pair => 1,
        }
    }
}

/// An operand of a product, as it lies in memory before packing.
#[derive(Clone, Copy)]
struct Source {
    base: *const u8,
    unit: Unit,
    transposed: bool,
    rows: usize,
    k: usize,
}

// SAFETY: the operand is only read while the product runs.
unsafe impl Sync for Source {}

/// A block of an operand: `rows` rows from `row` on and, along k, `units` units (elements or pairs) from `unit` on.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    rows: usize,
    unit: usize,
    units: usize,
}

/// A tile of sums of products: some rows of `Code::nr` sums.
struct Sums {
    at: *mut f32,
    /// Distance from one row to the next, in sums.
    stride: usize,
    /// Whether the memory holds sums to which the products are added; otherwise sums start at 0.
    continued: bool,
}

/// A tile function: `tile(units, a, b, sums, ahead)` computes `sums[i][j] += sum over u of a[u][i] * b[u][j]`, and at
/// the same time prefetches the cache lines that `ahead` names.
type TileFn = unsafe fn(usize, *const u32, *const u32, Sums, &mut PrefetchCursor);
/// A [`TileFn`] that reads A unpacked: its argument after `a` is the number of words from one row to the next, or of a
/// transposed A from one unit to the next.
type Direct = unsafe fn(usize, *const u32, usize, *const u32, Sums, &mut PrefetchCursor);
/// A packing function: `pack(source, part, width, dst)` sets `dst[u][i]` to unit `u` of row `i` of the part, and lanes
/// `part.rows .. width` to 0.
type Pack = unsafe fn(&Source, Part, usize, *mut u32);

/// Tile functions that read A in place, without packing, if its rows consist of whole units. The function for r rows (1
/// to [`Code::mr`]) has the index r − 1.
struct DirectTiles {
    rows: &'static [Direct],
    /// For a transposed f32 A.
    columns: &'static [Direct],
}

/// The functions for one instruction set and one kind of unit along k (an element or a pair).
struct Code {
    mr: usize,
    nr: usize,
    /// Tile functions for 1 to `mr` rows of A; the function for r rows has the index r − 1.
    tiles: &'static [TileFn],
    direct: Option<&'static DirectTiles>,
    pack: Pack,
    /// Packs an int8 B.
    pack_int8: Pack,
    /// Packs a B that is stored in groups.
    pack_groups: Pack,
    /// The function for products with few rows of A and a B that is not transposed.
    thin: Option<&'static FewRowsProduct>,
    /// The function for products with few rows of A and an int8 B.
    thin_int8: Option<&'static FewRowsProduct>,
    /// The function for products with few rows of A and a bf16 B that is stored in groups.
    thin_groups: Option<&'static FewRowsProduct>,
    /// The function for products with few rows of A and an f32 B that is stored in groups.
    thin_f32_groups: Option<&'static FewRowsProduct>,
}

impl Code {
    /// Returns the function that packs an operand whose elements are stored and packed as `unit` says.
    fn pack_of(&self, unit: Unit) -> Pack {
        match unit {
            Unit::Int8 | Unit::Int8Pair => self.pack_int8,
            Unit::GroupedF32 | Unit::GroupedPair | Unit::GroupedWidened => self.pack_groups,
            Unit::F32 | Unit::Widened | Unit::Pair => self.pack,
        }
    }

    /// Returns the function for products with few rows of A and a B that is stored as `unit` says, if there is one.
    fn thin_of(&self, unit: Unit) -> Option<&'static FewRowsProduct> {
        match unit {
            Unit::Int8 | Unit::Int8Pair => self.thin_int8,
            Unit::GroupedPair | Unit::GroupedWidened => self.thin_groups,
            Unit::GroupedF32 => self.thin_f32_groups,
            Unit::F32 | Unit::Widened | Unit::Pair => self.thin,
        }
    }
}

/// A buffer that grows and never shrinks; its first byte is aligned to a cache line.
#[derive(Default)]
struct Scratch(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "the words are read and written only through a raw pointer")] [u32; 16]);

impl Scratch {
    /// Returns the buffer's address after it has grown to at least `len` words.
    fn words(&mut self, len: usize) -> *mut u32 {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 16]));
        }
        self.0.as_mut_ptr().cast()
    }
}

thread_local! {
    /// The buffer for the packed A, in the thread that launches the product.
    static LAUNCH: RefCell<Scratch> = RefCell::default();
    /// The buffer for packed blocks of B and partial sums, in each thread that computes with them.
    static TASK: RefCell<Scratch> = RefCell::default();
}

/// A pointer to packed operands, which tasks write or read at disjoint offsets.
#[derive(Clone, Copy)]
struct Packed(*mut u32);
// SAFETY: tasks access disjoint offsets; `Team::run` separates the tasks that write from those that read.
unsafe impl Send for Packed {}
// SAFETY: tasks access disjoint offsets; `Team::run` separates the tasks that write from those that read.
unsafe impl Sync for Packed {}

impl Packed {
    /// # Safety
    /// `offset` lies inside the array.
    unsafe fn at(&self, offset: usize) -> *mut u32 {
        // SAFETY: `offset` lies inside the array.
        unsafe { self.0.add(offset) }
    }
}

/// Whether a tile of C is prefetched while the tile before it is computed. On Intel, stores to cache lines that are in
/// no cache slowed products with a short k down: without prefetches 512 × 490 × 128 took 0.38 ms instead of 0.23. If C
/// is in a cache, prefetching makes such products 3 % slower (tools/benches/results/intel-xeon/2026-11-27-cold-memory.json).
/// An AMD EPYC (Zen 4) gained nothing.
fn prefetches_c() -> bool {
    #[cfg(target_arch = "x86_64")]
    return reel_device::cpu::simd::is_intel();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Computes the product with the best instruction set of this machine.
///
/// # Safety
/// The addresses cover the shapes that [`Matmul`] documents, and nothing else uses C.
pub unsafe fn run(p: &Matmul, team: &Team) {
    // SAFETY: the operands are valid as `Matmul` documents; `isa` returns an instruction set of this machine.
    unsafe { run_on(isa(), p, team) }
}

/// Computes a product for device `sim`: like [`run`], but f32 products use multiply-adds only, never split bf16
/// parts. The simulated kernels use f32 multiply-adds too. Some of them (`patch_embedding`) must be bit-identical to
/// such a product, or to a product with operands that are padded with zeros.
///
/// # Safety
/// The conditions of [`run`].
pub unsafe fn run_simulated(p: &Matmul, team: &Team) {
    // SAFETY: the conditions of this function; a machine has all instruction sets before its own.
    unsafe { run_on(isa().min(Isa::Amx), p, team) }
}

/// Whether products read a B of f32 or bf16 in groups of rows faster than one that is stored row by row. The portable
/// code gains nothing, since it packs either layout.
pub fn prefers_grouped_weights() -> bool {
    isa() != Isa::Plain
}

/// Arranges a weight in groups of rows, on the threads of `team`.
///
/// # Safety
/// The addresses cover the shapes that [`WeightGroups`] documents, and nothing else uses the groups.
pub unsafe fn pack_into_groups(p: &WeightGroups, team: &Team) {
    // SAFETY: `isa` returns an instruction set of this machine.
    unsafe { pack_into_groups_on(isa(), p, team) }
}

/// Does what [`pack_into_groups`] does, with the code of instruction set `isa`, which this machine must have.
pub(super) unsafe fn pack_into_groups_on(isa: Isa, p: &WeightGroups, team: &Team) {
    let pack = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::AmxF32 | Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => avx512::F32.pack,
        _ => groups::pack_words,
    };
    let unit = if p.dtype == DType::F32 { Unit::F32 } else { Unit::Pair };
    let weight = Source { base: p.from.0 as *const u8, unit, transposed: false, rows: p.n, k: p.k };
    // SAFETY: the addresses are valid as `WeightGroups` documents.
    unsafe { groups::pack_into_groups(&weight, pack, Packed(p.to.0 as *mut u32), team) }
}

/// Does what [`run`] does, with the code of instruction set `isa`, which this machine must have.
pub(super) unsafe fn run_on(isa: Isa, p: &Matmul, team: &Team) {
    if matches!(p.b_layout, RightLayout::Quantized { .. }) {
        // SAFETY: the operands are valid as `Matmul` documents, and the machine has `isa`.
        return unsafe { quantized::multiply(isa, p, team) };
    }
    // An int8 is exact in bf16, too.
    let both_bf16 = p.a.dtype == DType::BF16 && p.b.dtype != DType::F32;
    let (code, pairs): (&Code, bool) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::AmxF32 if both_bf16 || isa == Isa::AmxF32 && p.k >= MIN_K_FOR_AMX_F32 => {
            // SAFETY: the operands are valid as `Matmul` documents, and the machine has AMX.
            return unsafe { amx::run(p, team, amx::Blocking::usual(p)) };
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if both_bf16 => (&avx512::BF16, true),
        #[cfg(target_arch = "x86_64")]
        Isa::AmxF32 | Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => (&avx512::F32, false),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (&avx2::F32, false),
        _ => (&portable::PLAIN, false),
    };
    let source = |x: &Operand, rows, grouped| Source {
        base: x.addr.0 as *const u8,
        unit: match (pairs, x.dtype, grouped) {
            (true, DType::I8, _) => Unit::Int8Pair,
            (false, DType::I8, _) => Unit::Int8,
            (true, _, true) => Unit::GroupedPair,
            (true, _, false) => Unit::Pair,
            (false, DType::BF16, true) => Unit::GroupedWidened,
            (false, DType::BF16, false) => Unit::Widened,
            (_, _, true) => Unit::GroupedF32,
            _ => Unit::F32,
        },
        transposed: x.transposed,
        rows,
        k: p.k,
    };
    let (a, b) = (source(&p.a, p.m, false), source(&p.b, p.n, p.b_layout == RightLayout::Groups));
    if p.m == 0 || p.n == 0 {
        return;
    }
    LAUNCH.with_borrow_mut(|scratch| {
        // SAFETY: the operands are valid as `Matmul` documents, and the machine has `isa`.
        unsafe {
            match p.c_dtype {
                DType::F32 => Product::<f32>::new(p, code, a, b, team).run(scratch),
                _ => Product::<bf16>::new(p, code, a, b, team).run(scratch),
            }
        }
    });
}

/// A product in progress: its operands in memory, its result, and the code that computes it.
struct Product<'a, T> {
    m: usize,
    n: usize,
    /// Units of k.
    units: usize,
    a: Source,
    b: Source,
    c: OutputArray<T>,
    bias: &'a [T],
    /// The scales of an int8 B, one for each of its rows; empty for any other B.
    b_scale: &'a [f32],
    accumulate: bool,
    scale: f32,
    code: &'static Code,
    team: &'a Team,
}

impl<'a, T: Element> Product<'a, T> {
    unsafe fn new(p: &Matmul, code: &'static Code, a: Source, b: Source, team: &'a Team) -> Self {
        // SAFETY: c has `[m, n]` elements of T; bias has `[n]` of them, or is null and read as empty.
        let (c, bias) =
            unsafe { (OutputArray::new(p.c, p.m * p.n), slice_at(p.bias, if p.bias.is_null() { 0 } else { p.n })) };
        // SAFETY: `b_scale` has `[n]` elements, or is null and read as empty.
        let b_scale = unsafe { slice_at(p.b_scale, if p.b_scale.is_null() { 0 } else { p.n }) };
        let (units, accumulate, scale) = (a.unit.count(p.k), p.accumulate, p.scale);
        Product { m: p.m, n: p.n, units, a, b, c, bias, b_scale, accumulate, scale, code, team }
    }

    unsafe fn run(&self, scratch: &mut Scratch) {
        if let Some(thin) = self.code.thin_of(self.b.unit)
            && self.m <= thin.passes * thin.most
            && !self.b.transposed
        {
            // SAFETY: the operands are valid as `Matmul` documents; B is not transposed, and A has few enough rows.
            return unsafe { self.multiply_few_rows(thin, scratch) };
        }
        let mr = self.code.mr;
        let most = match self.direct() {
            Some(_) => self.m,
            None => (PACKED_A / 4 / self.units.max(1)).max(4 * mr),
        };
        // Divides A into blocks of rows of nearly the same size. B is packed again for every block, so a very small
        // block would cost almost as much as a large one.
        let rows = self.m.div_ceil(self.m.div_ceil(most)).next_multiple_of(mr);
        for row in (0..self.m).step_by(rows) {
            // SAFETY: the operands are valid as `Matmul` documents; the rows lie inside A.
            unsafe { self.block(row, rows.min(self.m - row), scratch) }
        }
    }

    /// Packs `rows` rows of A from `row` on, and computes these rows of C.
    unsafe fn block(&self, row: usize, rows: usize, scratch: &mut Scratch) {
        let nr = self.code.nr;
        let tiles = rows.div_ceil(self.code.mr);
        // All tiles get nearly the same number of rows, so that the last tile is not much smaller than the others.
        let mr = rows.div_ceil(tiles);
        let packed = Packed(scratch.words(tiles * mr * self.units));
        let pack = |tile: usize| {
            let rows = mr.min(rows - tile * mr);
            let part = Part { row: row + tile * mr, rows, unit: 0, units: self.units };
            // SAFETY: tiles do not overlap, and `packed` has room for them.
            unsafe { (self.code.pack)(&self.a, part, rows, packed.at(tile * mr * self.units)) }
        };
        if self.direct().is_some() {
            // There is nothing to pack, because the tile functions read A as it is stored.
        } else if rows * self.units < PACK_ALONE {
            (0..tiles).for_each(pack);
        } else {
            self.team.run(tiles, pack);
        }
        let panels = self.n.div_ceil(nr);
        let threads = self.team.threads();
        // With many rows of A, each thread computes its own rows of C, which are then in the thread's cache for the
        // next launch. The cost is that every thread packs B for itself.
        let pairs = matches!(self.b.unit, Unit::Pair | Unit::Int8Pair | Unit::GroupedPair);
        let shares_b = !pairs && self.n * self.b.k * self.b.unit.element() > OWN_BYTES;
        let own = if tiles >= OWN_TILES * threads && !shares_b { threads } else { 1 };
        let wide = if panels.div_ceil(2) * own >= 4 * threads || threads == 1 { 2 } else { 1 };
        let columns = panels.div_ceil(wide);
        // If there are too few groups of columns for all threads, the rows of A are divided too.
        let least = if columns * own >= 2 * threads || threads == 1 { own } else { (2 * threads).div_ceil(columns) };
        let parts = rows.div_ceil(TASK_ROWS).max(least).next_multiple_of(own).min(tiles);
        self.team.run(columns * parts, |task| {
            let (part, column) = (task / columns, task % columns);
            let (first, last) = (part * tiles / parts, (part + 1) * tiles / parts);
            let (p0, p1) = (column * wide, panels.min((column + 1) * wide));
            // Selects the panels of B to prefetch: those of the next task, which usually runs on the same thread.
            let next = p1..if column + 1 < columns { panels.min((column + 2) * wide) } else { p1 };
            // SAFETY: tasks own disjoint tiles of C.
            TASK.with_borrow_mut(|s| unsafe { self.task(row, rows, mr, packed, first..last, p0..p1, next, s) });
        });
    }

    /// Returns the tile functions that read A without packing, and the address and strides of A; `None` if A must be
    /// packed.
    fn direct(&self) -> Option<(&'static [Direct], RowsOfMatrixA)> {
        let tiles = self.code.direct?;
        if !self.a.transposed {
            return Some((tiles.rows, self.rows_of_a()?));
        }
        let columns = RowsOfMatrixA { words: self.a.base.cast(), unit_words: self.m, row_words: 1 };
        let is_small = self.a.unit == Unit::F32 && self.m * self.units * 4 <= DIRECT_COLUMNS;
        is_small.then_some((tiles.columns, columns))
    }

    /// Returns the address and strides of A for reading it in place; `None` if its rows do not consist of whole aligned
    /// units, or if a dozen rows would share a few of the 64 sets of the first-level cache. Rows that are 2^i cache
    /// lines apart lie in 64 / 2^i sets.
    fn rows_of_a(&self) -> Option<RowsOfMatrixA> {
        let row_bytes = self.a.k * self.a.unit.element();
        let is_spread = !row_bytes.is_multiple_of(64) || (row_bytes / 64).trailing_zeros() <= 5;
        let has_whole_units = match self.a.unit {
            Unit::F32 => true,
            Unit::Pair => self.a.k.is_multiple_of(2) && (self.a.base as usize).is_multiple_of(4),
            _ => false,
        };
        let fits = has_whole_units && !self.a.transposed && (self.units <= DIRECT_UNITS || is_spread);
        fits.then(|| RowsOfMatrixA { words: self.a.base.cast(), unit_words: 1, row_words: self.units })
    }

    /// Multiplies the given tiles of A, of `mr` rows each, with the given panels of B (`nr` rows each). Prefetches the
    /// panels `next` of B.
    #[allow(clippy::too_many_arguments)]
    unsafe fn task(
        &self,
        row: usize,
        rows: usize,
        mr: usize,
        a: Packed,
        tiles: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        next: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let nr = self.code.nr;
        let blocks = self.units.div_ceil(UNITS).max(1);
        // The block length is a multiple of 32 units, which are whole cache lines: if a row of B starts at a cache
        // line, so does each of its blocks.
        let step = self.units.div_ceil(blocks).next_multiple_of(32);
        let pack_b = self.code.pack_of(self.b.unit);
        // A group of 32 rows of f32, or of pairs of bf16, already has the layout of a packed panel.
        let in_place = matches!(self.b.unit, Unit::GroupedF32 | Unit::GroupedPair) && nr == GROUP_ROWS;
        let area = mr * nr;
        let b_words = if in_place { 0 } else { panels.len() * step * nr };
        let sums = if blocks == 1 { area } else { area * tiles.len() * panels.len() };
        let b = scratch.words(b_words + sums);
        // SAFETY: `b` has room for `b_words + sums` words.
        let sums = unsafe { b.add(b_words).cast::<f32>() };
        for block in 0..blocks {
            let unit = block * step;
            let units = step.min(self.units.saturating_sub(unit));
            for (i, panel) in panels.clone().enumerate().filter(|_| !in_place) {
                let part = Part { row: panel * nr, rows: nr.min(self.n - panel * nr), unit, units };
                // SAFETY: `b` has room for `panels.len()` panels of `step` units.
                unsafe { pack_b(&self.b, part, nr, b.add(i * step * nr)) };
            }
            let (coming, unit_ahead) = if block + 1 < blocks { (&panels, unit + step) } else { (&next, 0) };
            let mut ahead = PrefetchCursor::new(
                &self.b,
                Part {
                    row: coming.start * nr,
                    rows: self.n.min(coming.end * nr) - self.n.min(coming.start * nr),
                    unit: unit_ahead,
                    units: step.min(self.units.saturating_sub(unit_ahead)),
                },
            );
            for (t, tile) in tiles.clone().enumerate() {
                let tile_rows = mr.min(rows - tile * mr);
                // SAFETY: the offset lies inside packed A, in which a tile's rows are neighbours.
                let a = unsafe { a.at(tile * mr * self.units + unit * tile_rows) };
                for (i, panel) in panels.clone().enumerate() {
                    let at = if blocks == 1 { 0 } else { (t * panels.len() + i) * area };
                    let (first_row, columns) = (row + tile * mr, panel * nr..self.n.min((panel + 1) * nr));
                    let in_c = self.sums_in_c(first_row, tile_rows, &columns, nr);
                    if let Some(c) = in_c.filter(|_| prefetches_c() && block == 0 && tile + 1 < tiles.end) {
                        for r in mr..mr + mr.min(rows - (tile + 1) * mr) {
                            prefetch::write_lines(c.wrapping_add(r * self.n).cast(), nr * 4);
                        }
                    }
                    // SAFETY: `at` lies inside the sums; the code has a tile function for each number of rows up to
                    // `mr`.
                    let acc = unsafe {
                        let (acc, stride) = in_c.map_or((sums.add(at), nr), |c| (c, self.n));
                        let to = Sums { at: acc, stride, continued: block > 0 };
                        let b = if in_place {
                            groups::unit_address_in_group(&self.b, panel * nr, unit)
                        } else {
                            b.add(i * step * nr).cast_const()
                        };
                        match self.direct() {
                            Some((direct, a)) => {
                                let stride = a.row_words.max(a.unit_words);
                                let a = a.rows_from(first_row, unit).words;
                                direct[tile_rows - 1](units, a, stride, b, to, &mut ahead);
                            }
                            None => self.code.tiles[tile_rows - 1](units, a, b, to, &mut ahead),
                        }
                        acc
                    };
                    if block + 1 == blocks && in_c.is_none() {
                        // SAFETY: the tile function has written these sums.
                        let acc = unsafe { std::slice::from_raw_parts_mut(acc, tile_rows * nr) };
                        self.finish(acc, nr, first_row, columns);
                    }
                }
            }
        }
    }

    /// Returns the address of these rows and columns of C if the sums need no further operation (f32 C, no scale, bias
    /// or old C) and there are at least `nr` columns. The partial sums are then stored in C, too.
    fn sums_in_c(&self, row: usize, rows: usize, columns: &std::ops::Range<usize>, nr: usize) -> Option<*mut f32> {
        let is_plain = self.scale == 1.0 && self.bias.is_empty() && self.b_scale.is_empty() && !self.accumulate;
        if T::DTYPE != DType::F32 || !is_plain || columns.len() < nr {
            return None;
        }
        Some(self.c.address(row * self.n + columns.start, (rows - 1) * self.n + columns.len()).cast())
    }

    /// Multiplies sums by the scales, adds bias and old C, rounds once, and stores to C. `acc` has rows of `width`
    /// sums; its first row belongs to row `row` and the given columns of C.
    fn finish(&self, acc: &mut [f32], width: usize, row: usize, columns: std::ops::Range<usize>) {
        if !self.b_scale.is_empty() {
            scale_columns(acc, width, &self.b_scale[columns.clone()]);
        }
        let bias = if self.bias.is_empty() { &[] } else { &self.bias[columns.clone()] };
        let start = row * self.n + columns.start;
        let to = Destination { c: &self.c, start, stride: self.n, columns: columns.len() };
        scale_add_bias_and_store(acc, width, self.scale, bias, self.accumulate, to);
    }
}
