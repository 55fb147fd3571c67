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
use super::format::{f16_bits, unpack};
use super::simd::{Kernel, Vector, dispatch};
use crate::ptx::ast::Type;

pub use super::format::Element;

mod rare;
mod sequence;

pub use sequence::{Fragments, Product};

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
    #[inline]
    pub fn run(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
        dispatch(Run { op: self, a, b, c, d });
    }
}

/// A call of [`MmaOp::run`], compiled for the widest vectors.
struct Run<'a> {
    op: &'a MmaOp,
    a: &'a [&'a Lanes],
    b: &'a [&'a Lanes],
    c: &'a [&'a Lanes],
    d: &'a mut [Lanes],
}

impl Kernel for Run<'_> {
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Self { op, a, b, c, d } = self;
        match (op.a, op.a.bits()) {
            (Element::F64, _) => rare::double(op, a, b, c, d),
            (Element::B1, _) => rare::bits(op, a, b, c, d),
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
fn single<V: Vector, const E: usize>(v: V, op: &MmaOp, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    match (op.m, op.k as usize / E) {
        // What everyone uses, with constants for its loops.
        (16, 8) => shaped::<V, E>(v, op, (16, 8 * E), a, b, c, d),
        (m, _) => shaped::<V, E>(v, op, (m as usize, op.k as usize), a, b, c, d),
    }
}

#[inline(always)]
fn shaped<V: Vector, const E: usize>(
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
        *out = values_of(v, op.a, register);
    }
    let mut columns = [[[[0f32; 4]; E]; 4 * MAX_A / 2]; 2];
    let [even, odd] = columns.each_mut().map(|columns| columns.as_flattened_mut());
    for (r, register) in b[..k / (4 * E)].iter().enumerate() {
        let range = 4 * E * r..4 * E * (r + 1);
        columns_of::<V, E>(v, op.b, register, [&mut even[range.clone()], &mut odd[range]]);
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

/// The elements of a register.
#[inline(always)]
pub(super) fn values_of<V: Vector, const E: usize>(v: V, element: Element, register: &Lanes) -> [[f32; 32]; E] {
    let mut values = [[0f32; 32]; E];
    if E == 2 && element == Element::Bf16 {
        [values[0], values[E - 1]] = v.bf16(register);
    } else {
        unpack(element, register, &mut values);
    }
    values
}

/// `K` columns of A: of each row of eight (twice) its value four times, as D's registers want it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Columns<const K: usize>(pub(super) [[[f32; 32]; 2]; K]);

impl<const K: usize> Columns<K> {
    pub(super) const ZERO: Self = Self([[[0.0; 32]; 2]; K]);
}

/// Fills the columns from A's registers with `E` elements a lane: register r is eight rows (r & 1) of 4E columns (r >> 1).
#[inline(always)]
pub(super) fn expand<V: Vector, const E: usize, const K: usize>(
    v: V,
    element: Element,
    registers: [&Lanes; 4],
    negate: bool,
    out: &mut Columns<K>,
) {
    for (r, register) in registers.into_iter().enumerate() {
        let mut values: [[f32; 32]; E] = values_of(v, element, register);
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

/// The rows of B that one of its registers holds: of each the quads of the even and of the odd columns.
#[inline(always)]
pub(super) fn columns_of<V: Vector, const E: usize>(
    v: V,
    element: Element,
    register: &Lanes,
    [even, odd]: [&mut [[f32; 4]]; 2],
) {
    if E == 2 {
        let values: [[f32; 32]; E] = values_of(v, element, &v.transposed(register));
        even[..8].as_flattened_mut().copy_from_slice(&values[0]);
        odd[..8].as_flattened_mut().copy_from_slice(&values[E - 1]);
        return;
    }
    let values: [[f32; 32]; E] = values_of(v, element, register);
    for t in 0..4 {
        for (j, values) in values.iter().enumerate() {
            let at = t * E + j;
            even[at] = [values[t], values[8 + t], values[16 + t], values[24 + t]];
            odd[at] = [values[4 + t], values[12 + t], values[20 + t], values[28 + t]];
        }
    }
}

/// `H` times eight rows of D from the `first`-th of `halves` eights on, in D's own layout, which takes `N` vectors a register.
#[inline(always)]
fn block<V: Vector, const E: usize, const H: usize, const N: usize>(
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
        let before = load(
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
            Accumulator::S32 => [*c[2 * half], *c[2 * half + 1]],
            _ => [[0; 32]; 2],
        };
        store(
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

/// `sums` with all products added; `halves` registers of A are a step of k. By value, so that they stay in registers.
#[inline(always)]
fn summed<V: Vector, const E: usize, const H: usize, const N: usize>(
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

/// The columns of A that the `T`-th threads of quads hold.
#[inline(always)]
fn column_step<V: Vector, const E: usize, const H: usize, const N: usize, const T: usize>(
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

/// What eight rows of an accumulator (`half` of 16) hold in the `group`-th eight columns: the even columns and the odd ones.
/// Integers are left to the end, because their products sum exactly in f32, they may not: zeros.
#[inline(always)]
pub(super) fn load<'a>(
    accumulator: Accumulator,
    register: impl Fn(usize) -> &'a Lanes,
    group: usize,
    half: usize,
) -> [[f32; 32]; 2] {
    let mut values = [[0f32; 32]; 2];
    match accumulator {
        Accumulator::F16 => unpack(Element::F16, register(2 * group + half), &mut values),
        Accumulator::F32 => {
            let first = 4 * group + 2 * half;
            values = [bytemuck::cast(*register(first)), bytemuck::cast(*register(first + 1))];
        }
        Accumulator::S32 | Accumulator::F64 => (),
    }
    values
}

/// The inverse of [`load`], for `put` to place in D's registers; integers are added to `before`, what these held.
#[inline(always)]
pub(super) fn store(
    accumulator: Accumulator,
    saturate: bool,
    mut put: impl FnMut(usize, Lanes),
    (group, half): (usize, usize),
    sums: &[[f32; 32]; 2],
    before: &[Lanes; 2],
) {
    let first = 4 * group + 2 * half;
    match accumulator {
        Accumulator::F16 => {
            let ([even, odd], mut out) = (sums, [0; 32]);
            for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
                *out = f16_bits(*even) | f16_bits(*odd) << 16;
            }
            put(2 * group + half, out);
        }
        Accumulator::S32 => {
            for (register, (sums, before)) in sums.iter().zip(before).enumerate() {
                let mut out = [0; 32];
                for ((out, sum), c) in out.iter_mut().zip(sums).zip(before) {
                    // Below 2^22 in magnitude: in this sum the last place is 1.
                    let sum = (sum + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
                    let c = *c as i32;
                    *out = if saturate { c.saturating_add(sum) } else { c.wrapping_add(sum) } as u32;
                }
                put(first + register, out);
            }
        }
        Accumulator::F32 | Accumulator::F64 => {
            let [even, odd] = sums;
            put(first, bytemuck::cast(*even));
            put(first + 1, bytemuck::cast(*odd));
        }
    }
}

#[cfg(test)]
mod tests;
