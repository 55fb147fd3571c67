//! Software floating point: exact results of arithmetic as wide integers, and their rounding to any format in any
//! mode.
//!
//! This module computes the directed rounding modes and the narrow formats; f32 and f64 arithmetic with rounding to
//! nearest runs on the processor.

/// Rounding modes of PTX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoundingMode {
    /// `.rn`: to the nearest, ties to even.
    #[default]
    Nearest,
    /// `.rna`: to the nearest, ties away from zero.
    Away,
    /// `.rz`
    Zero,
    /// `.rm`
    Down,
    /// `.rp`
    Up,
}

/// A binary floating-point format with subnormals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatFormat {
    /// Number of bits of the significand, the hidden bit included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub min_exponent: i32,
    /// Bit pattern of the largest finite number.
    pub max_finite: u64,
    /// Index of the sign bit.
    pub sign_bit: u32,
    /// Bit pattern of the canonical NaN.
    pub nan: u64,
}

/// IEEE binary64.
pub const F64: FloatFormat = FloatFormat {
    precision: 53,
    min_exponent: -1022,
    max_finite: 0x7fef_ffff_ffff_ffff,
    sign_bit: 63,
    nan: 0x7fff_ffff_ffff_ffff,
};
/// IEEE binary32.
pub const F32: FloatFormat =
    FloatFormat { precision: 24, min_exponent: -126, max_finite: 0x7f7f_ffff, sign_bit: 31, nan: 0x7fff_ffff };
/// IEEE binary16.
pub const F16: FloatFormat =
    FloatFormat { precision: 11, min_exponent: -14, max_finite: 0x7bff, sign_bit: 15, nan: 0x7fff };
/// bfloat16.
pub const BF16: FloatFormat =
    FloatFormat { precision: 8, min_exponent: -126, max_finite: 0x7f7f, sign_bit: 15, nan: 0x7fff };
/// tf32: the upper 19 bits of an f32. A register holds this encoding shifted left by 13 bits.
pub const TF32: FloatFormat =
    FloatFormat { precision: 11, min_exponent: -126, max_finite: 0x3fbff, sign_bit: 18, nan: 0x3ffff };
/// fp8 E4M3: 4 exponent bits, 3 mantissa bits, no infinity.
pub const E4M3: FloatFormat = FloatFormat { precision: 4, min_exponent: -6, max_finite: 0x7e, sign_bit: 7, nan: 0x7f };
/// fp8 E5M2: 5 exponent bits, 2 mantissa bits.
pub const E5M2: FloatFormat = FloatFormat { precision: 3, min_exponent: -14, max_finite: 0x7b, sign_bit: 7, nan: 0x7f };
/// fp6 E2M3: 2 exponent bits, 3 mantissa bits, no infinity and no NaN: `nan` is what a NaN is converted to.
pub const E2M3: FloatFormat = FloatFormat { precision: 4, min_exponent: 0, max_finite: 0x1f, sign_bit: 5, nan: 0x1f };
/// fp6 E3M2: 3 exponent bits, 2 mantissa bits, no infinity and no NaN.
pub const E3M2: FloatFormat = FloatFormat { precision: 3, min_exponent: -2, max_finite: 0x1f, sign_bit: 5, nan: 0x1f };
/// fp4 E2M1: 2 exponent bits, 1 mantissa bit, no infinity and no NaN.
pub const E2M1: FloatFormat = FloatFormat { precision: 2, min_exponent: 0, max_finite: 0x7, sign_bit: 3, nan: 0x7 };

/// The number `±mantissa · 2^exponent`. If `sticky`, the exact number has a further non-zero part below the
/// mantissa's last bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactFloat {
    pub negative: bool,
    pub mantissa: u128,
    pub exponent: i32,
    pub sticky: bool,
}

impl ExactFloat {
    /// Converts a finite f64.
    pub fn from_f64(x: f64) -> ExactFloat {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        let exponent = field.max(1) - 1075;
        ExactFloat { negative: x.is_sign_negative(), mantissa: (fraction | hidden) as u128, exponent, sticky: false }
    }

    /// Converts an integer.
    pub fn from_integer(x: i128) -> ExactFloat {
        ExactFloat { negative: x < 0, mantissa: x.unsigned_abs(), exponent: 0, sticky: false }
    }

    /// Returns true if the value is exactly zero.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0 && !self.sticky
    }

    /// Shifts the mantissa so that it has `bits` significant bits (at most 127) and adjusts the exponent.
    fn normalised(self, bits: u32) -> ExactFloat {
        let shift = bits as i32 - (128 - self.mantissa.leading_zeros() as i32);
        self.shifted(shift)
    }

    /// Shifts the mantissa left; a negative `shift` shifts right and collects the lost bits in `sticky`.
    fn shifted(self, shift: i32) -> ExactFloat {
        let mut w = ExactFloat { exponent: self.exponent - shift, ..self };
        if shift >= 0 {
            // Only a zero mantissa is shifted left by 128 bits or more, and it stays zero.
            w.mantissa = self.mantissa.checked_shl(shift as u32).unwrap_or(0);
        } else {
            let right = -shift as u32;
            w.mantissa = self.mantissa.checked_shr(right).unwrap_or(0);
            w.sticky |= right >= 128 && self.mantissa != 0 || right < 128 && self.mantissa & ((1 << right) - 1) != 0;
        }
        w
    }

    /// Returns the product of two numbers of at most 64 bits each.
    pub fn times(self, other: ExactFloat) -> ExactFloat {
        ExactFloat {
            negative: self.negative != other.negative,
            mantissa: self.mantissa * other.mantissa,
            exponent: self.exponent + other.exponent,
            sticky: false,
        }
    }

    /// Returns the sum of two numbers that are not sticky. The sum is exact, or is sticky and has far more mantissa
    /// bits than any format.
    pub fn plus(self, other: ExactFloat) -> ExactFloat {
        if other.mantissa == 0 {
            return self;
        }
        if self.mantissa == 0 {
            return other;
        }
        let (a, b) = (self.normalised(125), other.normalised(125));
        let (big, small) = if (a.exponent, a.mantissa) >= (b.exponent, b.mantissa) { (a, b) } else { (b, a) };
        let small = small.shifted(small.exponent - big.exponent);
        let mantissa = if big.negative == small.negative {
            big.mantissa + small.mantissa
        } else {
            // If `small` is sticky, the exact subtrahend is a little more than its mantissa. So one more unit is
            // subtracted, and `sticky` stands for the part of this unit that was too much.
            big.mantissa - small.mantissa - small.sticky as u128
        };
        ExactFloat { mantissa, sticky: small.sticky, ..big }
    }

    /// Returns the quotient of two non-zero numbers of at most 53 bits each.
    pub fn divided_by(self, other: ExactFloat) -> ExactFloat {
        let (a, b) = (self.normalised(120), other.normalised(53));
        ExactFloat {
            negative: a.negative != b.negative,
            mantissa: a.mantissa / b.mantissa,
            exponent: a.exponent - b.exponent,
            sticky: a.mantissa % b.mantissa != 0,
        }
    }

    /// Returns the square root of a positive number of at most 53 bits.
    pub fn sqrt(self) -> ExactFloat {
        let a = self.normalised(124);
        let a = if a.exponent % 2 == 0 { a } else { a.shifted(1) };
        let root = a.mantissa.isqrt();
        ExactFloat { negative: false, mantissa: root, exponent: a.exponent / 2, sticky: root * root != a.mantissa }
    }

    /// Rounds to `format` and returns the bits; overflow gives infinity or the largest finite number, depending on the
    /// mode.
    pub fn round_to_format(self, format: FloatFormat, mode: RoundingMode) -> u64 {
        let sign = (self.negative as u64) << format.sign_bit;
        let digits = format.precision as i32 - 1;
        let top = self.exponent + 127 - self.mantissa.leading_zeros() as i32;
        let unit =
            if self.mantissa == 0 { format.min_exponent - digits } else { top.max(format.min_exponent) - digits };
        // The lowest mantissa bit of `w` is half a unit in the last place of the result; `sticky` stands for all
        // smaller parts.
        let w = self.shifted(self.exponent - (unit - 1));
        let (kept, half, rest) = (w.mantissa as u64 >> 1, w.mantissa & 1 != 0, w.sticky);
        let up = match mode {
            RoundingMode::Nearest => half && (rest || kept & 1 != 0),
            RoundingMode::Away => half,
            RoundingMode::Zero => false,
            RoundingMode::Down => self.negative && (half || rest),
            RoundingMode::Up => !self.negative && (half || rest),
        };
        // A carry out of the significand increments the exponent field, which gives the right result.
        let bits = kept + up as u64 + (((unit - (format.min_exponent - digits)) as u64) << digits);
        if bits <= format.max_finite {
            return sign | bits;
        }
        let toward_zero = match mode {
            RoundingMode::Nearest | RoundingMode::Away => false,
            RoundingMode::Zero => true,
            RoundingMode::Down => !self.negative,
            RoundingMode::Up => self.negative,
        };
        sign | if toward_zero { format.max_finite } else { format.max_finite + 1 }
    }
}

/// Rounds any f64 to `format` and returns the bits. A NaN becomes the canonical NaN; infinity stays infinity.
pub fn encode_float(x: f64, format: FloatFormat, mode: RoundingMode) -> u64 {
    if x.is_nan() {
        format.nan
    } else if x.is_infinite() {
        (x.is_sign_negative() as u64) << format.sign_bit | (format.max_finite + 1)
    } else {
        ExactFloat::from_f64(x).round_to_format(format, mode)
    }
}

/// Returns the value of `bits` in `format`.
pub fn decode_float(bits: u64, format: FloatFormat) -> f64 {
    let digits = format.precision - 1;
    let magnitude = bits & ((1 << format.sign_bit) - 1);
    let (field, fraction) = ((magnitude >> digits) as i32, magnitude & ((1 << digits) - 1));
    let value = if magnitude > format.max_finite {
        if magnitude == format.max_finite + 1 && format != E4M3 { f64::INFINITY } else { f64::NAN }
    } else {
        let hidden = if field == 0 { 0 } else { 1 << digits };
        (fraction | hidden) as f64 * 2f64.powi(field.max(1) - 1 + format.min_exponent - digits as i32)
    };
    if bits >> format.sign_bit & 1 != 0 { -value } else { value }
}

/// Returns `a + b` in f64, rounded to odd. Rounding this sum to at most 51 bits gives the same result as rounding the
/// exact sum.
#[inline(always)]
pub fn add_round_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let tail = sum - a;
    let error = (a - (sum - tail)) + (b - tail);
    // If the sum is inexact and its last bit is 0, the result is the neighbour of the sum on the side of the exact
    // sum. For infinity and NaN the error is NaN, so the sum is returned unchanged.
    let away = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let odd = sum.to_bits().wrapping_add(away);
    let inexact = (error < 0.0) | (error > 0.0);
    f64::from_bits(if inexact & (sum.to_bits() & 1 == 0) { odd } else { sum.to_bits() })
}
