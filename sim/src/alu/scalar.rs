//! Scalar instructions: one function of integers or float bits that is called lane by lane through a function
//! pointer.
//!
//! Most forms of PTX instructions are executed too rarely to need a vectorised loop of their own. A [`ScalarOp`]
//! holds the function and the flags of such a form; [`super::op::Op`] holds the loops of the frequent instructions.

use super::OperandSlots;
use super::RegisterClass;
use super::lanes::{LaneValue, lane_mask, mark_undefined_lanes, set_predicate};
use super::soft_float::RoundingMode;
use crate::ptx::ast::Type;
use crate::regs::Registers;

/// The modifiers and the type of an instruction, as passed to its [`ScalarFunction`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ScalarFlags {
    /// Rounding mode (`.rn`, `.rz`, …).
    pub rounding: RoundingMode,
    /// Bits of the instruction's type; for packed types, bits of one element.
    pub bits: u8,
    /// An argument that only some functions have: the destination format of `cvt`, or the mask of orderings of a
    /// comparison.
    pub wide: u8,
    /// True for a signed integer type.
    pub signed: bool,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
    /// `.relu`
    pub relu: bool,
    /// True for `.NaN` or, in a conversion, for `.satfinite`.
    pub strict: bool,
    /// Selects a variant of the function, which documents its meaning: bf16 instead of f16, `max` instead of `min`,
    /// `.hi` instead of `.lo`, …
    pub variant: bool,
}

/// A function of up to four sources, given as zero-extended bits. The caller keeps as many low bits of the result as
/// the destination has.
pub type ScalarFunction = fn(ScalarFlags, u64, u64, u64, u64) -> u64;

/// Declares [`ScalarFunction`]s whose result is one expression: `name |flags, a, b, c, d| result;`.
macro_rules! scalar_functions {
    ($($(#[$meta:meta])* $name:ident |$f:pat_param, $a:pat_param, $b:pat_param, $c:pat_param, $d:pat_param| $result:expr;)*) => {$(
        $(#[$meta])*
        pub fn $name($f: ScalarFlags, $a: u64, $b: u64, $c: u64, $d: u64) -> u64 {
            $result
        }
    )*};
}
pub(super) use scalar_functions;

/// A scalar function with its flags and the widths of its sources.
#[derive(Clone, Copy, Debug)]
pub struct ScalarOp {
    function: ScalarFunction,
    flags: ScalarFlags,
    sources: u8,
    /// Bit i is set if source i is a 64-bit register.
    wide: u8,
}

impl ScalarOp {
    /// Creates the operation for sources of the types `src`.
    pub fn new(function: ScalarFunction, flags: ScalarFlags, src: &[Type]) -> ScalarOp {
        let wide = src
            .iter()
            .enumerate()
            .fold(0, |w, (i, &ty)| w | ((RegisterClass::of(ty) == RegisterClass::B64) as u8) << i);
        ScalarOp { function, flags, sources: src.len() as u8, wide }
    }

    /// Returns the result of each lane of `mask` (zero in other lanes), and the mask of the lanes in which a source
    /// is undefined.
    pub fn lane_results_and_undefined_lanes(&self, r: &Registers, s: &OperandSlots, mask: u32) -> ([u64; 32], u32) {
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

    /// Evaluates the function with 1 as the first source and 0 as the second. The result of a lane is 1 if the
    /// function selects its first source there, and 0 if it selects the second.
    pub fn selects_first_source(&self, r: &Registers, s: &OperandSlots, mask: u32) -> [u64; 32] {
        let c = r.get(s.src[2]);
        let mut out = [0; 32];
        for i in (0..32).filter(|i| mask >> i & 1 != 0) {
            out[i] = (self.function)(self.flags, 1, 0, c[i] as u64, 0);
        }
        out
    }

    /// Executes the function in the lanes of `mask` and writes a destination of register class `to`.
    pub fn run(&self, r: &mut Registers, s: &OperandSlots, mask: u32, to: RegisterClass) {
        let (out, undefined) = self.lane_results_and_undefined_lanes(r, s, mask);
        match to {
            RegisterClass::Pred => {
                return set_predicate(r, s.dst[0], lane_mask(&out), mask, undefined);
            }
            RegisterClass::B32 => r.set(s.dst[0], &out.map(|x| x as u32), mask),
            RegisterClass::B64 | RegisterClass::B128 => r.set64(s.dst[0], &out, mask),
        }
        mark_undefined_lanes(r, s.dst[0], mask, undefined);
    }
}

/// Returns flags with the width and signedness of type `ty`.
pub fn type_flags(ty: Type) -> ScalarFlags {
    let signed = matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64);
    ScalarFlags { bits: ty.bits() as u8, signed, ..ScalarFlags::default() }
}
