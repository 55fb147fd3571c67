//! Special functions: `lg2`, `sin`, `cos`, `tanh`, and the approximate `div`, `rcp` and `rsqrt`.
//!
//! Approximations are computed in f64 and rounded once, which is well within the errors that PTX ISA 9.0, chapters
//! 9.7.3 and 9.7.4, documents.

use super::f32_math;
use super::float::div_f32;
use super::scalar::{ScalarFlags, scalar_functions};

/// Computes `div.approx.f32`. A finite divisor with a magnitude above 2^126 gives zero, as the PTX ISA defines.
pub fn div_approx_f32(f: ScalarFlags, dividend: u64, divisor: u64, c: u64, d: u64) -> u64 {
    let huge = f32::from_bits(divisor as u32).abs();
    if huge > 2f32.powi(126) && huge.is_finite() && f32::from_bits(dividend as u32).is_finite() {
        return (dividend ^ divisor) & 0x8000_0000;
    }
    div_f32(f, dividend, divisor, c, d)
}

/// Evaluates `g` in f64 for an f32 argument and rounds the result to f32 once.
fn approximate(f: ScalarFlags, a: u64, g: fn(f64) -> f64) -> u64 {
    f32_math::f32_to_result_bits(g(f32_math::f32_from_operand_bits(a as u32, f.ftz) as f64) as f32, f.ftz) as u64
}

scalar_functions! {
    lg2 |f, a, _, _, _| approximate(f, a, f64::log2);
    sin |f, a, _, _, _| approximate(f, a, f64::sin);
    cos |f, a, _, _, _| approximate(f, a, f64::cos);
    tanh |f, a, _, _, _| approximate(f, a, f64::tanh);
}

/// Computes `rcp.approx.ftz.f64`, or `rsqrt.approx.ftz.f64` if `f.variant` is set. Both instructions ignore the low
/// 32 bits of the source and set the low 32 bits of the result to zero.
pub fn rcp_or_rsqrt_approx_f64(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let flush = |x: f64| if x.is_subnormal() { 0f64.copysign(x) } else { x };
    let x = flush(f64::from_bits(a & !0xffff_ffff));
    let y = flush(if f.variant { 1.0 / x.sqrt() } else { 1.0 / x });
    if y.is_nan() { 0x7fff_ffff_0000_0000 } else { y.to_bits() & !0xffff_ffff }
}

/// `rsqrt.approx.f64`.
pub fn rsqrt_approx_f64(_: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    (1.0 / f64::from_bits(a).sqrt()).to_bits()
}
