//! ScalarFunction operations: instructions that are one function of bits, called lane by lane through a function pointer.
//!
//! Most forms of PTX instructions are executed too seldom to deserve a loop of their own. [`ScalarOp`] holds the function and
//! its flags; [`super::op::Op`] has the loops for the frequent ones.

use super::OperandSlots;
use super::RegisterClass;
use super::lanes::{LaneValue, set_predicate, set_undefined};
use super::soft_float::RoundingMode;
use crate::ptx::ast::Type;
use crate::regs::Registers;

/// What modifiers say to a [`ScalarFunction`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ScalarFlags {
    /// Rounding.
    pub rounding: RoundingMode,
    /// Bits of the type; of packed types, of an element.
    pub bits: u8,
    /// A second width where one is needed: that of a conversion's destination register.
    pub wide: u8,
    /// The type is signed.
    pub signed: bool,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
    /// `.relu`
    pub relu: bool,
    /// `.NaN`, or `.satfinite` of conversions.
    pub strict: bool,
    /// `.xorsign.abs`; `.abs` of three operands; another choice of the instruction's own.
    pub variant: bool,
}

/// A function of up to four sources, as zero-extended bits; the result's upper bits are cut off.
pub type ScalarFunction = fn(ScalarFlags, u64, u64, u64, u64) -> u64;

/// A scalar function with what it needs.
#[derive(Clone, Copy, Debug)]
pub struct ScalarOp {
    function: ScalarFunction,
    flags: ScalarFlags,
    /// How many sources.
    sources: u8,
    /// A bit for each source in a 64-bit register.
    wide: u8,
}

impl ScalarOp {
    /// For sources of these types.
    pub fn new(function: ScalarFunction, flags: ScalarFlags, src: &[Type]) -> ScalarOp {
        let wide = src
            .iter()
            .enumerate()
            .fold(0, |w, (i, &ty)| w | ((RegisterClass::of(ty) == RegisterClass::B64) as u8) << i);
        ScalarOp { function, flags, sources: src.len() as u8, wide }
    }

    /// The results in the lanes of `mask`, zero in others, and where they are undefined.
    pub fn results(&self, r: &Registers, s: &OperandSlots, mask: u32) -> ([u64; 32], u32) {
        let mut undefined = 0;
        let mut sources = [[0; 32]; 4];
        for i in 0..self.sources as usize {
            let slot = s.src[i];
            undefined |= r.undefined[slot as usize];
            sources[i] = if self.wide >> i & 1 != 0 { u64::load(r, slot) } else { r.get(slot).map(|x| x as u64) };
        }
        let [a, b, c, d] = &sources;
        let mut out = [0; 32];
        for i in (0..32).filter(|i| mask >> i & 1 != 0) {
            out[i] = (self.function)(self.flags, a[i], b[i], c[i], d[i]);
        }
        (out, undefined)
    }

    /// What it gives with 1 and 0 as its first two sources: which of them it chooses.
    pub fn chosen(&self, r: &Registers, s: &OperandSlots, mask: u32) -> [u64; 32] {
        let c = r.get(s.src[2]);
        let mut out = [0; 32];
        for i in (0..32).filter(|i| mask >> i & 1 != 0) {
            out[i] = (self.function)(self.flags, 1, 0, c[i] as u64, 0);
        }
        out
    }

    /// Writes a register of this class.
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32, to: RegisterClass) {
        let (out, undefined) = self.results(r, s, mask);
        match to {
            RegisterClass::Pred => {
                let value = (0..32).fold(0, |m, i| m | ((out[i] & 1) as u32) << i);
                return set_predicate(r, s.dst[0], value, mask, undefined);
            }
            RegisterClass::B32 => r.set(s.dst[0], &out.map(|x| x as u32), mask),
            RegisterClass::B64 | RegisterClass::B128 => r.set64(s.dst[0], &out, mask),
        }
        set_undefined(r, s.dst[0], mask, undefined);
    }
}

/// ScalarFlags with a type's width and signedness.
pub fn type_flags(ty: Type) -> ScalarFlags {
    let signed = matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64);
    ScalarFlags { bits: ty.bits() as u8, signed, ..ScalarFlags::default() }
}
