//! Matrix products with AVX-512, with and without the bf16 dot product: tiles of 12 × 32 results, which occupy 24 of
//! the 32 registers.

use std::arch::x86_64::*;

use reel_device::cpu::simd::row_steps::{RowOffsets, hide_address};

use super::{
    Code, DEFAULT_PASSES, Direct, DirectTiles, FewRowsProduct, Part, PrefetchCursor, RowsOfMatrixA, Source, SumRows,
    Sums, TileFn, Unit, few_rows_product_for_plain_b, groups, int8,
};

/// Makes an array of the instances of a tile function, for 1 to 12 rows of A.
macro_rules! tiles {
    ($type:ident, $name:ident) => {
        &{
            let tiles: [$type; 12] = [
                $name::<1>,
                $name::<2>,
                $name::<3>,
                $name::<4>,
                $name::<5>,
                $name::<6>,
                $name::<7>,
                $name::<8>,
                $name::<9>,
                $name::<10>,
                $name::<11>,
                $name::<12>,
            ];
            tiles
        }
    };
}

/// f32 arithmetic.
pub(super) static F32: Code = Code {
    mr: 12,
    nr: 32,
    tiles: tiles!(TileFn, tile_f32),
    direct: Some(&DirectTiles { rows: tiles!(Direct, tile_rows), columns: tiles!(Direct, tile_columns) }),
    pack,
    pack_int8: int8::avx512::pack,
    pack_groups: groups::avx512::pack,
    thin: Some(&FewRowsProduct { most: 16, passes: DEFAULT_PASSES, ..few_rows_product_for_plain_b(thin) }),
    thin_int8: Some(&int8::avx512::THIN_F32),
    thin_groups: Some(&groups::avx512::THIN_WIDENED),
    thin_f32_groups: Some(&groups::avx512::THIN_F32),
};

/// The functions that multiply with the processor's dot product of bf16 pairs.
pub(super) static BF16: Code = Code {
    mr: 12,
    nr: 32,
    tiles: tiles!(TileFn, tile_bf16),
    direct: Some(&DirectTiles { rows: tiles!(Direct, tile_bf16_rows), columns: &[] }),
    pack,
    pack_int8: int8::avx512::pack,
    pack_groups: groups::avx512::pack,
    thin: Some(&FewRowsProduct { most: 24, passes: DEFAULT_PASSES, ..few_rows_product_for_plain_b(thin_bf16) }),
    thin_int8: Some(&int8::avx512::THIN_BF16),
    thin_groups: Some(&groups::avx512::THIN_PAIRS),
    thin_f32_groups: None,
};

/// Returns `acc + b * a` for every lane; `a` is the same unit (an f32 or a pair of bf16) in all lanes. Every sum of the
/// product is computed by this instruction alone, one unit of k after the other.
macro_rules! step {
    (f32, $acc:expr, $b:expr, $a:expr) => {
        _mm512_fmadd_ps(_mm512_castsi512_ps($b), _mm512_set1_ps(f32::from_bits($a)), $acc)
    };
    (bf16, $acc:expr, $b:expr, $a:expr) => {{
        // SAFETY: both types have 512 bits, and every bit pattern is valid.
        let (b, a) = unsafe {
            (
                std::mem::transmute::<__m512i, __m512bh>($b),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32($a as i32)),
            )
        };
        _mm512_dpbf16_ps($acc, b, a)
    }};
}

/// Returns the index of the 32-bit word that holds unit `u` of row `i` of A, relative to the current unit. A is packed
/// as `[units][MR]`; or it is read in place, with rows at the offsets `$steps` (a [`RowOffsets`]) or with columns
/// `$steps` words apart.
macro_rules! word_of_a {
    ($u:ident, $i:ident) => {
        $u * MR + $i
    };
    ($u:ident, $i:ident, $steps:ident rows) => {
        $steps.row($i) + $u
    };
    ($u:ident, $i:ident, $steps:ident columns) => {
        $u * $steps + $i
    };
}

/// Returns the number of words from one unit of A (an f32 or a pair of bf16) to the next, and the `$steps` argument of
/// [`word_of_a!`].
macro_rules! steps_of_a {
    () => {
        (MR, ())
    };
    ($stride:ident rows) => {
        (1, RowOffsets::new($stride))
    };
    ($stride:ident columns) => {
        ($stride, $stride)
    };
}

/// Number of units along k (f32 elements or pairs of bf16) in one iteration of a tile function's loop. An iteration
/// prefetches one cache line.
const UNITS_PER_LINE: usize = 4;

macro_rules! tile {
    ($name:ident, $features:literal, $step:ident $(, $stride:ident $order:ident)?) => {
        /// # Safety
        /// The processor has the named features; `a` holds `[units][MR]`, or MR rows of `units` words that are
        /// stored by rows or by columns, `stride` words apart; `b` holds `[units][32]`; `to` has MR rows of 32 sums.
        #[target_feature(enable = $features)]
        unsafe fn $name<const MR: usize>(
            units: usize,
            mut a: *const u32,
            $($stride: usize,)?
            mut b: *const u32,
            to: Sums,
            ahead: &mut PrefetchCursor,
        ) {
            let mut sums = [[_mm512_setzero_ps(); 2]; MR];
            if to.continued {
                for i in 0..MR {
                    for j in 0..2 {
                        // SAFETY: inside `to`.
                        sums[i][j] = unsafe { _mm512_loadu_ps(to.at.add(i * to.stride + j * 16)) };
                    }
                }
            }
            let (unit_words, _steps) = steps_of_a!($($stride $order)?);
            // Adds the products of unit `u` (an element or a pair along k), counted from the pointers `a` and `b`.
            macro_rules! add_unit {
                ($u:ident) => {
                    // SAFETY: `a` and `b` hold the unit, and `i` is below MR, the number of rows of `a`.
                    let b = unsafe {
                        let b = b.add($u * 32);
                        [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast())]
                    };
                    for i in 0..MR {
                        // SAFETY: the same.
                        let a = unsafe { *a.add(word_of_a!($u, i $(, _steps $order)?)) };
                        for j in 0..2 {
                            sums[i][j] = step!($step, sums[i][j], b[j], a);
                        }
                    }
                };
            }
            for _ in 0..units / UNITS_PER_LINE {
                ahead.prefetch_line();
                for u in 0..UNITS_PER_LINE {
                    add_unit!(u);
                }
                a = hide_address(a.wrapping_add(UNITS_PER_LINE * unit_words));
                b = b.wrapping_add(32 * UNITS_PER_LINE);
            }
            if !units.is_multiple_of(UNITS_PER_LINE) {
                ahead.prefetch_line();
            }
            for u in 0..units % UNITS_PER_LINE {
                add_unit!(u);
            }
            for i in 0..MR {
                for j in 0..2 {
                    // SAFETY: inside `to`.
                    unsafe { _mm512_storeu_ps(to.at.add(i * to.stride + j * 16), sums[i][j]) };
                }
            }
        }
    };
}
tile!(tile_f32, "avx512f,avx512bw", f32);
tile!(tile_bf16, "avx512f,avx512bw,avx512bf16", bf16);
// Tile functions that read A where it is stored, without packing: f32 row by row, f32 column by column, and rows of
// pairs of bf16.
tile!(tile_rows, "avx512f,avx512bw", f32, stride rows);
tile!(tile_columns, "avx512f,avx512bw", f32, stride columns);
tile!(tile_bf16_rows, "avx512f,avx512bw,avx512bf16", bf16, stride rows);

/// Transposes 16 rows of 16 words.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut q = [_mm512_setzero_si512(); 16];
    for g in 0..4 {
        // After this step the 128-bit lane c of q[4 g + j] holds column 4 c + j of rows 4 g .. 4 g + 4.
        let [r0, r1, r2, r3] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
        let (l01, h01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (l23, h23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        q[4 * g] = _mm512_unpacklo_epi64(l01, l23);
        q[4 * g + 1] = _mm512_unpackhi_epi64(l01, l23);
        q[4 * g + 2] = _mm512_unpacklo_epi64(h01, h23);
        q[4 * g + 3] = _mm512_unpackhi_epi64(h01, h23);
    }
    let mut out = q;
    for j in 0..4 {
        let e01 = _mm512_shuffle_i32x4::<0x88>(q[j], q[4 + j]);
        let o01 = _mm512_shuffle_i32x4::<0xdd>(q[j], q[4 + j]);
        let e23 = _mm512_shuffle_i32x4::<0x88>(q[8 + j], q[12 + j]);
        let o23 = _mm512_shuffle_i32x4::<0xdd>(q[8 + j], q[12 + j]);
        out[j] = _mm512_shuffle_i32x4::<0x88>(e01, e23);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(e01, e23);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(o01, o23);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(o01, o23);
    }
    out
}

/// Loads a cache line into the second-level cache, for a read that comes thousands of instructions later; `at` may be
/// any address. Only explicit prefetches keep the memory busy here: the hardware prefetcher does not follow 16 rows of
/// a kilobyte or two. On an AMD EPYC, rows of 896 bf16 are read at less than half of the speed if they are prefetched
/// into the first-level cache, because the loads need its few slots for misses as well
/// (tools/benches/results/amd-epyc/2026-11-22-weights-read.json).
#[target_feature(enable = "avx512f")]
#[inline]
fn prefetch(at: *const u8) {
    _mm_prefetch::<_MM_HINT_T1>(at.cast());
}

/// Rows of at most this many bytes are prefetched in the order of addresses, which is faster than 16 streams, one of
/// each row (tools/benches/results/amd-epyc/2026-11-23-thin-prefetch.json). Longer rows gained nothing from this order and
/// are prefetched in the order in which they are read.
const ADJACENT_ROW_BYTES: usize = 4096;

/// Loads the next 64 bytes of 16 rows.
///
/// # Safety
/// All 16 rows are readable from `at`, `stride` bytes apart.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load(at: *const u8, stride: usize) -> [__m512i; 16] {
    let mut r = [_mm512_setzero_si512(); 16];
    for i in 0..16 {
        // SAFETY: 64 bytes of row `i` are readable.
        r[i] = unsafe { _mm512_loadu_si512(at.add(i * stride).cast()) };
    }
    r
}

/// Loads the next 64 bytes of 16 rows. There may be fewer rows and bytes; missing bytes are returned as 0. Rows that do
/// not exist are skipped: a load with an empty mask would read nothing, but it takes some 70 ns on an AMD EPYC (Zen 5)
/// if its address is not mapped.
///
/// # Safety
/// Each of `rows` rows has `bytes` readable bytes from `at`; rows are `stride` bytes apart.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) unsafe fn load_partial_rows(at: *const u8, stride: usize, rows: usize, bytes: usize) -> [__m512i; 16] {
    let mask = if bytes >= 64 { !0 } else { (1u32 << (bytes / 2)) - 1 };
    let mut r = [_mm512_setzero_si512(); 16];
    for i in 0..16 {
        if i < rows {
            // SAFETY: the mask selects only bytes that are left in rows that exist.
            r[i] = unsafe { _mm512_maskz_loadu_epi16(mask, at.wrapping_add(i * stride).cast()) };
        }
    }
    r
}

/// # Safety
/// The processor has AVX-512 F and BW; the part lies inside the source, and `dst` has room for `[part.units][width]`,
/// with a width of at most 48.
pub(super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
    if source.transposed {
        // SAFETY: the conditions of this function; as many vectors as the width needs.
        return unsafe {
            match (source.unit, width) {
                (Unit::F32, ..=16) => pack_columns::<1, false, false>(source, part, width, dst),
                (Unit::F32, ..=32) => pack_columns::<2, false, false>(source, part, width, dst),
                (Unit::F32, _) => pack_columns::<3, false, false>(source, part, width, dst),
                (Unit::Widened, ..=16) => pack_columns::<1, false, true>(source, part, width, dst),
                (Unit::Widened, ..=32) => pack_columns::<2, false, true>(source, part, width, dst),
                (Unit::Widened, _) => pack_columns::<3, false, true>(source, part, width, dst),
                (Unit::Pair, ..=16) => pack_columns::<1, true, false>(source, part, width, dst),
                (Unit::Pair, ..=32) => pack_columns::<2, true, false>(source, part, width, dst),
                (Unit::Pair, _) => pack_columns::<3, true, false>(source, part, width, dst),
                _ => unreachable!("operands in groups have their own packing"),
            }
        };
    }
    for lane in (0..width).step_by(16) {
        let rows = part.rows.saturating_sub(lane).min(16);
        let part = Part { row: part.row + lane, rows, ..part };
        let lanes = (width - lane).min(16);
        // SAFETY: the part lies inside the source, and `dst` has room for it; this is at most 16 of its rows.
        unsafe { pack_rows(source, part, width, lanes, dst.add(lane)) };
    }
}

/// # Safety
/// The conditions of [`pack`] hold, for at most 16 rows, which fill `lanes` of the `width` lanes.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_rows(source: &Source, part: Part, width: usize, lanes: usize, dst: *mut u32) {
    let mask = ((1u32 << lanes) - 1) as u16;
    let unit = source.unit;
    let stride = source.k * unit.element();
    let end = ((part.unit + part.units) * unit.bytes()).min(stride);
    // SAFETY: the part's first row lies inside the source.
    let row = unsafe { source.base.add(part.row * stride) };
    let chunk = 64 / unit.bytes();
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let bytes = end - part.unit * unit.bytes();
    let whole = if part.rows == 16 && lanes == 16 { (bytes / 64).min(part.units / chunk) } else { 0 };
    for c in 0..whole {
        // SAFETY: 16 rows have 64 bytes from here on, and `dst` has room for their units.
        unsafe {
            let (at, dst) = (row.add(part.unit * unit.bytes() + c * 64), dst.add(c * chunk * width));
            match unit {
                Unit::Widened => pack_whole::<true>(at, stride, width, dst),
                _ => pack_whole::<false>(at, stride, width, dst),
            }
        }
    }
    for u in (whole * chunk..part.units).step_by(chunk) {
        let at = (part.unit + u) * unit.bytes();
        // SAFETY: reads bytes `at .. end` of rows that exist.
        let columns = transpose(unsafe { load_partial_rows(row.add(at), stride, part.rows, end - at) });
        let left = part.units - u;
        // SAFETY: `dst` has room for `part.units` units, and `u` is below that.
        let dst = unsafe { dst.add(u * width) };
        for i in 0..16 {
            let pair = [_mm512_slli_epi32::<16>(columns[i]), _mm512_and_si512(columns[i], high)];
            let (first, each) = if unit == Unit::Widened { (2 * i, &pair[..]) } else { (i, &columns[i..=i]) };
            for (j, &x) in each.iter().enumerate() {
                if first + j < left {
                    // SAFETY: unit `first + j` is below `left`, and the mask selects this part's lanes.
                    unsafe { _mm512_mask_storeu_epi32(dst.add((first + j) * width).cast(), mask, x) };
                }
            }
        }
    }
}

/// Packs 64 bytes of each of 16 rows as `[16][width]` words, or with WIDENED (bf16 converted to f32) as `[32][width]`.
/// Prefetches the same bytes of the next 16 rows.
///
/// # Safety
/// All 16 rows are readable from `at`, `stride` bytes apart; `dst` has room for 16 lanes of each unit.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pack_whole<const WIDENED: bool>(at: *const u8, stride: usize, width: usize, dst: *mut u32) {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for i in 0..16 {
        prefetch(at.wrapping_add((16 + i) * stride));
    }
    // SAFETY: the 16 rows are readable.
    let columns = transpose(unsafe { load(at, stride) });
    for i in 0..16 {
        // SAFETY: `dst` has room for 16 lanes of each unit.
        unsafe {
            if WIDENED {
                let low = _mm512_slli_epi32::<16>(columns[i]);
                _mm512_storeu_si512(dst.add(2 * i * width).cast(), low);
                _mm512_storeu_si512(dst.add((2 * i + 1) * width).cast(), _mm512_and_si512(columns[i], high));
            } else {
                _mm512_storeu_si512(dst.add(i * width).cast(), columns[i]);
            }
        }
    }
}

/// Prefetch distance of [`pack_columns`], in rows of the source (one row for each k).
const COLUMNS_AHEAD: usize = 16;

/// Packs a source that is stored as `[k, rows]`; the `width` lanes of a unit are V vectors. The source is bf16 that is
/// packed as pairs (PAIRS), bf16 that is converted to f32 (WIDENED), or f32. Neighbouring k may be a page or more
/// apart, where the hardware prefetcher does not work, so the same lanes are prefetched [`COLUMNS_AHEAD`] k ahead.
///
/// # Safety
/// The conditions of [`pack`] hold, for a width of at most `16 * V`; the source's units are those that PAIRS and
/// WIDENED name.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_columns<const V: usize, const PAIRS: bool, const WIDENED: bool>(
    source: &Source,
    part: Part,
    width: usize,
    dst: *mut u32,
) {
    let mask_of = |count: usize, v: usize| ((1u32 << count.saturating_sub(16 * v).min(16)) - 1) as u16;
    let rows: [u16; V] = std::array::from_fn(|v| mask_of(part.rows, v));
    let lanes: [u16; V] = std::array::from_fn(|v| mask_of(width, v));
    let element = if PAIRS || WIDENED { 2 } else { 4 };
    let row_bytes = source.rows * element;
    let each = if PAIRS { 2 } else { 1 };
    let first = source.base.wrapping_add(each * part.unit * row_bytes + part.row * element);
    // If k is odd, the last pair has no second element.
    let whole = if PAIRS { (source.k / 2).saturating_sub(part.unit).min(part.units) } else { part.units };
    let pack_unit = |u: usize, has_second: bool| {
        let at = first.wrapping_add(each * u * row_bytes);
        for i in 0..each {
            for line in (0..16 * V * element).step_by(64) {
                prefetch(at.wrapping_add((i + COLUMNS_AHEAD) * row_bytes + line));
            }
        }
        for v in 0..V {
            let from = at.wrapping_add(16 * v * element);
            // SAFETY: the masks select rows that exist, and the second k of a pair is read only if there is one.
            let x = unsafe {
                if PAIRS {
                    let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(rows[v], from.cast()));
                    let second = if has_second { rows[v] } else { 0 };
                    let high = _mm256_maskz_loadu_epi16(second, from.wrapping_add(row_bytes).cast());
                    _mm512_or_si512(low, _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)))
                } else if WIDENED {
                    let x = _mm256_maskz_loadu_epi16(rows[v], from.cast());
                    _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))
                } else {
                    _mm512_maskz_loadu_epi32(rows[v], from.cast())
                }
            };
            // SAFETY: `dst` has room for `part.units` units; the mask selects this part's lanes.
            unsafe { _mm512_mask_storeu_epi32(dst.add(u * width).wrapping_add(16 * v).cast(), lanes[v], x) };
        }
    };
    (0..whole).for_each(|u| pack_unit(u, true));
    (whole..part.units).for_each(|u| pack_unit(u, false));
}

macro_rules! thin {
    ($name:ident, $inner:ident, $advance:ident, $features:literal, $step:ident, $widened:literal) => {
        /// # Safety
        /// The processor has the named features; `a` holds the units of `m` packed rows, 1 to 24; `rows` rows of `b`
        /// exist from `row`, and `to` has `m` rows of 16 sums.
        unsafe fn $name(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, rows: usize, to: SumRows) {
            let a = a.words;
            // SAFETY: the conditions of this function are those of `$inner`.
            unsafe {
                match m {
                    1 => $inner::<1>(a, b, row, rows, to),
                    2 => $inner::<2>(a, b, row, rows, to),
                    3 => $inner::<3>(a, b, row, rows, to),
                    4 => $inner::<4>(a, b, row, rows, to),
                    5 => $inner::<5>(a, b, row, rows, to),
                    6 => $inner::<6>(a, b, row, rows, to),
                    7 => $inner::<7>(a, b, row, rows, to),
                    8 => $inner::<8>(a, b, row, rows, to),
                    9 => $inner::<9>(a, b, row, rows, to),
                    10 => $inner::<10>(a, b, row, rows, to),
                    11 => $inner::<11>(a, b, row, rows, to),
                    12 => $inner::<12>(a, b, row, rows, to),
                    13 => $inner::<13>(a, b, row, rows, to),
                    14 => $inner::<14>(a, b, row, rows, to),
                    15 => $inner::<15>(a, b, row, rows, to),
                    16 => $inner::<16>(a, b, row, rows, to),
                    17 => $inner::<17>(a, b, row, rows, to),
                    18 => $inner::<18>(a, b, row, rows, to),
                    19 => $inner::<19>(a, b, row, rows, to),
                    20 => $inner::<20>(a, b, row, rows, to),
                    21 => $inner::<21>(a, b, row, rows, to),
                    22 => $inner::<22>(a, b, row, rows, to),
                    23 => $inner::<23>(a, b, row, rows, to),
                    _ => $inner::<24>(a, b, row, rows, to),
                }
            }
        }

        /// Adds the products of the next `units` units along k to the sums. A unit is an element, or a pair of bf16
        /// elements (see `Unit`). `columns[i]` holds 64 bytes of row i of B: 16 units, or 32 bf16 units to widen.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $advance<const M: usize>(
            sums: &mut [__m512; M],
            columns: [__m512i; 16],
            a: *const u32,
            units: usize,
        ) {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let mut u = 0;
            for i in 0..16 {
                let pair = [_mm512_slli_epi32::<16>(columns[i]), _mm512_and_si512(columns[i], high)];
                let each = if $widened { &pair[..] } else { &columns[i..=i] };
                for &x in each {
                    if u < units {
                        for m in 0..M {
                            // SAFETY: `a` holds at least `units` units of M rows.
                            let a = unsafe { *a.add(u * M + m) };
                            sums[m] = step!($step, sums[m], x, a);
                        }
                    }
                    u += 1;
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $inner<const M: usize>(a: *const u32, b: &Source, row: usize, rows: usize, to: SumRows) {
            let stride = b.k * b.unit.element();
            let (units, chunk) = (b.unit.count(b.k), if $widened { 32 } else { 16 });
            // SAFETY: row `row` of B exists.
            let base = unsafe { b.base.add(row * stride) };
            let mut sums = [_mm512_setzero_ps(); M];
            let whole = if rows >= 16 { stride / 64 } else { 0 };
            // Each iteration prefetches 16 cache lines of the next 16 rows.
            let (step, line) = if stride <= ADJACENT_ROW_BYTES { (1024, 64) } else { (64, stride) };
            for c in 0..whole {
                for i in 0..16 {
                    prefetch(base.wrapping_add(16 * stride + c * step + i * line));
                }
                // SAFETY: all 16 rows have 64 bytes from `c * 64` on, and `a` holds the units in them.
                unsafe {
                    let columns = transpose(load(base.add(c * 64), stride));
                    $advance(&mut sums, columns, a.add(c * chunk * M), chunk);
                }
            }
            for c in whole..stride.div_ceil(64) {
                // SAFETY: `stride - c * 64` bytes are left in each of the `rows` rows, and `a` holds the units in
                // them.
                unsafe {
                    let columns = transpose(load_partial_rows(base.add(c * 64), stride, rows, stride - c * 64));
                    $advance(&mut sums, columns, a.add(c * chunk * M), units - c * chunk);
                }
            }
            for m in 0..M {
                // SAFETY: `to` has M rows of 16 sums.
                unsafe { _mm512_storeu_ps(to.sum_address(m, 0), sums[m]) };
            }
        }
    };
}
thin!(thin_f32, thin_rows_f32, advance_f32, "avx512f,avx512bw", f32, false);
thin!(thin_widened, thin_rows_widened, advance_widened, "avx512f,avx512bw", f32, true);
thin!(thin_bf16, thin_rows_bf16, advance_bf16, "avx512f,avx512bw,avx512bf16", bf16, false);

/// # Safety
/// The conditions of [`thin_f32`]; B may be f32 or bf16.
unsafe fn thin(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, rows: usize, to: SumRows) {
    // SAFETY: the conditions of this function are those of `thin_f32` and `thin_widened`.
    unsafe {
        match b.unit {
            Unit::Widened => thin_widened(m, a, b, row, rows, to),
            _ => thin_f32(m, a, b, row, rows, to),
        }
    }
}
