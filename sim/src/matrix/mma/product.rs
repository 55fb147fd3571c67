//! The product of a warp's fragments, D = A·B + C, computed in f32 for formats of up to 32 bits.

use super::bits_and_f64;
use super::op::MmaOp;
use crate::matrix::Lanes;
use crate::matrix::format::{AccumulatorFormat, ElementFormat};
use crate::matrix::fragments::{load_accumulators, register_to_b_rows, register_values, store_accumulators};
use crate::matrix::simd::{LaneVector, VectorKernel, run_vector_kernel};

impl MmaOp {
    /// Computes D = A·B + C for a whole warp. The slice of each operand holds `registers_per_lane()` registers, each
    /// of which takes `lane_arrays_per_register()` elements.
    #[inline]
    pub fn multiply_add(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
        run_vector_kernel(ProductKernel { op: self, a, b, c, d });
    }
}

/// The arguments of [`MmaOp::multiply_add`], as a [`VectorKernel`].
struct ProductKernel<'a> {
    op: &'a MmaOp,
    a: &'a [&'a Lanes],
    b: &'a [&'a Lanes],
    c: &'a [&'a Lanes],
    d: &'a mut [Lanes],
}

impl VectorKernel for ProductKernel<'_> {
    #[inline(always)]
    fn run<V: LaneVector>(self, v: V) {
        let Self { op, a, b, c, d } = self;
        match (op.a, op.a.bits()) {
            (ElementFormat::F64, _) => bits_and_f64::f64_matrix_product(op, a, b, c, d),
            (ElementFormat::B1, _) => bits_and_f64::bit_matrix_product(op, a, b, c, d),
            (_, 4) => single::<V, 8>(v, op, a, b, c, d),
            (_, 8) => single::<V, 4>(v, op, a, b, c, d),
            (_, 16) => single::<V, 2>(v, op, a, b, c, d),
            _ => single::<V, 1>(v, op, a, b, c, d),
        }
    }
}

/// Maximum number of A's 32-bit registers per lane.
const MAX_A: usize = 4;

/// Computes the product in f32, with `E` elements per register. For integers of up to 8 bits this is exact: f32
/// represents every sum of up to 64 of their products.
#[inline(always)]
fn single<V: LaneVector, const E: usize>(v: V, op: &MmaOp, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    match (op.m, op.k as usize / E) {
        // The most frequent shapes get constant loop bounds.
        (16, 8) => shaped::<V, E>(v, op, (16, 8 * E), a, b, c, d),
        (m, _) => shaped::<V, E>(v, op, (m as usize, op.k as usize), a, b, c, d),
    }
}

#[inline(always)]
fn shaped<V: LaneVector, const E: usize>(
    v: V,
    op: &MmaOp,
    (m, k): (usize, usize),
    a: &[&Lanes],
    b: &[&Lanes],
    c: &[&Lanes],
    d: &mut [Lanes],
) {
    let mut rows = [[[0f32; 32]; E]; MAX_A];
    for (register, out) in a[..m * k / (32 * E)].iter().zip(&mut rows) {
        *out = register_values(v, op.a, register);
    }
    let mut columns = [[[[0f32; 4]; E]; 4 * MAX_A / 2]; 2];
    let [even, odd] = columns.each_mut().map(|columns| columns.as_flattened_mut());
    for (r, register) in b[..k / (4 * E)].iter().enumerate() {
        let range = 4 * E * r..4 * E * (r + 1);
        register_to_b_rows::<V, E>(v, op.b, register, [&mut even[range.clone()], &mut odd[range]]);
    }
    let columns = [&even[..k], &odd[..k]];
    match (V::QUADS, m) {
        (4, 16) => block::<V, E, 2, 2>(v, op, &rows, columns, c, d, (0, 2)),
        (4, _) => block::<V, E, 1, 2>(v, op, &rows, columns, c, d, (0, 1)),
        _ => (0..m / 8).for_each(
            #[inline(always)]
            |half| block::<V, E, 1, 4>(v, op, &rows, columns, c, d, (half, m / 8)),
        ),
    }
}

/// Computes `H` of the `halves` groups of eight rows of D, from group `first` on. A register's 32 lanes take `N` CPU
/// vectors.
#[inline(always)]
fn block<V: LaneVector, const E: usize, const H: usize, const N: usize>(
    v: V,
    op: &MmaOp,
    a: &[[[f32; 32]; E]],
    b: [&[[f32; 4]]; 2],
    c: &[&Lanes],
    d: &mut [Lanes],
    (first, halves): (usize, usize),
) {
    let mut sums = [[[v.repeat(&[0.0; 4]); N]; 2]; H];
    for (half, sums) in sums.iter_mut().enumerate() {
        let before = load_accumulators(
            op.accumulator,
            #[inline(always)]
            |register| c[register],
            0,
            first + half,
        );
        for (sums, before) in sums.iter_mut().zip(&before) {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = v.load(before, n);
            }
        }
    }
    let sums = summed::<V, E, H, N>(v, &a[first..], halves, b, sums);
    for (half, sums) in sums.iter().enumerate() {
        let mut values = [[0f32; 32]; 2];
        for (sums, values) in sums.iter().zip(&mut values) {
            for (n, sum) in sums.iter().enumerate() {
                v.store(*sum, values, n);
            }
        }
        let half = first + half;
        let before = match op.accumulator {
            AccumulatorFormat::S32 => [*c[2 * half], *c[2 * half + 1]],
            _ => [[0; 32]; 2],
        };
        store_accumulators(
            op.accumulator,
            op.saturate,
            #[inline(always)]
            |register, lanes| d[register] = lanes,
            (0, half),
            &values,
            &before,
        );
    }
}

/// Adds the products for all k to `sums`; `a` holds `halves` registers per step along k. Takes `sums` by value so
/// that they stay in CPU registers.
#[inline(always)]
fn summed<V: LaneVector, const E: usize, const H: usize, const N: usize>(
    v: V,
    a: &[[[f32; 32]; E]],
    halves: usize,
    [even, odd]: [&[[f32; 4]]; 2],
    mut sums: [[[V::F; N]; 2]; H],
) -> [[[V::F; N]; 2]; H] {
    for (step, b) in even.chunks_exact(4 * E).zip(odd.chunks_exact(4 * E)).enumerate() {
        let a = &a[step * halves..][..H];
        column_step::<V, E, H, N, 0>(v, a, b, &mut sums);
        column_step::<V, E, H, N, 1>(v, a, b, &mut sums);
        column_step::<V, E, H, N, 2>(v, a, b, &mut sums);
        column_step::<V, E, H, N, 3>(v, a, b, &mut sums);
    }
    sums
}

/// Adds the products with those columns of A that lane `T` of each group of four lanes holds.
#[inline(always)]
fn column_step<V: LaneVector, const E: usize, const H: usize, const N: usize, const T: usize>(
    v: V,
    a: &[[[f32; 32]; E]],
    (even, odd): (&[[f32; 4]], &[[f32; 4]]),
    sums: &mut [[[V::F; N]; 2]; H],
) {
    for j in 0..E {
        let (even, odd) = (v.repeat(&even[T * E + j]), v.repeat(&odd[T * E + j]));
        for ([evens, odds], a) in sums.iter_mut().zip(a) {
            for (n, (evens, odds)) in evens.iter_mut().zip(odds).enumerate() {
                let a = v.spread::<T>(v.load(&a[j], n));
                *evens = v.multiply_add(a, even, *evens);
                *odds = v.multiply_add(a, odd, *odds);
            }
        }
    }
}
