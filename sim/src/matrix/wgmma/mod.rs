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
use super::format::{f16_bits, f16_value, unpack};
pub use super::mma::{Accumulator, Element};

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
}

impl WgmmaOp {
    /// Decodes `wgmma.mma_async.sync.aligned.SHAPE{.satfinite}.D.A.B`. `None` for what is no dense form, and for `.b1`.
    pub fn parse(opcode: &str) -> Option<Self> {
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
        let op = Self { n, a, b, accumulator, saturate };
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
    pub fn k(&self) -> u32 {
        256 / self.a.bits()
    }

    /// Registers a lane of D.
    pub fn d_registers(&self) -> usize {
        self.n as usize / if self.accumulator == Accumulator::F16 { 4 } else { 2 }
    }

    /// Whether the instruction has the immediates that negate A and B.
    pub fn has_scales(&self) -> bool {
        !self.a.is_integer()
    }

    /// Whether the instruction has the immediates that transpose operands in shared memory.
    pub fn has_transposes(&self) -> bool {
        self.a.bits() == 16
    }

    /// Operations of a warpgroup, two a multiply-add.
    pub fn flops(&self) -> u64 {
        2 * M as u64 * self.n as u64 * self.k() as u64
    }

    /// D = ±A·B + D for the rows of one warp (0..4) of the warpgroup: `d` are its registers of D. Without `scale_d`, D is
    /// A·B and what it held is not read. `negate` when exactly one of the immediates scales by -1.
    ///
    /// # Panics
    /// When `d` has fewer than [`Self::d_registers`] rows or `warp` is above 3.
    pub fn run(&self, tiles: &Tiles, warp: usize, scale_d: bool, negate: bool, d: &mut [Lanes]) {
        let d = &mut d[..self.d_registers()];
        super::vectorized(Run { op: self, tiles, warp, scale_d, negate, d });
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
    negate: bool,
    d: &'a mut [Lanes],
}

impl pulp::NullaryFnOnce for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let k = self.op.k() as usize;
        // A's rows of the warp, transposed.
        let mut a = [[0f32; 16]; MAX_K];
        let sign = if self.negate { -1.0 } else { 1.0 };
        for (row, values) in self.tiles.a[16 * self.warp..16 * self.warp + 16].iter().enumerate() {
            for (column, value) in a[..k].iter_mut().zip(values) {
                column[row] = sign * value;
            }
        }
        let groups = self.op.n as usize / 8;
        let mut group = 0;
        while group < groups {
            let two = group + 2 <= groups;
            for row in (0..16).step_by(4) {
                if two {
                    block::<2>(self.op, &a[..k], row, &self.tiles.b[..k], group, self.scale_d, self.d);
                } else {
                    block::<1>(self.op, &a[..k], row, &self.tiles.b[..k], group, self.scale_d, self.d);
                }
            }
            group += 2;
        }
    }
}

/// Four rows by `G` groups of eight columns.
#[inline(always)]
fn block<const G: usize>(
    op: &WgmmaOp,
    a: &[[f32; 16]],
    row: usize,
    b: &[[[f32; 8]; MAX_N / 8]],
    group: usize,
    scale_d: bool,
    d: &mut [Lanes],
) {
    let mut sums = [[[0f32; 8]; G]; 4];
    // Integers are added at the end: their products sum exactly in f32, D's may not.
    if scale_d && op.accumulator != Accumulator::S32 {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (g, sums) in sums.iter_mut().enumerate() {
                load(op.accumulator, d, row + i, group + g, sums);
            }
        }
    }
    for (a, b) in a.iter().zip(b) {
        let a: &[f32; 4] = a[row..row + 4].try_into().expect("four rows");
        let b: &[[f32; 8]; G] = b[group..group + G].try_into().expect("the groups");
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sums, b) in sums.iter_mut().zip(b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (g, sums) in sums.iter().enumerate() {
            store(op, d, row + i, group + g, sums, scale_d);
        }
    }
}

/// Eight columns of a row of D, even ones first.
#[inline(always)]
fn load(accumulator: Accumulator, d: &[Lanes], row: usize, group: usize, out: &mut [f32; 8]) {
    let first = 4 * (row % 8);
    if accumulator == Accumulator::F16 {
        let register = &d[2 * group + row / 8];
        for t in 0..4 {
            out[t] = f16_value(register[first + t] & 0xffff);
            out[t + 4] = f16_value(register[first + t] >> 16);
        }
        return;
    }
    let register = 4 * group + 2 * (row / 8);
    for half in 0..2 {
        for (out, bits) in out[4 * half..4 * half + 4].iter_mut().zip(&d[register + half][first..first + 4]) {
            *out = f32::from_bits(*bits);
        }
    }
}

/// The inverse of [`load`]; integers are added to D, if it counts.
#[inline(always)]
fn store(op: &WgmmaOp, d: &mut [Lanes], row: usize, group: usize, sums: &[f32; 8], scale_d: bool) {
    let first = 4 * (row % 8);
    if op.accumulator == Accumulator::F16 {
        let register = &mut d[2 * group + row / 8];
        for t in 0..4 {
            register[first + t] = f16_bits(sums[t]) | f16_bits(sums[t + 4]) << 16;
        }
        return;
    }
    let register = 4 * group + 2 * (row / 8);
    for half in 0..2 {
        let out = &mut d[register + half][first..first + 4];
        for (out, sum) in out.iter_mut().zip(&sums[4 * half..4 * half + 4]) {
            *out = if op.accumulator == Accumulator::F32 {
                sum.to_bits()
            } else {
                let (sum, c) = (*sum as i32, if scale_d { *out as i32 } else { 0 });
                if op.saturate { c.saturating_add(sum) as u32 } else { c.wrapping_add(sum) as u32 }
            };
        }
    }
}

/// Row and column of D that value `i` of a lane is; a register holds one value, with f16 two.
pub fn d_place(warp: usize, lane: usize, i: usize) -> (usize, usize) {
    (16 * warp + lane / 4 + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * (lane % 4) + (i & 1))
}
