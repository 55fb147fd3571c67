//! `mma.sync`: decoding, and the product of a warp's fragments.
//!
//! Source: PTX ISA, "Matrix fragments for mma.*". All shapes of m16 and m8 (but the m8n8k4 of f16, which is four products)
//! share one rule. With `E` elements in a 32-bit register (1 for tf32 and f64), g = lane / 4 and t = lane % 4:
//! - A, m16: register r, element j is row `g + 8(r & 1)`, column `E·t + 4E·(r >> 1) + j`; m8: row g, column
//!   `E·t + 4E·r + j`;
//! - B: register r, element j is row `E·t + 4E·r + j`, column g;
//! - C and D: value i is row `g + 8(i >> 1)`, column `2t + (i & 1)`; two values a register for f16.
//!
//! A 64-bit register is two [`Lanes`] in a row: 32 lanes of 64 bits, little endian.
//!
//! The tensor core's order of summation and rounding are not specified. Here products are exact and summed to C in
//! ascending k with one rounding a step (f32, f64), or exactly (integers); an f16 result is rounded once at the end.

use super::Lanes;
use super::format::{f16_bits, f16_value, unpack};
use super::simd::{Kernel, Vector, dispatch};
use crate::ptx::ast::Type;

pub use super::format::Element;

/// Type of C and D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// `.f16`: two values a register.
    F16,
    /// `.f32`
    F32,
    /// `.s32`
    S32,
    /// `.f64`
    F64,
}

/// How `.b1` bits are combined before they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BitOp {
    /// `.xor.popc`
    Xor,
    /// `.and.popc`
    And,
}

/// A decoded dense `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmaOp {
    /// Rows of A and D: 8 or 16. (There are always 8 columns.)
    pub m: u8,
    /// Columns of A and rows of B.
    pub k: u16,
    /// Elements of A.
    pub a: Element,
    /// Elements of B.
    pub b: Element,
    /// Type of C and D.
    pub accumulator: Accumulator,
    /// `.satfinite`: s32 sums clamp instead of wrapping.
    pub saturate: bool,
    /// Only for `.b1`.
    pub bit_op: Option<BitOp>,
}

/// Registers a lane of each operand: 32-bit ones, for f64 64-bit ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterCounts {
    /// A
    pub a: usize,
    /// B
    pub b: usize,
    /// C and also D
    pub c: usize,
}

impl MmaOp {
    /// Decodes `mma.sync.aligned.SHAPE.row.col{.rn}{.satfinite}.D.A.B.C{.xor.popc|.and.popc}`. `None` for what is not a
    /// dense form of sm_80 to sm_90, for directed rounding of f64, and for the m8n8k4 of f16.
    pub fn decode(opcode: &str) -> Option<Self> {
        let rest = opcode.strip_prefix("mma.sync.aligned.")?;
        let (shape, rest) = rest.split_once('.')?;
        let mut types: Vec<&str> = rest.strip_prefix("row.col.")?.split('.').collect();
        let bit_op = match types.as_slice() {
            [.., "xor", "popc"] => Some(BitOp::Xor),
            [.., "and", "popc"] => Some(BitOp::And),
            _ => None,
        };
        types.truncate(types.len() - if bit_op.is_some() { 2 } else { 0 });
        let prefix = if types.len() == 5 { Some(types.remove(0)) } else { None };
        let [d, a, b, c] = types[..] else { return None };
        if d != c {
            return None;
        }
        let (a, b) = (Element::parse(a)?, Element::parse(b)?);
        let accumulator = match d {
            "f16" => Accumulator::F16,
            "f32" => Accumulator::F32,
            "s32" => Accumulator::S32,
            "f64" => Accumulator::F64,
            _ => return None,
        };
        match prefix {
            None => (),
            Some("rn") if a == Element::F64 => (),
            Some("satfinite") if a.is_integer() => (),
            Some(_) => return None,
        }
        let (m, k) = match shape.split_once("n8k")? {
            ("m8", k) => (8, k.parse().ok()?),
            ("m16", k) => (16, k.parse().ok()?),
            _ => return None,
        };
        let op = Self { m, k, a, b, accumulator, saturate: prefix == Some("satfinite"), bit_op };
        op.exists().then_some(op)
    }

    /// Whether the combination of shape and types is one of the instruction's forms.
    fn exists(&self) -> bool {
        let same = self.a == self.b;
        let float = matches!(self.accumulator, Accumulator::F32 | Accumulator::F16);
        let single = self.accumulator == Accumulator::F32;
        let integer = self.accumulator == Accumulator::S32;
        let shape = (self.m, self.k);
        let form = match self.a {
            Element::F64 => {
                same && self.accumulator == Accumulator::F64 && matches!(shape, (8, 4) | (16, 4) | (16, 8) | (16, 16))
            }
            Element::Tf32 => same && single && matches!(shape, (16, 4) | (16, 8)),
            Element::Bf16 => same && single && matches!(shape, (16, 8) | (16, 16)),
            Element::F16 => same && float && matches!(shape, (16, 8) | (16, 16)),
            Element::E4m3 | Element::E5m2 => self.b.is_fp8() && float && matches!(shape, (16, 16) | (16, 32)),
            Element::S8 | Element::U8 => {
                self.b.is_integer() && self.b.bits() == 8 && integer && matches!(shape, (8, 16) | (16, 16) | (16, 32))
            }
            Element::S4 | Element::U4 => {
                self.b.is_integer() && self.b.bits() == 4 && integer && matches!(shape, (8, 32) | (16, 32) | (16, 64))
            }
            Element::B1 => same && integer && matches!(shape, (8, 128) | (16, 128) | (16, 256)),
        };
        form && (self.a == Element::B1) == self.bit_op.is_some()
    }

    /// The first architecture that has this form: 80, 89 or 90 (earlier ones are counted as 80).
    pub fn first_sm(&self) -> u32 {
        match self.a {
            Element::F64 if self.m == 16 => 90,
            Element::E4m3 | Element::E5m2 => 89,
            _ => 80,
        }
    }

    /// Registers a lane.
    pub fn registers(&self) -> RegisterCounts {
        let (m, k) = (self.m as usize, self.k as usize);
        let width = if self.a == Element::F64 { 64 } else { 32 };
        let count = |elements: usize, bits: u32| elements * bits as usize / width / 32;
        let c = match self.accumulator {
            Accumulator::F16 => m * 8 / 64,
            _ => m * 8 / 32,
        };
        RegisterCounts { a: count(m * k, self.a.bits()), b: count(8 * k, self.b.bits()), c }
    }

    /// Types of the registers of D, A, B and C; packed elements are `.b32`.
    pub fn register_types(&self) -> [Type; 4] {
        let c = match self.accumulator {
            Accumulator::F16 => Type::B32,
            Accumulator::F32 => Type::F32,
            Accumulator::S32 => Type::S32,
            Accumulator::F64 => Type::F64,
        };
        let a = if self.a == Element::F64 { Type::F64 } else { Type::B32 };
        [c, a, a, c]
    }

    /// Rows of 32 words in a register: 2 for f64, else 1.
    pub fn rows_per_register(&self) -> usize {
        if self.a == Element::F64 { 2 } else { 1 }
    }

    /// Operations, two a multiply-add.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * 8 * self.k as u64
    }

    /// D = A·B + C for a whole warp. Each operand has `registers()` times `rows_per_register()` rows.
    ///
    /// # Panics
    /// When an operand has fewer rows than that.
    pub fn run(&self, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
        dispatch(Run { op: self, a, b, c, d });
    }
}

/// A call of [`MmaOp::run`], compiled for the widest vectors.
struct Run<'a> {
    op: &'a MmaOp,
    a: &'a [Lanes],
    b: &'a [Lanes],
    c: &'a [Lanes],
    d: &'a mut [Lanes],
}

impl Kernel for Run<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Self { op, a, b, c, d } = self;
        match (op.a, op.a.bits()) {
            (Element::F64, _) => double(op, a, b, c, d),
            (Element::B1, _) => bits(op, a, b, c, d),
            (_, 4) => single::<V, 8>(v, op, a, b, c, d),
            (_, 8) => single::<V, 4>(v, op, a, b, c, d),
            (_, 16) => single::<V, 2>(v, op, a, b, c, d),
            _ => single::<V, 1>(v, op, a, b, c, d),
        }
    }
}

/// Registers of A (32 bits) there are at most, and elements in them.
const MAX_A: usize = 4;

/// Products of f32, and of integers of at most 8 bits: at most 64 of these sum exactly in f32, whose multiply-add is the
/// fastest. `E` elements a register.
#[inline(always)]
fn single<V: Vector, const E: usize>(v: V, op: &MmaOp, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let (m, k) = (op.m as usize, op.k as usize);
    let mut unpacked = [[[0f32; 32]; E]; MAX_A];
    for (register, out) in a[..m * k / (32 * E)].iter().zip(&mut unpacked) {
        unpack(op.a, register, out);
    }
    let mut columns = [[[0f32; 8]; E]; 4 * MAX_A / 2];
    for (r, register) in b[..k / (4 * E)].iter().enumerate() {
        for t in 0..4 {
            unpack(op.b, &quad_thread(register, t), &mut columns[4 * r + t]);
        }
    }
    let (a, b) = (unpacked.as_flattened(), columns.as_flattened());
    for half in 0..m / 8 {
        let mut block = [v.load(&[0.0; 8]); 8];
        for (g, sums) in block.iter_mut().enumerate() {
            *sums = v.load(&load(op.accumulator, c, 8 * half + g, 0));
        }
        for (step, b) in b[..k].chunks_exact(4 * E).enumerate() {
            let a = &a[(step * (m / 8) + half) * E..][..E];
            for (t, b) in b.chunks_exact(E).enumerate() {
                for (a, b) in a.iter().zip(b) {
                    let b = v.load(b);
                    for (g, sum) in block.iter_mut().enumerate() {
                        *sum = v.multiply_add(a[4 * g + t % 4], b, *sum);
                    }
                }
            }
        }
        for (g, sums) in block.into_iter().enumerate() {
            let (row, sums) = (8 * half + g, v.store(sums));
            if op.accumulator == Accumulator::S32 {
                store_integers(d, row, 0, sums, load_integers(c, row, 0), op.saturate);
            } else {
                store(op.accumulator, d, row, 0, sums);
            }
        }
    }
}

/// Counts of bits: a register is one element.
#[inline(always)]
fn bits(op: &MmaOp, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let (m, words) = (op.m as usize, op.k as usize / 32);
    let mut columns = [[0u32; 8]; 8];
    for (r, register) in b[..words / 4].iter().enumerate() {
        for t in 0..4 {
            columns[4 * r + t] = quad_thread(register, t);
        }
    }
    let mut sums = [[0u32; 8]; 16];
    for (row, sums) in sums[..m].iter_mut().enumerate() {
        *sums = load_integers(c, row, 0);
    }
    let a = &a[..m * words / 32];
    match op.bit_op {
        Some(BitOp::Xor) => product(a, &columns[..words], &mut sums[..m], |a, b, sum| count(a ^ b, sum)),
        _ => product(a, &columns[..words], &mut sums[..m], |a, b, sum| count(a & b, sum)),
    }
    for (row, sums) in sums[..m].iter().enumerate() {
        store_words(d, row, 0, *sums);
    }
}

#[inline(always)]
fn count(bits: u32, sum: u32) -> u32 {
    sum.wrapping_add(bits.count_ones())
}

#[inline(always)]
fn double(op: &MmaOp, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
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

/// A 64-bit register's lanes.
#[inline(always)]
fn wide(rows: &[Lanes]) -> [f64; 32] {
    let mut out = [0.0; 32];
    for (value, words) in out.iter_mut().zip(rows.as_flattened().chunks_exact(2)) {
        *value = f64::from_bits(words[0] as u64 | (words[1] as u64) << 32);
    }
    out
}

// Rows of D are kept with the even columns first (slot s is column 2(s % 4) + s / 4): then a row is four lanes of one
// register and the same four of the next.

/// The column at a slot of a row of D or B.
#[inline(always)]
fn column(slot: usize) -> usize {
    2 * (slot % 4) + slot / 4
}

/// Of each quad its thread `t`: a row of B, in slots.
#[inline(always)]
fn quad_thread(register: &Lanes, t: usize) -> [u32; 8] {
    let mut out = [0; 8];
    for (slot, word) in out.iter_mut().enumerate() {
        *word = register[4 * column(slot) + t];
    }
    out
}

/// The four lanes that hold a row of an accumulator (modulo 8).
#[inline(always)]
pub(super) fn quad(register: &Lanes, row: usize) -> [u32; 4] {
    let quads: &[[u32; 4]; 8] = bytemuck::cast_ref(register);
    quads[row % 8]
}

/// The same lanes, to write.
#[inline(always)]
pub(super) fn quad_mut(register: &mut Lanes, row: usize) -> &mut [u32; 4] {
    let quads: &mut [[u32; 4]; 8] = bytemuck::cast_mut(register);
    &mut quads[row % 8]
}

/// Eight columns of a row of an accumulator, in slots: `group` counts eights of columns, `row` is of 16. Integers are left to
/// the end, because their products sum exactly in f32, they may not: zeros.
#[inline(always)]
pub(super) fn load(accumulator: Accumulator, c: &[Lanes], row: usize, group: usize) -> [f32; 8] {
    match accumulator {
        Accumulator::F16 => {
            let packed = quad(&c[2 * group + row / 8], row);
            bytemuck::cast([
                packed.map(
                    #[inline(always)]
                    |word| f16_value(word & 0xffff),
                ),
                packed.map(
                    #[inline(always)]
                    |word| f16_value(word >> 16),
                ),
            ])
        }
        Accumulator::F32 => bytemuck::cast(load_integers(c, row, group)),
        Accumulator::S32 | Accumulator::F64 => [0.0; 8],
    }
}

/// The inverse of [`load`], for floats.
#[inline(always)]
pub(super) fn store(accumulator: Accumulator, d: &mut [Lanes], row: usize, group: usize, sums: [f32; 8]) {
    if accumulator == Accumulator::F16 {
        let [even, odd]: [[f32; 4]; 2] = bytemuck::cast(sums);
        let out = quad_mut(&mut d[2 * group + row / 8], row);
        for (out, (even, odd)) in out.iter_mut().zip(even.into_iter().zip(odd)) {
            *out = f16_bits(even) | f16_bits(odd) << 16;
        }
    } else {
        store_words(d, row, group, bytemuck::cast(sums));
    }
}

/// Eight columns of a row of 32-bit values.
#[inline(always)]
pub(super) fn load_integers(c: &[Lanes], row: usize, group: usize) -> [u32; 8] {
    let register = 4 * group + 2 * (row / 8);
    bytemuck::cast([quad(&c[register], row), quad(&c[register + 1], row)])
}

/// Stores `before + sums`.
#[inline(always)]
pub(super) fn store_integers(
    d: &mut [Lanes],
    row: usize,
    group: usize,
    sums: [f32; 8],
    mut before: [u32; 8],
    saturate: bool,
) {
    for (value, sum) in before.iter_mut().zip(sums) {
        // Below 2^22 in magnitude: in this sum the last place is 1.
        let (c, sum) = (*value as i32, (sum + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32);
        *value = if saturate { c.saturating_add(sum) } else { c.wrapping_add(sum) } as u32;
    }
    store_words(d, row, group, before);
}

#[inline(always)]
fn store_words(d: &mut [Lanes], row: usize, group: usize, values: [u32; 8]) {
    let [even, odd]: [[u32; 4]; 2] = bytemuck::cast(values);
    let register = 4 * group + 2 * (row / 8);
    *quad_mut(&mut d[register], row) = even;
    *quad_mut(&mut d[register + 1], row) = odd;
}

/// Eight rows of D at a time, ascending k, one element a register: `a[r][lane]` is of A's register r, `b` the rows of B.
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

#[cfg(test)]
mod tests;
