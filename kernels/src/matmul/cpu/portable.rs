//! Matrix products as plain loops over arrays, which the compiler vectorises for the target.

use super::{Code, Part, PrefetchCursor, Source, Sums, TileFn, Unit, groups, int8};

/// f32 arithmetic with tiles of 6 × 8 results: 12 accumulators of 4 lanes.
pub(super) static PLAIN: Code = Code {
    mr: 6,
    nr: 8,
    tiles: &{
        let tiles: [TileFn; 6] = [plain::<1>, plain::<2>, plain::<3>, plain::<4>, plain::<5>, plain::<6>];
        tiles
    },
    direct: None,
    pack,
    pack_int8: int8::pack_plain,
    pack_groups: groups::pack_plain,
    thin: None,
    thin_int8: None,
    thin_groups: None,
    thin_f32_groups: None,
};

unsafe fn plain<const MR: usize>(units: usize, a: *const u32, b: *const u32, to: Sums, ahead: &mut PrefetchCursor) {
    // SAFETY: `a` holds `[units][MR]` floats, `b` `[units][8]`; `to` has MR rows of 8.
    unsafe { multiply_tile::<MR, 8, { cfg!(target_arch = "aarch64") }>(units, a, b, to, ahead) }
}

/// # Safety
/// `a` holds `[units][MR]` floats, `b` `[units][NR]`; `to` has MR rows of NR sums.
#[inline(always)]
pub(super) unsafe fn multiply_tile<const MR: usize, const NR: usize, const FMA: bool>(
    units: usize,
    a: *const u32,
    b: *const u32,
    to: Sums,
    ahead: &mut PrefetchCursor,
) {
    // SAFETY: the arrays have the documented sizes, and `to` does not overlap `a` or `b`.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<[f32; MR]>(), units),
            std::slice::from_raw_parts(b.cast::<[f32; NR]>(), units),
        )
    };
    let row_of_sums = |i: usize| to.at.wrapping_add(i * to.stride).cast::<[f32; NR]>();
    let mut sums = [[0.0; NR]; MR];
    if to.continued {
        for i in 0..MR {
            // SAFETY: row `i` of `to` has NR sums.
            sums[i] = unsafe { row_of_sums(i).read() };
        }
    }
    for (u, (a, b)) in a.iter().zip(b).enumerate() {
        if u % 4 == 0 {
            ahead.prefetch_line();
        }
        for i in 0..MR {
            for j in 0..NR {
                // Without the FMA instruction, `mul_add` would call a slow library function.
                sums[i][j] = if FMA { a[i].mul_add(b[j], sums[i][j]) } else { a[i] * b[j] + sums[i][j] };
            }
        }
    }
    for i in 0..MR {
        // SAFETY: row `i` of `to` has NR sums.
        unsafe { row_of_sums(i).write(sums[i]) };
    }
}

/// Packs a block of an operand, each element as one f32.
///
/// # Safety
/// The part lies inside the source, and `dst` has room for `[part.units][width]`.
pub(super) unsafe fn pack(source: &Source, part: Part, width: usize, dst: *mut u32) {
    // SAFETY: `dst` has room for `[part.units][width]`.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst, part.units * width) };
    let (row_stride, unit_stride) = if source.transposed { (1, source.rows) } else { (source.k, 1) };
    for (i, units) in dst.chunks_mut(width * 16).enumerate() {
        for lane in 0..width {
            for (u, unit) in units.chunks_exact_mut(width).enumerate() {
                let at = (part.row + lane) * row_stride + (part.unit + i * 16 + u) * unit_stride;
                unit[lane] = if lane >= part.rows {
                    0
                } else if source.unit == Unit::F32 {
                    // SAFETY: the element lies inside the source. It may be unaligned, because weight files do not
                    // align tensors.
                    unsafe { source.base.cast::<u32>().add(at).read_unaligned() }
                } else {
                    // SAFETY: the element lies inside the source, and it may be unaligned.
                    unsafe { (source.base.cast::<u16>().add(at).read_unaligned() as u32) << 16 }
                };
            }
        }
    }
}
