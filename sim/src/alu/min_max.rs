//! `min` and `max` of floating-point numbers, with `.NaN`, `.ftz`, `.xorsign.abs`, of two or three operands.
//!
//! Source: PTX ISA 9.0, chapters 9.7.3 and 9.7.4 for the treatment of NaN and of signed zeros.

use super::half::map_halves;
use super::scalar::{ScalarFlags, scalar_functions};
use super::soft_float::{BF16, F16, F32, F64, FloatFormat};

fn format_of(f: ScalarFlags) -> FloatFormat {
    match (f.bits, f.variant) {
        (64, _) => F64,
        (32, _) => F32,
        (_, true) => BF16,
        (_, false) => F16,
    }
}

/// Returns the bits of the smaller number in format `format`, or of the larger one if `larger`. −0 is below +0. If
/// one operand is a NaN, returns the other operand, or with `.NaN` the NaN.
fn min_or_max(f: ScalarFlags, format: FloatFormat, larger: bool, a: u64, b: u64) -> u64 {
    let (sign, infinity) = (1u64 << format.sign_bit, format.max_finite + 1);
    let clean = |x: u64| {
        let subnormal = x & (sign - 1) < 1 << (format.precision - 1);
        if f.ftz && subnormal { x & sign } else { x }
    };
    let (a, b) = (clean(a), clean(b));
    let nan = |x: u64| x & (sign - 1) > infinity;
    let signs = (a ^ b) & sign;
    let (a, b) = if f.sat { (a & !sign, b & !sign) } else { (a, b) };
    let key = |x: u64| if x & sign != 0 { -((x & (sign - 1)) as i64) - 1 } else { x as i64 };
    let x = match (nan(a), nan(b)) {
        (true, true) => format.nan,
        (true, false) | (false, true) if f.strict => format.nan,
        (true, false) => b,
        (false, true) => a,
        _ if (key(a) > key(b)) == larger => a,
        _ => b,
    };
    if f.sat && !nan(x) { x | signs } else { x }
}

scalar_functions! {
    /// `min` of two numbers. Flags: `strict` is `.NaN`, `sat` is `.xorsign.abs`, `variant` is bf16.
    min |f, a, b, _, _| min_or_max(f, format_of(f), false, a, b);
    max |f, a, b, _, _| min_or_max(f, format_of(f), true, a, b);
    min3 |f, a, b, c, _| three(f, false, a, b, c);
    max3 |f, a, b, c, _| three(f, true, a, b, c);
}

/// `min` or `max` of three f32; `variant` applies `.abs` to every operand.
fn three(f: ScalarFlags, larger: bool, a: u64, b: u64, c: u64) -> u64 {
    let [a, b, c] = [a, b, c].map(|x| if f.variant { x & 0x7fff_ffff } else { x });
    min_or_max(f, F32, larger, min_or_max(f, F32, larger, a, b), c)
}

pub fn min_half_pair(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    map_halves(a, b, 0, |a, b, _| min_or_max(f, format_of(f), false, a, b))
}

pub fn max_half_pair(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    map_halves(a, b, 0, |a, b, _| min_or_max(f, format_of(f), true, a, b))
}
