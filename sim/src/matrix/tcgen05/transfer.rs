//! `tcgen05.ld` and `tcgen05.st`: which lane and columns of tensor memory each register of each lane of a warp holds.
//!
//! A warp accesses 32 or 16 lanes. For lane t of the warp and register r, with the columns c counted from the address,
//! the base shapes are
//!
//! ```text
//!   32x32b    lane t                                column r
//!   16x64b    lane 8·(t % 2) + t / 4                column 2·r + t / 2 % 2
//!   16x128b   lane t / 4 + 8·(r % 2)                column 4·(r / 2) + t % 4
//!   16x256b   lane t / 4 + 8·(r / 2 % 2)            column 8·(r / 4) + 2·(t % 4) + r % 2
//!   16x32bx2  lane t % 16                           column r, plus the split offset for t >= 16
//! ```
//!
//! With `.pack::16b` and `.unpack::16b`, column c stands for the low halves of the columns 2·c and 2·c + 1, which the
//! register holds in its low and high half. Source: PTX ISA, tcgen05 data movement shape, and the copy traits of
//! CUTLASS (`cute/atom/copy_traits_sm100.hpp`).

use std::ops::Range;

/// The `.shape` qualifiers of `tcgen05.ld` and `tcgen05.st`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    S32x32b,
    S16x64b,
    S16x128b,
    S16x256b,
    S16x32bx2,
}

/// The shape of a `tcgen05.ld` or `tcgen05.st`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferShape {
    base: Base,
    repeat: u32,
    /// Whether two 16-bit elements of neighbouring columns share a register.
    packed: bool,
    /// Column offset of the second 16 lanes of the warp (`16x32bx2`).
    split: u32,
}

impl TransferShape {
    /// Parses a `.shape` qualifier, for a repetition of 1.
    pub fn parse(qualifier: &str) -> Option<Self> {
        let base = match qualifier {
            "32x32b" => Base::S32x32b,
            "16x64b" => Base::S16x64b,
            "16x128b" => Base::S16x128b,
            "16x256b" => Base::S16x256b,
            "16x32bx2" => Base::S16x32bx2,
            _ => return None,
        };
        Some(Self { base, repeat: 1, packed: false, split: 0 })
    }

    /// Whether the instruction has an operand for the column offset of its second half.
    pub fn is_split(&self) -> bool {
        self.base == Base::S16x32bx2
    }

    /// Returns the shape with a number of repetitions (`.num`), packed or not, and with the column offset of the
    /// second half.
    pub fn with_options(self, repeat: u32, packed: bool, split: u32) -> Self {
        Self { repeat, packed, split, ..self }
    }

    /// Returns the number of registers per lane of the warp.
    pub fn registers(&self) -> u32 {
        self.repeat
            * match self.base {
                Base::S16x128b => 2,
                Base::S16x256b => 4,
                _ => 1,
            }
    }

    /// Whether two elements of neighbouring columns share a register.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// Returns the number of lanes of tensor memory: 16 or 32.
    pub fn lanes(&self) -> u32 {
        if self.base == Base::S32x32b { 32 } else { 16 }
    }

    /// Returns the ranges of columns, from the first one, that the instruction accesses in each of its lanes.
    pub fn columns(&self) -> [Range<u32>; 2] {
        let columns = self.repeat
            * match self.base {
                Base::S32x32b | Base::S16x32bx2 => 1,
                Base::S16x64b => 2,
                Base::S16x128b => 4,
                Base::S16x256b => 8,
            };
        let columns = if self.packed { 2 * columns } else { columns };
        [0..columns, if self.is_split() { self.split..self.split + columns } else { 0..0 }]
    }

    /// Returns the lane, from the first one, and the column, from the first one, of register `register` in lane `t` of
    /// the warp. With `packed`, the register also holds the next column.
    pub fn position(&self, t: u32, register: u32) -> (u32, u32) {
        let r = register;
        let (lane, column) = match self.base {
            Base::S32x32b => (t, r),
            Base::S16x64b => (8 * (t % 2) + t / 4, 2 * r + t / 2 % 2),
            Base::S16x128b => (t / 4 + 8 * (r % 2), 4 * (r / 2) + t % 4),
            Base::S16x256b => (t / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (t % 4) + r % 2),
            Base::S16x32bx2 => (t % 16, r),
        };
        let column = if self.packed { 2 * column } else { column };
        (lane, if self.is_split() && t >= 16 { column + self.split } else { column })
    }
}
