//! Decoding of `mma.sync` opcodes.

use crate::matrix::format::{AccumulatorFormat, ElementFormat};

/// How `.b1` operands are combined before the ones are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BitOp {
    /// `.xor.popc`
    Xor,
    /// `.and.popc`
    And,
}

/// A decoded dense `mma.sync` form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmaOp {
    /// Rows of A and D: 8 or 16. D always has 8 columns.
    pub m: u8,
    /// Number of A's columns and of B's rows.
    pub k: u16,
    /// Format of A's elements.
    pub a: ElementFormat,
    /// Format of B's elements.
    pub b: ElementFormat,
    /// Format of C and D.
    pub accumulator: AccumulatorFormat,
    /// `.satfinite`: s32 sums clamp instead of wrapping.
    pub saturate: bool,
    /// The bit operation, for `.b1` elements only.
    pub bit_op: Option<BitOp>,
}

/// The number of registers that each operand takes per lane: 64-bit registers for f64, else 32-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterCounts {
    /// Registers of A.
    pub a: usize,
    /// Registers of B.
    pub b: usize,
    /// Registers of C, and of D.
    pub c: usize,
}

impl MmaOp {
    /// Parses `mma.sync.aligned.SHAPE.row.col{.rn}{.satfinite}.D.A.B.C{.xor.popc|.and.popc}`. Returns `None` for sparse
    /// forms, forms that sm_80 to sm_90 do not have, directed rounding of f64, and the m8n8k4 of f16.
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
        let (a, b) = (ElementFormat::from_ptx_type(a)?, ElementFormat::from_ptx_type(b)?);
        let accumulator = match d {
            "f16" => AccumulatorFormat::F16,
            "f32" => AccumulatorFormat::F32,
            "s32" => AccumulatorFormat::S32,
            "f64" => AccumulatorFormat::F64,
            _ => return None,
        };
        match prefix {
            None => (),
            Some("rn") if a == ElementFormat::F64 => (),
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

    /// Returns true if PTX has an instruction with this shape and these types.
    fn exists(&self) -> bool {
        let same = self.a == self.b;
        let float = matches!(self.accumulator, AccumulatorFormat::F32 | AccumulatorFormat::F16);
        let single = self.accumulator == AccumulatorFormat::F32;
        let integer = self.accumulator == AccumulatorFormat::S32;
        let shape = (self.m, self.k);
        let form = match self.a {
            ElementFormat::F64 => {
                same && self.accumulator == AccumulatorFormat::F64
                    && matches!(shape, (8, 4) | (16, 4) | (16, 8) | (16, 16))
            }
            ElementFormat::Tf32 => same && single && matches!(shape, (16, 4) | (16, 8)),
            ElementFormat::Bf16 => same && single && matches!(shape, (16, 8) | (16, 16)),
            ElementFormat::F16 => same && float && matches!(shape, (16, 8) | (16, 16)),
            ElementFormat::E4m3 | ElementFormat::E5m2 => {
                self.b.is_fp8() && float && matches!(shape, (16, 16) | (16, 32))
            }
            ElementFormat::S8 | ElementFormat::U8 => {
                self.b.is_integer() && self.b.bits() == 8 && integer && matches!(shape, (8, 16) | (16, 16) | (16, 32))
            }
            ElementFormat::S4 | ElementFormat::U4 => {
                self.b.is_integer() && self.b.bits() == 4 && integer && matches!(shape, (8, 32) | (16, 32) | (16, 64))
            }
            ElementFormat::B1 => same && integer && matches!(shape, (8, 128) | (16, 128) | (16, 256)),
        };
        form && (self.a == ElementFormat::B1) == self.bit_op.is_some()
    }

    /// Returns the number of registers per lane of each operand.
    pub fn registers_per_lane(&self) -> RegisterCounts {
        let (m, k) = (self.m as usize, self.k as usize);
        let width = if self.a == ElementFormat::F64 { 64 } else { 32 };
        let count = |elements: usize, bits: u32| elements * bits as usize / width / 32;
        let c = match self.accumulator {
            AccumulatorFormat::F16 => m * 8 / 64,
            _ => m * 8 / 32,
        };
        RegisterCounts { a: count(m * k, self.a.bits()), b: count(8 * k, self.b.bits()), c }
    }

    /// Returns how many [`Lanes`](crate::matrix::Lanes) arrays hold a register: 2 for f64, whose registers have 64
    /// bits, else 1.
    pub fn lane_arrays_per_register(&self) -> usize {
        if self.a == ElementFormat::F64 { 2 } else { 1 }
    }

    /// Returns the number of arithmetic operations of the product, two per multiply-add.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * 8 * self.k as u64
    }
}
