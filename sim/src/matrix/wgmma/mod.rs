//! `wgmma.mma_async`: decoding, fragments, and the product of a warpgroup.
//!
//! D is 64×N over four warps. Warp w has rows 16w to 16w + 15, each eight columns in the layout of `mma`'s D of
//! m16n8: register 4j + i (j counts groups of eight columns) of lane (g, t) is row `16w + g + 8(i >> 1)`, column `8j
//! + 2t + (i & 1)`. With f16, which has two values per register, value i is in register 2j + i / 2. A in registers
//! has the layout of `mma`'s A of m16 with 32 bytes of k.
//!
//! The PTX ISA does not specify the order and rounding of the hardware's sums. Here products are exact, sums are
//! formed in ascending k with one rounding to f32 per step, f16 accumulators are rounded once per instruction, and
//! integers are exact. Source: PTX ISA, "Asynchronous warpgroup level matrix instructions", register fragments.

mod cache;
mod descriptor;
#[cfg(test)]
mod tests;

pub use cache::{Addend, ProductCache, SumId};
pub use descriptor::{Descriptor, DescriptorError, SharedOperand};

use super::Lanes;
pub use super::format::{AccumulatorFormat, ElementFormat};
use super::fragments::{
    ExpandedColumnsOfA, expand_a_columns, load_accumulators, register_to_b_rows, store_accumulators,
};
use super::simd::{LaneVector, VectorKernel, run_vector_kernel};

/// The number of rows of A and D.
pub const D_ROWS: usize = 64;

/// Maximum number of columns of B and D.
const MAX_N: usize = 256;

/// Maximum k of one instruction.
const MAX_K: usize = 32;

/// A decoded dense `wgmma.mma_async` form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WgmmaOp {
    /// Number of columns of B and D.
    pub n: u16,
    /// Format of A's elements.
    pub a: ElementFormat,
    /// Format of B's elements.
    pub b: ElementFormat,
    /// Format of D.
    pub accumulator: AccumulatorFormat,
    /// `.satfinite`: s32 sums clamp instead of wrapping.
    pub saturate: bool,
    /// True if A comes from registers, not from shared memory.
    pub a_in_registers: bool,
    /// True if exactly one of the scale immediates is −1: D = D − A·B.
    pub negate: bool,
    /// `imm-trans-a`: A in shared memory is M-major.
    pub transpose_a: bool,
    /// `imm-trans-b`: B in shared memory is N-major.
    pub transpose_b: bool,
}

impl WgmmaOp {
    /// Parses `wgmma.mma_async.sync.aligned.SHAPE{.satfinite}.D.A.B` and the immediates after scale-d: first the
    /// scales of A and B (not for integers), then for 16-bit elements the transpositions of A (unless in registers)
    /// and of B. Returns `None` for sparse forms, for `.b1`, and for immediates that the form does not have.
    pub fn decode(opcode: &str, a_in_registers: bool, immediates: &[i64]) -> Option<Self> {
        let op = Self::parse(opcode)?;
        let (scales, transposes) = immediates.split_at_checked(if op.a.is_integer() { 0 } else { 2 })?;
        let (transpose_a, transpose_b) = match (op.a.bits() == 16, a_in_registers, transposes) {
            (false, _, []) => (0, 0),
            (true, true, [b]) => (0, *b),
            (true, false, [a, b]) => (*a, *b),
            _ => return None,
        };
        let good =
            scales.iter().all(|scale| matches!(scale, -1 | 1)) && transposes.iter().all(|bit| matches!(bit, 0 | 1));
        good.then_some(Self {
            a_in_registers,
            negate: scales.iter().filter(|scale| **scale < 0).count() == 1,
            transpose_a: transpose_a == 1,
            transpose_b: transpose_b == 1,
            ..op
        })
    }

    /// Parses the opcode without the immediates.
    fn parse(opcode: &str) -> Option<Self> {
        let rest = opcode.strip_prefix("wgmma.mma_async.sync.aligned.m64n")?;
        let (shape, rest) = rest.split_once('.')?;
        let (n, k) = shape.split_once('k')?;
        let (n, k): (u16, u32) = (n.parse().ok()?, k.parse().ok()?);
        let mut types: Vec<&str> = rest.split('.').collect();
        let count = types.len();
        types.retain(|part| *part != "satfinite");
        let saturate = types.len() < count;
        let [d, a, b] = types[..] else { return None };
        let (a, b) = (ElementFormat::from_ptx_type(a)?, ElementFormat::from_ptx_type(b)?);
        let accumulator = match d {
            "f16" => AccumulatorFormat::F16,
            "f32" => AccumulatorFormat::F32,
            "s32" => AccumulatorFormat::S32,
            _ => return None,
        };
        let op = Self {
            n,
            a,
            b,
            accumulator,
            saturate,
            a_in_registers: false,
            negate: false,
            transpose_a: false,
            transpose_b: false,
        };
        let form = match (a, b, accumulator) {
            (ElementFormat::F16, ElementFormat::F16, AccumulatorFormat::F16 | AccumulatorFormat::F32)
            | (ElementFormat::Bf16, ElementFormat::Bf16, AccumulatorFormat::F32)
            | (ElementFormat::Tf32, ElementFormat::Tf32, AccumulatorFormat::F32) => !saturate,
            (a, b, AccumulatorFormat::F16 | AccumulatorFormat::F32) => a.is_fp8() && b.is_fp8() && !saturate,
            (a, b, AccumulatorFormat::S32) => {
                let bytes = |element| matches!(element, ElementFormat::S8 | ElementFormat::U8);
                bytes(a) && bytes(b) && (n <= 32 || n.is_multiple_of(16))
            }
            _ => false,
        };
        (form && n.is_multiple_of(8) && (8..=256).contains(&n) && k == op.k_elements()).then_some(op)
    }

    /// Returns the number of A's columns and of B's rows: as many elements as 32 bytes hold.
    #[inline]
    pub fn k_elements(&self) -> u32 {
        256 / self.a.bits()
    }

    /// Returns the number of D's registers per lane.
    pub fn d_registers_per_lane(&self) -> usize {
        self.n as usize / if self.accumulator == AccumulatorFormat::F16 { 4 } else { 2 }
    }

    /// Returns the operand A that a descriptor gives in shared memory.
    pub fn operand_a(&self, descriptor: u64) -> Result<SharedOperand, DescriptorError> {
        SharedOperand::new(descriptor, self.transpose_a, D_ROWS as u32)
    }

    /// Returns the operand B that a descriptor gives in shared memory.
    pub fn operand_b(&self, descriptor: u64) -> Result<SharedOperand, DescriptorError> {
        SharedOperand::new(descriptor, self.transpose_b, self.n as u32)
    }

    /// Returns the number of arithmetic operations of the warpgroup's product, two per multiply-add.
    pub fn flops(&self) -> u64 {
        2 * D_ROWS as u64 * self.n as u64 * self.k_elements() as u64
    }

    /// Computes D = ±A·B + D for the rows of one warp (0 to 3) of the warpgroup, whose registers of D are `d`.
    /// Without `scale_d`, computes D = ±A·B and does not read the old D.
    pub fn multiply_add(&self, tiles: &WgmmaTiles, warp: usize, scale_d: bool, d: &mut [Lanes]) {
        let slots: [u32; MAX_N / 2] = std::array::from_fn(|i| i as u32);
        self.multiply_add_registers(tiles, warp, scale_d, d, &slots);
    }

    /// Computes what [`Self::multiply_add`] computes, but D consists of the registers `registers[slot]` for each slot
    /// in `slots`.
    pub fn multiply_add_registers(
        &self,
        tiles: &WgmmaTiles,
        warp: usize,
        scale_d: bool,
        registers: &mut [Lanes],
        slots: &[u32],
    ) {
        let slots = &slots[..self.d_registers_per_lane()];
        run_vector_kernel(ProductKernel { op: self, tiles, warp, scale_d, registers, slots });
    }
}

/// The operands of one instruction, converted for the product. Reuse it for the next instruction to save the
/// allocation.
#[derive(Clone, Debug)]
pub struct WgmmaTiles {
    /// A's registers of each warp in the layout of `mma`: register r holds eight rows, from row 8(r & 1) of the warp
    /// on, and 16 bytes of each row along k, from byte 16(r >> 1) on.
    a: [[Lanes; 4]; D_ROWS / 16],
    /// B as it is in memory, in registers of eight columns and 16 bytes along k: for each group of eight columns, the
    /// first half of k, then the second.
    b_registers: Vec<Lanes>,
    /// B as f32, in groups of eight columns.
    b: Vec<Group>,
}

/// Eight columns of B: the four even columns of all rows k, then the four odd ones.
type Group = [[[f32; 4]; MAX_K]; 2];

impl Default for WgmmaTiles {
    fn default() -> Self {
        Self {
            a: [[[0; 32]; 4]; D_ROWS / 16],
            b_registers: vec![[0; 32]; MAX_N / 4],
            b: vec![[[[0.0; 4]; MAX_K]; 2]; MAX_N / 8],
        }
    }
}

impl WgmmaTiles {
    /// Reads A from shared memory; `fetch` returns the 16 bytes at a shared address.
    pub fn read_a(&mut self, _op: &WgmmaOp, operand: &SharedOperand, fetch: impl Fn(u32) -> [u8; 16]) {
        run_vector_kernel(ReadA { a: &mut self.a, operand, fetch });
    }

    /// Sets the rows of A of one warp (0 to 3) from the warp's four registers.
    pub fn set_a_rows(&mut self, _op: &WgmmaOp, warp: usize, registers: &[Lanes]) {
        self.a[warp].copy_from_slice(registers);
    }

    /// Reads B from shared memory and converts it for the product; `fetch` returns the 16 bytes at a shared address.
    pub fn read_b(&mut self, op: &WgmmaOp, operand: &SharedOperand, fetch: impl Fn(u32) -> [u8; 16]) {
        self.read_b_registers(operand, fetch);
        self.convert_b(op);
    }

    /// Reads B from shared memory, but does not convert it; `fetch` returns the 16 bytes at a shared address.
    pub fn read_b_registers(&mut self, operand: &SharedOperand, fetch: impl Fn(u32) -> [u8; 16]) {
        run_vector_kernel(ReadB { registers: &mut self.b_registers, operand, fetch });
    }

    fn convert_b(&mut self, op: &WgmmaOp) {
        let registers = &self.b_registers[..op.n as usize / 4];
        run_vector_kernel(ConvertB { element: op.b, registers, b: &mut self.b });
    }

    /// Returns B as it was read.
    fn b_registers(&self, op: &WgmmaOp) -> &[Lanes] {
        &self.b_registers[..op.n as usize / 4]
    }

    /// Sets both operands from registers that other tiles have read.
    fn set(&mut self, op: &WgmmaOp, a: &[Lanes], b: &[Lanes]) {
        self.a.as_flattened_mut().copy_from_slice(a);
        self.b_registers[..b.len()].copy_from_slice(b);
        self.convert_b(op);
    }
}

/// Reads one 16-byte unit of each of eight lines into a register: the four words of a line go to four neighbouring
/// lanes.
#[inline(always)]
fn matrix(operand: &SharedOperand, line: u32, unit: u32, fetch: &impl Fn(u32) -> [u8; 16]) -> Lanes {
    let mut out = [[0u8; 16]; 8];
    for (out, address) in out.iter_mut().zip(operand.unit_shared_addresses(line, unit)) {
        *out = fetch(address);
    }
    let lanes: Lanes = bytemuck::cast(out);
    lanes.map(u32::from_le)
}

/// The arguments of [`WgmmaTiles::read_a`], as a [`VectorKernel`].
struct ReadA<'a, F> {
    a: &'a mut [[Lanes; 4]; D_ROWS / 16],
    operand: &'a SharedOperand,
    fetch: F,
}

impl<F: Fn(u32) -> [u8; 16]> VectorKernel for ReadA<'_, F> {
    #[inline(always)]
    fn run<V: LaneVector>(self, v: V) {
        let Self { a, operand, fetch } = self;
        for (warp, registers) in a.iter_mut().enumerate() {
            for (r, register) in registers.iter_mut().enumerate() {
                let (eight, unit) = (2 * warp as u32 + (r as u32 & 1), r as u32 >> 1);
                *register = if operand.is_mn_major() {
                    // If A is M-major, a line is one index along k and a unit has eight elements along m: transposing
                    // the units of eight lines gives eight rows of A.
                    v.transposed(&matrix(operand, 8 * unit, eight, &fetch))
                } else {
                    matrix(operand, 8 * eight, unit, &fetch)
                };
            }
        }
    }
}

/// The arguments of [`WgmmaTiles::read_b_registers`], as a [`VectorKernel`].
struct ReadB<'a, F> {
    registers: &'a mut [Lanes],
    operand: &'a SharedOperand,
    fetch: F,
}

impl<F: Fn(u32) -> [u8; 16]> VectorKernel for ReadB<'_, F> {
    #[inline(always)]
    fn run<V: LaneVector>(self, v: V) {
        let Self { registers, operand, fetch } = self;
        let groups = operand.m_or_n_extent() as usize / 8;
        for (group, halves) in registers.as_chunks_mut::<2>().0[..groups].iter_mut().enumerate() {
            for (unit, register) in (0..2).zip(halves) {
                *register = if operand.is_mn_major() {
                    v.transposed(&matrix(operand, 8 * unit, group as u32, &fetch))
                } else {
                    matrix(operand, 8 * group as u32, unit, &fetch)
                };
            }
        }
    }
}

/// The arguments of `WgmmaTiles::convert_b`, as a [`VectorKernel`].
struct ConvertB<'a> {
    element: ElementFormat,
    registers: &'a [Lanes],
    b: &'a mut [Group],
}

impl ConvertB<'_> {
    #[inline(always)]
    fn units<V: LaneVector, const E: usize>(self, v: V) {
        for (halves, [even, odd]) in self.registers.as_chunks::<2>().0.iter().zip(self.b) {
            for (unit, register) in halves.iter().enumerate() {
                let range = 4 * E * unit..4 * E * (unit + 1);
                register_to_b_rows::<V, E>(v, self.element, register, [&mut even[range.clone()], &mut odd[range]]);
            }
        }
    }
}

impl VectorKernel for ConvertB<'_> {
    #[inline(always)]
    fn run<V: LaneVector>(self, v: V) {
        match self.element.bits() {
            8 => self.units::<V, 4>(v),
            16 => self.units::<V, 2>(v),
            _ => self.units::<V, 1>(v),
        }
    }
}

/// The arguments of [`WgmmaOp::multiply_add_registers`], as a [`VectorKernel`].
struct ProductKernel<'a> {
    op: &'a WgmmaOp,
    tiles: &'a WgmmaTiles,
    warp: usize,
    scale_d: bool,
    registers: &'a mut [Lanes],
    /// Indices of D's registers.
    slots: &'a [u32],
}

impl VectorKernel for ProductKernel<'_> {
    #[inline(always)]
    fn run<V: LaneVector>(mut self, v: V) {
        let mut columns = ExpandedColumnsOfA::<MAX_K>::ZERO;
        let (element, negate) = (self.op.a, self.op.negate);
        let registers = self.tiles.a[self.warp].each_ref();
        match element.bits() {
            8 => expand_a_columns::<V, 4, MAX_K>(v, element, registers, negate, &mut columns),
            16 => expand_a_columns::<V, 2, MAX_K>(v, element, registers, negate, &mut columns),
            _ => expand_a_columns::<V, 1, MAX_K>(v, element, registers, negate, &mut columns),
        }
        let (a, k) = (&columns.0, self.op.k_elements() as usize);
        let b = &self.tiles.b;
        let groups = self.op.n as usize / 8;
        if V::QUADS == 4 {
            for group in (0..groups).step_by(2) {
                if group + 2 <= groups {
                    block::<V, 2, 2, 2>(v, &mut self, &a[..k], b, (0, group));
                } else {
                    block::<V, 1, 2, 2>(v, &mut self, &a[..k], b, (0, group));
                }
            }
        } else {
            for group in 0..groups {
                block::<V, 1, 1, 4>(v, &mut self, &a[..k], b, (0, group));
                block::<V, 1, 1, 4>(v, &mut self, &a[..k], b, (1, group));
            }
        }
    }
}

/// Computes `H` groups of eight rows and `G` groups of eight columns of D. `half` is the number of the first group of
/// rows, `group` the number of the first group of columns. A register's 32 lanes take `N` CPU vectors.
#[inline(always)]
fn block<V: LaneVector, const G: usize, const H: usize, const N: usize>(
    v: V,
    run: &mut ProductKernel<'_>,
    a: &[[[f32; 32]; 2]],
    b: &[Group],
    (half, group): (usize, usize),
) {
    let ProductKernel { op, scale_d, slots, ref mut registers, .. } = *run;
    let mut sums = [[[[v.repeat(&[0.0; 4]); N]; 2]; H]; G];
    if scale_d {
        for (g, sums) in sums.iter_mut().enumerate() {
            for (h, sums) in sums.iter_mut().enumerate() {
                let before = load_accumulators(
                    op.accumulator,
                    #[inline(always)]
                    |register| &registers[slots[register] as usize],
                    group + g,
                    half + h,
                );
                for (sums, before) in sums.iter_mut().zip(&before) {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = v.load(before, n);
                    }
                }
            }
        }
    }
    let sums = summed(v, a, b, (half, group), sums);
    for (g, sums) in sums.iter().enumerate() {
        for (h, sums) in sums.iter().enumerate() {
            let mut values = [[0f32; 32]; 2];
            for (sums, values) in sums.iter().zip(&mut values) {
                for (n, sum) in sums.iter().enumerate() {
                    v.store(*sum, values, n);
                }
            }
            let (group, half) = (group + g, half + h);
            let before = match op.accumulator {
                AccumulatorFormat::S32 if scale_d => {
                    [0, 1].map(|i| registers[slots[4 * group + 2 * half + i] as usize])
                }
                _ => [[0; 32]; 2],
            };
            store_accumulators(
                op.accumulator,
                op.saturate,
                #[inline(always)]
                |register, lanes| registers[slots[register] as usize] = lanes,
                (group, half),
                &values,
                &before,
            );
        }
    }
}

/// Adds the products for all k to `sums`. Takes `sums` by value so that they stay in CPU registers.
#[inline(always)]
fn summed<V: LaneVector, const G: usize, const H: usize, const N: usize>(
    v: V,
    a: &[[[f32; 32]; 2]],
    b: &[Group],
    (half, group): (usize, usize),
    mut sums: [[[[V::F; N]; 2]; H]; G],
) -> [[[[V::F; N]; 2]; H]; G] {
    let b: &[Group; G] = b[group..group + G].try_into().expect("the groups");
    for (k, a) in a.iter().enumerate().take(MAX_K) {
        let a: &[[f32; 32]; H] = a[half..half + H].try_into().expect("the halves");
        for (sums, [even, odd]) in sums.iter_mut().zip(b) {
            let (even, odd) = (v.repeat(&even[k]), v.repeat(&odd[k]));
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
