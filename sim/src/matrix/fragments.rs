//! Conversion between the registers of a warp's matrix fragments and f32 values. `mma` and `wgmma` share this layout.

use super::Lanes;
use super::format::{AccumulatorFormat, ElementFormat, f32_to_f16_bits, unpack_to_f32};
use super::simd::LaneVector;

/// Converts the `E` elements in each lane of a register to f32.
#[inline(always)]
pub(super) fn register_values<V: LaneVector, const E: usize>(
    v: V,
    element: ElementFormat,
    register: &Lanes,
) -> [[f32; 32]; E] {
    let mut values = [[0f32; 32]; E];
    if E == 2 && element == ElementFormat::Bf16 {
        [values[0], values[E - 1]] = v.bf16(register);
    } else {
        unpack_to_f32(element, register, &mut values);
    }
    values
}

/// `K` columns of A as f32: for each column, the values of rows 0 to 7 and then those of rows 8 to 15. Each value
/// occurs four times: once for each lane that holds the same row of D.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct ExpandedColumnsOfA<const K: usize>(pub(super) [[[f32; 32]; 2]; K]);

impl<const K: usize> ExpandedColumnsOfA<K> {
    pub(super) const ZERO: Self = Self([[[0.0; 32]; 2]; K]);
}

/// Fills the columns from A's registers, which hold `E` elements per lane. Register r holds eight rows, from row 8(r
/// & 1) on, and 4E columns, from column 4E(r >> 1) on.
#[inline(always)]
pub(super) fn expand_a_columns<V: LaneVector, const E: usize, const K: usize>(
    v: V,
    element: ElementFormat,
    registers: [&Lanes; 4],
    negate: bool,
    out: &mut ExpandedColumnsOfA<K>,
) {
    for (r, register) in registers.into_iter().enumerate() {
        let mut values: [[f32; 32]; E] = register_values(v, element, register);
        for (j, values) in values.iter_mut().enumerate() {
            if negate {
                *values = values.map(|value| -value);
            }
            let first = 4 * E * (r >> 1) + j;
            for n in 0..8 / V::QUADS {
                let all = v.load(values, n);
                v.store(v.spread::<0>(all), &mut out.0[first][r & 1], n);
                v.store(v.spread::<1>(all), &mut out.0[first + E][r & 1], n);
                v.store(v.spread::<2>(all), &mut out.0[first + 2 * E][r & 1], n);
                v.store(v.spread::<3>(all), &mut out.0[first + 3 * E][r & 1], n);
            }
        }
    }
}

/// Converts one register of B to f32 rows of B, split into the even and the odd columns.
#[inline(always)]
pub(super) fn register_to_b_rows<V: LaneVector, const E: usize>(
    v: V,
    element: ElementFormat,
    register: &Lanes,
    [even, odd]: [&mut [[f32; 4]]; 2],
) {
    if E == 2 {
        let values: [[f32; 32]; E] = register_values(v, element, &v.transposed(register));
        even[..8].as_flattened_mut().copy_from_slice(&values[0]);
        odd[..8].as_flattened_mut().copy_from_slice(&values[E - 1]);
        return;
    }
    let values: [[f32; 32]; E] = register_values(v, element, register);
    for t in 0..4 {
        for (j, values) in values.iter().enumerate() {
            let at = t * E + j;
            even[at] = [values[t], values[8 + t], values[16 + t], values[24 + t]];
            odd[at] = [values[4 + t], values[12 + t], values[20 + t], values[28 + t]];
        }
    }
}

/// Converts eight rows and eight columns of an accumulator to f32; `half` and `group` are the numbers of these rows and
/// columns, counted in eights. Returns the even and the odd columns. Returns zeros for integer accumulators, which f32
/// may not hold exactly: [`store_accumulators`] adds the integers to the sum of the products.
#[inline(always)]
pub(super) fn load_accumulators<'a>(
    accumulator: AccumulatorFormat,
    register: impl Fn(usize) -> &'a Lanes,
    group: usize,
    half: usize,
) -> [[f32; 32]; 2] {
    let mut values = [[0f32; 32]; 2];
    match accumulator {
        AccumulatorFormat::F16 => unpack_to_f32(ElementFormat::F16, register(2 * group + half), &mut values),
        AccumulatorFormat::F32 => {
            let first = 4 * group + 2 * half;
            values = [bytemuck::cast(*register(first)), bytemuck::cast(*register(first + 1))];
        }
        AccumulatorFormat::S32 | AccumulatorFormat::F64 => (),
    }
    values
}

/// The inverse of [`load_accumulators`]: calls `put` with the index and the new value of each register of D. For
/// integers, adds `before`, the registers' old values.
#[inline(always)]
pub(super) fn store_accumulators(
    accumulator: AccumulatorFormat,
    saturate: bool,
    mut put: impl FnMut(usize, Lanes),
    (group, half): (usize, usize),
    sums: &[[f32; 32]; 2],
    before: &[Lanes; 2],
) {
    let first = 4 * group + 2 * half;
    match accumulator {
        AccumulatorFormat::F16 => {
            let ([even, odd], mut out) = (sums, [0; 32]);
            for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
                *out = f32_to_f16_bits(*even) | f32_to_f16_bits(*odd) << 16;
            }
            put(2 * group + half, out);
        }
        AccumulatorFormat::S32 => {
            for (register, (sums, before)) in sums.iter().zip(before).enumerate() {
                let mut out = [0; 32];
                for ((out, sum), c) in out.iter_mut().zip(sums).zip(before) {
                    // The sum is below 2^22 in magnitude, so adding 1.5 · 2^23 moves the integer to the low bits.
                    let sum = (sum + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
                    let c = *c as i32;
                    *out = if saturate { c.saturating_add(sum) } else { c.wrapping_add(sum) } as u32;
                }
                put(first + register, out);
            }
        }
        AccumulatorFormat::F32 | AccumulatorFormat::F64 => {
            let [even, odd] = sums;
            put(first, bytemuck::cast(*even));
            put(first + 1, bytemuck::cast(*odd));
        }
    }
}
