//! The contents of a register: how inputs are chosen and results compared.

use reel_sim::exec::SeededRng;

/// The contents of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A predicate.
    Pred,
    /// An integer of 16, 32 or 64 bits.
    Int(u32),
    /// The same, never 0.
    Nonzero(u32),
    /// A shift amount, mostly up to 70, in 32 bits.
    Shift,
    /// 0 to 31, in 32 bits.
    Lane,
    /// -33 to 33, in 32 bits.
    Offset,
    /// The limit of `shfl`: a clamp and a segment mask.
    Clamp,
    /// An integer that takes few different values among the lanes of a warp; 32 or 64 bits.
    Warp(u32),
    /// A number.
    Float(Float),
    /// Two numbers of 16 bits.
    Pair(Float),
    /// Matrix elements, as many as fit in the register.
    Matrix(Element, Span),
}

/// A binary floating-point format, given by the bits of its exponent and its fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
}

/// IEEE half precision.
pub const F16: Float = Float { exponent: 5, fraction: 10 };
/// bfloat16: the upper half of an f32.
pub const BF16: Float = Float { exponent: 8, fraction: 7 };
/// IEEE single precision.
pub const F32: Float = Float { exponent: 8, fraction: 23 };
/// IEEE double precision.
pub const F64: Float = Float { exponent: 11, fraction: 52 };

/// An element of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A floating-point number, alone in its register or packed with others of its format.
    Number(Float),
    /// tf32, whose lower 13 bits are arbitrary.
    Tf32,
    /// e4m3
    E4m3,
    /// e5m2
    E5m2,
    /// Integers of 8 or 4 bits, or single bits; every bit pattern is a value.
    Bits,
    /// A sum of 32-bit integers.
    Int32,
}

/// The magnitude of matrix elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Integers from -3 to 3, whose sums of products are exact in every format.
    Small,
    /// Numbers of magnitude about 1, of both signs.
    Moderate,
}

impl Float {
    /// All bits.
    pub fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    /// The largest unbiased exponent.
    pub fn largest(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The value of these bits.
    pub fn value(self, bits: u64) -> f64 {
        if self == F64 {
            return f64::from_bits(bits);
        }
        let field = (bits >> self.fraction) & ((1 << self.exponent) - 1);
        let fraction = (bits & ((1 << self.fraction) - 1)) as f64 * 2f64.powi(-(self.fraction as i32));
        let magnitude = match field {
            0 => fraction * 2f64.powi(1 - self.largest()),
            f if f == (1 << self.exponent) - 1 => {
                if fraction == 0.0 {
                    f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            f => (1.0 + fraction) * 2f64.powi(f as i32 - self.largest()),
        };
        if bits >> (self.bits() - 1) & 1 == 1 { -magnitude } else { magnitude }
    }

    /// Returns the bits of a finite value, rounded towards 0 to this format. The value must not exceed the format's
    /// range.
    pub fn pack(self, value: f64) -> u64 {
        if self == F64 {
            return value.to_bits();
        }
        let sign = u64::from(value.is_sign_negative()) << (self.bits() - 1);
        let wide = value.abs().to_bits();
        let (field, fraction) = ((wide >> 52) as i32 - 1023, wide & ((1 << 52) - 1));
        let normal = field + self.largest();
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
    pub fn greatest(self) -> u64 {
        (((1u64 << self.exponent) - 1) << self.fraction) - 1
    }

    /// Tells whether these bits are a NaN.
    pub fn is_nan(self, bits: u64) -> bool {
        self.value(bits).is_nan()
    }

    /// Returns an edge case or a random number: arbitrary bits, special values, halves of integers, very small and
    /// very large ones.
    fn draw(self, rng: &mut SeededRng) -> u64 {
        let bits = self.bits();
        let random = rng.draw() >> (64 - bits);
        if self == F64 && rng.below(16) == 0 {
            return random & 1 << 63 | narrow_edge(rng);
        }
        let sign = random & 1 << (bits - 1);
        let fraction = random & ((1 << self.fraction) - 1);
        let with = |exponent: i32| {
            let field = (exponent + self.largest()).clamp(0, 2 * self.largest()) as u64;
            sign | field << self.fraction | fraction
        };
        match rng.below(8) {
            0 | 1 => random,
            2 => sign | self.special(rng),
            3 | 4 => with(rng.below(25) as i32 - 12),
            5 => {
                let length = 1 + rng.below(self.fraction + 1);
                let integer = rng.draw() >> (64 - length);
                sign | self.pack(integer as f64 * 0.5)
            }
            6 => with(rng.below(70) as i32 - 3),
            _ => match rng.below(3) {
                0 => sign | fraction >> rng.below(self.fraction),
                1 => with(1 - self.largest() + rng.below(3) as i32),
                _ => with(self.largest() - rng.below(3) as i32),
            },
        }
    }

    /// Returns a special value: zero, infinity, NaN, a subnormal number, or the largest or smallest normal number.
    fn special(self, rng: &mut SeededRng) -> u64 {
        let one = (self.largest() as u64) << self.fraction;
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
        all[rng.below(all.len() as u32) as usize]
    }
}

/// Returns a positive f64 near the limits of a narrower format, or between two of its numbers.
fn narrow_edge(rng: &mut SeededRng) -> u64 {
    let format = [F16, BF16, F32][rng.below(3) as usize];
    let edge = match rng.below(4) {
        0 => 2f64.powi(1 - format.largest()),
        1 => 2f64.powi(1 - format.largest() - format.fraction as i32),
        2 => 2f64.powi(format.largest() + 1),
        _ => 1.0 + f64::from(rng.below(64)) * 2f64.powi(-(format.fraction as i32)),
    };
    // Moves it by a fraction of the narrow format's ulp, or by one ulp of f64.
    let part = 1u64 << [52 - format.fraction, 51 - format.fraction, 50 - format.fraction, 0][rng.below(4) as usize];
    if rng.below(3) == 0 { edge.to_bits() + part } else { edge.to_bits() - part }
}

impl Format {
    /// Returns the format that a letter of the instruction table stands for.
    pub fn named(letter: char) -> Format {
        match letter {
            'p' => Format::Pred,
            'h' => Format::Int(16),
            'r' => Format::Int(32),
            'd' => Format::Int(64),
            'j' => Format::Nonzero(16),
            'k' => Format::Nonzero(32),
            'm' => Format::Nonzero(64),
            's' => Format::Shift,
            'l' => Format::Lane,
            'o' => Format::Offset,
            'c' => Format::Clamp,
            'w' => Format::Warp(32),
            'W' => Format::Warp(64),
            'H' => Format::Float(F16),
            'B' => Format::Float(BF16),
            'f' => Format::Float(F32),
            'D' => Format::Float(F64),
            'x' => Format::Pair(F16),
            'y' => Format::Pair(BF16),
            other => panic!("{other} is no format"),
        }
    }

    /// Returns the register's width in bits; 1 for a predicate.
    pub fn bits(self) -> u32 {
        match self {
            Format::Pred => 1,
            Format::Int(bits) | Format::Nonzero(bits) | Format::Warp(bits) => bits,
            Format::Float(f) => f.bits(),
            Format::Matrix(Element::Number(F64), _) => 64,
            _ => 32,
        }
    }

    /// Returns how many floating-point numbers the register holds and their format, if it holds any.
    pub fn numbers(self) -> Option<(u32, Float)> {
        match self {
            Format::Float(f) => Some((1, f)),
            Format::Pair(f) => Some((2, f)),
            Format::Matrix(Element::Number(f), _) => Some((self.bits() / f.bits(), f)),
            _ => None,
        }
    }

    /// Returns one input. `rest` is a random number that all lanes of a warp share.
    pub fn draw(self, rng: &mut SeededRng, rest: u64) -> u64 {
        match self {
            Format::Pred => match rest % 4 {
                0 => 0,
                1 => 1,
                _ => rng.draw() & 1,
            },
            Format::Int(bits) => integer(bits, rng),
            Format::Nonzero(bits) => integer(bits, rng).max(1),
            Format::Shift => match rng.below(10) {
                0 => integer(32, rng),
                1 => u64::from([31u32, 32, 33, 63, 64, 65, 255, 256][rng.below(8) as usize]),
                _ => u64::from(rng.below(71)),
            },
            Format::Lane => u64::from(rng.below(32)),
            Format::Offset => u64::from((rng.below(67) as i32 - 33) as u32),
            Format::Clamp => rng.draw() & 0x1f1f,
            Format::Warp(bits) => {
                let kinds = [1, 1, 2, 5][(rest >> 2) as usize % 4];
                let which = u64::from(rng.below(kinds)) + 1;
                (rest.wrapping_mul(which) ^ which << 60) >> (64 - bits)
            }
            Format::Float(f) => f.draw(rng),
            Format::Pair(f) => f.draw(rng) | f.draw(rng) << 16,
            Format::Matrix(element, span) => matrix(element, span, self.bits(), rng),
        }
    }
}

/// Returns an edge case or a random integer.
fn integer(bits: u32, rng: &mut SeededRng) -> u64 {
    let random = rng.draw();
    let mask = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    mask & match rng.below(8) {
        0..=2 => random,
        3 => [0, 1, u64::MAX, top, top - 1, top + 1, top - 2, mask - 1][rng.below(8) as usize],
        4 => (u64::from(rng.below(65))).wrapping_sub(32),
        5 => (1u64 << rng.below(bits)).wrapping_add(u64::from(rng.below(3))).wrapping_sub(1),
        6 => random >> (64 - bits) >> rng.below(bits),
        _ => (0..8).fold(0, |word, _| word << 8 | [0, 0x7f, 0x80, 0xff, 1][rng.below(5) as usize]),
    }
}

impl Element {
    /// Returns the sign bits of all elements in 64 bits; 0 for integers, whose sums are exact.
    pub fn signs(self) -> u64 {
        match self {
            Element::Number(F64) => 1 << 63,
            Element::Number(F16 | BF16) => 0x8000_8000_8000_8000,
            Element::Number(_) | Element::Tf32 => 0x8000_0000_8000_0000,
            Element::E4m3 | Element::E5m2 => 0x8080_8080_8080_8080,
            Element::Bits | Element::Int32 => 0,
        }
    }
}

/// Returns a register full of matrix elements.
pub fn matrix(element: Element, span: Span, bits: u32, rng: &mut SeededRng) -> u64 {
    let mut all = |format: Float| {
        (0..bits / format.bits()).fold(0, |word, i| word | number(format, span, rng) << (i * format.bits()))
    };
    match element {
        Element::Number(f) => all(f),
        Element::Tf32 => all(F32) ^ (rng.draw() & 0x1fff),
        Element::E4m3 => all(Float { exponent: 4, fraction: 3 }),
        Element::E5m2 => all(Float { exponent: 5, fraction: 2 }),
        Element::Bits => rng.draw() >> (64 - bits),
        Element::Int32 => integer(32, rng),
    }
}

/// An element of a matrix.
fn number(format: Float, span: Span, rng: &mut SeededRng) -> u64 {
    let value = match span {
        Span::Small => f64::from(rng.below(7)) - 3.0,
        Span::Moderate => {
            let sign = if rng.draw() & 1 == 1 { -1.0 } else { 1.0 };
            let fraction = 1.0 + (rng.draw() >> 12) as f64 * 2f64.powi(-52);
            sign * fraction * 2f64.powi(rng.below(5) as i32 - 3)
        }
    };
    format.pack(value)
}

/// Sometimes makes an instruction's inputs depend on each other: nearly equal, of opposite sign, or with a sum that
/// cancels.
pub fn relate(formats: &[Format], tuple: &mut [u64], rng: &mut SeededRng) {
    let Some((&first, others)) = formats.split_first() else { return };
    let mask = u64::MAX >> (64 - first.bits());
    if rng.below(8) == 0 && !matches!(first, Format::Matrix(..)) {
        for i in 1..=others.len() {
            let near = tuple[0].wrapping_add(u64::from(rng.below(3))).wrapping_sub(1);
            let flipped = if rng.below(3) == 0 { 1u64 << (first.bits() - 1) } else { 0 };
            if formats[i] == first && matches!(first, Format::Int(_) | Format::Float(_) | Format::Pair(_)) {
                tuple[i] = (near ^ flipped) & mask;
            }
        }
    } else if let [Format::Float(f), Format::Float(_), ..] = formats
        && rng.below(8) == 0
    {
        // Makes a product or quotient fall near the smallest normal number, where rounding and flushing interact.
        let (a, least) = (f.value(tuple[0]), 2f64.powi(1 - f.largest()));
        let (factor, divisor) = (least / a, a / least);
        let b = if rng.below(2) == 0 { factor } else { divisor };
        if b.is_normal() && (least..=f.value(f.greatest())).contains(&b.abs()) {
            tuple[1] = f.pack(b).wrapping_add(u64::from(rng.below(4))).wrapping_sub(1) & (u64::MAX >> (64 - f.bits()));
        }
    } else if let [Format::Float(f @ (F32 | F64)), Format::Float(_), Format::Float(_)] = formats
        && rng.below(8) == 0
    {
        let product = f.value(tuple[0]) * f.value(tuple[1]);
        if product.is_finite() && product.abs() < f.value(f.greatest()) {
            tuple[2] = f.pack(-product).wrapping_add(u64::from(rng.below(3)));
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
                let value = f.value(u64::from(i));
                if value.is_finite() {
                    assert_eq!(f.pack(value), u64::from(i), "{f:?} {i:#x}");
                }
            }
            let single = u32::from(i) << 16 | u32::from(i).wrapping_mul(40503) & 0xffff;
            let value = f32::from_bits(single);
            if value.is_finite() {
                assert_eq!(F32.value(u64::from(single)), f64::from(value));
                assert_eq!(F32.pack(f64::from(value)), u64::from(single));
            }
            assert_eq!(F32.is_nan(u64::from(single)), value.is_nan());
        }
        assert_eq!(F64.value(0.1f64.to_bits()), 0.1);
        assert_eq!(F64.pack(-5e-324), 1 << 63 | 1);
    }
}
