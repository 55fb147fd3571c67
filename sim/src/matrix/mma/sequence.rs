//! Consecutive `mma.sync` products. A fragment of A or B that several products share is converted to f32 only once.

use super::op::MmaOp;
use crate::matrix::Lanes;
use crate::matrix::format::{AccumulatorFormat, ElementFormat};
use crate::matrix::fragments::{ExpandedColumnsOfA, expand_a_columns, register_to_b_rows};
use crate::matrix::simd::{LaneVector, VectorKernel, run_vector_kernel};

/// The register indices of one product D = A·B + C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmaRegisters {
    /// Registers of A.
    pub a: [u32; 4],
    /// Registers of B.
    pub b: [u32; 2],
    /// Registers of C.
    pub c: [u32; 4],
    /// Registers of D.
    pub d: [u32; 4],
}

impl MmaRegisters {
    /// Returns the registers of an instruction; `None` if an operand has another number of registers than in the form
    /// that [`MmaOp::is_m16n8k16_f16_or_bf16`] describes.
    #[inline(always)]
    pub fn new(a: &[u32], b: &[u32], c: &[u32], d: &[u32]) -> Option<MmaRegisters> {
        Some(MmaRegisters {
            a: a.try_into().ok()?,
            b: b.try_into().ok()?,
            c: c.try_into().ok()?,
            d: d.try_into().ok()?,
        })
    }
}

impl MmaRegisters {
    /// Returns true if the product reads one of these registers.
    #[inline(always)]
    fn reads(&self, registers: &[u32; 4]) -> bool {
        let any = |all: &[u32], of: u32| all.iter().fold(false, |any, register| any | (*register == of));
        registers.iter().fold(false, |all, &of| all | any(&self.a, of) | any(&self.b, of) | any(&self.c, of))
    }
}

impl MmaOp {
    /// Returns true for the form that most kernels use and that [`FragmentCache::multiply_add_sequence`] supports:
    /// m16n8k16 of bf16 or f16 with f32 accumulators.
    #[inline(always)]
    pub fn is_m16n8k16_f16_or_bf16(&self) -> bool {
        let half = matches!(self.a, ElementFormat::Bf16 | ElementFormat::F16);
        half && (self.m, self.k, self.accumulator) == (16, 16, AccumulatorFormat::F32)
    }
}

/// The number of columns of A and of rows of B.
const K: usize = 16;

/// `CACHED_A` and `CACHED_B` are the numbers of cached fragments of A and of B. A warp often computes 4 × 4 or 4 × 8
/// products.
const CACHED_A: usize = 4;
const CACHED_B: usize = 8;

/// The register index that marks an unused cache element.
const NONE: u32 = u32::MAX;

/// Every NaN result is replaced by this NaN.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// The rows of B as f32: the even columns of all rows, then the odd columns.
type Rows = [[[f32; 4]; K]; 2];

/// A cache of fragments that were converted to f32. Reuse it for the next sequence of products to save the
/// allocation.
#[derive(Clone, Debug)]
pub struct FragmentCache {
    a: Box<[ExpandedColumnsOfA<K>; CACHED_A]>,
    b: Box<[Rows; CACHED_B]>,
    /// For each cached fragment, the registers that it was converted from.
    of_a: [[u32; 4]; CACHED_A],
    of_b: [[u32; 2]; CACHED_B],
    /// `next_a` and `next_b` are the indices of the cached fragments of A and of B that the next conversion
    /// overwrites.
    next_a: usize,
    next_b: usize,
}

impl Default for FragmentCache {
    fn default() -> Self {
        Self {
            a: Box::new([ExpandedColumnsOfA::ZERO; CACHED_A]),
            b: Box::new([[[[0.0; 4]; K]; 2]; CACHED_B]),
            of_a: [[NONE; 4]; CACHED_A],
            of_b: [[NONE; 2]; CACHED_B],
            next_a: 0,
            next_b: 0,
        }
    }
}

impl FragmentCache {
    /// Computes D = A·B + C for one product after the other. All have the form `op`, which [must be
    /// supported](MmaOp::is_m16n8k16_f16_or_bf16). The resulting bits equal those of [`MmaOp::multiply_add`], except that
    /// every NaN is 0x7fffffff.
    pub fn multiply_add_sequence<'p>(
        &mut self,
        op: &MmaOp,
        registers: &mut [Lanes],
        products: impl Iterator<Item = &'p MmaRegisters>,
    ) {
        self.forget();
        run_vector_kernel(SequenceKernel { fragments: self, op, registers, products });
    }

    fn forget(&mut self) {
        (self.of_a, self.of_b) = ([[NONE; 4]; CACHED_A], [[NONE; 2]; CACHED_B]);
    }

    /// Returns true if a cached fragment was converted from one of these registers.
    #[inline(always)]
    fn is_of(&self, registers: &[u32; 4]) -> bool {
        let (a, b) = (self.of_a.as_flattened(), self.of_b.as_flattened());
        // No early exit: comparing all registers with vector instructions is faster.
        registers.iter().fold(false, |any, register| {
            let in_a = a.iter().fold(false, |any, of| any | (of == register));
            b.iter().fold(any | in_a, |any, of| any | (of == register))
        })
    }

    /// Returns the cache index of a fragment of A; converts it if it is not cached.
    #[inline(always)]
    fn find_a<V: LaneVector>(&mut self, v: V, op: &MmaOp, registers: &[Lanes], a: [u32; 4]) -> usize {
        if let Some(at) = self.of_a.iter().position(|of| *of == a) {
            return at;
        }
        let at = self.next_a;
        self.next_a = (at + 1) % CACHED_A;
        self.of_a[at] = a;
        expand_a_columns::<V, 2, K>(v, op.a, a.map(|register| &registers[register as usize]), false, &mut self.a[at]);
        at
    }

    /// Returns the cache index of a fragment of B; converts it if it is not cached.
    #[inline(always)]
    fn find_b<V: LaneVector>(&mut self, v: V, op: &MmaOp, registers: &[Lanes], b: [u32; 2]) -> usize {
        if let Some(at) = self.of_b.iter().position(|of| *of == b) {
            return at;
        }
        let at = self.next_b;
        self.next_b = (at + 1) % CACHED_B;
        self.of_b[at] = b;
        let [even, odd] = &mut self.b[at];
        for (r, register) in b.iter().enumerate() {
            let range = 8 * r..8 * (r + 1);
            let halves = [&mut even[range.clone()], &mut odd[range]];
            register_to_b_rows::<V, 2>(v, op.b, &registers[*register as usize], halves);
        }
        at
    }
}

/// The arguments of [`FragmentCache::multiply_add_sequence`], as a [`VectorKernel`].
struct SequenceKernel<'a, I> {
    fragments: &'a mut FragmentCache,
    op: &'a MmaOp,
    registers: &'a mut [Lanes],
    products: I,
}

impl<'p, I: Iterator<Item = &'p MmaRegisters>> VectorKernel for SequenceKernel<'_, I> {
    #[inline(always)]
    fn run<V: LaneVector>(self, v: V) {
        let Self { fragments, op, registers, mut products } = self;
        let mut following = products.next();
        while let Some(product) = following {
            following = products.next();
            let a = fragments.find_a(v, op, registers, product.a);
            let b = fragments.find_b(v, op, registers, product.b);
            if V::QUADS != 4 {
                let (a, b) = (&fragments.a[a], &fragments.b[b]);
                // Read all of C before writing D, because D may overlap C.
                let [upper] = sums::<V, 1, 1, 4>(v, a, [b], registers, [&product.c], 0);
                let [lower] = sums::<V, 1, 1, 4>(v, a, [b], registers, [&product.c], 1);
                store(v, &upper, registers, &product.d, 0);
                store(v, &lower, registers, &product.d, 1);
            } else if let Some(next) = following
                && next.a == product.a
                && !next.reads(&product.d)
            {
                following = products.next();
                // Compute two products with the same A together, which loads A's columns only once.
                let other = fragments.find_b(v, op, registers, next.b);
                // Caching the second fragment may have replaced the first one, so look up the first one again.
                let b = fragments.find_b(v, op, registers, product.b);
                let (a, b) = (&fragments.a[a], [&fragments.b[b], &fragments.b[other]]);
                let [first, second] = sums::<V, 2, 2, 2>(v, a, b, registers, [&product.c, &next.c], 0);
                store(v, &first, registers, &product.d, 0);
                store(v, &second, registers, &next.d, 0);
                if fragments.is_of(&next.d) {
                    fragments.forget();
                }
            } else {
                let (a, b) = (&fragments.a[a], &fragments.b[b]);
                let [only] = sums::<V, 1, 2, 2>(v, a, [b], registers, [&product.c], 0);
                store(v, &only, registers, &product.d, 0);
            }
            if fragments.is_of(&product.d) {
                fragments.forget();
            }
        }
    }
}

/// Sums for `H` groups of eight rows of D: the even and the odd columns, in `N` CPU vectors each.
type Sums<F, const H: usize, const N: usize> = [[[F; N]; 2]; H];

/// Computes A·B + C for `G` products with the same A.
#[inline(always)]
fn sums<V: LaneVector, const G: usize, const H: usize, const N: usize>(
    v: V,
    a: &ExpandedColumnsOfA<K>,
    b: [&Rows; G],
    registers: &[Lanes],
    c: [&[u32; 4]; G],
    first: usize,
) -> [Sums<V::F, H, N>; G] {
    let mut sums = [[[[v.repeat(&[0.0; 4]); N]; 2]; H]; G];
    for (sums, c) in sums.iter_mut().zip(c) {
        for (half, sums) in sums.iter_mut().enumerate() {
            for (odd, sums) in sums.iter_mut().enumerate() {
                let c = bytemuck::cast_ref(&registers[c[2 * (first + half) + odd] as usize]);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = v.load(c, n);
                }
            }
        }
    }
    summed::<V, G, H, N>(v, a, b, first, sums)
}

#[inline(always)]
fn store<V: LaneVector, const H: usize, const N: usize>(
    v: V,
    sums: &Sums<V::F, H, N>,
    registers: &mut [Lanes],
    d: &[u32; 4],
    first: usize,
) {
    for (half, sums) in sums.iter().enumerate() {
        for (odd, sums) in sums.iter().enumerate() {
            let d: &mut [f32; 32] = bytemuck::cast_mut(&mut registers[d[2 * (first + half) + odd] as usize]);
            for (n, sum) in sums.iter().enumerate() {
                v.store(*sum, d, n);
            }
            // If several operands are NaN, the compiled code determines which NaN a multiply-add returns, and there
            // are several code paths. Return the same NaN always.
            for value in d.iter_mut() {
                *value = if value.is_nan() { NAN } else { *value };
            }
        }
    }
}

/// Adds the products for all k to `sums`. Takes `sums` by value so that they stay in CPU registers.
#[inline(always)]
fn summed<V: LaneVector, const G: usize, const H: usize, const N: usize>(
    v: V,
    a: &ExpandedColumnsOfA<K>,
    b: [&Rows; G],
    first: usize,
    mut sums: [Sums<V::F, H, N>; G],
) -> [Sums<V::F, H, N>; G] {
    for k in 0..K {
        let a: &[[f32; 32]; H] = a.0[k][first..first + H].try_into().expect("the halves");
        for (sums, b) in sums.iter_mut().zip(b) {
            let (even, odd) = (v.repeat(&b[0][k]), v.repeat(&b[1][k]));
            for ([evens, odds], a) in sums.iter_mut().zip(a) {
                for (n, (evens, odds)) in evens.iter_mut().zip(odds).enumerate() {
                    let a = v.load(a, n);
                    *evens = v.multiply_add(a, even, *evens);
                    *odds = v.multiply_add(a, odd, *odds);
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGISTERS: u32 = 40;

    fn product() -> impl Strategy<Value = MmaRegisters> {
        let register = || 0..REGISTERS;
        let four = move || [register(), register(), register(), register()];
        (four(), [register(), register()], four(), four()).prop_map(|(a, b, c, d)| MmaRegisters { a, b, c, d })
    }

    /// Generates products of few distinct fragments of A and B, so that they repeat, with arbitrary registers for C
    /// and D.
    fn products() -> impl Strategy<Value = Vec<MmaRegisters>> {
        (prop::collection::vec(product(), 1..4), prop::collection::vec((0usize..4, 0usize..4, product()), 1..24))
            .prop_map(|(few, all)| {
                let of = |which: usize| few[which % few.len()];
                all.into_iter().map(|(a, b, p)| MmaRegisters { a: of(a / 3).a, b: of(b).b, ..p }).collect()
            })
    }

    proptest! {
        /// Some generated products overwrite registers from which the same product or later products read.
        #[test]
        fn sequence_equals_single_products(
            products in products(),
            bf16 in any::<bool>(),
            words in prop::collection::vec(any::<u32>(), 32 * REGISTERS as usize),
        ) {
            let element = if bf16 { "bf16" } else { "f16" };
            let op = MmaOp::decode(&format!("mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32")).expect("a form");
            prop_assert!(op.is_m16n8k16_f16_or_bf16());
            // Gives the elements exponents near the exponent of 1.0, so that sums need rounding and rarely overflow.
            let tame = |word: u32| if bf16 { word & 0xc0ff_c0ff | 0x3f00_3f00 } else { word & 0xafff_afff | 0x3000_3000 };
            let mut registers: Vec<Lanes> =
                words.chunks_exact(32).map(|row| std::array::from_fn(|lane| tame(row[lane]))).collect();
            let mut wanted = registers.clone();
            FragmentCache::default().multiply_add_sequence(&op, &mut registers, products.iter());
            for p in &products {
                let row = |r: &u32| wanted[*r as usize];
                let (a, b, c) = (p.a.each_ref().map(row), p.b.each_ref().map(row), p.c.each_ref().map(row));
                let mut d = [[0; 32]; 4];
                op.multiply_add(&a.each_ref(), &b.each_ref(), &c.each_ref(), &mut d);
                let one_nan = |bits: u32| if f32::from_bits(bits).is_nan() { NAN.to_bits() } else { bits };
                p.d.iter().zip(d).for_each(|(&r, d)| wanted[r as usize] = d.map(one_nan));
            }
            prop_assert_eq!(registers, wanted);
        }
    }
}
