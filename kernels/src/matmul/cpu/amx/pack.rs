//! Packs operands into AMX tiles, f32 operands in bf16 parts; loads and stores vectors of elements of C.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use reel_device::{DType, Element};

use super::super::avx512::transpose;
use super::super::{Source, Unit, groups};
use super::{PARTS, SIDE, STEP, TILE, parts};

/// Copies some steps of up to 16 rows of an operand that is stored `[rows, k]` into tiles: one step after the other,
/// and the parts of each step one after the other. Missing elements are 0; missing rows of a tile keep their old
/// contents.
///
/// # Safety
/// The operand is not transposed; the rows exist; `dst` has room for the tiles of all parts of each step.
pub(super) unsafe fn copy_rows(source: &Source, row: usize, rows: usize, steps: Range<usize>, dst: *mut u32) {
    // SAFETY: the conditions of this function.
    unsafe {
        match parts(source.unit) {
            1 => copy_rows_of::<1, false>(source, row, rows, steps, dst),
            _ => copy_rows_of::<PARTS, false>(source, row, rows, steps, dst),
        }
    }
}

/// Packs all steps of up to 16 rows of an operand that is stored `[rows, k]` as tiles of pairs (VNNI layout), in the
/// order of [`copy_rows`]. Missing elements are 0; the columns of missing rows have no meaning.
///
/// # Safety
/// The conditions of [`copy_rows`], for `steps` steps from 0 on.
pub(super) unsafe fn pack_rows_as_pairs(source: &Source, row: usize, rows: usize, steps: usize, dst: *mut u32) {
    // SAFETY: the conditions of this function.
    unsafe {
        match parts(source.unit) {
            1 => copy_rows_of::<1, true>(source, row, rows, 0..steps, dst),
            _ => copy_rows_of::<PARTS, true>(source, row, rows, 0..steps, dst),
        }
    }
}

/// Packs some steps of up to 32 rows of an operand that is stored `[k, rows]`, or in groups of f32, as tiles of pairs
/// (VNNI layout): 16 rows to each of two arrays, in the order of [`copy_rows`]. Missing rows and elements are 0.
///
/// # Safety
/// The rows exist; each of `dst` has room for the tiles of all parts of each step.
pub(super) unsafe fn pack_pairs(source: &Source, rows: Range<usize>, steps: Range<usize>, dst: [*mut u32; 2]) {
    // SAFETY: the conditions of this function.
    unsafe {
        match parts(source.unit) {
            1 => pack_columns_of::<1, false>(source, rows, steps, dst),
            _ => pack_columns_of::<PARTS, false>(source, rows, steps, dst),
        }
    }
}

/// Packs all steps of up to 32 rows of an operand that is stored `[k, rows]` as tiles of rows: 16 rows to each of two
/// arrays, in the order of [`copy_rows`]. Missing rows and elements are 0.
///
/// # Safety
/// The conditions of [`pack_pairs`], for `steps` steps from 0 on.
pub(super) unsafe fn pack_transposed_rows(source: &Source, row: usize, rows: usize, steps: usize, dst: [*mut u32; 2]) {
    let rows = row..row + rows;
    // SAFETY: the conditions of this function.
    unsafe {
        match parts(source.unit) {
            1 => pack_columns_of::<1, true>(source, rows, 0..steps, dst),
            _ => pack_columns_of::<PARTS, true>(source, rows, 0..steps, dst),
        }
    }
}

/// Packs rows as [`copy_rows`] does or, if `TRANSPOSED`, as [`pack_rows_as_pairs`] does: a tile of pairs is the
/// transpose of a tile of rows.
///
/// # Safety
/// The conditions of [`copy_rows`]; `P` is the number of parts of the operand.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_rows_of<const P: usize, const TRANSPOSED: bool>(
    source: &Source,
    row: usize,
    rows: usize,
    steps: Range<usize>,
    dst: *mut u32,
) {
    let stride = source.unit.element() * source.k;
    for (i, step) in steps.enumerate() {
        let at = source.base.wrapping_add(row * stride + step * STEP * source.unit.element());
        // SAFETY: `dst` has room for the tiles of this step.
        let tiles = unsafe { dst.add(i * P * TILE) };
        for x in 0..rows {
            // SAFETY: the row exists, and elements up to its end are read; `dst` has room for these tiles.
            unsafe {
                let line = load_along_k::<P>(at.wrapping_add(x * stride), source.k - step * STEP);
                store_line(line, tiles.add(x * SIDE));
            }
        }
        if TRANSPOSED {
            // SAFETY: the tiles that have been written.
            unsafe { transpose_tiles::<P>(tiles) };
        }
    }
}

/// Packs as [`pack_pairs`] does or, if `TRANSPOSED`, as [`pack_transposed_rows`] does.
///
/// # Safety
/// The conditions of [`pack_pairs`]; `P` is the number of parts of the operand.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_columns_of<const P: usize, const TRANSPOSED: bool>(
    source: &Source,
    rows: Range<usize>,
    steps: Range<usize>,
    dst: [*mut u32; 2],
) {
    let mask = ((1u64 << rows.len()) - 1) as u32;
    for (i, step) in steps.enumerate() {
        // SAFETY: each of `dst` has room for the tiles of this step.
        let tiles = dst.map(|dst| unsafe { dst.add(i * P * TILE) });
        for x in 0..SIDE {
            // SAFETY: the mask selects rows that exist; each of `dst` has room for these tiles.
            unsafe {
                let [low, high] = load_pairs::<P>(source, rows.start, mask, step * STEP + 2 * x);
                store_line(low, tiles[0].add(x * SIDE));
                store_line(high, tiles[1].add(x * SIDE));
            }
        }
        if TRANSPOSED {
            for tiles in tiles {
                // SAFETY: the tiles that have been written.
                unsafe { transpose_tiles::<P>(tiles) };
            }
        }
    }
}

/// Stores one line of each bf16 part to that part's tile.
///
/// # Safety
/// The line exists in `P` tiles that follow one another; `at` is its place in the first.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store_line<const P: usize>(line: [__m512i; P], at: *mut u32) {
    for (part, line) in line.into_iter().enumerate() {
        // SAFETY: the line exists in this tile.
        unsafe { _mm512_storeu_si512(at.add(part * TILE).cast(), line) };
    }
}

/// Transposes the words of `P` tiles that follow one another.
///
/// # Safety
/// The tiles exist.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose_tiles<const P: usize>(tiles: *mut u32) {
    for part in 0..P {
        let mut lines = [_mm512_setzero_si512(); SIDE];
        for (x, line) in lines.iter_mut().enumerate() {
            // SAFETY: inside the tile.
            *line = unsafe { _mm512_loadu_si512(tiles.add(part * TILE + x * SIDE).cast()) };
        }
        for (x, line) in transpose(lines).into_iter().enumerate() {
            // SAFETY: inside the tile.
            unsafe { _mm512_storeu_si512(tiles.add(part * TILE + x * SIDE).cast(), line) };
        }
    }
}

/// Reads up to 32 neighbouring elements of a row, of which `left` exist, and returns each of their bf16 parts as 32
/// elements. Elements that do not exist are 0.
///
/// # Safety
/// `left` elements are readable from `at` on, f32 if `P` is [`PARTS`], else bf16.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load_along_k<const P: usize>(at: *const u8, left: usize) -> [__m512i; P] {
    let mask = if left >= STEP { !0 } else { (1u32 << left) - 1 };
    let mut line = [_mm512_setzero_si512(); P];
    if P == 1 {
        // SAFETY: the mask selects elements that are readable.
        line[0] = unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) };
        return line;
    }
    // SAFETY: the mask selects elements that are readable.
    let (low, high) = unsafe {
        (
            _mm512_maskz_loadu_ps(mask as u16, at.cast()),
            _mm512_maskz_loadu_ps((mask >> SIDE) as u16, at.wrapping_add(64).cast()),
        )
    };
    let upper_halves: [u16; 32] = const {
        let mut indexes = [0; 32];
        let mut i = 0;
        while i < 32 {
            indexes[i] = 2 * i as u16 + 1;
            i += 1;
        }
        indexes
    };
    // SAFETY: 64 bytes as 64 bytes.
    let upper_halves = unsafe { _mm512_loadu_si512(upper_halves.as_ptr().cast()) };
    for ((line, low), high) in line.iter_mut().zip(split(low)).zip(split(high)) {
        *line = _mm512_permutex2var_epi16(low, upper_halves, high);
    }
    line
}

/// Reads 32 columns of two neighbouring k of an operand that is stored `[k, rows]` or in groups of f32, and returns
/// each of their parts as pairs: the first 16 columns, and the others. `mask` selects the columns that exist; k beyond
/// the end are 0.
///
/// # Safety
/// The columns that the mask selects exist from `column` on; `P` is the number of parts of the operand.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load_pairs<const P: usize>(source: &Source, column: usize, mask: u32, k: usize) -> [[__m512i; P]; 2] {
    let mut halves = [[_mm512_setzero_si512(); P]; 2];
    let mask = |k: usize| if k < source.k { mask } else { 0 };
    if P == 1 {
        let line = |k: usize| {
            let at = source.base.wrapping_add((k * source.rows + column) * 2);
            // SAFETY: the mask selects columns that exist, of a k that exists.
            unsafe { _mm512_maskz_loadu_epi16(mask(k), at.cast()) }
        };
        let (even, odd) = (line(k), line(k + 1));
        // Index of the source of each 16-bit element: 0 to 31 is an element of `even`, 32 to 63 one of `odd`.
        let low: [u16; 32] = const { pair_indexes(0) };
        let high: [u16; 32] = const { pair_indexes(16) };
        // SAFETY: 64 bytes as 64 bytes.
        let (low, high) =
            unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
        halves[0][0] = _mm512_permutex2var_epi16(even, low, odd);
        halves[1][0] = _mm512_permutex2var_epi16(even, high, odd);
        return halves;
    }
    for (i, half) in halves.iter_mut().enumerate() {
        let line = |k: usize| {
            let at = match source.unit {
                Unit::GroupedF32 => groups::unit_address_in_group(source, column, k).cast::<f32>(),
                _ => source.base.cast::<f32>().wrapping_add(k * source.rows + column),
            };
            // SAFETY: the mask selects columns that exist, of a k that exists.
            unsafe { _mm512_maskz_loadu_ps((mask(k) >> (i * SIDE)) as u16, at.wrapping_add(i * SIDE)) }
        };
        for ((pair, even), odd) in half.iter_mut().zip(split(line(k))).zip(split(line(k + 1))) {
            *pair = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(even), odd);
        }
    }
    halves
}

/// Returns, for 16 pairs (32 halves) whose first column is `first`, the index from which each half is taken.
const fn pair_indexes(first: u16) -> [u16; 32] {
    let mut indexes = [0; 32];
    let mut i = 0;
    while i < 32 {
        indexes[i] = first + i as u16 / 2 + i as u16 % 2 * 32;
        i += 1;
    }
    indexes
}

/// Splits 16 f32 into three bf16 parts, each in the upper half of its lane: `x` rounded to bf16, the remainder
/// rounded to bf16, and the last remainder, which is exact in bf16. Each part has 8 bits of significand, so their sum
/// is exactly `x`. A part rounds half away from zero. An `x` that rounds to infinity has parts that are not finite,
/// and a NaN has a part that is NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn split(x: __m512) -> [__m512i; PARTS] {
    let rounded = |x: __m512| {
        let sum = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
        _mm512_and_si512(sum, _mm512_set1_epi32(0xffff_0000_u32 as i32))
    };
    let high = rounded(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
    let middle = rounded(rest);
    let low = _mm512_sub_ps(rest, _mm512_castsi512_ps(middle));
    [high, middle, _mm512_castps_si512(low)]
}

/// Loads up to 16 elements, widened to f32.
///
/// # Safety
/// The elements that the mask selects are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(super) unsafe fn load_lanes<T: Element>(at: *const T, mask: u16) -> __m512 {
    // SAFETY: the mask selects elements that are readable.
    unsafe {
        match T::DTYPE {
            DType::F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            _ => {
                let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }
    }
}

/// Stores up to 16 elements, rounded as [`Element::from_f32`] rounds.
///
/// # Safety
/// The elements that the mask selects are writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(super) unsafe fn store_lanes<T: Element>(at: *mut T, mask: u16, x: __m512) {
    // SAFETY: the mask selects elements that are writable.
    unsafe {
        match T::DTYPE {
            DType::F32 => _mm512_mask_storeu_ps(at.cast(), mask, x),
            _ => {
                let bits = _mm512_castps_si512(x);
                let upper = _mm512_srli_epi32::<16>(bits);
                let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                let rounded = _mm512_mask_blend_epi32(nan, rounded, quiet);
                _mm256_mask_storeu_epi16(at.cast(), mask, _mm512_cvtepi32_epi16(rounded));
            }
        }
    }
}
