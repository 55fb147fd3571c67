//! `wmma`: which lane holds which element of a matrix in memory, and the product of whole fragments.
//!
//! The PTX ISA does not specify which element a register of a fragment holds. Here a fragment consists of
//! [`mma`](super::mma) tiles: a row of tiles of eight columns, or for a 32-row matrix a column of tiles of 16 rows, as
//! on tensor cores since sm_75. `m8n32k16` is computed as the transpose of `m32n8k16`. A fragment of f16 operands
//! always has eight registers; if its elements need fewer registers, the remaining registers repeat the first ones.
//!
//! Source: PTX ISA 9.0, "Matrix fragments for wmma" and "Matrix storage for wmma".

use super::Lanes;
use super::format::{AccumulatorFormat, ElementFormat, f16_bits_to_f32, f32_to_f16_bits};
use super::mma::{BitOp, MmaOp};

/// Which matrix of D = A·B + C a fragment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixRole {
    /// m × k
    A,
    /// k × n
    B,
    /// C and D: m × n
    C,
}

/// The shape of a `wmma` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WmmaShape {
    /// Number of rows of A.
    pub m: u16,
    /// Number of columns of B.
    pub n: u16,
    /// Number of columns of A.
    pub k: u16,
}

impl WmmaShape {
    /// Parses a shape such as `m16n16k16`.
    pub fn from_ptx_shape(text: &str) -> Option<Self> {
        let (m, n, k) = match text {
            "m16n16k16" => (16, 16, 16),
            "m32n8k16" => (32, 8, 16),
            "m8n32k16" => (8, 32, 16),
            "m16n16k8" => (16, 16, 8),
            "m8n8k4" => (8, 8, 4),
            "m8n8k32" => (8, 8, 32),
            "m8n8k128" => (8, 8, 128),
            _ => return None,
        };
        Some(Self { m, n, k })
    }

    /// Returns true if PTX has this shape for A and B with elements of this format.
    fn takes(self, element: ElementFormat) -> bool {
        let k = match element {
            ElementFormat::F16 | ElementFormat::Bf16 | ElementFormat::S8 | ElementFormat::U8 => 16,
            ElementFormat::Tf32 => 8,
            ElementFormat::F64 => 4,
            ElementFormat::S4 | ElementFormat::U4 => 32,
            ElementFormat::B1 => 128,
            ElementFormat::E4m3 | ElementFormat::E5m2 => return false,
        };
        self.k == k
    }

    /// Returns the number of rows and of columns of a matrix.
    fn extent(self, operand: MatrixRole) -> (usize, usize) {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        match operand {
            MatrixRole::A => (m, k),
            MatrixRole::B => (k, n),
            MatrixRole::C => (m, n),
        }
    }

    /// Returns true for `m8n32k16`, which is computed as a transpose.
    fn transposed(self) -> bool {
        self.n == 32
    }

    /// Returns the number of rows of one tile of D.
    fn tile_rows(self) -> usize {
        if self.m == 8 && !self.transposed() { 8 } else { 16 }
    }
}

/// A fragment: which elements of a matrix each lane's registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    shape: WmmaShape,
    operand: MatrixRole,
    bits: u32,
    /// Elements per register: one tf32 or f32 per 32-bit register, one f64 per 64-bit register; smaller elements are
    /// packed.
    per_register: usize,
    /// Number of registers that hold different elements.
    distinct: usize,
    /// Number of registers that the instruction names.
    registers: usize,
}

impl Fragment {
    /// Creates the fragment of a matrix with elements of type `ty`; `None` if PTX has no such fragment.
    pub fn new(shape: WmmaShape, operand: MatrixRole, ty: &str) -> Option<Self> {
        let (bits, exists) = match (operand, ty) {
            (MatrixRole::C, "f16") => (16, shape.k == 16),
            (MatrixRole::C, "f32") => (32, matches!(shape.k, 16 | 8)),
            (MatrixRole::C, "s32") => (32, matches!(shape.k, 16 | 32 | 128)),
            (MatrixRole::C, "f64") => (64, shape.k == 4),
            (MatrixRole::C, _) => return None,
            (_, ty) => {
                let element = ElementFormat::from_ptx_type(ty)?;
                (element.bits(), shape.takes(element))
            }
        };
        let width = bits.max(32);
        let per_register = (width / bits) as usize;
        let (rows, columns) = shape.extent(operand);
        let distinct = rows * columns / (32 * per_register);
        let registers = if operand != MatrixRole::C && ty == "f16" { 8 } else { distinct };
        exists.then_some(Self { shape, operand, bits, per_register, distinct, registers })
    }

    /// Returns the number of registers that the instruction names.
    pub fn register_count(&self) -> usize {
        self.registers
    }

    /// Returns the number of registers that hold different elements. The other registers hold the same elements again,
    /// in the same order.
    pub fn distinct_register_count(&self) -> usize {
        self.distinct
    }

    /// Returns the number of elements per register.
    pub fn elements_per_register(&self) -> usize {
        self.per_register
    }

    /// Returns the number of bits of an element.
    pub fn element_bits(&self) -> u32 {
        self.bits
    }

    /// Returns true if the elements of a register are contiguous in memory.
    pub fn is_contiguous_per_register(&self, column_major: bool) -> bool {
        let along_rows = match self.operand {
            MatrixRole::A => true,
            MatrixRole::B => false,
            MatrixRole::C => !self.shape.transposed(),
        };
        self.per_register == 1 || along_rows != column_major
    }

    /// Returns the stride, in elements, that applies if the instruction names none: the length of a row, or of a
    /// column if the matrix is column-major.
    pub fn default_stride_elements(&self, column_major: bool) -> u32 {
        let (rows, columns) = self.shape.extent(self.operand);
        if column_major { rows as u32 } else { columns as u32 }
    }

    /// Returns the alignment in bytes that every row (or column) needs. The PTX ISA requires the size of a lane's
    /// fragment; 16 bytes are enough for CUDA's `ldm` and for the hardware.
    pub fn row_alignment_bytes(&self) -> u64 {
        (self.registers as u64 * self.bits.max(32) as u64 / 8).min(16)
    }

    /// Returns the row and column of an element of a register in a lane.
    pub fn element_row_and_column(&self, register: usize, element: usize, lane: usize) -> (usize, usize) {
        let (g, t, e) = (lane / 4, lane % 4, self.per_register);
        let (mut operand, transposed) = (self.operand, self.shape.transposed());
        if transposed {
            operand = match operand {
                MatrixRole::A => MatrixRole::B,
                MatrixRole::B => MatrixRole::A,
                MatrixRole::C => MatrixRole::C,
            };
        }
        let (tile_rows, k) = (self.shape.tile_rows(), self.shape.k as usize);
        let (row, column) = match operand {
            MatrixRole::A => {
                let per_tile = tile_rows * k / (32 * e);
                let (tile, r) = (register / per_tile, register % per_tile);
                let (half, step) = if tile_rows == 16 { (r & 1, r >> 1) } else { (0, r) };
                (tile_rows * tile + g + 8 * half, e * t + 4 * e * step + element)
            }
            MatrixRole::B => {
                let per_tile = k / (4 * e);
                let (tile, r) = (register / per_tile, register % per_tile);
                (e * t + 4 * e * r + element, 8 * tile + g)
            }
            MatrixRole::C => {
                let value = register * e + element;
                let (tile, v) = (value / (tile_rows / 4), value % (tile_rows / 4));
                let down = self.shape.m == 32 || transposed;
                let (row, column) = if down { (tile_rows * tile, 0) } else { (0, 8 * tile) };
                (row + g + 8 * (v >> 1), column + 2 * t + (v & 1))
            }
        };
        if transposed { (column, row) } else { (row, column) }
    }
}

/// A decoded `wmma.mma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WmmaOp {
    shape: WmmaShape,
    /// The `mma` product of one tile.
    tile: MmaOp,
    /// The fragments of A, B, C and D.
    pub fragments: [Fragment; 4],
}

impl WmmaOp {
    /// Parses `wmma.mma{.OP.popc}.sync.aligned.LAYOUT.LAYOUT.SHAPE.TYPES{.rn}{.satfinite}`. TYPES are the types of D,
    /// A, B and C; f16 forms name only D and C. Returns `None` for forms that do not exist, for directed rounding of
    /// f64, and for `.satfinite` of f16.
    pub fn decode(opcode: &str) -> Option<Self> {
        let rest = opcode.strip_prefix("wmma.mma.")?;
        let (bit_op, rest) = match rest.split_once(".popc.") {
            Some(("xor", rest)) => (Some(BitOp::Xor), rest),
            Some(("and", rest)) => (Some(BitOp::And), rest),
            Some(_) => return None,
            None => (None, rest),
        };
        let mut parts = rest.strip_prefix("sync.aligned.")?.split('.');
        let layouts = [parts.next()?, parts.next()?];
        if layouts.iter().any(|layout| !matches!(*layout, "row" | "col")) {
            return None;
        }
        let shape = WmmaShape::from_ptx_shape(parts.next()?)?;
        let types: Vec<&str> = parts.collect();
        let (d, a, b, c, suffix) = match types[..] {
            [d, c] => (d, "f16", "f16", c, None),
            [d, a, b, c] => (d, a, b, c, None),
            [d, a, b, c, suffix] => (d, a, b, c, Some(suffix)),
            _ => return None,
        };
        let (element, other) = (ElementFormat::from_ptx_type(a)?, ElementFormat::from_ptx_type(b)?);
        let (accumulator, exists) = match element {
            ElementFormat::F16 if d == "f16" && c == "f16" => (AccumulatorFormat::F16, true),
            ElementFormat::F16 => (AccumulatorFormat::F32, matches!((d, c), ("f16" | "f32", "f16" | "f32"))),
            ElementFormat::Bf16 | ElementFormat::Tf32 => (AccumulatorFormat::F32, d == "f32" && c == "f32"),
            ElementFormat::F64 => (AccumulatorFormat::F64, d == "f64" && c == "f64"),
            _ => (AccumulatorFormat::S32, d == "s32" && c == "s32"),
        };
        let saturate = suffix == Some("satfinite");
        let suffix_fits = match suffix {
            None => true,
            Some("satfinite") => element.is_integer(),
            Some(rounding) => rounding == "rn" && element == ElementFormat::F64,
        };
        // With elements of less than one byte, A must be `row` and B `col`; with all others any layout is valid.
        let oriented =
            !matches!(element, ElementFormat::S4 | ElementFormat::U4 | ElementFormat::B1) || layouts == ["row", "col"];
        let fits = exists && suffix_fits && oriented && element == other && shape.takes(element);
        if !fits || (element == ElementFormat::B1) != bit_op.is_some() {
            return None;
        }
        let m = shape.tile_rows() as u8;
        let tile = MmaOp { m, k: shape.k, a: element, b: other, accumulator, saturate, bit_op };
        let fragments = [
            Fragment::new(shape, MatrixRole::A, a)?,
            Fragment::new(shape, MatrixRole::B, b)?,
            Fragment::new(shape, MatrixRole::C, c)?,
            Fragment::new(shape, MatrixRole::C, d)?,
        ];
        Some(Self { shape, tile, fragments })
    }

    /// Returns the number of arithmetic operations of the product, two per multiply-add.
    pub fn flops(&self) -> u64 {
        2 * self.shape.m as u64 * self.shape.n as u64 * self.shape.k as u64
    }

    /// Returns how many `Lanes` arrays hold a register: 2 for f64, whose registers have 64 bits, else 1.
    pub fn lane_arrays_per_register(&self) -> usize {
        self.tile.lane_arrays_per_register()
    }

    /// Computes D = A·B + C. Each operand is a list of registers, [`Fragment::distinct_register_count`] many.
    pub fn multiply_add(&self, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes]) -> Vec<Lanes> {
        let [.., before, after] = &self.fragments;
        let wide_sum = self.tile.accumulator == AccumulatorFormat::F32;
        let converted = (wide_sum && before.bits == 16).then(|| unpacked(c));
        let references: Vec<&Lanes>;
        let c = match &converted {
            Some(rows) => {
                references = rows.iter().collect();
                &references[..]
            }
            None => c,
        };
        let (a, b) = if self.shape.transposed() { (b, a) } else { (a, b) };
        let rows = self.lane_arrays_per_register();
        let counts = self.tile.registers_per_lane();
        let (of_a, of_b, of_c) = (rows * counts.a, rows * counts.b, rows * counts.c);
        let mut d = vec![[0; 32]; c.len()];
        for (tile, (c, d)) in c.chunks_exact(of_c).zip(d.chunks_exact_mut(of_c)).enumerate() {
            // Either A or B has a single tile, which all tiles of D share.
            let (down, right) = if a.len() > of_a { (tile, 0) } else { (0, tile) };
            self.tile.multiply_add(&a[of_a * down..][..of_a], &b[of_b * right..][..of_b], c, d);
        }
        if wide_sum && after.bits == 16 { packed(&d) } else { d }
    }
}

/// Converts registers of two f16 per lane to twice as many registers of f32.
fn unpacked(rows: &[&Lanes]) -> Vec<Lanes> {
    let half = |row: &Lanes, shift: u32| row.map(|word| f16_bits_to_f32(word >> shift & 0xffff).to_bits());
    rows.iter().flat_map(|row| [half(row, 0), half(row, 16)]).collect()
}

/// Rounds registers of f32 to half as many registers of two f16 per lane.
fn packed(rows: &[Lanes]) -> Vec<Lanes> {
    let bits = |word: u32| f32_to_f16_bits(f32::from_bits(word));
    rows.chunks_exact(2).map(|pair| std::array::from_fn(|l| bits(pair[0][l]) | bits(pair[1][l]) << 16)).collect()
}

#[cfg(test)]
mod tests;
