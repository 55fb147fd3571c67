//! Implements `cvt` between any two number formats, as [`ScalarFunction`](super::scalar::ScalarFunction)s, which
//! convert the number of one lane.

use super::f32_math::{self, flush_subnormal};
use super::float::is_tiny_after_rounding;
use super::half::half_format;
use super::integer::{clamp_to_type, low_bits_mask, sign_or_zero_extend};
use super::scalar::ScalarFlags;
use super::soft_float::{
    BF16, E2M1, E2M3, E3M2, E4M3, E5M2, ExactFloat, F16, F32, F64, FloatFormat, RoundingMode, TF32, decode_float,
    encode_float,
};

/// The number format of a conversion's source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberFormat {
    /// Integer: width in bits, and whether it is signed.
    Int(u32, bool),
    /// Floating-point format.
    Float(FloatFormat),
}

const NUMBER_FORMATS: [NumberFormat; 14] = [
    NumberFormat::Int(8, false),
    NumberFormat::Int(16, false),
    NumberFormat::Int(32, false),
    NumberFormat::Int(64, false),
    NumberFormat::Int(8, true),
    NumberFormat::Int(16, true),
    NumberFormat::Int(32, true),
    NumberFormat::Int(64, true),
    NumberFormat::Float(F16),
    NumberFormat::Float(BF16),
    NumberFormat::Float(F32),
    NumberFormat::Float(F64),
    NumberFormat::Float(TF32),
    NumberFormat::Float(E4M3),
];

/// Returns the index of a format in [`NUMBER_FORMATS`]. For conversions, [`ScalarFlags::bits`] holds the index of the
/// source format, and the low four bits of [`ScalarFlags::wide`] hold the index of the destination format.
pub fn number_format_index(kind: NumberFormat) -> Option<u8> {
    NUMBER_FORMATS.iter().position(|k| *k == kind).map(|i| i as u8)
}

fn integral(x: f64, mode: RoundingMode) -> f64 {
    match mode {
        RoundingMode::Nearest => x.round_ties_even(),
        RoundingMode::Away => x.round(),
        RoundingMode::Zero => x.trunc(),
        RoundingMode::Down => x.floor(),
        RoundingMode::Up => x.ceil(),
    }
}

/// `cvt` of one number. Flags: `bits` is the index of the source format; the low four bits of `wide` are the index of
/// the destination format, its upper four bits the bytes of the destination register; `variant` means that the
/// modifier rounds to an integer (`.rni`, …); `strict` is `.satfinite`.
pub fn cvt(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let (from, to) = (NUMBER_FORMATS[f.bits as usize], NUMBER_FORMATS[f.wide as usize & 15]);
    let register = (f.wide as u32 >> 4) * 8;
    match (from, to) {
        (NumberFormat::Int(bits, signed), NumberFormat::Int(to, to_signed)) => {
            let x = sign_or_zero_extend(a, bits, signed);
            let x = if f.sat { clamp_to_type(x, to, to_signed) } else { sign_or_zero_extend(x as u64, to, to_signed) };
            x as u64 & low_bits_mask(register)
        }
        (NumberFormat::Float(format), NumberFormat::Int(to, signed)) => {
            let x = source(f, a, format);
            let x = if x.is_nan() {
                let zero = format != F64 && to != 64;
                if zero { 0 } else { sign_or_zero_extend(1 << (to - 1), to, signed) }
            } else {
                // The cast clamps to the range of i128, which contains the range of every PTX integer type.
                clamp_to_type(integral(x, f.rounding) as i128, to, signed)
            };
            x as u64 & low_bits_mask(register)
        }
        (NumberFormat::Int(bits, signed), NumberFormat::Float(format)) => {
            let x = sign_or_zero_extend(a, bits, signed);
            let x = if f.sat { x.clamp(0, 1) } else { x };
            ExactFloat::from_integer(x).round_to_format(format, f.rounding)
        }
        (NumberFormat::Float(_), NumberFormat::Float(TF32))
            if f.rounding == RoundingMode::Away && f32_math::is_nan(a as u32) =>
        {
            nan_to_tf32(f, a)
        }
        (NumberFormat::Float(format), NumberFormat::Float(to)) => {
            // An H200 does not flush a result that becomes an f16, even with `.ftz`.
            let x = source(ScalarFlags { ftz: f.ftz && to != F16, ..f }, a, format);
            let x = if f.variant { integral(x, f.rounding) } else { x };
            to_float(f, x, to)
        }
    }
}

/// Converts a NaN to tf32 with `.rna`. As on an H200, the low 13 bits are cut off. If only zeros remain in the
/// mantissa, the result is infinity, or with `.satfinite` the largest finite number.
fn nan_to_tf32(f: ScalarFlags, a: u64) -> u64 {
    let cut = a & 0xffff_e000;
    if f32_math::is_nan(cut as u32) || !f.strict { cut } else { cut - 0x2000 }
}

/// Decodes a source operand of `cvt` and returns its value as f64. With `.ftz`, a subnormal f32 becomes zero.
fn source(f: ScalarFlags, a: u64, format: FloatFormat) -> f64 {
    let a = if format == F32 { flush_subnormal(a as u32, f.ftz) as u64 } else { a };
    match format {
        F64 => f64::from_bits(a),
        F32 => f32::from_bits(a as u32) as f64,
        _ => decode_float(a, format),
    }
}

/// Rounds `x` to format `to`, with `.sat`, `.relu`, `.satfinite` and `.ftz`, and returns its bits.
fn to_float(f: ScalarFlags, x: f64, to: FloatFormat) -> u64 {
    let x = if f.sat && !(x > 0.0) { 0.0 } else { x };
    let x = if f.sat && x > 1.0 { 1.0 } else { x };
    let x = if f.relu && x <= 0.0 { 0.0 } else { x };
    let bits = encode_float(x, to, f.rounding);
    let magnitude = bits & ((1 << to.sign_bit) - 1);
    let bits =
        if f.strict && !x.is_nan() && magnitude > to.max_finite { bits - (magnitude - to.max_finite) } else { bits };
    match to {
        // `.ftz` flushes a number that, rounded to 24 bits with unlimited exponent range, is below the smallest normal
        // number. Rounding as a subnormal number may nevertheless give the smallest normal number.
        F32 if f.ftz && magnitude == 0x80_0000 && is_tiny_after_rounding(F32, f.rounding, x) => bits & 0x8000_0000,
        F32 => flush_subnormal(bits as u32, f.ftz) as u64,
        TF32 => bits << 13,
        _ => bits,
    }
}

/// Converts two f32 to a packed pair of 16-bit floats, `a` in the upper half. The low four bits of `wide` are the
/// index of the destination format.
pub fn pack_f32s_as_halves(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let NumberFormat::Float(to) = NUMBER_FORMATS[f.wide as usize & 15] else { return 0 };
    to_float(f, source(f, b, F32), to) | to_float(f, source(f, a, F32), to) << 16
}

/// The formats of fewer than 16 bits that `cvt` packs in pairs, with their names in PTX. For these conversions
/// [`ScalarFlags::wide`] is the index of the format.
pub const NARROW_FORMATS: [(&str, FloatFormat); 5] =
    [("e4m3x2", E4M3), ("e5m2x2", E5M2), ("e2m1x2", E2M1), ("e2m3x2", E2M3), ("e3m2x2", E3M2)];

/// Returns the narrow format of a conversion, and the bits by which its upper element is shifted.
fn narrow_format(f: ScalarFlags) -> (FloatFormat, u32) {
    let format = NARROW_FORMATS[f.wide as usize].1;
    (format, if format == E2M1 { 4 } else { 8 })
}

/// Rounds two numbers to a narrow format and packs them. Numbers beyond the largest finite one become that one.
fn pack_narrow(f: ScalarFlags, high: f64, low: f64) -> u64 {
    let (format, shift) = narrow_format(f);
    let most = decode_float(format.max_finite, format);
    let [high, low] = [high, low].map(|x| to_float(f, x.clamp(-most, most), format));
    low | high << shift
}

/// Converts two f32 to a packed pair of narrow floats, `a` in the upper half.
pub fn pack_f32s_as_narrow(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    pack_narrow(f, source(f, a, F32), source(f, b, F32))
}

/// Converts a packed pair of f16, or of bf16 if `variant`, to a packed pair of narrow floats.
pub fn pack_halves_as_narrow(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    pack_narrow(f, decode_float(a >> 16, half_format(f)), decode_float(a & 0xffff, half_format(f)))
}

/// Converts a packed pair of narrow floats to a packed pair of f16, or of bf16 if `variant`, without rounding.
pub fn unpack_narrow_as_halves(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let (format, shift) = narrow_format(f);
    let half = |x: u64| to_float(f, decode_float(x & low_bits_mask(format.sign_bit + 1), format), half_format(f));
    half(a) | half(a >> shift) << 16
}

/// Converts two f32 to a packed pair of powers of two, `a` in the upper byte.
pub fn pack_f32s_as_ue8m0(f: ScalarFlags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    f32_to_ue8m0(f, b) | f32_to_ue8m0(f, a) << 8
}

/// Converts a packed pair of bf16 to a packed pair of powers of two.
pub fn pack_bf16s_as_ue8m0(f: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    f32_to_ue8m0(f, a << 16 & 0xffff_0000) | f32_to_ue8m0(f, a & 0xffff_0000) << 8
}

/// Rounds the magnitude of an f32 to a power of two, 2^(result − 127). Infinity, numbers above 2^127 that are rounded
/// up, and NaN become 255, the NaN of ue8m0; with `.satfinite` only NaN does. Source: `cuda_fp8.hpp`.
fn f32_to_ue8m0(f: ScalarFlags, x: u64) -> u64 {
    let (magnitude, exponent) = (x & 0x7fff_ffff, x >> 23 & 0xff);
    // 2^-127, the smallest power, is a subnormal f32.
    let up =
        f.rounding == RoundingMode::Up && magnitude & 0x7f_ffff != 0 && (0x40_0001..0x7f80_0000).contains(&magnitude);
    let rounded = exponent + u64::from(up);
    if f.strict && magnitude <= 0x7f80_0000 { rounded.min(254) } else { rounded }
}

/// Converts a packed pair of powers of two to a packed pair of bf16.
pub fn unpack_ue8m0_as_bf16s(_: ScalarFlags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let half = |x: u64| match x & 0xff {
        0 => 0x40,
        255 => BF16.nan,
        x => x << 7,
    };
    half(a) | half(a >> 8) << 16
}
