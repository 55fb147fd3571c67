//! `wgmma.mma_async`: decoding, fragments, and the product of a warpgroup.
//!
//! Source: PTX ISA, "Asynchronous warpgroup level matrix instructions", register fragments. D is 64×N over four warps; a
//! warp w has rows 16w to 16w + 15, in each eight columns as the D of `mma`'s m16n8: register 4j + i (j counts eights, two
//! values a register with f16: 2j + i / 2) of lane (g, t) is row `16w + g + 8(i >> 1)`, column `8j + 2t + (i & 1)`. A from
//! registers is `mma`'s A of m16 with k of 32 bytes.
//!
//! Order and rounding of the hardware's sums are not specified; here: products exact, sums ascending in k with one rounding
//! to f32 a step, f16 accumulators rounded once an instruction, integers exact.

mod descriptor;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, DescriptorError, Operand};

use super::Lanes;
use super::format::unpack;
pub use super::mma::{Accumulator, Element};
use super::mma::{load, load_integers, store, store_integers};
use super::simd::{Kernel, Vector, dispatch};

/// Rows of A and D.
pub const M: usize = 64;

/// The largest N.
const MAX_N: usize = 256;

/// The largest k.
const MAX_K: usize = 32;

/// A decoded dense `wgmma.mma_async`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WgmmaOp {
    /// Columns of B and D.
    pub n: u16,
    /// Elements of A.
    pub a: Element,
    /// Elements of B.
    pub b: Element,
    /// Type of D.
    pub accumulator: Accumulator,
    /// `.satfinite`: s32 sums clamp instead of wrapping.
    pub saturate: bool,
    /// A comes from registers, not by a descriptor.
    pub a_in_registers: bool,
    /// Exactly one of the immediates scales by -1: D = D - A·B.
    pub negate: bool,
    /// `imm-trans-a`: A in shared memory is M-major.
    pub transpose_a: bool,
    /// `imm-trans-b`: B in shared memory is N-major.
    pub transpose_b: bool,
}

impl WgmmaOp {
    /// Decodes `wgmma.mma_async.sync.aligned.SHAPE{.satfinite}.D.A.B` with the immediates behind scale-d in their order:
    /// scales of A and B (not of integers), then with 16-bit elements transposes of A (not from registers) and B. `None` for
    /// what is no dense form, for `.b1`, and for immediates that the form does not have.
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

    /// What the opcode says.
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
        let (a, b) = (Element::parse(a)?, Element::parse(b)?);
        let accumulator = match d {
            "f16" => Accumulator::F16,
            "f32" => Accumulator::F32,
            "s32" => Accumulator::S32,
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
            (Element::F16, Element::F16, Accumulator::F16 | Accumulator::F32)
            | (Element::Bf16, Element::Bf16, Accumulator::F32)
            | (Element::Tf32, Element::Tf32, Accumulator::F32) => !saturate,
            (a, b, Accumulator::F16 | Accumulator::F32) => a.is_fp8() && b.is_fp8() && !saturate,
            (a, b, Accumulator::S32) => {
                let bytes = |element| matches!(element, Element::S8 | Element::U8);
                bytes(a) && bytes(b) && (n <= 32 || n.is_multiple_of(16))
            }
            _ => false,
        };
        (form && n.is_multiple_of(8) && (8..=256).contains(&n) && k == op.k()).then_some(op)
    }

    /// Columns of A and rows of B: 32 bytes of elements.
    #[inline]
    pub fn k(&self) -> u32 {
        256 / self.a.bits()
    }

    /// Registers a lane of D.
    pub fn d_registers(&self) -> usize {
        self.n as usize / if self.accumulator == Accumulator::F16 { 4 } else { 2 }
    }

    /// Where A lies, by its descriptor.
    pub fn operand_a(&self, descriptor: u64) -> Result<Operand, DescriptorError> {
        Operand::new(descriptor, self.transpose_a, M as u32)
    }

    /// Where B lies, by its descriptor.
    pub fn operand_b(&self, descriptor: u64) -> Result<Operand, DescriptorError> {
        Operand::new(descriptor, self.transpose_b, self.n as u32)
    }

    /// Operations of a warpgroup, two a multiply-add.
    pub fn flops(&self) -> u64 {
        2 * M as u64 * self.n as u64 * self.k() as u64
    }

    /// D = ±A·B + D for the rows of one warp (0..4) of the warpgroup: `d` are its registers of D. Without `scale_d`, D is
    /// A·B and what it held is not read.
    ///
    /// # Panics
    /// When `d` has fewer than [`Self::d_registers`] rows or `warp` is above 3.
    pub fn run(&self, tiles: &Tiles, warp: usize, scale_d: bool, d: &mut [Lanes]) {
        let d = &mut d[..self.d_registers()];
        dispatch(Run { op: self, tiles, warp, scale_d, d });
    }
}

/// The operands' values of one instruction; to be reused from one to the next.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// A, `[64][k]`.
    a: Vec<[f32; MAX_K]>,
    /// B, `[k][n / 8][8]`, in each eight columns the even ones first.
    b: Vec<[[f32; 8]; MAX_N / 8]>,
}

impl Default for Tiles {
    fn default() -> Self {
        Self { a: vec![[0.0; MAX_K]; M], b: vec![[[0.0; 8]; MAX_N / 8]; MAX_K] }
    }
}

impl Tiles {
    /// Reads A from shared memory: `fetch` gives the 16 bytes at an absolute shared address.
    pub fn read_a(&mut self, op: &WgmmaOp, operand: &Operand, fetch: impl Fn(u32) -> [u8; 16]) {
        match op.a.bits() {
            8 => self.read_a_units::<4>(op.a, operand, fetch),
            16 => self.read_a_units::<2>(op.a, operand, fetch),
            _ => self.read_a_units::<1>(op.a, operand, fetch),
        }
    }

    #[inline(always)]
    fn read_a_units<const E: usize>(&mut self, element: Element, operand: &Operand, fetch: impl Fn(u32) -> [u8; 16]) {
        let mut values = [[0f32; 4]; E];
        if operand.is_mn_major() {
            for k in 0..MAX_K as u32 / E as u32 {
                for unit in 0..M as u32 / 8 {
                    unpack(element, &words(fetch(operand.unit(k, unit))), &mut values);
                    for (at, value) in in_order(&values).enumerate() {
                        self.a[8 * unit as usize + at][k as usize] = value;
                    }
                }
            }
            return;
        }
        for (row, out) in self.a.iter_mut().enumerate() {
            for unit in 0..2 {
                unpack(element, &words(fetch(operand.unit(row as u32, unit))), &mut values);
                for (out, value) in out[unit as usize * 4 * E..].iter_mut().zip(in_order(&values)) {
                    *out = value;
                }
            }
        }
    }

    /// Takes A's rows of one warp (0..4) from its four registers.
    ///
    /// # Panics
    /// When there are not four registers or `warp` is above 3.
    pub fn set_a(&mut self, op: &WgmmaOp, warp: usize, registers: &[Lanes]) {
        match op.a.bits() {
            8 => self.set_a_elements::<4>(op.a, warp, registers),
            16 => self.set_a_elements::<2>(op.a, warp, registers),
            _ => self.set_a_elements::<1>(op.a, warp, registers),
        }
    }

    fn set_a_elements<const E: usize>(&mut self, element: Element, warp: usize, registers: &[Lanes]) {
        let rows = &mut self.a[16 * warp..16 * warp + 16];
        for (r, register) in registers[..4].iter().enumerate() {
            let mut values = [[0f32; 32]; E];
            unpack(element, register, &mut values);
            for (j, values) in values.iter().enumerate() {
                for (lane, value) in values.iter().enumerate() {
                    rows[lane / 4 + 8 * (r & 1)][E * (lane % 4 + 4 * (r >> 1)) + j] = *value;
                }
            }
        }
    }

    /// Reads B from shared memory: `fetch` gives the 16 bytes at an absolute shared address.
    pub fn read_b(&mut self, op: &WgmmaOp, operand: &Operand, fetch: impl Fn(u32) -> [u8; 16]) {
        match op.b.bits() {
            8 => self.read_b_units::<4>(op.b, operand, fetch),
            16 => self.read_b_units::<2>(op.b, operand, fetch),
            _ => self.read_b_units::<1>(op.b, operand, fetch),
        }
    }

    #[inline(always)]
    fn read_b_units<const E: usize>(&mut self, element: Element, operand: &Operand, fetch: impl Fn(u32) -> [u8; 16]) {
        let mut values = [[0f32; 4]; E];
        if operand.is_mn_major() {
            for (k, row) in self.b[..MAX_K / E].iter_mut().enumerate() {
                for (unit, out) in row[..operand.extent() as usize / 8].iter_mut().enumerate() {
                    unpack(element, &words(fetch(operand.unit(k as u32, unit as u32))), &mut values);
                    // Even columns first, as the words' halves come.
                    for (out, values) in out.chunks_exact_mut(4).zip(&values) {
                        out.copy_from_slice(values);
                    }
                }
            }
            return;
        }
        for n in 0..operand.extent() {
            let (group, slot) = (n as usize / 8, (n % 8 / 2 + 4 * (n % 2)) as usize);
            for unit in 0..2 {
                unpack(element, &words(fetch(operand.unit(n, unit))), &mut values);
                for (row, value) in self.b[unit as usize * 4 * E..].iter_mut().zip(in_order(&values)) {
                    row[group][slot] = value;
                }
            }
        }
    }
}

/// A unit's words.
#[inline(always)]
fn words(unit: [u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// A unit's elements, lowest address first.
#[inline(always)]
fn in_order<const E: usize>(values: &[[f32; 4]; E]) -> impl Iterator<Item = f32> {
    (0..4 * E).map(|at| values[at % E][at / E])
}

/// A call of [`WgmmaOp::run`], compiled for the widest vectors.
struct Run<'a> {
    op: &'a WgmmaOp,
    tiles: &'a Tiles,
    warp: usize,
    scale_d: bool,
    d: &'a mut [Lanes],
}

impl Kernel for Run<'_> {
    #[inline(always)]
    fn run<V: Vector>(mut self, v: V) {
        let k = self.op.k() as usize;
        // A's rows of the warp, transposed.
        let mut a = [[0f32; 16]; MAX_K];
        let sign = if self.op.negate { -1.0 } else { 1.0 };
        for (row, values) in self.tiles.a[16 * self.warp..16 * self.warp + 16].iter().enumerate() {
            for (column, value) in a[..k].iter_mut().zip(values) {
                column[row] = sign * value;
            }
        }
        let b = &self.tiles.b[..k];
        let groups = self.op.n as usize / 8;
        for group in (0..groups).step_by(2) {
            for row in (0..16).step_by(4) {
                if group + 2 <= groups {
                    block::<V, 2>(v, &mut self, &a[..k], b, (row, group));
                } else {
                    block::<V, 1>(v, &mut self, &a[..k], b, (row, group));
                }
            }
        }
    }
}

/// Four rows by `G` groups of eight columns; `a` and `b` by k.
#[inline(always)]
fn block<V: Vector, const G: usize>(
    v: V,
    run: &mut Run<'_>,
    a: &[[f32; 16]],
    b: &[[[f32; 8]; MAX_N / 8]],
    (row, group): (usize, usize),
) {
    let Run { op, scale_d, ref mut d, .. } = *run;
    let mut sums = [[v.load(&[0.0; 8]); G]; 4];
    if scale_d {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (g, sums) in sums.iter_mut().enumerate() {
                *sums = v.load(&load(op.accumulator, d, row + i, group + g));
            }
        }
    }
    for (a, b) in a.iter().zip(b) {
        let a: &[f32; 4] = a[row..row + 4].try_into().expect("four rows");
        let b: &[[f32; 8]; G] = b[group..group + G].try_into().expect("the groups");
        let b = b.map(
            #[inline(always)]
            |b| v.load(&b),
        );
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = v.multiply_add(*a, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (g, sums) in sums.iter().enumerate() {
            let (row, group, sums) = (row + i, group + g, v.store(*sums));
            if op.accumulator == Accumulator::S32 {
                let before = if scale_d { load_integers(d, row, group) } else { [0; 8] };
                store_integers(d, row, group, sums, before, op.saturate);
            } else {
                store(op.accumulator, d, row, group, sums);
            }
        }
    }
}

/// Row and column of D that value `i` of a lane is; a register holds one value, with f16 two.
pub fn d_place(warp: usize, lane: usize, i: usize) -> (usize, usize) {
    (16 * warp + lane / 4 + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * (lane % 4) + (i & 1))
}
