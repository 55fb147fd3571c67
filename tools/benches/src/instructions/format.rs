//! The formats of the registers that instructions read and write: how random inputs are drawn, and which numbers a
//! register holds.

use reel_sim::exec::SeededRng;

/// What the register of an operand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandFormat {
    /// A predicate, 0 or 1.
    Pred,
    /// An integer of 16, 32 or 64 bits.
    Int(u32),
    /// An integer of 16, 32 or 64 bits that is never 0.
    Nonzero(u32),
    /// A shift amount in 32 bits, mostly from 0 to 70.
    Shift,
    /// A lane index from 0 to 31, in a 32-bit register.
    Lane,
    /// A distance between lanes from -33 to 33, in 32 bits.
    Offset,
    /// The operand of `shfl` that limits source lanes: a clamp value and a segment mask.
    Clamp,
    /// A 32-bit or 64-bit integer with only a few distinct values among the lanes of a warp.
    Warp(u32),
    /// A floating-point number.
    Float(FloatFormat),
    /// Two packed floating-point numbers of 16 bits each.
    Pair(FloatFormat),
    /// Matrix elements, as many as fit into one register.
    Matrix(MatrixElementFormat, ElementRange),
}

/// A binary floating-point format, given by the bits of its exponent and its fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatFormat {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
}

/// IEEE half precision.
pub const F16: FloatFormat = FloatFormat { exponent: 5, fraction: 10 };
/// bfloat16: the upper half of an f32.
pub const BF16: FloatFormat = FloatFormat { exponent: 8, fraction: 7 };
/// IEEE single precision.
pub const F32: FloatFormat = FloatFormat { exponent: 8, fraction: 23 };
/// IEEE double precision.
pub const F64: FloatFormat = FloatFormat { exponent: 11, fraction: 52 };

/// The type of a matrix element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixElementFormat {
    /// A floating-point number, alone in its register or packed with others of its format.
    Number(FloatFormat),
    /// A tf32 number; the lower 13 bits of its register are arbitrary.
    Tf32,
    /// e4m3
    E4m3,
    /// e5m2
    E5m2,
    /// Integers of 8 or 4 bits, or single bits; every bit pattern is a value.
    Bits,
    /// A 32-bit integer: a sum of integer products.
    Int32,
}

/// The range from which matrix elements are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementRange {
    /// Integers from -3 to 3; their sums of products are exact in every format.
    Small,
    /// Numbers of magnitude about 1, of both signs.
    Moderate,
}

impl FloatFormat {
    /// The width of the format in bits, with the sign bit.
    pub fn bit_width(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    /// The largest unbiased exponent of a finite number.
    pub fn max_exponent(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The number that these bits represent.
    pub fn decode(self, bits: u64) -> f64 {
        if self == F64 {
            return f64::from_bits(bits);
        }
        let field = (bits >> self.fraction) & ((1 << self.exponent) - 1);
        let fraction = (bits & ((1 << self.fraction) - 1)) as f64 * 2f64.powi(-(self.fraction as i32));
        let magnitude = match field {
            0 => fraction * 2f64.powi(1 - self.max_exponent()),
            f if f == (1 << self.exponent) - 1 => {
                if fraction == 0.0 {
                    f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            f => (1.0 + fraction) * 2f64.powi(f as i32 - self.max_exponent()),
        };
        if bits >> (self.bit_width() - 1) & 1 == 1 { -magnitude } else { magnitude }
    }

    /// Returns the bits of a finite value, rounded towards 0 to this format. The value must not exceed the format's
    /// range.
    pub fn encode(self, value: f64) -> u64 {
        if self == F64 {
            return value.to_bits();
        }
        let sign = u64::from(value.is_sign_negative()) << (self.bit_width() - 1);
        let wide = value.abs().to_bits();
        let (field, fraction) = ((wide >> 52) as i32 - 1023, wide & ((1 << 52) - 1));
        let normal = field + self.max_exponent();
        let magnitude = if value == 0.0 {
            0
        } else if normal > 0 {
            (normal as u64) << self.fraction | fraction >> (52 - self.fraction)
        } else {
            (fraction | 1 << 52).checked_shr((52 - self.fraction) + (1 - normal) as u32).unwrap_or(0)
        };
        sign | magnitude
    }

    /// Returns the bits of the largest finite number.
    pub fn largest_finite(self) -> u64 {
        (((1u64 << self.exponent) - 1) << self.fraction) - 1
    }

    /// Tells whether these bits are a NaN.
    pub fn is_nan(self, bits: u64) -> bool {
        self.decode(bits).is_nan()
    }

    /// Returns an edge case or a random number: arbitrary bits, special values, halves of integers, very small and
    /// very large ones.
    fn draw(self, rng: &mut SeededRng) -> u64 {
        let bits = self.bit_width();
        let random = rng.draw() >> (64 - bits);
        if self == F64 && rng.draw_below(16) == 0 {
            return random & 1 << 63 | narrow_edge(rng);
        }
        let sign = random & 1 << (bits - 1);
        let fraction = random & ((1 << self.fraction) - 1);
        let with = |exponent: i32| {
            let field = (exponent + self.max_exponent()).clamp(0, 2 * self.max_exponent()) as u64;
            sign | field << self.fraction | fraction
        };
        match rng.draw_below(8) {
            0 | 1 => random,
            2 => sign | self.special(rng),
            3 | 4 => with(rng.draw_below(25) as i32 - 12),
            5 => {
                let length = 1 + rng.draw_below(self.fraction + 1);
                let integer = rng.draw() >> (64 - length);
                sign | self.encode(integer as f64 * 0.5)
            }
            6 => with(rng.draw_below(70) as i32 - 3),
            _ => match rng.draw_below(3) {
                0 => sign | fraction >> rng.draw_below(self.fraction),
                1 => with(1 - self.max_exponent() + rng.draw_below(3) as i32),
                _ => with(self.max_exponent() - rng.draw_below(3) as i32),
            },
        }
    }

    /// Returns a special value: zero, infinity, NaN, a subnormal number, or the largest or smallest normal number.
    fn special(self, rng: &mut SeededRng) -> u64 {
        let one = (self.max_exponent() as u64) << self.fraction;
        let unit = 1u64 << self.fraction;
        let infinity = ((1u64 << self.exponent) - 1) << self.fraction;
        let all = [
            0,
            1,
            unit - 1,
            unit,
            unit + 1,
            one,
            one - 1,
            one + 1,
            one + unit,
            one - unit,
            one + unit / 2,
            infinity - 1,
            infinity,
            infinity + unit / 2,
            infinity + 1,
        ];
        all[rng.draw_below(all.len() as u32) as usize]
    }
}

/// Returns a positive f64 near the limits of a narrower format, or between two of its numbers.
fn narrow_edge(rng: &mut SeededRng) -> u64 {
    let format = [F16, BF16, F32][rng.draw_below(3) as usize];
    let edge = match rng.draw_below(4) {
        0 => 2f64.powi(1 - format.max_exponent()),
        1 => 2f64.powi(1 - format.max_exponent() - format.fraction as i32),
        2 => 2f64.powi(format.max_exponent() + 1),
        _ => 1.0 + f64::from(rng.draw_below(64)) * 2f64.powi(-(format.fraction as i32)),
    };
    // Changes the number by a fraction of the narrow format's ulp, or by one ulp of f64.
    let part =
        1u64 << [52 - format.fraction, 51 - format.fraction, 50 - format.fraction, 0][rng.draw_below(4) as usize];
    if rng.draw_below(3) == 0 { edge.to_bits() + part } else { edge.to_bits() - part }
}

impl OperandFormat {
    /// Returns the format for a letter in the instruction table.
    pub fn from_letter(letter: char) -> OperandFormat {
        match letter {
            'p' => OperandFormat::Pred,
            'h' => OperandFormat::Int(16),
            'r' => OperandFormat::Int(32),
            'd' => OperandFormat::Int(64),
            'j' => OperandFormat::Nonzero(16),
            'k' => OperandFormat::Nonzero(32),
            'm' => OperandFormat::Nonzero(64),
            's' => OperandFormat::Shift,
            'l' => OperandFormat::Lane,
            'o' => OperandFormat::Offset,
            'c' => OperandFormat::Clamp,
            'w' => OperandFormat::Warp(32),
            'W' => OperandFormat::Warp(64),
            'H' => OperandFormat::Float(F16),
            'B' => OperandFormat::Float(BF16),
            'f' => OperandFormat::Float(F32),
            'D' => OperandFormat::Float(F64),
            'x' => OperandFormat::Pair(F16),
            'y' => OperandFormat::Pair(BF16),
            other => panic!("{other} is no format"),
        }
    }

    /// Returns the register's width in bits; 1 for a predicate.
    pub fn bit_width(self) -> u32 {
        match self {
            OperandFormat::Pred => 1,
            OperandFormat::Int(bits) | OperandFormat::Nonzero(bits) | OperandFormat::Warp(bits) => bits,
            OperandFormat::Float(f) => f.bit_width(),
            OperandFormat::Matrix(MatrixElementFormat::Number(F64), _) => 64,
            _ => 32,
        }
    }

    /// Returns how many floating-point numbers the register holds and their format, if it holds any.
    pub fn packed_number_count_and_format(self) -> Option<(u32, FloatFormat)> {
        match self {
            OperandFormat::Float(f) => Some((1, f)),
            OperandFormat::Pair(f) => Some((2, f)),
            OperandFormat::Matrix(MatrixElementFormat::Number(f), _) => Some((self.bit_width() / f.bit_width(), f)),
            _ => None,
        }
    }

    /// Returns one random input of this format. `warp_random` is a random number shared by all lanes of a warp.
    pub fn random_input(self, rng: &mut SeededRng, warp_random: u64) -> u64 {
        match self {
            OperandFormat::Pred => match warp_random % 4 {
                0 => 0,
                1 => 1,
                _ => rng.draw() & 1,
            },
            OperandFormat::Int(bits) => integer(bits, rng),
            OperandFormat::Nonzero(bits) => integer(bits, rng).max(1),
            OperandFormat::Shift => match rng.draw_below(10) {
                0 => integer(32, rng),
                1 => u64::from([31u32, 32, 33, 63, 64, 65, 255, 256][rng.draw_below(8) as usize]),
                _ => u64::from(rng.draw_below(71)),
            },
            OperandFormat::Lane => u64::from(rng.draw_below(32)),
            OperandFormat::Offset => u64::from((rng.draw_below(67) as i32 - 33) as u32),
            OperandFormat::Clamp => rng.draw() & 0x1f1f,
            OperandFormat::Warp(bits) => {
                let kinds = [1, 1, 2, 5][(warp_random >> 2) as usize % 4];
                let which = u64::from(rng.draw_below(kinds)) + 1;
                (warp_random.wrapping_mul(which) ^ which << 60) >> (64 - bits)
            }
            OperandFormat::Float(f) => f.draw(rng),
            OperandFormat::Pair(f) => f.draw(rng) | f.draw(rng) << 16,
            OperandFormat::Matrix(element, span) => random_matrix_elements(element, span, self.bit_width(), rng),
        }
    }
}

/// Returns an edge case or a random integer.
fn integer(bits: u32, rng: &mut SeededRng) -> u64 {
    let random = rng.draw();
    let mask = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    mask & match rng.draw_below(8) {
        0..=2 => random,
        3 => [0, 1, u64::MAX, top, top - 1, top + 1, top - 2, mask - 1][rng.draw_below(8) as usize],
        4 => (u64::from(rng.draw_below(65))).wrapping_sub(32),
        5 => (1u64 << rng.draw_below(bits)).wrapping_add(u64::from(rng.draw_below(3))).wrapping_sub(1),
        6 => random >> (64 - bits) >> rng.draw_below(bits),
        _ => (0..8).fold(0, |word, _| word << 8 | [0, 0x7f, 0x80, 0xff, 1][rng.draw_below(5) as usize]),
    }
}

impl MatrixElementFormat {
    /// Returns a mask of the sign bits of all elements in 64 bits; 0 for integers, because sums of integers are
    /// exact.
    pub fn sign_mask(self) -> u64 {
        match self {
            MatrixElementFormat::Number(F64) => 1 << 63,
            MatrixElementFormat::Number(F16 | BF16) => 0x8000_8000_8000_8000,
            MatrixElementFormat::Number(_) | MatrixElementFormat::Tf32 => 0x8000_0000_8000_0000,
            MatrixElementFormat::E4m3 | MatrixElementFormat::E5m2 => 0x8080_8080_8080_8080,
            MatrixElementFormat::Bits | MatrixElementFormat::Int32 => 0,
        }
    }
}

/// Returns a register full of random matrix elements.
pub fn random_matrix_elements(
    element: MatrixElementFormat,
    span: ElementRange,
    register_bits: u32,
    rng: &mut SeededRng,
) -> u64 {
    let mut all = |format: FloatFormat| {
        (0..register_bits / format.bit_width())
            .fold(0, |word, i| word | number(format, span, rng) << (i * format.bit_width()))
    };
    match element {
        MatrixElementFormat::Number(f) => all(f),
        MatrixElementFormat::Tf32 => all(F32) ^ (rng.draw() & 0x1fff),
        MatrixElementFormat::E4m3 => all(FloatFormat { exponent: 4, fraction: 3 }),
        MatrixElementFormat::E5m2 => all(FloatFormat { exponent: 5, fraction: 2 }),
        MatrixElementFormat::Bits => rng.draw() >> (64 - register_bits),
        MatrixElementFormat::Int32 => integer(32, rng),
    }
}

/// Returns one random matrix element.
fn number(format: FloatFormat, span: ElementRange, rng: &mut SeededRng) -> u64 {
    let value = match span {
        ElementRange::Small => f64::from(rng.draw_below(7)) - 3.0,
        ElementRange::Moderate => {
            let sign = if rng.draw() & 1 == 1 { -1.0 } else { 1.0 };
            let fraction = 1.0 + (rng.draw() >> 12) as f64 * 2f64.powi(-52);
            sign * fraction * 2f64.powi(rng.draw_below(5) as i32 - 3)
        }
    };
    format.encode(value)
}

/// Sometimes makes the inputs of an instruction depend on each other: nearly equal, of opposite sign, or with a sum
/// that cancels.
pub fn correlate_inputs(formats: &[OperandFormat], tuple: &mut [u64], rng: &mut SeededRng) {
    let Some((&first, others)) = formats.split_first() else { return };
    let mask = u64::MAX >> (64 - first.bit_width());
    if rng.draw_below(8) == 0 && !matches!(first, OperandFormat::Matrix(..)) {
        for i in 1..=others.len() {
            let near = tuple[0].wrapping_add(u64::from(rng.draw_below(3))).wrapping_sub(1);
            let flipped = if rng.draw_below(3) == 0 { 1u64 << (first.bit_width() - 1) } else { 0 };
            if formats[i] == first
                && matches!(first, OperandFormat::Int(_) | OperandFormat::Float(_) | OperandFormat::Pair(_))
            {
                tuple[i] = (near ^ flipped) & mask;
            }
        }
    } else if let [OperandFormat::Float(f), OperandFormat::Float(_), ..] = formats
        && rng.draw_below(8) == 0
    {
        // Sets the second input so that the product or quotient is near the smallest normal number, where rounding
        // and flushing to zero interact.
        let (a, least) = (f.decode(tuple[0]), 2f64.powi(1 - f.max_exponent()));
        let (factor, divisor) = (least / a, a / least);
        let b = if rng.draw_below(2) == 0 { factor } else { divisor };
        if b.is_normal() && (least..=f.decode(f.largest_finite())).contains(&b.abs()) {
            tuple[1] = f.encode(b).wrapping_add(u64::from(rng.draw_below(4))).wrapping_sub(1)
                & (u64::MAX >> (64 - f.bit_width()));
        }
    } else if let [OperandFormat::Float(f @ (F32 | F64)), OperandFormat::Float(_), OperandFormat::Float(_)] = formats
        && rng.draw_below(8) == 0
    {
        let product = f.decode(tuple[0]) * f.decode(tuple[1]);
        if product.is_finite() && product.abs() < f.decode(f.largest_finite()) {
            tuple[2] = f.encode(-product).wrapping_add(u64::from(rng.draw_below(3)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_values_belong_together() {
        for i in 0..=u16::MAX {
            for f in [F16, BF16] {
                let value = f.decode(u64::from(i));
                if value.is_finite() {
                    assert_eq!(f.encode(value), u64::from(i), "{f:?} {i:#x}");
                }
            }
            let single = u32::from(i) << 16 | u32::from(i).wrapping_mul(40503) & 0xffff;
            let value = f32::from_bits(single);
            if value.is_finite() {
                assert_eq!(F32.decode(u64::from(single)), f64::from(value));
                assert_eq!(F32.encode(f64::from(value)), u64::from(single));
            }
            assert_eq!(F32.is_nan(u64::from(single)), value.is_nan());
        }
        assert_eq!(F64.decode(0.1f64.to_bits()), 0.1);
        assert_eq!(F64.encode(-5e-324), 1 << 63 | 1);
    }
}
