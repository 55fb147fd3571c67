//! The arithmetic unit: instructions that compute registers from registers (integer, logic, floating point,
//! conversion, moves).
//!
//! [`decode`] turns an opcode and its operands into an [`AluOp`] and lists the types of its operands; [`AluOp::run`]
//! executes it for the 32 lanes of a warp. `op.rs` holds the dispatch tables; the instructions are in one file per
//! class. Source: PTX ISA 9.0, chapter 9.7.

mod carry;
mod compare;
mod convert;
pub mod decode;
pub(crate) mod f32_math;
mod float;
mod half;
mod integer;
mod lanes;
mod logic;
mod min_max;
mod moves;
mod op;
mod scalar;
pub(crate) mod soft_float;
mod special;

use crate::ptx::ast::Type;
use crate::regs::{Registers, Slot};
pub use decode::decode;

/// How a register is stored in the register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterClass {
    /// One bit per lane in [`Registers::predicates`].
    Pred,
    /// One row: 32 bits for each of the 32 lanes. The upper bits of 8- and 16-bit values are zero.
    B32,
    /// Two rows: 64 bits per lane.
    B64,
    /// Four rows: 128 bits per lane.
    B128,
}

impl RegisterClass {
    /// Returns the register class that holds a value of type `ty`.
    pub fn of(ty: Type) -> RegisterClass {
        match ty.bits() {
            1 => RegisterClass::Pred,
            8 | 16 | 32 => RegisterClass::B32,
            64 => RegisterClass::B64,
            _ => RegisterClass::B128,
        }
    }
}

/// The register class and element type that an instruction needs for one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandType {
    /// The register class.
    pub class: RegisterClass,
    /// The element type. An immediate becomes a constant register of this type: integers are truncated to its width
    /// with zero upper bits, float literals are converted.
    pub ty: Type,
}

/// Types of a decoded instruction's operands, flattened: every element of a vector and both halves of `p|q` count as
/// one operand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperandTypes {
    /// Destinations (the parts of the first operand in the PTX text). For `_`, pass a register of the same class that
    /// no instruction reads.
    pub dst: Vec<OperandType>,
    /// Sources (the parts of all other operands in the PTX text). Whether a predicate is negated (`!p`) is stored in
    /// the [`AluOp`].
    pub src: Vec<OperandType>,
    /// True if the instruction reads or writes the carry flag, which is the predicate at [`OperandSlots::carry`].
    pub carry: bool,
}

/// Where the operands of an instruction are in [`Registers`]: for each operand the index of its first row, or of its
/// predicate for [`RegisterClass::Pred`]. Elements without an operand are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperandSlots {
    /// The index of each destination, in the order of [`OperandTypes::dst`].
    pub dst: [Slot; 4],
    /// The index of each source, in the order of [`OperandTypes::src`].
    pub src: [Slot; 5],
    /// The predicate index of the carry flag.
    pub carry: Slot,
}

/// A decoded arithmetic instruction.
#[derive(Clone, Copy, Debug)]
pub struct AluOp(op::Op);

impl AluOp {
    /// Executes the instruction for the lanes of `mask`. A result lane is undefined if a source lane is undefined.
    ///
    /// # Panics
    /// Panics if a slot is outside of the registers or not of the class that [`OperandTypes`] names.
    #[inline(always)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        self.0.run(r, s, mask);
    }
}

#[cfg(test)]
mod tests;
