//! Exact results of arithmetic as wide integers, and their rounding to any format in any mode.
//!
//! The directed roundings and the encode_float formats come from here; f32 and f64 to nearest are the processor's.

/// How a result that lies between two representable numbers is rounded.
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
    /// Bits of the significand, the hidden one included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub least: i32,
    /// Bits of the largest finite number.
    pub largest: u64,
    /// Position of the sign bit.
    pub sign: u32,
    /// Bits of the canonical NaN.
    pub nan: u64,
}

/// IEEE binary64.
pub const F64: FloatFormat =
    FloatFormat { precision: 53, least: -1022, largest: 0x7fef_ffff_ffff_ffff, sign: 63, nan: 0x7fff_ffff_ffff_ffff };
/// IEEE binary32.
pub const F32: FloatFormat =
    FloatFormat { precision: 24, least: -126, largest: 0x7f7f_ffff, sign: 31, nan: 0x7fff_ffff };
/// IEEE binary16.
pub const F16: FloatFormat = FloatFormat { precision: 11, least: -14, largest: 0x7bff, sign: 15, nan: 0x7fff };
/// bfloat16.
pub const BF16: FloatFormat = FloatFormat { precision: 8, least: -126, largest: 0x7f7f, sign: 15, nan: 0x7fff };
/// The upper 19 bits of an f32; to be shifted left by 13.
pub const TF32: FloatFormat = FloatFormat { precision: 11, least: -126, largest: 0x3fbff, sign: 18, nan: 0x3ffff };
/// 4 exponent bits, 3 of significand, no infinity.
pub const E4M3: FloatFormat = FloatFormat { precision: 4, least: -6, largest: 0x7e, sign: 7, nan: 0x7f };
/// 5 exponent bits, 2 of significand.
pub const E5M2: FloatFormat = FloatFormat { precision: 3, least: -14, largest: 0x7b, sign: 7, nan: 0x7f };

/// `±mantissa · 2^exponent`, plus less than one unit of the mantissa away from zero if `sticky`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactFloat {
    pub negative: bool,
    pub mantissa: u128,
    pub exponent: i32,
    pub sticky: bool,
}

impl ExactFloat {
    /// A finite number.
    pub fn new(x: f64) -> ExactFloat {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        let exponent = field.max(1) - 1075;
        ExactFloat { negative: x.is_sign_negative(), mantissa: (fraction | hidden) as u128, exponent, sticky: false }
    }

    /// An integer.
    pub fn integer(x: i128) -> ExactFloat {
        ExactFloat { negative: x < 0, mantissa: x.unsigned_abs(), exponent: 0, sticky: false }
    }

    /// The value is exactly zero.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0 && !self.sticky
    }

    /// The same value with `bits` significant bits of mantissa (at most 127); nothing is lost upwards.
    fn normalised(self, bits: u32) -> ExactFloat {
        let shift = bits as i32 - (128 - self.mantissa.leading_zeros() as i32);
        self.shifted(shift)
    }

    /// The mantissa shifted left (negative: right, the lost bits made sticky).
    fn shifted(self, shift: i32) -> ExactFloat {
        let mut w = ExactFloat { exponent: self.exponent - shift, ..self };
        if shift >= 0 {
            // Only a zero is ever shifted by more bits than there are.
            w.mantissa = self.mantissa.checked_shl(shift as u32).unwrap_or(0);
        } else {
            let right = -shift as u32;
            w.mantissa = self.mantissa.checked_shr(right).unwrap_or(0);
            w.sticky |= right >= 128 && self.mantissa != 0 || right < 128 && self.mantissa & ((1 << right) - 1) != 0;
        }
        w
    }

    /// The product of two numbers of at most 64 bits each.
    pub fn times(self, other: ExactFloat) -> ExactFloat {
        ExactFloat {
            negative: self.negative != other.negative,
            mantissa: self.mantissa * other.mantissa,
            exponent: self.exponent + other.exponent,
            sticky: false,
        }
    }

    /// The sum of two numbers, neither sticky; exact, or far more bits than any format keeps and sticky.
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
            // What is sticky in the subtrahend makes the difference smaller: one less, and sticky above that.
            big.mantissa - small.mantissa - small.sticky as u128
        };
        ExactFloat { mantissa, sticky: small.sticky, ..big }
    }

    /// The quotient of two non-zero numbers of at most 53 bits each.
    pub fn over(self, other: ExactFloat) -> ExactFloat {
        let (a, b) = (self.normalised(120), other.normalised(53));
        ExactFloat {
            negative: a.negative != b.negative,
            mantissa: a.mantissa / b.mantissa,
            exponent: a.exponent - b.exponent,
            sticky: a.mantissa % b.mantissa != 0,
        }
    }

    /// The square root of a positive number of at most 53 bits.
    pub fn sqrt(self) -> ExactFloat {
        let a = self.normalised(124);
        let a = if a.exponent % 2 == 0 { a } else { a.shifted(1) };
        let root = a.mantissa.isqrt();
        ExactFloat { negative: false, mantissa: root, exponent: a.exponent / 2, sticky: root * root != a.mantissa }
    }

    /// The bits of this value in `format`; overflow is infinity or the largest number, as the mode says.
    pub fn round(self, format: FloatFormat, mode: RoundingMode) -> u64 {
        let sign = (self.negative as u64) << format.sign;
        let digits = format.precision as i32 - 1;
        let top = self.exponent + 127 - self.mantissa.leading_zeros() as i32;
        let unit = if self.mantissa == 0 { format.least - digits } else { top.max(format.least) - digits };
        // Two guard bits below the unit: a half, and anything less.
        let w = self.shifted(self.exponent - (unit - 1));
        let (kept, half, rest) = (w.mantissa as u64 >> 1, w.mantissa & 1 != 0, w.sticky);
        let up = match mode {
            RoundingMode::Nearest => half && (rest || kept & 1 != 0),
            RoundingMode::Away => half,
            RoundingMode::Zero => false,
            RoundingMode::Down => self.negative && (half || rest),
            RoundingMode::Up => !self.negative && (half || rest),
        };
        // A carry out of the significand flows into the exponent, as it should.
        let bits = kept + up as u64 + (((unit - (format.least - digits)) as u64) << digits);
        if bits <= format.largest {
            return sign | bits;
        }
        let toward_zero = match mode {
            RoundingMode::Nearest | RoundingMode::Away => false,
            RoundingMode::Zero => true,
            RoundingMode::Down => !self.negative,
            RoundingMode::Up => self.negative,
        };
        sign | if toward_zero { format.largest } else { format.largest + 1 }
    }
}

/// The bits of any f64 in `format`: rounded, NaN made canonical, infinity kept.
pub fn encode_float(x: f64, format: FloatFormat, mode: RoundingMode) -> u64 {
    if x.is_nan() {
        format.nan
    } else if x.is_infinite() {
        (x.is_sign_negative() as u64) << format.sign | (format.largest + 1)
    } else {
        ExactFloat::new(x).round(format, mode)
    }
}

/// The value of bits in an IEEE-like format with infinities.
pub fn decode_float(bits: u64, format: FloatFormat) -> f64 {
    let digits = format.precision - 1;
    let magnitude = bits & ((1 << format.sign) - 1);
    let (field, fraction) = ((magnitude >> digits) as i32, magnitude & ((1 << digits) - 1));
    let value = if magnitude > format.largest {
        if magnitude == format.largest + 1 && format != E4M3 { f64::INFINITY } else { f64::NAN }
    } else {
        let hidden = if field == 0 { 0 } else { 1 << digits };
        (fraction | hidden) as f64 * 2f64.powi(field.max(1) - 1 + format.least - digits as i32)
    };
    if bits >> format.sign & 1 != 0 { -value } else { value }
}

/// `a + b` in f64, rounded to round_to_odd_if_tiny: a further rounding to at most 51 bits is then as of the exact sum.
#[inline(always)]
pub fn add_round_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let tail = sum - a;
    let error = (a - (sum - tail)) + (b - tail);
    // The exact sum lies between an even one and its round_to_odd_if_tiny neighbour on the error's side. Infinity and NaN make the error NaN.
    let away = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let round_to_odd_if_tiny = sum.to_bits().wrapping_add(away);
    let inexact = (error < 0.0) | (error > 0.0);
    f64::from_bits(if inexact & (sum.to_bits() & 1 == 0) { round_to_odd_if_tiny } else { sum.to_bits() })
}
