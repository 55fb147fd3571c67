//! Decoding of floating-point arithmetic: f32, f64, f16, bf16 and packed halves.

use super::{DecodedInstruction, InstructionForm};
use crate::alu::float::{self, FloatArithmetic};
use crate::alu::half::{self, HalfOp};
use crate::alu::op::{Op, RareOp};
use crate::alu::scalar::{ScalarFlags, ScalarFunction};
use crate::alu::soft_float::RoundingMode;
use crate::alu::{min_max, special};
use crate::ptx::ast::Type::{self, B64, BF16, BF16x2, F16, F16x2, F32, F64};

const ROUNDINGS: [(&str, RoundingMode); 4] =
    [("rn", RoundingMode::Nearest), ("rz", RoundingMode::Zero), ("rm", RoundingMode::Down), ("rp", RoundingMode::Up)];

impl InstructionForm<'_> {
    pub(super) fn decode_float(&self) -> DecodedInstruction {
        let mut f = self.clone();
        let ty = f.take_type_suffix()?;
        match (f.base, ty) {
            ("min" | "max", _) => f.min_max(ty),
            ("copysign", F32 | F64) => f.scalar_op(float::copysign, flags(ty), ty, &[ty; 2]),
            (_, F16 | BF16) if f.take_modifier("f32") => f.mixed(ty),
            (_, F16 | BF16 | F16x2 | BF16x2) => f.half(ty),
            (_, F32) => f.single(),
            _ => f.double(),
        }
    }

    fn single(&mut self) -> DecodedInstruction {
        let (ftz, mode, sat) =
            (self.take_modifier("ftz"), self.take_modifier_value(&ROUNDINGS), self.take_modifier("sat"));
        let (approx, full) = (self.take_modifier("approx"), self.take_modifier("full"));
        let flags = ScalarFlags { rounding: mode.unwrap_or_default(), ftz, sat, ..flags(F32) };
        if sat && !matches!(self.base, "add" | "sub" | "mul" | "fma" | "mad") || full && self.base != "div" {
            return None;
        }
        let nearest = flags.rounding == RoundingMode::Nearest && !sat;
        let rounded = (mode.is_some() || matches!(self.base, "add" | "sub" | "mul")) && !approx && !full;
        if !rounded {
            return self.approximate(ftz, mode, approx, full, flags);
        }
        let (op, function, sources): (Op, ScalarFunction, usize) = match self.base {
            "add" => (if ftz { Op::AddFtzF32 } else { Op::AddF32 }, float::add_f32, 2),
            "sub" => (if ftz { Op::SubFtzF32 } else { Op::SubF32 }, float::sub_f32, 2),
            "mul" => (if ftz { Op::MulFtzF32 } else { Op::MulF32 }, float::mul_f32, 2),
            "fma" | "mad" => (if ftz { Op::FmaFtzF32 } else { Op::FmaF32 }, float::fma_f32, 3),
            "div" => (Op::DivF32(ftz), float::div_f32, 2),
            "rcp" => (Op::RcpF32(ftz), float::rcp_f32, 1),
            "sqrt" => (Op::SqrtF32(ftz), float::sqrt_f32, 1),
            _ => return None,
        };
        let src = &[F32; 3][..sources];
        if nearest { self.build_if_complete(op, &[F32], src) } else { self.scalar_op(function, flags, F32, src) }
    }

    /// Decodes arithmetic of packed pairs of f32 (`.f32x2`, sm_100).
    pub(super) fn decode_f32_pair(&self) -> DecodedInstruction {
        let mut f = self.clone();
        f.take_modifier("f32x2");
        let (ftz, mode) = (f.take_modifier("ftz"), f.take_modifier_value(&ROUNDINGS));
        let (function, sources): (ScalarFunction, usize) = match f.base {
            "add" => (float::add_f32_pair, 2),
            "sub" => (float::sub_f32_pair, 2),
            "mul" => (float::mul_f32_pair, 2),
            "fma" if mode.is_some() => (float::fma_f32_pair, 3),
            _ => return None,
        };
        let flags = ScalarFlags { rounding: mode.unwrap_or_default(), ftz, ..flags(F32) };
        f.scalar_op(function, flags, B64, &[B64; 3][..sources])
    }

    /// Decodes arithmetic in f32 whose first source, or both factors of `fma`, have the type `from` (sm_100).
    fn mixed(&mut self, from: Type) -> DecodedInstruction {
        let (mode, sat) = (self.take_modifier_value(&ROUNDINGS), self.take_modifier("sat"));
        let flags = ScalarFlags { rounding: mode.unwrap_or_default(), sat, ..flags(from) };
        match self.base {
            "add" => self.scalar_op(half::add_half_to_f32, flags, F32, &[from, F32]),
            "sub" => self.scalar_op(half::sub_f32_from_half, flags, F32, &[from, F32]),
            "fma" if mode.is_some() => self.scalar_op(half::fma_halves_to_f32, flags, F32, &[from, from, F32]),
            _ => None,
        }
    }

    /// Decodes f32 instructions without a rounding mode: sign changes and approximations.
    fn approximate(
        &self,
        ftz: bool,
        mode: Option<RoundingMode>,
        approx: bool,
        full: bool,
        flags: ScalarFlags,
    ) -> DecodedInstruction {
        if mode.is_some() {
            return None;
        }
        let op = match (self.base, approx, full) {
            ("neg", false, false) => Op::NegF32(ftz),
            ("abs", false, false) => Op::AbsF32(ftz),
            ("ex2", true, false) => Op::Ex2F32(ftz),
            ("rcp", true, false) => Op::RcpF32(ftz),
            ("sqrt", true, false) => Op::SqrtF32(ftz),
            ("rsqrt", true, false) => Op::RsqrtF32(ftz),
            ("div", false, true) => return self.build_if_complete(Op::DivF32(ftz), &[F32], &[F32; 2]),
            ("div", true, false) => return self.scalar_op(special::div_approx_f32, flags, F32, &[F32; 2]),
            ("lg2", true, false) => return self.scalar_op(special::lg2, flags, F32, &[F32]),
            ("sin", true, false) => return self.scalar_op(special::sin, flags, F32, &[F32]),
            ("cos", true, false) => return self.scalar_op(special::cos, flags, F32, &[F32]),
            ("tanh", true, false) if !ftz => return self.scalar_op(special::tanh, flags, F32, &[F32]),
            _ => return None,
        };
        self.build_if_complete(op, &[F32], &[F32])
    }

    fn double(&mut self) -> DecodedInstruction {
        let mode = self.take_modifier_value(&ROUNDINGS);
        let approx = self.take_modifier("approx");
        let ftz = approx && self.take_modifier("ftz");
        let flags = ScalarFlags { rounding: mode.unwrap_or_default(), variant: self.base == "rsqrt", ..flags(F64) };
        let nearest = flags.rounding == RoundingMode::Nearest;
        let (function, sources): (ScalarFunction, usize) = match (self.base, mode.is_some(), approx) {
            ("add", _, false) if nearest => return self.build_if_complete(Op::AddF64, &[F64], &[F64; 2]),
            ("mul", _, false) if nearest => return self.build_if_complete(Op::MulF64, &[F64], &[F64; 2]),
            ("fma" | "mad", true, false) if nearest => return self.build_if_complete(Op::FmaF64, &[F64], &[F64; 3]),
            ("add", _, false) => (float::add_f64, 2),
            ("sub", _, false) => (float::sub_f64, 2),
            ("mul", _, false) => (float::mul_f64, 2),
            ("fma" | "mad", true, false) => (float::fma_f64, 3),
            ("div", true, false) => (float::div_f64, 2),
            ("rcp", true, false) => (float::rcp_f64, 1),
            ("sqrt", true, false) => (float::sqrt_f64, 1),
            ("neg", false, false) => (float::neg_f64, 1),
            ("abs", false, false) => (float::abs_f64, 1),
            ("rsqrt", false, true) if !ftz => (special::rsqrt_approx_f64, 1),
            ("rcp" | "rsqrt", false, true) if ftz => (special::rcp_or_rsqrt_approx_f64, 1),
            _ => return None,
        };
        self.scalar_op(function, flags, F64, &[F64; 3][..sources])
    }

    fn half(&mut self, ty: Type) -> DecodedInstruction {
        let packed = matches!(ty, F16x2 | BF16x2);
        let (ftz, rn, sat, relu) = (
            self.take_modifier("ftz"),
            self.take_modifier("rn"),
            self.take_modifier("sat"),
            self.take_modifier("relu"),
        );
        let approx = self.take_modifier("approx");
        let bf16 = matches!(ty, BF16 | BF16x2);
        let flags = ScalarFlags { ftz, sat, relu, ..flags(ty) };
        let (single, pair, sources): (ScalarFunction, ScalarFunction, usize) = match self.base {
            "add" => (half::add_half, half::add_halves, 2),
            "sub" => (half::sub_half, half::sub_halves, 2),
            "mul" => (half::mul_half, half::mul_halves, 2),
            "fma" if rn => (half::fma_half, half::fma_halves, 3),
            "neg" => (half::neg_half, half::neg_halves, 1),
            "abs" => (half::abs_half, half::abs_halves, 1),
            "ex2" => (half::ex2_half, half::ex2_halves, 1),
            "tanh" => (half::tanh_half, half::tanh_halves, 1),
            _ => return None,
        };
        // Check the modifiers that the instruction allows. bf16 has no `.sat`, and `.ftz` only for `ex2`, which needs
        // it.
        let transcendental = matches!(self.base, "ex2" | "tanh");
        let arithmetic = sources > 1;
        let allowed = approx == transcendental
            && (arithmetic || !rn)
            && (!relu || self.base == "fma" && !sat)
            && (!sat || arithmetic && !bf16)
            && (!ftz || self.base != "tanh" && (!bf16 || self.base == "ex2"))
            && (self.base != "ex2" || !bf16 || ftz);
        if !allowed {
            return None;
        }
        let src = &[ty; 3][..sources];
        if arithmetic && !(ftz || sat || relu) {
            let op = match self.base {
                "add" => FloatArithmetic::Add,
                "sub" => FloatArithmetic::Sub,
                "mul" => FloatArithmetic::Mul,
                _ => FloatArithmetic::Fma,
            };
            return self.build_if_complete(Op::OutOfLine(RareOp::Half(HalfOp { op, bf16, pair: packed })), &[ty], src);
        }
        self.scalar_op(if packed { pair } else { single }, flags, ty, src)
    }

    /// Decodes `min` and `max`.
    fn min_max(&mut self, ty: Type) -> DecodedInstruction {
        let larger = self.base == "max";
        let (ftz, strict) = (self.take_modifier("ftz"), self.take_modifier("NaN"));
        let xorsign = self.take_modifier("xorsign");
        let abs = self.take_modifier("abs");
        let three = self.operand_counts().sources == 3;
        if xorsign != abs && !(three && ty == F32 && !xorsign) || three && (xorsign || ty != F32) {
            return None;
        }
        if ty == F64 && (ftz || strict || abs) || matches!(ty, BF16 | BF16x2) && ftz {
            return None;
        }
        if ty == F32 && !strict && !abs && !three {
            return self.build_if_complete(if larger { Op::MaxF32(ftz) } else { Op::MinF32(ftz) }, &[ty], &[ty; 2]);
        }
        let flags = ScalarFlags { ftz, strict, sat: xorsign, ..flags(ty) };
        let function: ScalarFunction = match (larger, three, matches!(ty, F16x2 | BF16x2)) {
            (false, true, _) => min_max::min3,
            (true, true, _) => min_max::max3,
            (false, _, true) => min_max::min_half_pair,
            (true, _, true) => min_max::max_half_pair,
            (false, _, false) => min_max::min,
            (true, _, false) => min_max::max,
        };
        let flags = if three { ScalarFlags { variant: abs, ..flags } } else { flags };
        self.scalar_op(function, flags, ty, &[ty; 3][..if three { 3 } else { 2 }])
    }
}

/// Returns flags with the width of one element in bits; `variant` is set for bf16.
fn flags(ty: Type) -> ScalarFlags {
    let bits = if matches!(ty, F16x2 | BF16x2) { 16 } else { ty.bits() as u8 };
    ScalarFlags { bits, variant: matches!(ty, BF16 | BF16x2), ..ScalarFlags::default() }
}
