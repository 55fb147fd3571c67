//! Operands B that are stored in groups of 32 rows, whose elements lie side by side: f32 as `[n / 32][k][32]`, bf16 as
//! `[n / 32][k / 2][32][2]`, pairs of neighbouring k. So a group is a sequence of *lines* of 128 bytes: one element of
//! 32 rows, or one pair. A group has the layout of a packed panel with 32 lanes, so tile functions for 32 lanes read it
//! in place. This file packs a plain operand into groups, packs groups for all other tile functions, and has the loops
//! for products with few rows of A:
//!
//! ```text
//! for each group of B:                               # 32 columns of C
//!     for each line p of the group:                  # 128 bytes, which follow those of the line before
//!         b = the element or pair of 32 rows         # as it is, or widened to two units of f32
//!         for each row i of A:  sums[i] = fma(a[p][i], b, sums[i])
//! ```
//!
//! The sums are in the same order as in the tile functions. The whole operand is read sequentially, at the rate of
//! plain reading (tools/benches/results/amd-epyc/2026-11-23-packed-weights.json). Intel and AMD processors need different
//! prefetches (`fetch`).

use reel_device::Team;

use super::{DEFAULT_PASSES, FewRowsProduct, Pack, Packed, Part, RowsOfMatrixA, Source, SumRows, Unit};
#[cfg(target_arch = "x86_64")]
use reel_device::cpu::simd::is_intel;
use reel_device::launch::GROUP_ROWS;

/// Words of a line.
const LANES: usize = GROUP_ROWS;
/// Prefetch distance in 32-bit words (8 KiB).
const AHEAD: usize = 2048;
/// Prefetch distances in 32-bit words where lines are prefetched twice: to the second-level cache (3 KiB ahead), and
/// later to the first-level cache (1.5 KiB ahead).
#[cfg(target_arch = "x86_64")]
const FAR: usize = 768;
#[cfg(target_arch = "x86_64")]
const NEAR: usize = 384;

/// Returns the address of unit `unit` (along k) of rows `row ..`, which lie in one group. The unit is an f32, a pair of
/// bf16, or one element of a pair; for one element, the address is that of its pair.
pub(super) fn unit_address_in_group(source: &Source, row: usize, unit: usize) -> *const u32 {
    let line = if source.unit == Unit::GroupedWidened { unit / 2 } else { unit };
    let lines = if source.unit == Unit::GroupedF32 { source.k } else { source.k.div_ceil(2) };
    let group = row / GROUP_ROWS * lines;
    source.base.cast::<u32>().wrapping_add((group + line) * LANES + row % GROUP_ROWS)
}

/// Packs a block of an operand that is stored in groups. Depending on its [`Unit`], f32 elements and pairs of bf16 are
/// copied, or each element of a pair is converted to f32. `width` divides 32, the rows of a group, and the block begins
/// at a multiple of `width`. Units beyond the end of k are 0. `prefetch` is called with addresses that are read later;
/// they may lie beyond the operand.
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
        let from = unit_address_in_group(source, part.row, unit);
        (0..width).step_by(16).for_each(|lane| prefetch(from.wrapping_add(AHEAD + lane)));
        // SAFETY: the group is stored whole, and `width` of its lanes from a multiple of `width` on lie in it.
        let from = unsafe { std::slice::from_raw_parts(from, width) };
        match (source.unit, unit % 2) {
            (Unit::GroupedPair | Unit::GroupedF32, _) => to.copy_from_slice(from),
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

/// Packs elements or pairs of a plain source as words, with the compilation target's baseline instruction set.
///
/// # Safety
/// The source is not transposed, and the part lies in it; `dst` has room for `[part.units][width]`.
pub(super) unsafe fn pack_words(source: &Source, part: Part, width: usize, dst: *mut u32) {
    // SAFETY: `dst` has room for `[part.units][width]`.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, part.units * width) };
    let row_bytes = source.k * source.unit.element();
    for (u, to) in dst.chunks_exact_mut(width).enumerate() {
        let at = (part.unit + u) * 4;
        for (lane, to) in to.iter_mut().enumerate() {
            let row = source.base.wrapping_add((part.row + lane) * row_bytes + at);
            *to = match row_bytes - at {
                _ if lane >= part.rows => 0,
                // SAFETY: the row has two more bytes. Files do not align tensors.
                2 | 3 => u32::from(unsafe { row.cast::<u16>().read_unaligned() }),
                // SAFETY: the row has four more bytes.
                _ => unsafe { row.cast::<u32>().read_unaligned() },
            };
        }
    }
}

/// Packs the rows of `weight` into groups: `to` becomes `[n / 32][lines][32]` words. Lanes beyond the last row are 0,
/// and so is the second element of the last pair if k is odd.
///
/// # Safety
/// The source is plain and not transposed; `to` has room for the groups; `pack` works on this machine.
pub(super) unsafe fn pack_into_groups(weight: &Source, pack: Pack, to: Packed, team: &Team) {
    let lines = weight.unit.count(weight.k);
    team.run(weight.rows.div_ceil(GROUP_ROWS), |group| {
        let row = group * GROUP_ROWS;
        let part = Part { row, rows: GROUP_ROWS.min(weight.rows - row), unit: 0, units: lines };
        // SAFETY: the rows lie in the source, and each group has lines of its own.
        unsafe { pack(weight, part, GROUP_ROWS, to.at(group * lines * LANES)) }
    });
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// The code for products with few rows of A and a bf16 B in groups of 32 rows, with f32 multiply-adds.
    pub(in super::super) static THIN_WIDENED: FewRowsProduct = thin(2, thin_widened);
    /// bf16 dot products.
    pub(in super::super) static THIN_PAIRS: FewRowsProduct = thin(1, thin_pairs);
    /// The code for products with few rows of A and an f32 B in groups of 32 rows, with f32 multiply-adds.
    pub(in super::super) static THIN_F32: FewRowsProduct = thin(1, thin_elements);

    const fn thin(passes: usize, multiply: super::super::FewRowsProductFn) -> FewRowsProduct {
        FewRowsProduct { most: MOST, passes, rows: GROUP_ROWS, least_rows: GROUP_ROWS, reads_rows_of_a: true, multiply }
    }

    /// Maximum number of rows of A in a block: their sums, 32 columns each, take 24 of the 32 registers and leave room
    /// for a line of B.
    const BLOCK: usize = 12;
    /// Maximum number of rows of A for these functions. With more rows the tile functions are as fast, because
    /// arithmetic takes longer than reading B.
    const MOST: usize = 3 * BLOCK;
    /// Maximum number of lines of a group of B in a chunk (32 KiB). All blocks of rows of A are multiplied by a chunk
    /// before the next chunk is read. The first block brings the chunk from the second-level cache to the first; later
    /// blocks find it in one of the two. Chunks of 8 KiB, which fit into the first level, are slower, because each
    /// block loads and stores its sums once for each chunk (tools/benches/results/amd-epyc/2026-11-24-few-rows.json).
    const CHUNK: usize = 256;

    /// What is prefetched while a block of rows of A is multiplied.
    mod fetch {
        /// Prefetches later lines of the current chunk with the non-temporal hint, because they are read once.
        pub const PREFETCH_ONCE: u8 = 0;
        /// Prefetches later lines of the current chunk twice, to the second-level cache and then to the first: for
        /// Intel processors, on which reading with a non-temporal prefetch takes three times as long
        /// (tools/benches/results/intel-xeon/2026-11-25-prefetch.json).
        pub const PREFETCH_TWICE: u8 = 1;
        /// Prefetches this block's part of the next chunk to the second-level cache, and later lines of the current
        /// chunk to the first. This also serves a task's first chunk, which was not prefetched before.
        pub const PREFETCH_IN_FIRST_BLOCK: u8 = 2;
        /// Prefetches this block's part of the next chunk to the second-level cache. All blocks share these prefetches
        /// so that memory is read at an even rate, not only during the first block.
        pub const PREFETCH_IN_LATER_BLOCKS: u8 = 3;
    }

    /// Packs a block of an operand in groups as `pack_with` describes, with prefetches.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { pack_with(source, part, width, dst, |at| _mm_prefetch::<_MM_HINT_T0>(at.cast())) }
    }

    /// The operands of one call: some lines of 128 bytes of a group of B, and the units of A (f32 or pairs of bf16) by
    /// which they are multiplied.
    #[derive(Clone, Copy)]
    struct Strip {
        /// The first line.
        b: *const u32,
        /// Number of lines of which all units (elements or pairs along k) are multiplied.
        lines: usize,
        /// True if one more line follows, of which only the first of its two units along k exists.
        half: bool,
        /// The units of A.
        a: RowsOfMatrixA,
        /// True if the products are added to the sums in memory; otherwise the sums start at 0.
        add: bool,
        /// The part of the next chunk of B to prefetch.
        next: Next,
    }

    /// The share of the next chunk of B that one block of rows of A prefetches. The blocks divide the next chunk
    /// evenly. Each block prefetches once for every line of the current chunk.
    #[derive(Clone, Copy)]
    struct Next {
        first: *const u8,
        /// Bytes from one prefetch address to the next; two prefetches may hit the same cache line.
        step: usize,
    }

    impl Next {
        /// Returns the part of the next chunk that row block `block` of `blocks` prefetches. The next chunk begins at
        /// `end`, the end of the current chunk, which has `lines` lines.
        fn part(end: *const u32, lines: usize, block: usize, blocks: usize) -> Next {
            let bytes = lines * LANES * 4;
            Next { first: end.cast::<u8>().wrapping_add(block * bytes / blocks), step: (LANES * 4).div_ceil(blocks) }
        }
    }

    /// Adds the products of one line of B to all sums. If `$both` is false, only the first unit of the line is
    /// multiplied. `$a` is the address, in the first row of A, of the unit that belongs to the first unit of the
    /// line.
    macro_rules! step {
        (pairs, $sums:ident, $a:expr, $rows:expr, $b:ident, $both:expr) => {
            for m in 0..M {
                // The two vector types have 512 bits each, and every bit pattern is valid.
                let a =
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*$a.add(m * $rows.row_words) as i32));
                for j in 0..2 {
                    let b = std::mem::transmute::<__m512i, __m512bh>($b[j]);
                    $sums[m][j] = _mm512_dpbf16_ps($sums[m][j], b, a);
                }
            }
        };
        (widened, $sums:ident, $a:expr, $rows:expr, $b:ident, $both:expr) => {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            for unit in 0..if $both { 2 } else { 1 } {
                let b = $b.map(|b| match unit {
                    0 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b)),
                    _ => _mm512_castsi512_ps(_mm512_and_si512(b, high)),
                });
                for m in 0..M {
                    let a = _mm512_set1_ps(f32::from_bits(*$a.add(unit * $rows.unit_words + m * $rows.row_words)));
                    for j in 0..2 {
                        $sums[m][j] = _mm512_fmadd_ps(b[j], a, $sums[m][j]);
                    }
                }
            }
        };
        (elements, $sums:ident, $a:expr, $rows:expr, $b:ident, $both:expr) => {
            for m in 0..M {
                let a = _mm512_set1_ps(f32::from_bits(*$a.add(m * $rows.row_words)));
                for j in 0..2 {
                    $sums[m][j] = _mm512_fmadd_ps(_mm512_castsi512_ps($b[j]), a, $sums[m][j]);
                }
            }
        };
    }

    macro_rules! thin {
        ($name:ident, $of_rows:ident, $strip:ident, $features:literal, $kind:ident,
            elements: $elements:literal, units: $units:literal) => {
            /// # Safety
            /// The processor has the named features; `a` holds the units of `m` rows, 1 to 36; the group with row `row`
            /// of B is stored, and `row` begins it; `to` has `m` rows of 32 sums.
            unsafe fn $name(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, _rows: usize, to: SumRows) {
                let (blocks, group) = (m.div_ceil(BLOCK), unit_address_in_group(b, row, 0));
                let lines = b.k.div_ceil($elements);
                let chunks = if blocks == 1 { 1 } else { lines.div_ceil(CHUNK).max(1) };
                for chunk in 0..chunks {
                    let (start, end) = (chunk * lines / chunks, (chunk + 1) * lines / chunks);
                    // If k is odd, the last line has a first element along k but no second one.
                    let half = $units == 2 && end == lines && !b.k.is_multiple_of(2);
                    for block in 0..blocks {
                        let (first, last) = (block * m / blocks, (block + 1) * m / blocks);
                        let strip = Strip {
                            b: group.wrapping_add(start * LANES),
                            lines: end - start - usize::from(half),
                            half,
                            a: a.rows_from(first, start * $units),
                            add: start > 0,
                            next: Next::part(group.wrapping_add(end * LANES), end - start, block, blocks),
                        };
                        // SAFETY: the lines, the units of A and the sums lie inside their arrays.
                        unsafe {
                            let to = to.rows_from(first, 0);
                            match (blocks, block) {
                                (1, _) if is_intel() => $of_rows::<{ fetch::PREFETCH_TWICE }>(last - first, strip, to),
                                (1, _) => $of_rows::<{ fetch::PREFETCH_ONCE }>(last - first, strip, to),
                                (_, 0) => $of_rows::<{ fetch::PREFETCH_IN_FIRST_BLOCK }>(last - first, strip, to),
                                _ => $of_rows::<{ fetch::PREFETCH_IN_LATER_BLOCKS }>(last - first, strip, to),
                            }
                        }
                    }
                }
            }

            /// Computes the sums of `rows` rows of A, 1 to 12, and 32 rows of B.
            ///
            /// # Safety
            /// The conditions of `$strip`.
            unsafe fn $of_rows<const FETCH: u8>(rows: usize, strip: Strip, to: SumRows) {
                // SAFETY: the conditions of this function.
                unsafe {
                    match rows {
                        1 => $strip::<1, FETCH>(strip, to),
                        2 => $strip::<2, FETCH>(strip, to),
                        3 => $strip::<3, FETCH>(strip, to),
                        4 => $strip::<4, FETCH>(strip, to),
                        5 => $strip::<5, FETCH>(strip, to),
                        6 => $strip::<6, FETCH>(strip, to),
                        7 => $strip::<7, FETCH>(strip, to),
                        8 => $strip::<8, FETCH>(strip, to),
                        9 => $strip::<9, FETCH>(strip, to),
                        10 => $strip::<10, FETCH>(strip, to),
                        11 => $strip::<11, FETCH>(strip, to),
                        _ => $strip::<12, FETCH>(strip, to),
                    }
                }
            }

            /// Computes the sums of M rows of A and 32 rows of B.
            ///
            /// # Safety
            /// The processor has the named features; the strip's lines and units exist; `to` has M rows of 32 sums.
            #[target_feature(enable = $features)]
            unsafe fn $strip<const M: usize, const FETCH: u8>(s: Strip, to: SumRows) {
                let mut sums = [[_mm512_setzero_ps(); 2]; M];
                if s.add {
                    for m in 0..M {
                        for j in 0..2 {
                            // SAFETY: `to` has M rows of 32 sums.
                            sums[m][j] = unsafe { _mm512_loadu_ps(to.sum_address(m, j * 16)) };
                        }
                    }
                }
                for p in 0..s.lines {
                    let at = s.b.wrapping_add(p * LANES);
                    // The address of a prefetch need not be mapped.
                    for line in [0, 16] {
                        let ahead = |words: usize| at.wrapping_add(words + line).cast();
                        match FETCH {
                            fetch::PREFETCH_ONCE => _mm_prefetch::<_MM_HINT_NTA>(ahead(AHEAD)),
                            fetch::PREFETCH_TWICE => {
                                _mm_prefetch::<_MM_HINT_T1>(ahead(FAR));
                                _mm_prefetch::<_MM_HINT_T0>(ahead(NEAR));
                            }
                            fetch::PREFETCH_IN_FIRST_BLOCK => _mm_prefetch::<_MM_HINT_T0>(ahead(AHEAD)),
                            _ => (),
                        }
                    }
                    if FETCH >= fetch::PREFETCH_IN_FIRST_BLOCK {
                        _mm_prefetch::<_MM_HINT_T1>(s.next.first.wrapping_add(p * s.next.step).cast());
                    }
                    // SAFETY: the strip has line `p` of B and the units of A that belong to it.
                    unsafe {
                        let b = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(16).cast())];
                        step!($kind, sums, s.a.words.add(p * $units * s.a.unit_words), s.a, b, true);
                    }
                }
                if s.half {
                    let at = s.b.wrapping_add(s.lines * LANES);
                    // SAFETY: the strip has this line of B, whose second unit does not exist.
                    unsafe {
                        let b = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(16).cast())];
                        step!($kind, sums, s.a.words.add(s.lines * $units * s.a.unit_words), s.a, b, false);
                    }
                }
                for m in 0..M {
                    for j in 0..2 {
                        // SAFETY: `to` has M rows of 32 sums.
                        unsafe { _mm512_storeu_ps(to.sum_address(m, j * 16), sums[m][j]) };
                    }
                }
            }
        };
    }
    thin!(thin_pairs, pairs_of_rows, strip_pairs, "avx512f,avx512bw,avx512bf16", pairs, elements: 2, units: 1);
    thin!(thin_widened, widened_of_rows, strip_widened, "avx512f,avx512bw", widened, elements: 2, units: 2);
    thin!(thin_elements, elements_of_rows, strip_elements, "avx512f,avx512bw", elements, elements: 1, units: 1);
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// The code for products with few rows of A and a bf16 B in groups of 32 rows, with f32 multiply-adds.
    pub(in super::super) static THIN_WIDENED: FewRowsProduct = FewRowsProduct { multiply: thin::<true>, ..THIN_F32 };
    /// The code for products with few rows of A and an f32 B in groups of 32 rows, with f32 multiply-adds.
    pub(in super::super) static THIN_F32: FewRowsProduct = FewRowsProduct {
        most: 4,
        passes: DEFAULT_PASSES,
        rows: GROUP_ROWS,
        least_rows: GROUP_ROWS,
        reads_rows_of_a: false,
        multiply: thin::<false>,
    };

    /// Packs a block of an operand in groups as `pack_with` describes, with prefetches.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `dst` has room for `[part.units][width]`.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
        // SAFETY: the conditions of this function.
        unsafe { pack_with(source, part, width, dst, |at| _mm_prefetch::<_MM_HINT_T0>(at.cast())) }
    }

    /// Multiplies up to 4 rows of A with one group of B. B is bf16 if WIDENED is true, otherwise f32.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `a` holds the units of `m` packed rows, 1 to 4; the group with row `row` of B is
    /// stored, and `row` begins it; `to` has `m` rows of 32 sums.
    unsafe fn thin<const WIDENED: bool>(m: usize, a: RowsOfMatrixA, b: &Source, row: usize, _: usize, to: SumRows) {
        let a = a.words;
        // SAFETY: the conditions of this function are those of `lanes`: together the calls have the 32 lanes.
        unsafe {
            match m {
                1 => lanes::<1, 4, WIDENED>(a, b, row, to, 0),
                2 => [0, 16].into_iter().for_each(|lane| lanes::<2, 2, WIDENED>(a, b, row, to, lane)),
                3 => [0, 16].into_iter().for_each(|lane| lanes::<3, 2, WIDENED>(a, b, row, to, lane)),
                _ => [0, 16].into_iter().for_each(|lane| lanes::<4, 2, WIDENED>(a, b, row, to, lane)),
            }
        }
    }

    /// Computes M rows of C for 8 V columns of a group (V vectors), from lane `lane` of the group on.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn lanes<const M: usize, const V: usize, const WIDENED: bool>(
        a: *const u32,
        b: &Source,
        row: usize,
        to: SumRows,
        lane: usize,
    ) {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut sums = [[_mm256_setzero_ps(); V]; M];
        let base = unit_address_in_group(b, row, 0).wrapping_add(lane);
        let (elements, twice) = (if WIDENED { 2 } else { 1 }, is_intel());
        for k in (0..b.k).step_by(elements) {
            let at = base.wrapping_add(k / elements * LANES);
            // The address of a prefetch need not be mapped.
            for line in (0..8 * V).step_by(16) {
                let ahead = |words: usize| at.wrapping_add(words + line).cast();
                if twice {
                    _mm_prefetch::<_MM_HINT_T1>(ahead(FAR));
                    _mm_prefetch::<_MM_HINT_T0>(ahead(NEAR));
                } else {
                    _mm_prefetch::<_MM_HINT_NTA>(ahead(AHEAD));
                }
            }
            let mut units = [[_mm256_setzero_si256(); 2]; V];
            for v in 0..V {
                // SAFETY: the group has the line of these lanes.
                let line = unsafe { _mm256_loadu_si256(at.add(8 * v).cast()) };
                units[v] =
                    if WIDENED { [_mm256_slli_epi32::<16>(line), _mm256_and_si256(line, high)] } else { [line; 2] };
            }
            for unit in 0..elements {
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
                // SAFETY: `to` has M rows of 32 sums.
                unsafe { _mm256_storeu_ps(to.sum_address(m, lane + 8 * v), sums[m][v]) };
            }
        }
    }
}
