//! `tcgen05.mma`: the instruction descriptor, the rows of D and A in tensor memory, and the product.
//!
//! Tensor memory of a block has 128 lanes of 512 columns of 32 bits. With `cta_group::2`, two blocks compute one
//! product: each has half of A's rows, half of B's columns and half of D's rows. D has one element per column, in the
//! low bits. A in tensor memory has 32 bytes per row, in eight columns. The lanes of a block's rows are
//!
//! ```text
//!   rows per block   cta_group   layout of the PTX ISA   lane of row r
//!   128              1 or 2      A, D                    r
//!   64               1           F                       32·(r / 16) + r % 16, plus 0 or 16
//!   64               2           B                       r for the first half of D's columns, r + 64 for the second
//! ```
//!
//! As in [`super::wgmma`], products are exact, and sums are formed in ascending k with one rounding to f32 per step.
//! Source: PTX ISA, "TensorCore 5th Generation Family Instructions": instruction descriptor, data path layout
//! organization, shape of the matrices.

pub mod shape;
#[cfg(test)]
mod tests;
mod transfer;

pub use shape::{COLUMNS, GROUP_LANES, LANES, MmaShape, Region};
pub use transfer::TransferShape;

use super::format::{AccumulatorFormat, ElementFormat, f16_bits_to_f32, f32_to_f16_bits, unpack_to_f32};
use super::wgmma::{DescriptorError, SharedOperand};

/// The kind of a `tcgen05.mma` (`.kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MmaKind {
    /// f16 or bf16.
    F16,
    /// tf32.
    Tf32,
    /// 8-bit floating-point elements; narrower elements are not supported.
    F8F6F4,
    /// 8-bit integers.
    I8,
}

impl MmaKind {
    /// Parses a qualifier such as `kind::f16`; `None` for other qualifiers and for kinds that are not supported.
    pub fn from_qualifier(text: &str) -> Option<Self> {
        Some(match text {
            "kind::f16" => Self::F16,
            "kind::tf32" => Self::Tf32,
            "kind::f8f6f4" => Self::F8F6F4,
            "kind::i8" => Self::I8,
            _ => return None,
        })
    }
}

/// Why an instruction descriptor is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MmaError {
    /// A field has a value that the instruction does not allow.
    #[error("tcgen05.mma instruction descriptor {bits:#010x}: {what}")]
    Invalid {
        /// The descriptor.
        bits: u32,
        /// The field and its value.
        what: String,
    },
    /// The simulator does not support the product.
    #[error("tcgen05.mma instruction descriptor {bits:#010x}: {what}: not supported by the simulator")]
    Unsupported {
        /// The descriptor.
        bits: u32,
        /// The property that is not supported.
        what: &'static str,
    },
}

impl MmaShape {
    /// Decodes an instruction descriptor.
    ///
    /// # Errors
    /// Returns an error if a field has a value that the kind does not allow, or if the simulator does not support the
    /// product.
    pub fn decode(kind: MmaKind, blocks: u32, bits: u32) -> Result<MmaShape, MmaError> {
        let field = |at: u32, width: u32| bits >> at & ((1 << width) - 1);
        let invalid = |what: String| MmaError::Invalid { bits, what };
        let unsupported = |what| MmaError::Unsupported { bits, what };
        let element = |code: u32| match (kind, code) {
            (MmaKind::F16, 0) => Ok(ElementFormat::F16),
            (MmaKind::F16, 1) => Ok(ElementFormat::Bf16),
            (MmaKind::Tf32, 2) => Ok(ElementFormat::Tf32),
            (MmaKind::F8F6F4, 0) => Ok(ElementFormat::E4m3),
            (MmaKind::F8F6F4, 1) => Ok(ElementFormat::E5m2),
            (MmaKind::F8F6F4, 3..=5) => Err(unsupported("elements of 4 or 6 bits")),
            (MmaKind::I8, 0) => Ok(ElementFormat::U8),
            (MmaKind::I8, 1) => Ok(ElementFormat::S8),
            _ => Err(invalid(format!("element format {code} does not belong to the kind"))),
        };
        if field(2, 1) != 0 {
            return Err(unsupported("sparse A"));
        }
        if bits & (1 << 6 | 1 << 23 | 1 << 29) != 0 {
            return Err(invalid("a reserved bit (6, 23 or 29) is set".into()));
        }
        let accumulator = match (kind, field(4, 2)) {
            (MmaKind::F16 | MmaKind::F8F6F4, 0) => AccumulatorFormat::F16,
            (MmaKind::F16 | MmaKind::F8F6F4 | MmaKind::Tf32, 1) => AccumulatorFormat::F32,
            (MmaKind::I8, 2) => AccumulatorFormat::S32,
            (_, code) => return Err(invalid(format!("format {code} of D does not belong to the kind"))),
        };
        let (a, b) = (element(field(7, 3))?, element(field(10, 3))?);
        let (m, n) = (field(24, 5) * 16, field(17, 6) * 8);
        let step = if blocks == 2 || m == 128 { 16 } else { 8 };
        let rows = m / blocks;
        if !matches!(rows, 64 | 128) || n == 0 || n > 256 || !n.is_multiple_of(step) {
            return Err(invalid(format!("no product of cta_group::{blocks} has M = {m} and N = {n}")));
        }
        let shape = MmaShape {
            blocks,
            m,
            n,
            a,
            b,
            accumulator,
            saturate: field(3, 1) != 0,
            negate: field(13, 1) != field(14, 1),
            transpose_a: field(15, 1) != 0,
            transpose_b: field(16, 1) != 0,
        };
        if a.bits() != 16 && (shape.transpose_a || shape.transpose_b) {
            return Err(unsupported("M-major or N-major elements that do not have 16 bits"));
        }
        Ok(shape)
    }

    /// Returns the number of A's columns and of B's rows: as many elements as 32 bytes hold.
    pub fn k(&self) -> u32 {
        256 / self.a.bits()
    }

    /// Returns the number of rows of A and D in each block.
    pub fn rows(&self) -> u32 {
        self.m / self.blocks
    }

    /// Returns the number of arithmetic operations, two per multiply-add.
    pub fn flops(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k())
    }

    /// Returns a block's operand A that a descriptor gives in shared memory.
    pub fn operand_a(&self, descriptor: u64) -> Result<SharedOperand, DescriptorError> {
        SharedOperand::of_tcgen05(descriptor, self.transpose_a, self.rows())
    }

    /// Returns a block's operand B that a descriptor gives in shared memory.
    pub fn operand_b(&self, descriptor: u64) -> Result<SharedOperand, DescriptorError> {
        SharedOperand::of_tcgen05(descriptor, self.transpose_b, self.n / self.blocks)
    }

    /// Whether the second half of D's columns lies in the upper 64 lanes.
    fn is_folded(&self) -> bool {
        self.blocks == 2 && self.rows() == 64
    }

    /// Returns the mask of the groups of 16 lanes that hold a block's rows; `lane` is the lane of the address.
    fn lane_groups(&self, lane: u32) -> u8 {
        if self.rows() == 64 && self.blocks == 1 { 0b0101_0101 << (lane / 16 % 2) } else { 0xff }
    }

    /// Returns the part of tensor memory of each block that holds D at address `address`.
    pub fn region_of_d(&self, address: u32) -> Region {
        let columns = if self.is_folded() { self.n / 2 } else { self.n };
        (self.lane_groups(address >> 16), (address & 0xffff)..(address & 0xffff) + columns)
    }

    /// Returns the part of tensor memory of each block that holds A at address `address`.
    pub fn region_of_a(&self, address: u32) -> Region {
        (self.lane_groups(address >> 16), (address & 0xffff)..(address & 0xffff) + 8)
    }

    /// Returns the lane and the column, from the first one of D, of an element of D in its block.
    pub fn position_in_d(&self, address: u32, row: usize, column: usize) -> (usize, usize) {
        let half = self.n as usize / 2;
        match (self.rows(), self.is_folded()) {
            (128, _) => (row, column),
            (_, true) => (row + 64 * (column / half), column % half),
            _ => (32 * (row / 16) + row % 16 + (address >> 16 & 16) as usize, column),
        }
    }

    /// Reads a block's A from shared memory, row by row; `fetch` returns the 16 bytes at a shared address.
    pub fn read_a(&self, operand: &SharedOperand, fetch: impl Fn(u32) -> [u8; 16]) -> Vec<f32> {
        let k = self.k() as usize;
        let mut out = vec![0.0; self.rows() as usize * k];
        self.for_each_element(self.a, operand, fetch, |mn, at, value| out[mn * k + at] = value);
        out
    }

    /// Reads a block's B from shared memory into columns `first..` of `out`, whose rows are indices along k and have N
    /// elements.
    pub fn read_b(&self, operand: &SharedOperand, first: usize, out: &mut [f32], fetch: impl Fn(u32) -> [u8; 16]) {
        let n = self.n as usize;
        self.for_each_element(self.b, operand, fetch, |mn, at, value| out[at * n + first + mn] = value);
    }

    /// Converts the eight words of a row of A in tensor memory.
    pub fn row_of_a(&self, words: [u32; 8], out: &mut [f32]) {
        for (word, out) in words.iter().zip(out.chunks_exact_mut(self.k() as usize / 8)) {
            unpack_word(self.a, *word, out);
        }
    }

    /// Calls `each` with the index along m or n, the index along k, and the value of each element of an operand.
    fn for_each_element(
        &self,
        format: ElementFormat,
        operand: &SharedOperand,
        fetch: impl Fn(u32) -> [u8; 16],
        mut each: impl FnMut(usize, usize, f32),
    ) {
        let of_unit = 128 / format.bits() as usize;
        let (lines, units) = match operand.is_mn_major() {
            true => (self.k(), operand.m_or_n_extent() / 8),
            false => (operand.m_or_n_extent(), 2),
        };
        let mut values = [0.0; 16];
        for line in 0..lines {
            for unit in 0..units {
                let bytes = fetch(operand.unit_shared_address(line, unit));
                for (word, out) in bytes.chunks_exact(4).zip(values.chunks_exact_mut(of_unit / 4)) {
                    unpack_word(format, u32::from_le_bytes(word.try_into().expect("four bytes")), out);
                }
                for (i, value) in values[..of_unit].iter().enumerate() {
                    let (along, across) = (unit as usize * of_unit + i, line as usize);
                    if operand.is_mn_major() { each(along, across, *value) } else { each(across, along, *value) }
                }
            }
        }
    }

    /// Computes rows of D = ±A·B + D. `a` holds the rows of A, `b` the rows of B, and `d` the words of D's rows; the
    /// old values of D are multiplied by `scale_d`, or not read if it is `None`.
    pub fn multiply_add(&self, a: &[f32], b: &[f32], scale_d: Option<f32>, d: &mut [u32]) {
        let (k, n) = (self.k() as usize, self.n as usize);
        let mut sums = vec![0f32; n];
        for (a, d) in a.chunks_exact(k).zip(d.chunks_exact_mut(n)) {
            match (scale_d, self.accumulator) {
                (Some(scale), AccumulatorFormat::F32) => {
                    sums.iter_mut().zip(&*d).for_each(|(sum, old)| *sum = f32::from_bits(*old) * scale)
                }
                (Some(scale), AccumulatorFormat::F16) => {
                    sums.iter_mut().zip(&*d).for_each(|(sum, old)| *sum = f16_bits_to_f32(old & 0xffff) * scale)
                }
                _ => sums.fill(0.0),
            }
            add_products(a, b, self.negate, &mut sums);
            for (d, sum) in d.iter_mut().zip(&sums) {
                *d = match self.accumulator {
                    AccumulatorFormat::F16 => f32_to_f16_bits(*sum),
                    AccumulatorFormat::S32 => {
                        let old = if scale_d.is_some() { *d as i32 } else { 0 };
                        let added = *sum as i32;
                        (if self.saturate { old.saturating_add(added) } else { old.wrapping_add(added) }) as u32
                    }
                    _ => sum.to_bits(),
                };
            }
        }
    }
}

/// Adds the products of a row of A with the columns of B to `sums`, in ascending k. A product of two elements is exact
/// in f32, so that a multiplication followed by an addition rounds once.
fn add_products(a: &[f32], b: &[f32], negate: bool, sums: &mut [f32]) {
    crate::simd::run_with_widest_simd(
        #[inline(always)]
        || {
            for (a, b) in a.iter().zip(b.chunks_exact(sums.len())) {
                let a = if negate { -*a } else { *a };
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
        },
    );
}

/// Converts the elements that are packed in a word to f32.
fn unpack_word(format: ElementFormat, word: u32, out: &mut [f32]) {
    fn unpack<const E: usize>(format: ElementFormat, word: u32, out: &mut [f32]) {
        let mut values = [[0.0; 1]; E];
        unpack_to_f32(format, &[word], &mut values);
        out.copy_from_slice(values.as_flattened());
    }
    match out.len() {
        1 => unpack::<1>(format, word, out),
        2 => unpack::<2>(format, word, out),
        _ => unpack::<4>(format, word, out),
    }
}
