//! `cvt` between any two types.
//!
//! Source: PTX ISA 9.0, chapter 9.7.9.21.

use super::cold::Flags;
use super::f32s::{self, flush};
use super::int::{clamp, extend, ones};
use super::soft::{BF16, E4M3, E5M2, F16, F32, F64, Format, Mode, TF32, Wide, narrow, widen};

/// A source or destination of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bits, and whether it is signed.
    Int(u32, bool),
    /// A format.
    Float(Format),
}

const KINDS: [Kind; 14] = [
    Kind::Int(8, false),
    Kind::Int(16, false),
    Kind::Int(32, false),
    Kind::Int(64, false),
    Kind::Int(8, true),
    Kind::Int(16, true),
    Kind::Int(32, true),
    Kind::Int(64, true),
    Kind::Float(F16),
    Kind::Float(BF16),
    Kind::Float(F32),
    Kind::Float(F64),
    Kind::Float(TF32),
    Kind::Float(E4M3),
];

/// The number of a kind, for [`Flags::bits`] (source) and the low half of [`Flags::wide`] (destination).
pub fn index(kind: Kind) -> Option<u8> {
    KINDS.iter().position(|k| *k == kind).map(|i| i as u8)
}

/// To an integral value, as the mode says.
fn integral(x: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Nearest => x.round_ties_even(),
        Mode::Away => x.round(),
        Mode::Zero => x.trunc(),
        Mode::Down => x.floor(),
        Mode::Up => x.ceil(),
    }
}

/// One number to another. Of the flags: `bits` and the low four bits of `wide` are kinds, the upper four of `wide` the bytes
/// of the destination's register, `other` an integer rounding (`.rni` …), `strict` is `.satfinite`.
pub fn cvt(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let (from, to) = (KINDS[f.bits as usize], KINDS[f.wide as usize & 15]);
    let register = (f.wide as u32 >> 4) * 8;
    match (from, to) {
        (Kind::Int(bits, signed), Kind::Int(to, to_signed)) => {
            let x = extend(a, bits, signed);
            let x = if f.sat { clamp(x, to, to_signed) } else { extend(x as u64, to, to_signed) };
            x as u64 & ones(register)
        }
        (Kind::Float(format), Kind::Int(to, signed)) => {
            let x = source(f, a, format);
            let x = if x.is_nan() {
                let zero = format != F64 && to != 64;
                if zero { 0 } else { extend(1 << (to - 1), to, signed) }
            } else {
                // The cast saturates far outside any type.
                clamp(integral(x, f.mode) as i128, to, signed)
            };
            x as u64 & ones(register)
        }
        (Kind::Int(bits, signed), Kind::Float(format)) => {
            let x = extend(a, bits, signed);
            let x = if f.sat { x.clamp(0, 1) } else { x };
            Wide::integer(x).round(format, f.mode)
        }
        (Kind::Float(_), Kind::Float(TF32)) if f.mode == Mode::Away && f32s::is_nan(a as u32) => nan_to_tf32(f, a),
        (Kind::Float(format), Kind::Float(to)) => {
            // An H200 does not flush what becomes an f16, whatever `.ftz` says.
            let x = source(Flags { ftz: f.ftz && to != F16, ..f }, a, format);
            let x = if f.other { integral(x, f.mode) } else { x };
            to_float(f, x, to)
        }
    }
}

/// `.rna` cuts a NaN like a number, as an H200 does: one whose upper bits are zero becomes infinite.
fn nan_to_tf32(f: Flags, a: u64) -> u64 {
    let cut = a & 0xffff_e000;
    if f32s::is_nan(cut as u32) || !f.strict { cut } else { cut - 0x2000 }
}

/// The value of a source, an f32's subnormals flushed if `.ftz`.
fn source(f: Flags, a: u64, format: Format) -> f64 {
    let a = if format == F32 { flush(a as u32, f.ftz) as u64 } else { a };
    match format {
        F64 => f64::from_bits(a),
        F32 => f32::from_bits(a as u32) as f64,
        _ => widen(a, format),
    }
}

/// Rounds to a format with `.sat`, `.relu`, `.satfinite` and `.ftz`.
fn to_float(f: Flags, x: f64, to: Format) -> u64 {
    let x = if f.sat && !(x > 0.0) { 0.0 } else { x };
    let x = if f.sat && x > 1.0 { 1.0 } else { x };
    let x = if f.relu && x <= 0.0 { 0.0 } else { x };
    let bits = narrow(x, to, f.mode);
    let magnitude = bits & ((1 << to.sign) - 1);
    let bits = if f.strict && !x.is_nan() && magnitude > to.largest { bits - (magnitude - to.largest) } else { bits };
    match to {
        F32 => flush(bits as u32, f.ftz) as u64,
        TF32 => bits << 13,
        _ => bits,
    }
}

/// Two f32 to a pair of 16 bits, the first upper; the low half of `wide` is the destination's kind.
pub fn pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let Kind::Float(to) = KINDS[f.wide as usize & 15] else { return 0 };
    to_float(f, source(f, b, F32), to) | to_float(f, source(f, a, F32), to) << 16
}

fn fp8(f: Flags) -> Format {
    if f.other { E5M2 } else { E4M3 }
}

/// Two f32 to a pair of fp8, the first upper; `other` is e5m2.
pub fn fp8_pair(f: Flags, a: u64, b: u64, _: u64, _: u64) -> u64 {
    let f = Flags { strict: true, ..f };
    to_float(f, source(f, b, F32), fp8(f)) | to_float(f, source(f, a, F32), fp8(f)) << 8
}

/// A pair of f16 to one of fp8.
pub fn fp8_from_halves(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    let f = Flags { strict: true, ..f };
    to_float(f, widen(a & 0xffff, F16), fp8(f)) | to_float(f, widen(a >> 16, F16), fp8(f)) << 8
}

/// A pair of fp8 to one of f16; exact.
pub fn halves_from_fp8(f: Flags, a: u64, _: u64, _: u64, _: u64) -> u64 {
    to_float(f, widen(a & 0xff, fp8(f)), F16) | to_float(f, widen(a >> 8 & 0xff, fp8(f)), F16) << 16
}
