//! f32 and f64 arithmetic with any rounding mode, `.ftz` and `.sat`, as
//! [`ScalarFunction`](super::scalar::ScalarFunction)s.
//!
//! Rounding to nearest uses the processor's own arithmetic; the other modes round an exact result
//! ([`super::soft_float`]). Source: PTX ISA 9.0, chapter 9.7.3.

use super::f32_math::{self, flush_subnormal};
use super::scalar::{ScalarFlags, ScalarFunction, scalar_functions};
use super::soft_float::{ExactFloat, F32, F64, FloatFormat, RoundingMode, add_round_to_odd};

/// Arithmetic operations that round their result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatArithmetic {
    /// `a + b`
    Add,
    /// `a − b`
    Sub,
    /// `a · b`
    Mul,
    /// `a · b + c`
    Fma,
    /// `a / b`
    Div,
    /// `1 / a`
    Rcp,
    /// `√a`
    Sqrt,
}

/// Returns the result rounded in mode `mode`. For rounding to nearest, and for operands that are not finite, the
/// returned value is `native`, the processor's result.
fn rounded_arithmetic(
    op: FloatArithmetic,
    mode: RoundingMode,
    format: FloatFormat,
    a: f64,
    b: f64,
    c: f64,
    native: u64,
) -> u64 {
    let finite = a.is_finite() && b.is_finite() && c.is_finite();
    if mode == RoundingMode::Nearest || !finite {
        return native;
    }
    let (x, y, z) = (ExactFloat::from_f64(a), ExactFloat::from_f64(b), ExactFloat::from_f64(c));
    let minus_y = ExactFloat { negative: !y.negative, ..y };
    let product = x.times(y);
    let (exact, terms) = match op {
        FloatArithmetic::Add => (x.plus(y), Some((x.negative, y.negative))),
        FloatArithmetic::Sub => (x.plus(minus_y), Some((x.negative, !y.negative))),
        FloatArithmetic::Mul => (product, None),
        FloatArithmetic::Fma => (product.plus(z), Some((product.negative, z.negative))),
        FloatArithmetic::Div if !y.is_zero() && !x.is_zero() => (x.divided_by(y), None),
        FloatArithmetic::Rcp if !x.is_zero() => (ExactFloat::from_f64(1.0).divided_by(x), None),
        FloatArithmetic::Sqrt if !x.negative && !x.is_zero() => (x.sqrt(), None),
        _ => return native,
    };
    if !exact.is_zero() {
        return exact.round_to_format(format, mode);
    }
    // Opposite terms that cancel add up to +0, or to −0 when rounding down. The sum of two zeros of equal sign keeps
    // that sign.
    let negative = match terms {
        Some((s, t)) if s != t => mode == RoundingMode::Down,
        Some((s, _)) => s,
        None => exact.negative,
    };
    (negative as u64) << format.sign_bit
}

macro_rules! arithmetic_functions {
    ($($f32_name:ident $f64_name:ident $op:ident |$a:ident, $b:ident, $c:ident| $value:expr;)*) => {$(
        pub fn $f32_name(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(|x| f32_math::f32_from_operand_bits(x as u32, f.ftz));
            let native = f32_math::f32_to_result_bits($value, false);
            let bits = rounded_arithmetic(FloatArithmetic::$op, f.rounding, F32, $a as f64, $b as f64, $c as f64, native as u64) as u32;
            let least = f.ftz && bits & 0x7fff_ffff == 0x80_0000;
            if least && is_tiny_after_rounding(F32, f.rounding, unrounded_result(FloatArithmetic::$op, $a as f64, $b as f64, $c as f64)) {
                return saturate_and_flush(f, bits & 0x8000_0000);
            }
            saturate_and_flush(f, bits)
        }

        pub fn $f64_name(f: ScalarFlags, a: u64, b: u64, c: u64, _: u64) -> u64 {
            let [$a, $b, $c] = [a, b, c].map(f64::from_bits);
            rounded_arithmetic(FloatArithmetic::$op, f.rounding, F64, $a, $b, $c, ($value).to_bits())
        }
    )*};
}

arithmetic_functions! {
    add_f32 add_f64 Add |a, b, _c| a + b;
    sub_f32 sub_f64 Sub |a, b, _c| a - b;
    mul_f32 mul_f64 Mul |a, b, _c| a * b;
    fma_f32 fma_f64 Fma |a, b, c| a.mul_add(b, c);
    div_f32 div_f64 Div |a, b, _c| a / b;
    rcp_f32 rcp_f64 Rcp |a, _b, _c| 1.0 / a;
    sqrt_f32 sqrt_f64 Sqrt |a, _b, _c| a.sqrt();
}

scalar_functions! {
    add_f32_pair |f, a, b, c, _| map_f32_pair(f, a, b, c, add_f32);
    sub_f32_pair |f, a, b, c, _| map_f32_pair(f, a, b, c, sub_f32);
    mul_f32_pair |f, a, b, c, _| map_f32_pair(f, a, b, c, mul_f32);
    fma_f32_pair |f, a, b, c, _| map_f32_pair(f, a, b, c, fma_f32);
}

/// Applies `function` to the low and to the high half of packed pairs of f32.
fn map_f32_pair(f: ScalarFlags, a: u64, b: u64, c: u64, function: ScalarFunction) -> u64 {
    function(f, a, b, c, 0) | function(f, a >> 32, b >> 32, c >> 32, 0) << 32
}

/// Returns true if `.ftz` flushes the result `x`, which is exact or rounded to odd: `x` is below the smallest normal
/// number after rounding to the format's precision with unlimited exponent range (measured on an H200).
pub fn is_tiny_after_rounding(format: FloatFormat, mode: RoundingMode, x: f64) -> bool {
    let away = match mode {
        RoundingMode::Up => x > 0.0,
        RoundingMode::Down => x < 0.0,
        _ => false,
    };
    let (least, unit) = (2f64.powi(format.min_exponent), 2f64.powi(format.min_exponent - format.precision as i32));
    match mode {
        RoundingMode::Nearest | RoundingMode::Away => x.abs() < least - unit / 2.0,
        _ if away => x.abs() <= least - unit,
        _ => x.abs() < least,
    }
}

/// Returns the result of an f32 operation in f64, for [`is_tiny_after_rounding`]; called for an f32 result that was
/// rounded to the smallest normal number. The f64 is precise enough: it holds a product of two f32s exactly, and a
/// quotient that is not exactly an f32 differs from every f32 by more than the rounding error.
fn unrounded_result(op: FloatArithmetic, a: f64, b: f64, c: f64) -> f64 {
    match op {
        FloatArithmetic::Mul => a * b,
        FloatArithmetic::Fma => add_round_to_odd(a * b, c),
        FloatArithmetic::Div => a / b,
        // No other operation gives an inexact result that is tiny: sums this small are exact, and reciprocals and
        // square roots are never this small.
        _ => f64::from(f32::MIN_POSITIVE),
    }
}

/// Applies `.sat` and `.ftz` to the bits of an f32 result.
fn saturate_and_flush(f: ScalarFlags, bits: u32) -> u64 {
    let bits = if f.sat { f32_math::saturate(f32::from_bits(bits)).to_bits() } else { bits };
    flush_subnormal(bits, f.ftz) as u64
}

/// `copysign`: the sign of `a` on the magnitude of `b`.
pub fn copysign(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let sign = 1 << (f.bits - 1);
    a & sign | b & (sign - 1)
}

pub fn neg_f64(_: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a ^ 1 << 63
}

pub fn abs_f64(_: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    a & !(1 << 63)
}
