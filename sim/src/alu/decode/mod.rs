//! Decodes an opcode such as `add.rn.f32` and its operands to an [`AluOp`].

mod compare;
mod convert;
mod float;
mod integer;
mod logic;

use super::op::{Op, RareOp};
use super::scalar::{ScalarFlags, ScalarFunction, ScalarOp};
use super::{AluOp, OperandType, OperandTypes, RegisterClass};
use crate::ptx::ast::{Operand, RegisterDecl, RegisterIndex, Type};

/// Decodes an arithmetic instruction. `registers` are the registers of the function; `cvt` needs the declared width
/// of its destination, to which it extends the result.
///
/// Returns `None` for an instruction or form that is not supported. The caller replaces special registers and symbols
/// (`mov.u32 %r1, %tid.x`) by registers; this function counts each of them as one source.
pub fn decode(opcode: &str, operands: &[Operand], registers: &[RegisterDecl]) -> Option<(AluOp, OperandTypes)> {
    let mut tokens = opcode.split('.');
    let base = tokens.next()?;
    let form = InstructionForm { base, tokens: tokens.collect(), operands, registers };
    match base {
        "mov" => form.decode_move(),
        "cvt" => form.decode_conversion(),
        "setp" | "set" | "selp" | "slct" | "testp" => form.decode_comparison(),
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" => form.decode_logic(),
        _ if form.tokens.last() == Some(&"f32x2") => form.decode_f32_pair(),
        _ if form.is_float() => form.decode_float(),
        _ => form.decode_integer(),
    }
}

pub(super) type DecodedInstruction = Option<(AluOp, OperandTypes)>;

/// How many destinations and sources an instruction has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OperandCounts {
    /// The number of destinations: the parts of the first operand in the instruction's text.
    pub destinations: usize,
    /// The number of sources: the parts of all other operands in the instruction's text.
    pub sources: usize,
}

/// An instruction as it stands in the PTX text: the name, the modifiers and types after it, and the operands.
#[derive(Clone)]
pub(super) struct InstructionForm<'a> {
    pub base: &'a str,
    pub tokens: Vec<&'a str>,
    pub operands: &'a [Operand],
    pub registers: &'a [RegisterDecl],
}

/// Returns true for floating-point types.
pub(super) fn is_float(ty: Type) -> bool {
    matches!(ty, Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2 | Type::F32 | Type::F64)
}

/// Counts the operands that one operand of the PTX text stands for: the elements of a vector, two for `p|q`, else one.
fn count(operand: &Operand) -> usize {
    match operand {
        Operand::Vector(v) => v.len(),
        Operand::Pair(..) => 2,
        _ => 1,
    }
}

impl<'a> InstructionForm<'a> {
    /// Removes a modifier, such as `.ftz`, from the parts of the opcode that are not decoded yet. Returns true if the
    /// modifier was present.
    pub fn take_modifier(&mut self, modifier: &str) -> bool {
        let at = self.tokens.iter().position(|t| *t == modifier);
        at.map(|i| self.tokens.remove(i)).is_some()
    }

    /// Removes the first modifier of `choices` that the opcode has, and returns the value that `choices` assigns to
    /// it.
    pub fn take_modifier_value<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.take_modifier(name)).map(|(_, value)| *value)
    }

    /// Removes the last part of the opcode and returns it as a type; `None` if it is not a type.
    pub fn take_type_suffix(&mut self) -> Option<Type> {
        let ty = Type::from_name(self.tokens.last()?)?;
        self.tokens.pop();
        Some(ty)
    }

    /// Counts the operands of the instruction. Each element of a vector and each half of `p|q` counts as one.
    pub fn operand_counts(&self) -> OperandCounts {
        let mut counts = self.operands.iter().map(count);
        OperandCounts { destinations: counts.next().unwrap_or(0), sources: counts.sum() }
    }

    /// Returns the decoded instruction if every modifier of the opcode has been decoded and the number of operands
    /// matches.
    pub fn build_if_complete(&self, op: Op, dst: &[Type], src: &[Type]) -> DecodedInstruction {
        if !self.tokens.is_empty()
            || self.operand_counts() != (OperandCounts { destinations: dst.len(), sources: src.len() })
        {
            return None;
        }
        let expect =
            |types: &[Type]| types.iter().map(|&ty| OperandType { class: RegisterClass::of(ty), ty }).collect();
        Some((AluOp(op), OperandTypes { dst: expect(dst), src: expect(src), carry: false }))
    }

    /// Returns true if operand `i` of the PTX text is a negated predicate.
    fn negated(&self, i: usize) -> bool {
        matches!(self.operands.get(i), Some(Operand::Not(_)))
    }

    /// Returns the instruction as a scalar function with sources of the types `src`.
    fn scalar_op(&self, function: ScalarFunction, flags: ScalarFlags, dst: Type, src: &[Type]) -> DecodedInstruction {
        self.build_if_complete(
            Op::OutOfLine(RareOp::Scalar(ScalarOp::new(function, flags, src), RegisterClass::of(dst))),
            &[dst],
            src,
        )
    }

    /// Returns true if the last part of the opcode is a floating-point type.
    fn is_float(&self) -> bool {
        self.tokens.last().and_then(|t| Type::from_name(t)).is_some_and(is_float)
    }

    pub fn declared_type(&self, register: RegisterIndex) -> Option<Type> {
        Some(self.registers.get(register as usize)?.ty)
    }
}
