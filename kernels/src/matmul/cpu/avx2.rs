//! Matrix products with AVX2 and FMA: the portable code, compiled for tiles of 6 × 16 results, which occupy 12 of the
//! 16 registers, and functions that transpose B in registers.

use super::portable::{self, multiply_tile};
use super::{
    Code, DEFAULT_PASSES, FewRowsProduct, Part, PrefetchCursor, RowsOfMatrixA, Source, SumRows, Sums, TileFn, Unit,
    few_rows_product_for_plain_b, groups, int8,
};
use std::arch::x86_64::*;

/// f32 arithmetic.
pub(super) static F32: Code = Code {
    mr: 6,
    nr: 16,
    tiles: &{
        let tiles: [TileFn; 6] = [fixed::<1>, fixed::<2>, fixed::<3>, fixed::<4>, fixed::<5>, fixed::<6>];
        tiles
    },
    direct: None,
    pack,
    pack_int8: int8::avx2::pack,
    pack_groups: groups::avx2::pack,
    thin: Some(&FewRowsProduct { most: 4, passes: DEFAULT_PASSES, ..few_rows_product_for_plain_b(thin) }),
    thin_int8: Some(&int8::avx2::THIN_F32),
    thin_groups: Some(&groups::avx2::THIN_WIDENED),
    thin_f32_groups: Some(&groups::avx2::THIN_F32),
};

#[target_feature(enable = "avx2,fma")]
unsafe fn fixed<const MR: usize>(units: usize, a: *const u32, b: *const u32, to: Sums, ahead: &mut PrefetchCursor) {
    // SAFETY: the processor has AVX2 and FMA; `a` holds `[units][MR]`, `b` `[units][16]`; `to` has MR rows of 16.
    unsafe { multiply_tile::<MR, 16, true>(units, a, b, to, ahead) }
}

/// Transposes 8 rows of 8 words.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let mut q = r;
    for g in [0, 4] {
        // After this step the 128-bit lane c of q[g + j] holds column 4 c + j of rows g .. g + 4.
        let (l01, h01) = (_mm256_unpacklo_epi32(r[g], r[g + 1]), _mm256_unpackhi_epi32(r[g], r[g + 1]));
        let (l23, h23) = (_mm256_unpacklo_epi32(r[g + 2], r[g + 3]), _mm256_unpackhi_epi32(r[g + 2], r[g + 3]));
        q[g] = _mm256_unpacklo_epi64(l01, l23);
        q[g + 1] = _mm256_unpackhi_epi64(l01, l23);
        q[g + 2] = _mm256_unpacklo_epi64(h01, h23);
        q[g + 3] = _mm256_unpackhi_epi64(h01, h23);
    }
    let mut out = q;
    for j in 0..4 {
        out[j] = _mm256_permute2x128_si256::<0x20>(q[j], q[4 + j]);
        out[4 + j] = _mm256_permute2x128_si256::<0x31>(q[j], q[4 + j]);
    }
    out
}

/// Loads the next 32 bytes of 8 rows. There may be fewer rows and bytes; missing ones are 0.
///
/// # Safety
/// Each of `rows` rows has `bytes` readable bytes from `at`; rows are `stride` bytes apart.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load(at: *const u8, stride: usize, rows: usize, bytes: usize) -> [__m256i; 8] {
    let mut r = [_mm256_setzero_si256(); 8];
    if rows >= 8 && bytes >= 32 {
        for i in 0..8 {
            // SAFETY: 32 bytes are left in a row that exists.
            r[i] = unsafe { _mm256_loadu_si256(at.add(i * stride).cast()) };
        }
    } else {
        for i in 0..rows.min(8) {
            let mut some = [0u8; 32];
            // SAFETY: row `i` exists and has `bytes` bytes; `some` has room for 32.
            r[i] = unsafe {
                std::ptr::copy_nonoverlapping(at.add(i * stride), some.as_mut_ptr(), bytes.min(32));
                _mm256_loadu_si256(some.as_ptr().cast())
            };
        }
    }
    r
}

/// Widens a column with two bf16 in each lane to two columns of f32.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn widen(x: __m256i) -> [__m256i; 2] {
    [_mm256_slli_epi32::<16>(x), _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32))]
}

/// # Safety
/// The processor has AVX2; the part lies inside the source, and `dst` has room for `[part.units][width]`.
unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
    // SAFETY: the part lies inside the source, and `dst` has room for it; a width of 16 is two groups of 8 rows.
    unsafe {
        if source.transposed || width != 16 {
            return portable::pack(source, part, width, dst);
        }
        for first in [0, 8] {
            let part = Part { row: part.row + first, rows: part.rows.saturating_sub(first), ..part };
            pack_rows(source, part, dst.add(first));
        }
    }
}

/// # Safety
/// The conditions of [`pack`] hold, for a part of at most 8 rows and a width of 16.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_rows(source: &Source, part: Part, dst: *mut u32) {
    let unit = source.unit;
    let stride = source.k * unit.element();
    let base = source.base.wrapping_add(part.row * stride);
    let chunk = 32 / unit.bytes();
    for u in (0..part.units).step_by(chunk) {
        let at = (part.unit + u) * unit.bytes();
        let left = part.units - u;
        // SAFETY: reads at most the `left` units of rows that exist; `dst` has room for them.
        unsafe {
            let columns = transpose(load(base.wrapping_add(at), stride, part.rows, left * unit.bytes()));
            for i in 0..8 {
                if unit == Unit::Widened {
                    let pair = widen(columns[i]);
                    for j in 0..2 {
                        if 2 * i + j < left {
                            _mm256_storeu_si256(dst.add((u + 2 * i + j) * 16).cast(), pair[j]);
                        }
                    }
                } else if i < left {
                    _mm256_storeu_si256(dst.add((u + i) * 16).cast(), columns[i]);
                }
            }
        }
    }
}

/// # Safety
/// The processor has AVX2 and FMA; `a` holds the units of `m` packed rows, 1 to 4; `rows` rows of `b` exist from
/// `row`, and `to` has `m` rows of 16 sums.
unsafe fn thin(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, rows: usize, to: SumRows) {
    let a = a.words;
    for first in [0, 8] {
        let rows = rows.saturating_sub(first).min(8);
        // SAFETY: `a`, `b` and `to` are as documented above; this is one half of the 16 rows of `b`.
        unsafe {
            let (row, to) = (row + first, to.rows_from(0, first));
            match (m, b.unit) {
                (1, Unit::Widened) => thin_rows::<1, true>(a, b, row, rows, to),
                (2, Unit::Widened) => thin_rows::<2, true>(a, b, row, rows, to),
                (3, Unit::Widened) => thin_rows::<3, true>(a, b, row, rows, to),
                (_, Unit::Widened) => thin_rows::<4, true>(a, b, row, rows, to),
                (1, _) => thin_rows::<1, false>(a, b, row, rows, to),
                (2, _) => thin_rows::<2, false>(a, b, row, rows, to),
                (3, _) => thin_rows::<3, false>(a, b, row, rows, to),
                (_, _) => thin_rows::<4, false>(a, b, row, rows, to),
            }
        }
    }
}

/// # Safety
/// The conditions of [`thin`] hold, for 8 rows of B.
#[target_feature(enable = "avx2,fma")]
unsafe fn thin_rows<const M: usize, const WIDENED: bool>(
    a: *const u32,
    b: &Source,
    row: usize,
    rows: usize,
    to: SumRows,
) {
    let stride = b.k * b.unit.element();
    let chunk = if WIDENED { 16 } else { 8 };
    let base = b.base.wrapping_add(row * stride);
    let mut sums = [_mm256_setzero_ps(); M];
    for c in 0..stride.div_ceil(32) {
        for i in 0..8 {
            // Prefetches the next 8 rows. The address of a prefetch need not be mapped.
            _mm_prefetch::<_MM_HINT_T1>(base.wrapping_add((8 + i) * stride + c * 32).cast());
        }
        // SAFETY: `stride - c * 32` bytes are left in each of the `rows` rows.
        let columns = unsafe { transpose(load(base.wrapping_add(c * 32), stride, rows, stride - c * 32)) };
        let left = b.k - c * chunk;
        for i in 0..8 {
            let units = if WIDENED { widen(columns[i]) } else { [columns[i]; 2] };
            for j in 0..if WIDENED { 2 } else { 1 } {
                let u = if WIDENED { 2 * i + j } else { i };
                if u < left {
                    for m in 0..M {
                        // SAFETY: `a` holds `[units][M]`, and the unit is below `b.k`.
                        let a = unsafe { _mm256_set1_ps(f32::from_bits(*a.add((c * chunk + u) * M + m))) };
                        sums[m] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(units[j]), sums[m]);
                    }
                }
            }
        }
    }
    for m in 0..M {
        // SAFETY: row `m` of `to` has at least 8 sums from its first column on.
        unsafe { _mm256_storeu_ps(to.sum_address(m, 0), sums[m]) };
    }
}
