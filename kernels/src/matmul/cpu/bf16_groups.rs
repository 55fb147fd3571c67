//! Operands B of bf16 that are stored in groups of 32 rows, `[n / 32][k / 2][32][2]`: pairs of neighbouring k, of 32
//! rows side by side. That is the layout of a packed panel of pairs, so the tile functions of the bf16 dot product read
//! such an operand where it lies. This file has the packing for all other tile functions, and the loops for products with
//! few rows of A:
//!
//! ```text
//! for each group of B:                               # 32 columns of C
//!     for each pair p of k:                          # 128 bytes, which follow those of the pair before
//!         b = the pair of 32 rows                    # as it is, or widened to two units of f32
//!         for each row i of A:  sums[i] = fma(a[p][i], b, sums[i])
//! ```
//!
//! A sum has the same order as in the tile functions. The whole operand is one stream of memory, which is read at the
//! rate of plain reading (benches/results/amd-epyc/2026-11-23-packed-weights.json).

use super::{Part, Source, THIN_PASSES, Thin, Unit};
use crate::matmul::BF16_GROUP;

/// Words of one pair along k of a group.
const LANES: usize = BF16_GROUP;
/// Words from a read to what is prefetched meanwhile (8 KiB).
const AHEAD: usize = 2048;

/// The address of the pairs of unit `unit` of rows `row ..`, which lie in one group. The unit is a pair, or one of the
/// two elements of a pair.
pub(super) fn pairs_at(source: &Source, row: usize, unit: usize) -> *const u32 {
    let pair = if source.unit == Unit::GroupedPair { unit } else { unit / 2 };
    let group = row / BF16_GROUP * source.k.div_ceil(2);
    source.base.cast::<u32>().wrapping_add((group + pair) * LANES + row % BF16_GROUP)
}

/// Packs a block of an operand in groups, pairs as they are or each element as one f32, as its [`Unit`] says. The width
/// divides that of a group, and the block begins at a multiple of it. Units beyond the end of k are 0. `prefetch` gets
/// addresses that are read later, if they exist.
///
/// # Safety
/// `dst` has room for `[part.units][width]`.
#[inline(always)]
unsafe fn pack_with(source: &Source, part: Part, width: usize, dst: *mut u32, prefetch: impl Fn(*const u32)) {
    let units = source.unit.count(source.k);
    // SAFETY: `dst` has room for `[part.units][width]`.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, part.units * width) };
    for (u, to) in dst.chunks_exact_mut(width).enumerate() {
        let unit = part.unit + u;
        if unit >= units || part.row >= source.rows {
            to.fill(0);
            continue;
        }
        let from = pairs_at(source, part.row, unit);
        (0..width).step_by(16).for_each(|lane| prefetch(from.wrapping_add(AHEAD + lane)));
        // SAFETY: the group is stored whole, and `width` of its lanes from a multiple of `width` on lie in it.
        let from = unsafe { std::slice::from_raw_parts(from, width) };
        match (source.unit, unit % 2) {
            (Unit::GroupedPair, _) => to.copy_from_slice(from),
            (_, 0) => to.iter_mut().zip(from).for_each(|(to, pair)| *to = pair << 16),
            (_, _) => to.iter_mut().zip(from).for_each(|(to, pair)| *to = pair & 0xffff_0000),
        }
    }
}

/// Packs a block with the compilation target's baseline instruction set.
///
/// # Safety
/// The conditions of [`pack_with`].
pub(super) unsafe fn pack_plain(source: &Source, part: Part, width: usize, dst: *mut u32) {
    // SAFETY: the conditions of this function.
    unsafe { pack_with(source, part, width, dst, |_| ()) }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use super::*;
    use std::arch::x86_64::*;

    /// f32 multiply-adds.
    pub(in super::super) static THIN_F32: Thin =
        Thin { most: MOST, passes: 2, rows: BF16_GROUP, least_rows: BF16_GROUP, multiply: thin_widened };
    /// bf16 dot products.
    pub(in super::super) static THIN_BF16: Thin =
        Thin { most: MOST, passes: 1, rows: BF16_GROUP, least_rows: BF16_GROUP, multiply: thin_pairs };

    /// Rows of A whose sums, 32 columns each, leave room for the pairs in the 32 registers.
    const BLOCK: usize = 12;
    /// With more rows of A the tile functions are as fast: the arithmetic takes longer than reading B.
    const MOST: usize = 3 * BLOCK;
    /// Pairs of a group (32 KiB) that all blocks of rows multiply before the next ones. The first block reads them from
    /// memory, the others from the second-level cache. Chunks of 8 KiB, which fit into the first level, are slower: each
    /// block loads and stores its sums once a chunk (benches/results/amd-epyc/2026-11-24-few-rows.json).
    const CHUNK: usize = 256;

    /// Where a block of rows prefetches the pairs of B to.
    mod fetch {
        /// The first-level cache, past the second level, for pairs that are read once.
        pub const ONCE: u8 = 0;
        /// The second-level cache, for pairs that other blocks read again.
        pub const SHARED: u8 = 1;
        /// Nowhere: another block has prefetched the pairs.
        pub const NONE: u8 = 2;
    }

    /// Packs a block, see `pack_with`.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { pack_with(source, part, width, dst, |at| _mm_prefetch::<_MM_HINT_T0>(at.cast())) }
    }

    /// Some elements along k of a group of B, and the same of some rows of A.
    #[derive(Clone, Copy)]
    struct Strip {
        /// The first pairs of 32 rows of B.
        b: *const u32,
        /// Elements along k.
        k: usize,
        /// The first unit of the rows of A.
        a: *const u32,
        /// Words from a unit of A to the next one: all rows of A.
        stride: usize,
        /// True if the sums continue those in memory, else they start at 0.
        add: bool,
    }

    /// Adds the products of one pair along k to all sums; of its first element alone if `both` is false.
    macro_rules! step {
        (pairs, $sums:ident, $a:expr, $stride:expr, $b:ident, $both:expr) => {
            for m in 0..M {
                // Both types have 512 bits, and every bit pattern is valid.
                let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*$a.add(m) as i32));
                for j in 0..2 {
                    let b = std::mem::transmute::<__m512i, __m512bh>($b[j]);
                    $sums[m][j] = _mm512_dpbf16_ps($sums[m][j], b, a);
                }
            }
        };
        (widened, $sums:ident, $a:expr, $stride:expr, $b:ident, $both:expr) => {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            for unit in 0..if $both { 2 } else { 1 } {
                let b = $b.map(|b| match unit {
                    0 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b)),
                    _ => _mm512_castsi512_ps(_mm512_and_si512(b, high)),
                });
                for m in 0..M {
                    let a = _mm512_set1_ps(f32::from_bits(*$a.add(unit * $stride + m)));
                    for j in 0..2 {
                        $sums[m][j] = _mm512_fmadd_ps(b[j], a, $sums[m][j]);
                    }
                }
            }
        };
    }

    macro_rules! thin {
        ($name:ident, $of_rows:ident, $strip:ident, $features:literal, $kind:ident, $units:literal) => {
            /// # Safety
            /// The processor has the named features; `a` holds `[units][m]` with `m` of 1 to 36; the group with row
            /// `row` of B is stored, and `row` begins it; `acc` is `[m][32]`.
            unsafe fn $name(m: usize, a: *const u32, b: &Source, row: usize, _rows: usize, acc: *mut f32) {
                let (blocks, group) = (m.div_ceil(BLOCK), pairs_at(b, row, 0));
                let chunk = if blocks == 1 { b.k.max(1) } else { 2 * CHUNK };
                // Also without elements along k, so that the sums are set to 0.
                for k in (0..b.k.max(1)).step_by(chunk) {
                    for block in 0..blocks {
                        let (first, last) = (block * m / blocks, (block + 1) * m / blocks);
                        // SAFETY: the pairs, the units of A and the sums lie inside their arrays.
                        unsafe {
                            let strip = Strip {
                                b: group.wrapping_add(k / 2 * LANES),
                                k: chunk.min(b.k - k),
                                a: a.add(k / 2 * $units * m + first),
                                stride: m,
                                add: k > 0,
                            };
                            let acc = acc.add(first * BF16_GROUP);
                            match (blocks, block) {
                                (1, _) => $of_rows::<{ fetch::ONCE }>(last - first, strip, acc),
                                (_, 0) => $of_rows::<{ fetch::SHARED }>(last - first, strip, acc),
                                _ => $of_rows::<{ fetch::NONE }>(last - first, strip, acc),
                            }
                        }
                    }
                }
            }

            /// Computes the sums of `rows` rows of A, 1 to 12, and 32 rows of B.
            ///
            /// # Safety
            /// The conditions of `$strip`.
            unsafe fn $of_rows<const FETCH: u8>(rows: usize, strip: Strip, acc: *mut f32) {
                // SAFETY: the conditions of this function.
                unsafe {
                    match rows {
                        1 => $strip::<1, FETCH>(strip, acc),
                        2 => $strip::<2, FETCH>(strip, acc),
                        3 => $strip::<3, FETCH>(strip, acc),
                        4 => $strip::<4, FETCH>(strip, acc),
                        5 => $strip::<5, FETCH>(strip, acc),
                        6 => $strip::<6, FETCH>(strip, acc),
                        7 => $strip::<7, FETCH>(strip, acc),
                        8 => $strip::<8, FETCH>(strip, acc),
                        9 => $strip::<9, FETCH>(strip, acc),
                        10 => $strip::<10, FETCH>(strip, acc),
                        11 => $strip::<11, FETCH>(strip, acc),
                        _ => $strip::<12, FETCH>(strip, acc),
                    }
                }
            }

            /// Computes the sums of M rows of A and 32 rows of B.
            ///
            /// # Safety
            /// The processor has the named features; the strip lies inside its operands; `acc` is `[M][32]`.
            #[target_feature(enable = $features)]
            unsafe fn $strip<const M: usize, const FETCH: u8>(s: Strip, acc: *mut f32) {
                let mut sums = [[_mm512_setzero_ps(); 2]; M];
                if s.add {
                    for m in 0..M {
                        for j in 0..2 {
                            // SAFETY: `acc` is `[M][32]`.
                            sums[m][j] = unsafe { _mm512_loadu_ps(acc.add(m * BF16_GROUP + j * 16)) };
                        }
                    }
                }
                let whole = if $units == 2 { s.k / 2 } else { s.k.div_ceil(2) };
                for p in 0..whole {
                    let at = s.b.wrapping_add(p * LANES);
                    // A prefetch may name any address.
                    for line in [AHEAD, AHEAD + 16] {
                        match FETCH {
                            fetch::ONCE => _mm_prefetch::<_MM_HINT_NTA>(at.wrapping_add(line).cast()),
                            fetch::SHARED => _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line).cast()),
                            _ => (),
                        }
                    }
                    // SAFETY: the strip has pair `p` of B and the units of A that belong to it.
                    unsafe {
                        let b = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(16).cast())];
                        step!($kind, sums, s.a.add(p * $units * s.stride), s.stride, b, true);
                    }
                }
                if whole < s.k.div_ceil(2) {
                    let at = s.b.wrapping_add(whole * LANES);
                    // SAFETY: the strip has this pair of B, whose second element does not exist.
                    unsafe {
                        let b = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(16).cast())];
                        step!($kind, sums, s.a.add(whole * $units * s.stride), s.stride, b, false);
                    }
                }
                for m in 0..M {
                    for j in 0..2 {
                        // SAFETY: `acc` is `[M][32]`.
                        unsafe { _mm512_storeu_ps(acc.add(m * BF16_GROUP + j * 16), sums[m][j]) };
                    }
                }
            }
        };
    }
    thin!(thin_pairs, pairs_of_rows, strip_pairs, "avx512f,avx512bw,avx512bf16", pairs, 1);
    thin!(thin_widened, widened_of_rows, strip_widened, "avx512f,avx512bw", widened, 2);
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use super::*;
    use std::arch::x86_64::*;

    /// f32 multiply-adds.
    pub(in super::super) static THIN_F32: Thin =
        Thin { most: 4, passes: THIN_PASSES, rows: BF16_GROUP, least_rows: BF16_GROUP, multiply: thin };

    /// Packs a block, see `pack_with`.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { pack_with(source, part, width, dst, |at| _mm_prefetch::<_MM_HINT_T0>(at.cast())) }
    }

    /// # Safety
    /// The processor has AVX2 and FMA; `a` holds `[units][m]` with `m` of 1 to 4; the group with row `row` of B is
    /// stored, and `row` begins it; `acc` is `[m][32]`.
    unsafe fn thin(m: usize, a: *const u32, b: &Source, row: usize, _rows: usize, acc: *mut f32) {
        // SAFETY: the conditions of this function are those of `lanes`: together the calls have the 32 lanes.
        unsafe {
            match m {
                1 => lanes::<1, 4>(a, b, row, acc, 0),
                2 => [0, 16].into_iter().for_each(|lane| lanes::<2, 2>(a, b, row, acc, lane)),
                3 => [0, 16].into_iter().for_each(|lane| lanes::<3, 2>(a, b, row, acc, lane)),
                _ => [0, 16].into_iter().for_each(|lane| lanes::<4, 2>(a, b, row, acc, lane)),
            }
        }
    }

    /// Computes M rows of C for V vectors of 8 columns of a group, from lane `lane` on.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn lanes<const M: usize, const V: usize>(a: *const u32, b: &Source, row: usize, acc: *mut f32, lane: usize) {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut sums = [[_mm256_setzero_ps(); V]; M];
        let base = pairs_at(b, row, 0).wrapping_add(lane);
        for k in (0..b.k).step_by(2) {
            let at = base.wrapping_add(k / 2 * LANES);
            // A prefetch may name any address.
            _mm_prefetch::<_MM_HINT_NTA>(at.wrapping_add(AHEAD).cast());
            if V == 4 {
                _mm_prefetch::<_MM_HINT_NTA>(at.wrapping_add(AHEAD + 16).cast());
            }
            let mut units = [[_mm256_setzero_si256(); 2]; V];
            for v in 0..V {
                // SAFETY: the group has the pair of these lanes.
                let pair = unsafe { _mm256_loadu_si256(at.add(8 * v).cast()) };
                units[v] = [_mm256_slli_epi32::<16>(pair), _mm256_and_si256(pair, high)];
            }
            for unit in 0..2 {
                if k + unit == b.k {
                    continue;
                }
                for m in 0..M {
                    // SAFETY: `a` holds `[k][M]`.
                    let a = unsafe { _mm256_set1_ps(f32::from_bits(*a.add((k + unit) * M + m))) };
                    for v in 0..V {
                        sums[m][v] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(units[v][unit]), sums[m][v]);
                    }
                }
            }
        }
        for m in 0..M {
            for v in 0..V {
                // SAFETY: `acc` is `[M][32]`.
                unsafe { _mm256_storeu_ps(acc.add(m * BF16_GROUP + lane + 8 * v), sums[m][v]) };
            }
        }
    }
}
