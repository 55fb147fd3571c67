//! Instructions that compute registers from registers, lane by lane: integer, logic, floating-point, conversion, moves.
//!
//! [`decode`] turns an opcode and its operands into an [`AluOp`] and says which registers it wants; [`AluOp::run`] executes
//! it for a warp. Source: PTX ISA 9.0, chapter 9.7.

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

/// What kind of register an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterClass {
    /// A mask in [`Registers::predicates`].
    Pred,
    /// One row; 8- and 16-bit values have zero upper bits.
    B32,
    /// Two rows.
    B64,
    /// Four rows.
    B128,
}

impl RegisterClass {
    /// The kind of register that holds a value of this type.
    pub fn of(ty: Type) -> RegisterClass {
        match ty.bits() {
            1 => RegisterClass::Pred,
            8 | 16 | 32 => RegisterClass::B32,
            64 => RegisterClass::B64,
            _ => RegisterClass::B128,
        }
    }
}

/// What an instruction expects of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandType {
    /// The kind of register.
    pub class: RegisterClass,
    /// The element type: an immediate becomes a constant register of it (integers truncated to its width with zero upper
    /// bits, float literals converted to it).
    pub ty: Type,
}

/// The operands of a decoded instruction, flattened: a vector's elements and both of `p|q` count one each, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperandTypes {
    /// Destinations (those of the first written operand). For `_` give a register of the class that nobody reads.
    pub dst: Vec<OperandType>,
    /// Sources: the other written operands. A negation (`!p`) is known to the [`AluOp`].
    pub src: Vec<OperandType>,
    /// The instruction reads or writes the carry flag: [`OperandSlots::carry`] is a predicate.
    pub carry: bool,
}

/// Where the operands are: rows, or predicates for operands of [`RegisterClass::Pred`]. Unused ones are any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperandSlots {
    /// As [`OperandTypes::dst`].
    pub dst: [Slot; 4],
    /// As [`OperandTypes::src`].
    pub src: [Slot; 5],
    /// The predicate that holds the carry flag.
    pub carry: Slot,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct AluOp(op::Op);

impl AluOp {
    /// Executes for the lanes of `mask`, undefinedness included: a result is undefined where a source is. OperandSlots must be
    /// within the registers, as [`OperandTypes`] asked, else it panics.
    #[inline(always)]
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32) {
        self.0.run(r, s, mask);
    }
}

#[cfg(test)]
mod tests;
