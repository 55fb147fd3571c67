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
use super::format::{f16_value, floats, integers, pack_f16};

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
    pub fn parse(opcode: &str) -> Option<Self> {
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
    #[inline(always)]
    pub fn run(&self, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
        match (self.a.bits(), self.m, self.k) {
            (16, _, 8) => self.run_float::<2, 2, 1, 8>(a, b, c, d),
            (16, _, _) => self.run_float::<2, 4, 2, 16>(a, b, c, d),
            (32, _, 4) => self.run_float::<1, 2, 1, 4>(a, b, c, d),
            (32, _, _) => self.run_float::<1, 4, 2, 8>(a, b, c, d),
            (8, _, 16) if self.a.is_fp8() => self.run_float::<4, 2, 1, 16>(a, b, c, d),
            (8, _, _) if self.a.is_fp8() => self.run_float::<4, 4, 2, 32>(a, b, c, d),
            (8, 8, _) => self.run_integer::<4, 1, 1, 16, 8>(a, b, c, d),
            (8, _, 16) => self.run_integer::<4, 2, 1, 16, 16>(a, b, c, d),
            (8, _, _) => self.run_integer::<4, 4, 2, 32, 16>(a, b, c, d),
            (4, 8, _) => self.run_integer::<8, 1, 1, 32, 8>(a, b, c, d),
            (4, _, 32) => self.run_integer::<8, 2, 1, 32, 16>(a, b, c, d),
            (4, _, _) => self.run_integer::<8, 4, 2, 64, 16>(a, b, c, d),
            (64, 8, _) => run_double::<1, 1, 4, 8>(a, b, c, d),
            (64, _, 4) => run_double::<2, 1, 4, 16>(a, b, c, d),
            (64, _, 8) => run_double::<4, 2, 8, 16>(a, b, c, d),
            (64, _, _) => run_double::<8, 4, 16, 16>(a, b, c, d),
            (_, 8, _) => self.run_bits::<1, 1, 4, 8>(a, b, c, d),
            (_, _, 128) => self.run_bits::<2, 1, 4, 16>(a, b, c, d),
            _ => self.run_bits::<4, 2, 8, 16>(a, b, c, d),
        }
    }

    /// `E` elements a register, `RA` and `RB` registers of A and B; m16.
    #[inline(always)]
    fn run_float<const E: usize, const RA: usize, const RB: usize, const K: usize>(
        &self,
        a: &[Lanes],
        b: &[Lanes],
        c: &[Lanes],
        d: &mut [Lanes],
    ) {
        let a: [[[f32; 32]; E]; RA] = std::array::from_fn(|r| floats::<E, 32>(self.a, &a[r]));
        let mut columns = [[0f32; 8]; K];
        for r in 0..RB {
            for t in 0..4 {
                let unpacked = floats::<E, 8>(self.b, &quad_thread(&b[r], t));
                columns[E * (t + 4 * r)..][..E].copy_from_slice(&unpacked);
            }
        }
        let mut sums: [[f32; 8]; 16] = match self.accumulator {
            Accumulator::F16 => std::array::from_fn(|row| {
                let quad = quad(&c[row / 8], row % 8);
                std::array::from_fn(|slot| f16_value(quad[slot % 4] >> (16 * (slot / 4)) & 0xffff))
            }),
            _ => rows_of(c).map(|row| row.map(f32::from_bits)),
        };
        product::<f32, E, RA, K, 16>(
            &a,
            &columns,
            &mut sums,
            #[inline(always)]
            |a, b, sum| a.mul_add(b, sum),
        );
        match self.accumulator {
            Accumulator::F16 => {
                for (row, sums) in sums.iter().enumerate() {
                    for t in 0..4 {
                        d[row / 8][4 * (row % 8) + t] = pack_f16(sums[t], sums[t + 4]);
                    }
                }
            }
            _ => store_rows(&sums.map(|row| row.map(f32::to_bits)), d),
        }
    }

    #[inline(always)]
    fn run_integer<const E: usize, const RA: usize, const RB: usize, const K: usize, const M: usize>(
        &self,
        a: &[Lanes],
        b: &[Lanes],
        c: &[Lanes],
        d: &mut [Lanes],
    ) {
        let a: [[[f32; 32]; E]; RA] = std::array::from_fn(|r| integers::<E, 32>(self.a, &a[r]));
        let mut columns = [[0f32; 8]; K];
        for r in 0..RB {
            for t in 0..4 {
                let unpacked = integers::<E, 8>(self.b, &quad_thread(&b[r], t));
                columns[E * (t + 4 * r)..][..E].copy_from_slice(&unpacked);
            }
        }
        // At most 64 products of two bytes: exact in f32, whose multiply-add is the fastest.
        let mut sums = [[0f32; 8]; M];
        product::<f32, E, RA, K, M>(
            &a,
            &columns,
            &mut sums,
            #[inline(always)]
            |a, b, sum| a.mul_add(b, sum),
        );
        let sums = sums.map(|row| row.map(|sum| sum as i32));
        store_rows(&add_integers(&sums, c, self.saturate), d);
    }

    #[inline(always)]
    fn run_bits<const RA: usize, const RB: usize, const K: usize, const M: usize>(
        &self,
        a: &[Lanes],
        b: &[Lanes],
        c: &[Lanes],
        d: &mut [Lanes],
    ) {
        let a: [[[i32; 32]; 1]; RA] = std::array::from_fn(|r| [a[r].map(|word| word as i32)]);
        let mut columns = [[0i32; 8]; K];
        for r in 0..RB {
            for t in 0..4 {
                columns[t + 4 * r] = quad_thread(&b[r], t).map(|word| word as i32);
            }
        }
        let mut sums = [[0i32; 8]; M];
        let xor = self.bit_op == Some(BitOp::Xor);
        product::<i32, 1, RA, K, M>(
            &a,
            &columns,
            &mut sums,
            #[inline(always)]
            |a, b, sum| sum + (if xor { a ^ b } else { a & b }).count_ones() as i32,
        );
        store_rows(&add_integers(&sums, c, false), d);
    }
}

#[inline(always)]
fn run_double<const RA: usize, const RB: usize, const K: usize, const M: usize>(
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes],
    d: &mut [Lanes],
) {
    let wide = |rows: &[Lanes], register: usize| -> [f64; 32] {
        let words = rows[2 * register..2 * register + 2].as_flattened();
        std::array::from_fn(|lane| f64::from_bits(words[2 * lane] as u64 | (words[2 * lane + 1] as u64) << 32))
    };
    let a: [[[f64; 32]; 1]; RA] = std::array::from_fn(|r| [wide(a, r)]);
    let mut columns = [[0f64; 8]; K];
    for r in 0..RB {
        let lanes = wide(b, r);
        for t in 0..4 {
            columns[t + 4 * r] = std::array::from_fn(|slot| lanes[4 * column(slot) + t]);
        }
    }
    let mut sums = [[0f64; 8]; M];
    for half in 0..M / 8 {
        let (even, odd) = (wide(c, 2 * half), wide(c, 2 * half + 1));
        for g in 0..8 {
            sums[8 * half + g][..4].copy_from_slice(&even[4 * g..4 * g + 4]);
            sums[8 * half + g][4..].copy_from_slice(&odd[4 * g..4 * g + 4]);
        }
    }
    product::<f64, 1, RA, K, M>(
        &a,
        &columns,
        &mut sums,
        #[inline(always)]
        |a, b, sum| a.mul_add(b, sum),
    );
    for (row, sums) in sums.iter().enumerate() {
        for (slot, sum) in sums.iter().enumerate() {
            let register = 2 * (row / 8) + slot / 4;
            let words = d[2 * register..2 * register + 2].as_flattened_mut();
            let lane = 4 * (row % 8) + slot % 4;
            words[2 * lane] = sum.to_bits() as u32;
            words[2 * lane + 1] = (sum.to_bits() >> 32) as u32;
        }
    }
}

// Rows of D are kept with the even columns first (slot s is column 2(s % 4) + s / 4): then a row is four lanes of one
// register and the same four of the next.

/// The column at a slot of a row of D or B.
#[inline(always)]
pub(super) fn column(slot: usize) -> usize {
    2 * (slot % 4) + slot / 4
}

/// Of each quad its thread `t`: a row of B, in slots.
#[inline(always)]
fn quad_thread(register: &Lanes, t: usize) -> [u32; 8] {
    std::array::from_fn(|slot| register[4 * column(slot) + t])
}

/// The four lanes of quad `g`.
#[inline(always)]
fn quad(register: &Lanes, g: usize) -> [u32; 4] {
    std::array::from_fn(|t| register[4 * g + t])
}

/// C's rows, in slots.
#[inline(always)]
fn rows_of<const M: usize>(c: &[Lanes]) -> [[u32; 8]; M] {
    std::array::from_fn(|row| {
        let (even, odd) = (quad(&c[2 * (row / 8)], row % 8), quad(&c[2 * (row / 8) + 1], row % 8));
        [even[0], even[1], even[2], even[3], odd[0], odd[1], odd[2], odd[3]]
    })
}

/// The inverse of [`rows_of`].
#[inline(always)]
fn store_rows<const M: usize>(rows: &[[u32; 8]; M], d: &mut [Lanes]) {
    for (row, sums) in rows.iter().enumerate() {
        let g = 4 * (row % 8);
        d[2 * (row / 8)][g..g + 4].copy_from_slice(&sums[..4]);
        d[2 * (row / 8) + 1][g..g + 4].copy_from_slice(&sums[4..]);
    }
}

#[inline(always)]
fn add_integers<const M: usize>(sums: &[[i32; 8]; M], c: &[Lanes], saturate: bool) -> [[u32; 8]; M] {
    let mut rows: [[u32; 8]; M] = rows_of(c);
    for (row, sums) in rows.iter_mut().zip(sums) {
        for (value, sum) in row.iter_mut().zip(sums) {
            let c = *value as i32;
            *value = if saturate { c.saturating_add(*sum) } else { c.wrapping_add(*sum) } as u32;
        }
    }
    rows
}

/// Eight rows of D at a time, ascending k. `a[r][j][lane]` is element j of register r.
#[inline(always)]
fn product<T: Copy, const E: usize, const RA: usize, const K: usize, const M: usize>(
    a: &[[[T; 32]; E]; RA],
    b: &[[T; 8]; K],
    sums: &mut [[T; 8]; M],
    step: impl Fn(T, T, T) -> T,
) {
    for (half, sums) in sums.chunks_exact_mut(8).enumerate() {
        let mut block: [[T; 8]; 8] = std::array::from_fn(|g| sums[g]);
        for step_of_k in 0..RA / (M / 8) {
            let elements = &a[step_of_k * (M / 8) + half];
            for t in 0..4 {
                for j in 0..E {
                    let b = &b[E * (t + 4 * step_of_k) + j];
                    for (g, row) in block.iter_mut().enumerate() {
                        let a = elements[j][4 * g + t];
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum = step(a, *b, *sum);
                        }
                    }
                }
            }
        }
        sums.copy_from_slice(&block);
    }
}

#[cfg(test)]
mod tests;
