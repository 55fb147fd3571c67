//! Int8 operands B, which are stored in groups of 16 rows, `[n / 16][k][16]`. This file packs them for the tile
//! functions, which serve products with many rows of A, and has the loops for products with few rows of A:
//!
//! ```text
//! for each 1 to 4 groups of B:                       # 16 to 64 columns of C
//!     for each unit u of k:
//!         b[g] = widen(16 bytes of group g)          # one unit of 16 rows, in one register
//!         for each row i of A:  sums[i][g] = fma(a[u][i], b[g], sums[i][g])
//! ```
//!
//! The sums are in the same order as in the tile functions. Several groups are computed at a time, because their sums
//! are independent: the processor starts one fused multiply-add before the previous one has finished.

use reel_device::launch::INT8_GROUP;

use super::{DEFAULT_PASSES, FewRowsProduct, FewRowsProductFn, Part, RowsOfMatrixA, Source, SumRows, Unit};

/// Maximum number of columns of C (rows of B) in one call of a [`FewRowsProduct`] function.
pub(super) const B_ROWS_PER_CALL: usize = 64;

/// Describes a function that multiplies at most `most` packed rows of A with an int8 B.
const fn thin_of(most: usize, multiply: FewRowsProductFn) -> FewRowsProduct {
    FewRowsProduct {
        most,
        passes: DEFAULT_PASSES,
        rows: B_ROWS_PER_CALL,
        least_rows: INT8_GROUP,
        reads_rows_of_a: false,
        multiply,
    }
}
/// Prefetch distance in bytes, in the group that is read.
const AHEAD: usize = 2048;
/// Number of elements along k in a cache line of a group: 16 rows of one byte each.
const LINE: usize = 4;

/// Returns the address of element `k` of the group of 16 rows that contains row `row`.
pub(super) fn element_address_in_group(source: &Source, row: usize, k: usize) -> *const u8 {
    source.base.wrapping_add((row / INT8_GROUP * source.k + k) * INT8_GROUP)
}

/// Whether row `row` is stored: as a row of the operand, or as a row of zeros that completes a group.
fn is_stored(source: &Source, row: usize) -> bool {
    row < source.rows.next_multiple_of(INT8_GROUP)
}

/// Packs a block of an int8 operand, each element as one f32.
///
/// # Safety
/// The operand is int8; `dst` has room for `[part.units][width]`.
pub(super) unsafe fn pack_plain(source: &Source, part: Part, width: usize, dst: *mut u32) {
    // SAFETY: `dst` has room for `[part.units][width]`.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, part.units * width) };
    for (u, unit) in dst.chunks_exact_mut(width).enumerate() {
        for (lane, word) in unit.iter_mut().enumerate() {
            let row = part.row + lane;
            *word = if lane < part.rows && is_stored(source, row) {
                // SAFETY: the group is stored, and the unit is one of its k.
                let x = unsafe { *element_address_in_group(source, row, part.unit + u).add(row % INT8_GROUP) } as i8;
                (x as f32).to_bits()
            } else {
                0
            };
        }
    }
}

/// The bytes of `G` neighbouring groups.
#[derive(Clone, Copy)]
struct Groups {
    /// Address of the first byte of the first group.
    base: *const u8,
    /// Elements along k.
    k: usize,
}

impl Groups {
    /// Returns the address of the 16 bytes of element `k` of group `group`.
    fn at(&self, group: usize, k: usize) -> *const u8 {
        self.base.wrapping_add((group * self.k + k) * INT8_GROUP)
    }

    /// Returns how far ahead of element `k`, in bytes, each of `count` groups is prefetched. Near the end of a group
    /// the offset skips the other `count - 1` groups, so that it reaches the group that the loop reads next.
    fn ahead(&self, count: usize, k: usize) -> usize {
        let ends = k * INT8_GROUP + AHEAD >= self.k * INT8_GROUP;
        AHEAD + if ends { (count - 1) * self.k * INT8_GROUP } else { 0 }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::*;

    /// f32 multiply-adds.
    pub(in super::super) static THIN_F32: FewRowsProduct = thin_of(12, thin_f32);
    /// bf16 dot products.
    pub(in super::super) static THIN_BF16: FewRowsProduct = thin_of(12, thin_bf16);

    /// Reads one element along k of each of 16 rows and converts it to f32.
    ///
    /// # Safety
    /// 16 bytes are readable.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn widen(at: *const u8) -> __m512 {
        // SAFETY: 16 bytes are readable.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
    }

    /// Reads two neighbouring elements along k of each of 16 rows and converts them to pairs of bf16. If `both` is
    /// false, only the first element is read, and the second is 0.
    ///
    /// # Safety
    /// 32 bytes are readable; 16 if `both` is false.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn widen_pair(at: *const u8, both: bool) -> __m512i {
        // SAFETY: as many bytes are readable.
        let (even, odd) = unsafe { (widen(at), if both { widen(at.add(INT8_GROUP)) } else { _mm512_setzero_ps() }) };
        let high = _mm512_and_si512(_mm512_castps_si512(odd), _mm512_set1_epi32(0xffff_0000_u32 as i32));
        _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(even)), high)
    }

    /// Packs a block of an int8 operand as f32 or as pairs of bf16, as its [`Unit`] says; `width` is a multiple of 16,
    /// and the block begins with a group. Units beyond the end of k are 0.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW; the operand is int8; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        for lane in (0..width).step_by(INT8_GROUP) {
            let row = part.row + lane;
            for u in 0..part.units {
                let unit = part.unit + u;
                let k = if source.unit == Unit::Int8Pair { 2 * unit } else { unit };
                let words = if !is_stored(source, row) || k >= source.k {
                    _mm512_setzero_si512()
                } else {
                    // SAFETY: the group is stored and has element `k`; the one after it is read only if it exists.
                    unsafe {
                        match source.unit {
                            Unit::Int8Pair => widen_pair(element_address_in_group(source, row, k), k + 1 < source.k),
                            _ => _mm512_castps_si512(widen(element_address_in_group(source, row, k))),
                        }
                    }
                };
                // SAFETY: `dst` has room for `[part.units][width]`.
                unsafe { _mm512_storeu_si512(dst.add(u * width + lane).cast(), words) };
            }
        }
    }

    /// Packs the given pairs of elements of 32 rows, from row `row` on, as two blocks `[pairs][16]`, one of each 16
    /// rows. Pairs beyond the end of k and rows that are not stored are 0. Prefetches the pairs that follow, or near
    /// the end of k the pairs of the next 32 rows, because the loop is faster than memory.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW; the operand is int8; `row` begins a group; both blocks have room.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) unsafe fn pack_panel(source: &Source, row: usize, pairs: Range<usize>, halves: [*mut u32; 2]) {
        let groups = Groups { base: element_address_in_group(source, row, 0), k: source.k };
        let whole = pairs.start..pairs.end.min(source.k / 2).max(pairs.start);
        for (g, half) in halves.into_iter().enumerate() {
            if !is_stored(source, row + g * INT8_GROUP) {
                // SAFETY: the block has room for all pairs.
                unsafe { half.write_bytes(0, pairs.len() * INT8_GROUP) };
                continue;
            }
            // SAFETY: pair `pair` is within `pairs`.
            let store = |pair: usize, words| unsafe {
                _mm512_storeu_si512(half.add((pair - pairs.start) * INT8_GROUP).cast(), words)
            };
            for pair in whole.clone() {
                let at = groups.at(g, 2 * pair);
                if pair.is_multiple_of(LINE / 2) {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(groups.ahead(2, 2 * pair)).cast());
                }
                // SAFETY: the group is stored and has both elements.
                store(pair, unsafe { widen_pair(at, true) });
            }
            for pair in whole.end..pairs.end {
                let has_first = 2 * pair < source.k;
                // SAFETY: the group is stored; the first element is read only if it exists.
                let last = || unsafe { widen_pair(groups.at(g, 2 * pair), false) };
                store(pair, if has_first { last() } else { _mm512_setzero_si512() });
            }
        }
    }

    /// Adds the products of one unit (an element, or a pair of elements, along k) to all sums.
    macro_rules! step {
        (f32, $sums:ident, $a:expr, $b:ident, $k:ident, $both:expr) => {{
            let mut b = [_mm512_setzero_ps(); G];
            for g in 0..G {
                b[g] = widen($b.at(g, $k));
            }
            for m in 0..M {
                let a = _mm512_set1_ps(f32::from_bits(*$a.add(m)));
                for g in 0..G {
                    $sums[m][g] = _mm512_fmadd_ps(b[g], a, $sums[m][g]);
                }
            }
        }};
        (bf16, $sums:ident, $a:expr, $b:ident, $k:ident, $both:expr) => {{
            let mut b = [_mm512_setzero_si512(); G];
            for g in 0..G {
                b[g] = widen_pair($b.at(g, $k), $both);
            }
            for m in 0..M {
                let a = _mm512_set1_epi32(*$a.add(m) as i32);
                for g in 0..G {
                    // The two vector types have 512 bits each, and every bit pattern is valid.
                    let (b, a) =
                        (std::mem::transmute::<__m512i, __m512bh>(b[g]), std::mem::transmute::<__m512i, __m512bh>(a));
                    $sums[m][g] = _mm512_dpbf16_ps($sums[m][g], b, a);
                }
            }
        }};
    }

    macro_rules! thin {
        ($name:ident, $sweep:ident, $groups:ident, $features:literal, $unit:ident, $each:literal) => {
            /// # Safety
            /// The processor has the named features; `a` holds the units of `m` packed rows, 1 to 12; the groups with
            /// rows `row .. row + rows` of B are stored, and `row` is the first row of a group; `to` has `m` rows of
            /// sums.
            unsafe fn $name(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, rows: usize, to: SumRows) {
                let a = a.words;
                // SAFETY: the conditions of this function are those of `$sweep`.
                unsafe {
                    match m {
                        1 => $sweep::<1, 4>(a, b, row, rows, to),
                        2 => $sweep::<2, 4>(a, b, row, rows, to),
                        3 => $sweep::<3, 4>(a, b, row, rows, to),
                        4 => $sweep::<4, 4>(a, b, row, rows, to),
                        5 => $sweep::<5, 4>(a, b, row, rows, to),
                        6 => $sweep::<6, 4>(a, b, row, rows, to),
                        7 => $sweep::<7, 2>(a, b, row, rows, to),
                        8 => $sweep::<8, 2>(a, b, row, rows, to),
                        9 => $sweep::<9, 2>(a, b, row, rows, to),
                        10 => $sweep::<10, 2>(a, b, row, rows, to),
                        11 => $sweep::<11, 2>(a, b, row, rows, to),
                        _ => $sweep::<12, 2>(a, b, row, rows, to),
                    }
                }
            }

            /// Computes M rows of C, G groups of columns at a time.
            #[target_feature(enable = $features)]
            unsafe fn $sweep<const M: usize, const G: usize>(
                a: *const u32,
                b: &Source,
                row: usize,
                rows: usize,
                to: SumRows,
            ) {
                let (count, mut group) = (rows.div_ceil(INT8_GROUP), 0);
                while group < count {
                    let at = Groups { base: element_address_in_group(b, row + group * INT8_GROUP, 0), k: b.k };
                    // SAFETY: the groups from `group` on are stored, and `to` has their columns.
                    unsafe {
                        let to = to.rows_from(0, group * INT8_GROUP);
                        match count - group {
                            left if left >= G => {
                                $groups::<M, G>(a, at, to);
                                group += G;
                            }
                            2.. => {
                                $groups::<M, 2>(a, at, to);
                                group += 2;
                            }
                            _ => {
                                $groups::<M, 1>(a, at, to);
                                group += 1;
                            }
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn $groups<const M: usize, const G: usize>(a: *const u32, b: Groups, to: SumRows) {
                let mut sums = [[_mm512_setzero_ps(); G]; M];
                let whole = b.k / LINE * LINE;
                for first in (0..whole).step_by(LINE) {
                    let ahead = b.ahead(G, first);
                    for g in 0..G {
                        _mm_prefetch::<_MM_HINT_T0>(b.at(g, first).wrapping_add(ahead).cast());
                    }
                    for k in (first..first + LINE).step_by($each) {
                        // SAFETY: each of the G groups has elements `k .. k + $each`, and `a` holds their units.
                        unsafe { step!($unit, sums, a.add(k / $each * M), b, k, true) };
                    }
                }
                for k in (whole..b.k).step_by($each) {
                    // SAFETY: each of the G groups has element `k`, and `a` holds its unit.
                    unsafe { step!($unit, sums, a.add(k / $each * M), b, k, k + 1 < b.k) };
                }
                for m in 0..M {
                    for g in 0..G {
                        // SAFETY: row `m` of `to` has room for G groups of columns.
                        unsafe { _mm512_storeu_ps(to.sum_address(m, g * INT8_GROUP), sums[m][g]) };
                    }
                }
            }
        };
    }

    thin!(thin_f32, sweep_f32, groups_f32, "avx512f,avx512bw", f32, 1);
    thin!(thin_bf16, sweep_bf16, groups_bf16, "avx512f,avx512bw,avx512bf16", bf16, 2);
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// f32 multiply-adds.
    pub(in super::super) static THIN_F32: FewRowsProduct = thin_of(4, thin);

    /// Reads one element along k of each of 8 rows and converts it to f32.
    ///
    /// # Safety
    /// 8 bytes are readable.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn widen(at: *const u8) -> __m256 {
        // SAFETY: 8 bytes are readable.
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
    }

    /// Packs a block of an int8 operand as f32. The block begins with a group. If `width` is 16, a faster loop is
    /// used.
    ///
    /// # Safety
    /// The processor has AVX2; the operand is int8; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        if width != INT8_GROUP || !is_stored(source, part.row) {
            // SAFETY: the conditions of this function.
            return unsafe { pack_plain(source, part, width, dst) };
        }
        for u in 0..part.units {
            for half in [0, 8] {
                // SAFETY: the group is stored and has this element; `dst` has room for it.
                unsafe {
                    let x = widen(element_address_in_group(source, part.row, part.unit + u).add(half));
                    _mm256_storeu_ps(dst.add(u * width + half).cast(), x);
                }
            }
        }
    }

    /// # Safety
    /// The processor has AVX2 and FMA; `a` holds the units of `m` packed rows, 1 to 4; the groups with rows `row .. row
    /// + rows` of B are stored, and `row` is the first row of a group; `to` has `m` rows of sums.
    unsafe fn thin(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, rows: usize, to: SumRows) {
        let a = a.words;
        let count = rows.div_ceil(INT8_GROUP);
        let at_once = match m {
            1 => 4,
            2 => 2,
            _ => 1,
        };
        let mut group = 0;
        while group < count {
            let at = Groups { base: element_address_in_group(b, row + group * INT8_GROUP, 0), k: b.k };
            let now = if count - group >= at_once { at_once } else { 1 };
            // SAFETY: the groups from `group` on are stored, and `to` has their columns.
            unsafe {
                let to = to.rows_from(0, group * INT8_GROUP);
                match (m, now) {
                    (1, 4) => groups::<1, 4, 8>(a, at, to),
                    (1, _) => groups::<1, 1, 2>(a, at, to),
                    (2, 2) => groups::<2, 2, 4>(a, at, to),
                    (2, _) => groups::<2, 1, 2>(a, at, to),
                    (3, _) => groups::<3, 1, 2>(a, at, to),
                    (_, _) => groups::<4, 1, 2>(a, at, to),
                }
            }
            group += now;
        }
    }

    /// Computes M rows of C for G groups of columns, which are HALVES = 2 G vectors of 8.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn groups<const M: usize, const G: usize, const HALVES: usize>(a: *const u32, b: Groups, to: SumRows) {
        let mut sums = [[_mm256_setzero_ps(); HALVES]; M];
        for k in 0..b.k {
            if k % LINE == 0 {
                for g in 0..G {
                    _mm_prefetch::<_MM_HINT_T0>(b.at(g, k).wrapping_add(b.ahead(G, k)).cast());
                }
            }
            for h in 0..HALVES {
                // SAFETY: group `h / 2` has element `k` of 16 rows, and `a` holds `[k][M]`.
                unsafe {
                    let b = widen(b.at(h / 2, k).add(h % 2 * 8));
                    for m in 0..M {
                        sums[m][h] = _mm256_fmadd_ps(_mm256_set1_ps(f32::from_bits(*a.add(k * M + m))), b, sums[m][h]);
                    }
                }
            }
        }
        for m in 0..M {
            for h in 0..HALVES {
                // SAFETY: row `m` of `to` has room for G groups of columns.
                unsafe { _mm256_storeu_ps(to.sum_address(m, h * 8), sums[m][h]) };
            }
        }
    }
}
