//! Packing of bf16 operands into tiles, and vectors of elements of C.
#![allow(unsafe_code)]

use super::super::avx512::{load_some, pack, transpose};
use super::super::{Part, Source, Unit};
use super::{SIDE, STEP, TILE};
use crate::{DType, Element};
use std::arch::x86_64::*;
use std::ops::Range;

/// Copies some steps of up to 16 rows of an operand that lies along k into tiles, one after the other. Missing rows and
/// elements are 0.
///
/// # Safety
/// The operand is not transposed; the rows exist; `dst` has room for a tile of each step.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn copy_rows(source: &Source, row: usize, rows: usize, steps: Range<usize>, dst: *mut u32) {
    let stride = 2 * source.k;
    for (i, step) in steps.enumerate() {
        let at = source.base.wrapping_add(row * stride + step * 64);
        // SAFETY: the rows exist, and bytes up to the end of a row are read.
        let lines = unsafe { load_some(at, stride, rows, stride - step * 64) };
        for (x, line) in lines.into_iter().enumerate() {
            // SAFETY: `dst` has room for tile `i`.
            unsafe { _mm512_storeu_si512(dst.add(i * TILE + x * SIDE).cast(), line) };
        }
    }
}

/// Reads 32 columns of two neighbouring k of an operand that is stored `[k, rows]`, and returns them as pairs: the
/// first 16 columns, and the others. `mask` selects the columns that exist; k beyond the end are 0.
///
/// # Safety
/// The columns that the mask selects exist from `column` on.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load_pairs(source: &Source, column: usize, mask: u32, k: usize) -> [__m512i; 2] {
    let line = |k: usize| {
        let mask = if k < source.k { mask } else { 0 };
        // SAFETY: the mask selects columns that exist, of a k that exists.
        unsafe { _mm512_maskz_loadu_epi16(mask, source.base.wrapping_add((k * source.rows + column) * 2).cast()) }
    };
    let (even, odd) = (line(k), line(k + 1));
    // 16-bit element i of the pairs: of `even` (0 to 31) or `odd` (32 to 63).
    let low: [u16; 32] = const { pair_indexes(0) };
    let high: [u16; 32] = const { pair_indexes(16) };
    // SAFETY: 64 bytes as 64 bytes.
    let (low, high) = unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
    [_mm512_permutex2var_epi16(even, low, odd), _mm512_permutex2var_epi16(even, high, odd)]
}

/// Where the 32 halves of 16 pairs come from, whose first column is `first`.
const fn pair_indexes(first: u16) -> [u16; 32] {
    let mut indexes = [0; 32];
    let mut i = 0;
    while i < 32 {
        indexes[i] = first + i as u16 / 2 + i as u16 % 2 * 32;
        i += 1;
    }
    indexes
}

/// Packs some steps of up to 32 rows of an operand that is stored `[k, rows]` as tiles of pairs: 16 rows to each of two
/// arrays. Missing rows and elements are 0.
///
/// # Safety
/// The operand is transposed; the rows exist; each of `dst` has room for a tile of each step.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_pairs(source: &Source, rows: Range<usize>, steps: Range<usize>, dst: [*mut u32; 2]) {
    let mask = ((1u64 << rows.len()) - 1) as u32;
    for (i, pair) in (steps.start * SIDE..steps.end * SIDE).enumerate() {
        // SAFETY: the mask selects rows that exist; each of `dst` has room for this pair.
        unsafe {
            let halves = load_pairs(source, rows.start, mask, 2 * pair);
            for (half, dst) in halves.into_iter().zip(dst) {
                _mm512_storeu_si512(dst.add(i * SIDE).cast(), half);
            }
        }
    }
}

/// Packs all steps of up to 32 rows of an operand that is stored `[k, rows]` as tiles of rows: 16 rows to each of two
/// arrays. Missing rows and elements are 0.
///
/// # Safety
/// The conditions of [`pack_pairs`], for `steps` steps from 0 on.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_transposed_rows(source: &Source, row: usize, rows: usize, steps: usize, dst: [*mut u32; 2]) {
    let mask = ((1u64 << rows) - 1) as u32;
    for step in 0..steps {
        let mut columns = [[_mm512_setzero_si512(); SIDE]; 2];
        for x in 0..SIDE {
            // SAFETY: the mask selects rows that exist.
            [columns[0][x], columns[1][x]] = unsafe { load_pairs(source, row, mask, step * STEP + 2 * x) };
        }
        for (columns, dst) in columns.into_iter().zip(dst) {
            for (x, line) in transpose(columns).into_iter().enumerate() {
                // SAFETY: `dst` has room for this tile.
                unsafe { _mm512_storeu_si512(dst.add(step * TILE + x * SIDE).cast(), line) };
            }
        }
    }
}

/// Packs all steps of up to 16 rows of an operand that lies along k as tiles of pairs, one after the other. Missing
/// rows and elements are 0.
///
/// # Safety
/// The operand is not transposed; the rows exist; `dst` has room for `steps` tiles, which are all steps of the operand.
pub(super) unsafe fn pack_rows_as_pairs(source: &Source, row: usize, rows: usize, steps: usize, dst: *mut u32) {
    let units = Unit::Pair.count(source.k);
    // SAFETY: the rows exist, and `dst` has room for `steps * TILE` words.
    unsafe {
        pack(source, Part { row, rows, unit: 0, units }, SIDE, dst);
        dst.add(units * SIDE).write_bytes(0, steps * TILE - units * SIDE);
    }
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
