//! Exact results of arithmetic as wide integers, and their rounding to any format in any mode.
//!
//! The directed roundings and the narrow formats come from here; f32 and f64 to nearest are the processor's.

/// How a result that lies between two representable numbers is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
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
pub struct Format {
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
pub const F64: Format =
    Format { precision: 53, least: -1022, largest: 0x7fef_ffff_ffff_ffff, sign: 63, nan: 0x7fff_ffff_ffff_ffff };
/// IEEE binary32.
pub const F32: Format = Format { precision: 24, least: -126, largest: 0x7f7f_ffff, sign: 31, nan: 0x7fff_ffff };
/// IEEE binary16.
pub const F16: Format = Format { precision: 11, least: -14, largest: 0x7bff, sign: 15, nan: 0x7fff };
/// bfloat16.
pub const BF16: Format = Format { precision: 8, least: -126, largest: 0x7f7f, sign: 15, nan: 0x7fff };
/// The upper 19 bits of an f32; to be shifted left by 13.
pub const TF32: Format = Format { precision: 11, least: -126, largest: 0x3fbff, sign: 18, nan: 0x3ffff };
/// 4 exponent bits, 3 of significand, no infinity.
pub const E4M3: Format = Format { precision: 4, least: -6, largest: 0x7e, sign: 7, nan: 0x7f };
/// 5 exponent bits, 2 of significand.
pub const E5M2: Format = Format { precision: 3, least: -14, largest: 0x7b, sign: 7, nan: 0x7f };

/// `±mantissa · 2^exponent`, plus less than one unit of the mantissa away from zero if `sticky`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide {
    pub negative: bool,
    pub mantissa: u128,
    pub exponent: i32,
    pub sticky: bool,
}

impl Wide {
    /// A finite number.
    pub fn new(x: f64) -> Wide {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        let exponent = field.max(1) - 1075;
        Wide { negative: x.is_sign_negative(), mantissa: (fraction | hidden) as u128, exponent, sticky: false }
    }

    /// An integer.
    pub fn integer(x: i128) -> Wide {
        Wide { negative: x < 0, mantissa: x.unsigned_abs(), exponent: 0, sticky: false }
    }

    /// The value is exactly zero.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0 && !self.sticky
    }

    /// The same value with `bits` significant bits of mantissa (at most 127); nothing is lost upwards.
    fn normalised(self, bits: u32) -> Wide {
        let shift = bits as i32 - (128 - self.mantissa.leading_zeros() as i32);
        self.shifted(shift)
    }

    /// The mantissa shifted left (negative: right, the lost bits made sticky).
    fn shifted(self, shift: i32) -> Wide {
        let mut w = Wide { exponent: self.exponent - shift, ..self };
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
    pub fn times(self, other: Wide) -> Wide {
        Wide {
            negative: self.negative != other.negative,
            mantissa: self.mantissa * other.mantissa,
            exponent: self.exponent + other.exponent,
            sticky: false,
        }
    }

    /// The sum of two numbers, neither sticky; exact, or far more bits than any format keeps and sticky.
    pub fn plus(self, other: Wide) -> Wide {
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
        Wide { mantissa, sticky: small.sticky, ..big }
    }

    /// The quotient of two non-zero numbers of at most 53 bits each.
    pub fn over(self, other: Wide) -> Wide {
        let (a, b) = (self.normalised(120), other.normalised(53));
        Wide {
            negative: a.negative != b.negative,
            mantissa: a.mantissa / b.mantissa,
            exponent: a.exponent - b.exponent,
            sticky: a.mantissa % b.mantissa != 0,
        }
    }

    /// The square root of a positive number of at most 53 bits.
    pub fn sqrt(self) -> Wide {
        let a = self.normalised(124);
        let a = if a.exponent % 2 == 0 { a } else { a.shifted(1) };
        let root = a.mantissa.isqrt();
        Wide { negative: false, mantissa: root, exponent: a.exponent / 2, sticky: root * root != a.mantissa }
    }

    /// The bits of this value in `format`; overflow is infinity or the largest number, as the mode says.
    pub fn round(self, format: Format, mode: Mode) -> u64 {
        let sign = (self.negative as u64) << format.sign;
        let digits = format.precision as i32 - 1;
        let top = self.exponent + 127 - self.mantissa.leading_zeros() as i32;
        let unit = if self.mantissa == 0 { format.least - digits } else { top.max(format.least) - digits };
        // Two guard bits below the unit: a half, and anything less.
        let w = self.shifted(self.exponent - (unit - 1));
        let (kept, half, rest) = (w.mantissa as u64 >> 1, w.mantissa & 1 != 0, w.sticky);
        let up = match mode {
            Mode::Nearest => half && (rest || kept & 1 != 0),
            Mode::Away => half,
            Mode::Zero => false,
            Mode::Down => self.negative && (half || rest),
            Mode::Up => !self.negative && (half || rest),
        };
        // A carry out of the significand flows into the exponent, as it should.
        let bits = kept + up as u64 + (((unit - (format.least - digits)) as u64) << digits);
        if bits <= format.largest {
            return sign | bits;
        }
        let toward_zero = match mode {
            Mode::Nearest | Mode::Away => false,
            Mode::Zero => true,
            Mode::Down => !self.negative,
            Mode::Up => self.negative,
        };
        sign | if toward_zero { format.largest } else { format.largest + 1 }
    }
}

/// The bits of any f64 in `format`: rounded, NaN made canonical, infinity kept.
pub fn narrow(x: f64, format: Format, mode: Mode) -> u64 {
    if x.is_nan() {
        format.nan
    } else if x.is_infinite() {
        (x.is_sign_negative() as u64) << format.sign | (format.largest + 1)
    } else {
        Wide::new(x).round(format, mode)
    }
}

/// The value of bits in an IEEE-like format with infinities.
pub fn widen(bits: u64, format: Format) -> f64 {
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

/// `a + b` in f64, rounded to odd: a further rounding to at most 51 bits is then as of the exact sum.
#[inline(always)]
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let tail = sum - a;
    let error = (a - (sum - tail)) + (b - tail);
    // The exact sum lies between an even one and its odd neighbour on the error's side. Infinity and NaN make the error NaN.
    let away = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let odd = sum.to_bits().wrapping_add(away);
    let inexact = (error < 0.0) | (error > 0.0);
    f64::from_bits(if inexact & (sum.to_bits() & 1 == 0) { odd } else { sum.to_bits() })
}
