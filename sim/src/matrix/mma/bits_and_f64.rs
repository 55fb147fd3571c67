//! Matrix products of f64 and of single bits, row by row.

use super::op::{BitOp, MmaOp};
use crate::matrix::Lanes;

/// Maximum number of A's registers per lane.
const MAX_A: usize = 4;

/// Computes D = popc(A op B) + C for single-bit elements, where op is and or xor. Each 32-bit register is treated as
/// one element.
#[inline(always)]
pub(super) fn bit_matrix_product(op: &MmaOp, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    let (m, words) = (op.m as usize, op.k as usize / 32);
    let mut columns = [[0u32; 8]; 8];
    for (r, register) in b[..words / 4].iter().enumerate() {
        for t in 0..4 {
            columns[4 * r + t] = quad_thread(register, t);
        }
    }
    let mut sums = [[0u32; 8]; 16];
    for (row, sums) in sums[..m].iter_mut().enumerate() {
        let register = 2 * (row / 8);
        *sums = bytemuck::cast([quad(c[register], row), quad(c[register + 1], row)]);
    }
    let mut rows = [[0u32; 32]; MAX_A];
    rows.iter_mut().zip(a).for_each(|(row, a)| *row = **a);
    let rows = &rows[..m * words / 32];
    match op.bit_op {
        Some(BitOp::Xor) => product(rows, &columns[..words], &mut sums[..m], |a, b, sum| count(a ^ b, sum)),
        _ => product(rows, &columns[..words], &mut sums[..m], |a, b, sum| count(a & b, sum)),
    }
    for (row, sums) in sums[..m].iter().enumerate() {
        let [even, odd]: [[u32; 4]; 2] = bytemuck::cast(*sums);
        let register = 2 * (row / 8);
        *quad_mut(&mut d[register], row) = even;
        *quad_mut(&mut d[register + 1], row) = odd;
    }
}

#[inline(always)]
fn count(bits: u32, sum: u32) -> u32 {
    sum.wrapping_add(bits.count_ones())
}

#[inline(always)]
pub(super) fn f64_matrix_product(op: &MmaOp, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    let (m, k) = (op.m as usize, op.k as usize);
    let mut unpacked = [[0f64; 32]; 8];
    for (r, out) in unpacked[..m * k / 32].iter_mut().enumerate() {
        *out = wide(&a[2 * r..2 * r + 2]);
    }
    let mut columns = [[0f64; 8]; 16];
    for r in 0..k / 4 {
        let lanes = wide(&b[2 * r..2 * r + 2]);
        for t in 0..4 {
            for (slot, value) in columns[4 * r + t].iter_mut().enumerate() {
                *value = lanes[4 * column(slot) + t];
            }
        }
    }
    let mut sums = [[0f64; 8]; 16];
    for register in 0..m / 4 {
        let lanes = wide(&c[2 * register..2 * register + 2]);
        for g in 0..8 {
            let half = 4 * (register % 2);
            sums[8 * (register / 2) + g][half..half + 4].copy_from_slice(&lanes[4 * g..4 * g + 4]);
        }
    }
    product(&unpacked, &columns[..k], &mut sums[..m], fused_f64);
    for (row, sums) in sums[..m].iter().enumerate() {
        for (slot, sum) in sums.iter().enumerate() {
            let register = 2 * (row / 8) + slot / 4;
            let words = d[2 * register..2 * register + 2].as_flattened_mut();
            let lane = 4 * (row % 8) + slot % 4;
            words[2 * lane] = sum.to_bits() as u32;
            words[2 * lane + 1] = (sum.to_bits() >> 32) as u32;
        }
    }
}

#[inline(always)]
fn fused_f64(a: f64, b: f64, sum: f64) -> f64 {
    a.mul_add(b, sum)
}

/// Returns the 32 lanes of a 64-bit register.
#[inline(always)]
fn wide(rows: &[&Lanes]) -> [f64; 32] {
    let mut out = [0.0; 32];
    for (values, row) in out.chunks_exact_mut(16).zip(rows) {
        for (value, words) in values.iter_mut().zip(row.chunks_exact(2)) {
            *value = f64::from_bits(words[0] as u64 | (words[1] as u64) << 32);
        }
    }
    out
}

// Rows of B and D are stored with the even columns first: slot s holds column 2(s % 4) + s / 4. The first four slots
// then belong to one register of D, the last four to the next one.

/// Returns the column that a slot of a row of B or D holds.
#[inline(always)]
fn column(slot: usize) -> usize {
    2 * (slot % 4) + slot / 4
}

/// Returns row `t` of B, ordered by slots (see [`column`]): its values are in lane `t` of each group of four lanes.
#[inline(always)]
fn quad_thread(register: &Lanes, t: usize) -> [u32; 8] {
    let mut out = [0; 8];
    for (slot, word) in out.iter_mut().enumerate() {
        *word = register[4 * column(slot) + t];
    }
    out
}

/// Returns the values of the four lanes that hold row `row % 8` of an accumulator.
#[inline(always)]
fn quad(register: &Lanes, row: usize) -> [u32; 4] {
    let quads: &[[u32; 4]; 8] = bytemuck::cast_ref(register);
    quads[row % 8]
}

/// Returns the four lanes that hold row `row % 8` of an accumulator, for writing.
#[inline(always)]
fn quad_mut(register: &mut Lanes, row: usize) -> &mut [u32; 4] {
    let quads: &mut [[u32; 4]; 8] = bytemuck::cast_mut(register);
    &mut quads[row % 8]
}

/// Adds the products of A and B to `sums`, the rows of D, in ascending k. `a[r][lane]` is register r of A, `b[k]` is
/// row k of B; `step(a, b, sum)` is one multiply-add.
#[inline(always)]
fn product<T: Copy>(a: &[[T; 32]], b: &[[T; 8]], sums: &mut [[T; 8]], step: impl Fn(T, T, T) -> T) {
    let halves = sums.len() / 8;
    for (half, sums) in sums.chunks_exact_mut(8).enumerate() {
        for (k, b) in b.iter().enumerate() {
            let a = &a[k / 4 * halves + half];
            for (g, row) in sums.iter_mut().enumerate() {
                let a = a[4 * g + k % 4];
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum = step(a, *b, *sum);
                }
            }
        }
    }
}
