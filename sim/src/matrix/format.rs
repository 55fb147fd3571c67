//! Element formats of the multiplicands and their exact values.

/// Type of a multiplicand's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `.f64`
    F64,
    /// `.tf32`: a 32-bit register of which the upper 19 bits count.
    Tf32,
    /// `.bf16`
    Bf16,
    /// `.f16`
    F16,
    /// `.e4m3`: 8 bits, bias 7, no infinity, NaN is 0x7f and 0xff.
    E4m3,
    /// `.e5m2`: 8 bits, the upper half of an f16.
    E5m2,
    /// `.s8`
    S8,
    /// `.u8`
    U8,
    /// `.s4`
    S4,
    /// `.u4`
    U4,
    /// `.b1`
    B1,
}

impl Element {
    /// Decodes the qualifier without its dot.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "f64" => Self::F64,
            "tf32" => Self::Tf32,
            "bf16" => Self::Bf16,
            "f16" => Self::F16,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "b1" => Self::B1,
            _ => return None,
        })
    }

    /// Bits of an element in a register or in memory (32 for tf32).
    pub fn bits(self) -> u32 {
        match self {
            Self::F64 => 64,
            Self::Tf32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 8,
            Self::S4 | Self::U4 => 4,
            Self::B1 => 1,
        }
    }

    /// `.e4m3` or `.e5m2`
    pub fn is_fp8(self) -> bool {
        matches!(self, Self::E4m3 | Self::E5m2)
    }

    /// An integer of 8 or 4 bits.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4)
    }
}

/// The `E` floats packed in each of `L` words, element by element. The types without exact f32 values (f64, integers,
/// bits) have their own functions.
#[inline(always)]
pub(super) fn floats<const E: usize, const L: usize>(element: Element, words: &[u32; L]) -> [[f32; L]; E] {
    match element {
        Element::Bf16 => each(
            words,
            #[inline(always)]
            |bits| f32::from_bits(bits << 16),
        ),
        Element::F16 => each(words, f16_value),
        Element::E5m2 => each(
            words,
            #[inline(always)]
            |bits| f16_value(bits << 8),
        ),
        Element::E4m3 => each(words, e4m3_value),
        _ => each(
            words,
            #[inline(always)]
            |bits| f32::from_bits(bits & 0xffff_e000),
        ),
    }
}

/// The `E` integers packed in each of `L` words, as floats.
#[inline(always)]
pub(super) fn integers<const E: usize, const L: usize>(element: Element, words: &[u32; L]) -> [[f32; L]; E] {
    match element {
        Element::S8 => each(
            words,
            #[inline(always)]
            |bits| bits as i8 as f32,
        ),
        Element::S4 => each(
            words,
            #[inline(always)]
            |bits| ((bits << 28) as i32 >> 28) as f32,
        ),
        _ => each(
            words,
            #[inline(always)]
            |bits| bits as i32 as f32,
        ),
    }
}

#[inline(always)]
fn each<T: Copy + Default, const E: usize, const L: usize>(words: &[u32; L], value: impl Fn(u32) -> T) -> [[T; L]; E] {
    let mut out = [[T::default(); L]; E];
    for (index, row) in out.iter_mut().enumerate() {
        for (slot, word) in row.iter_mut().zip(words) {
            *slot = value(if E == 1 { *word } else { word >> (index * (32 / E)) & ((1u64 << (32 / E)) - 1) as u32 });
        }
    }
    out
}

/// An f16's value; branch-free, so that it vectorises.
#[inline(always)]
pub(super) fn f16_value(bits: u32) -> f32 {
    // The exponent's bias differs by 112; the product renormalises subnormals.
    let scaled = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x8000) << 16)
}

#[inline(always)]
fn e4m3_value(bits: u32) -> f32 {
    let scaled = f32::from_bits((bits & 0x7f) << 20) * f32::from_bits(0x7b80_0000);
    let special = if bits & 0x7f == 0x7f { 0x7fc0_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x80) << 24)
}

/// Two f32 rounded to f16 (nearest even), the first in the low half.
#[inline(always)]
pub(super) fn pack_f16(low: f32, high: f32) -> u32 {
    half::f16::from_f32(low).to_bits() as u32 | (half::f16::from_f32(high).to_bits() as u32) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16() {
        for bits in 0..=0xffffu32 {
            let want = half::f16::from_bits(bits as u16).to_f32();
            let got = f16_value(bits);
            assert!(got == want && got.is_sign_negative() == want.is_sign_negative() || got.is_nan() && want.is_nan());
        }
    }

    #[test]
    fn every_fp8() {
        for bits in 0..256u32 {
            let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
            let value = |exponent: u32, mantissa: u32, width: i32, bias: i32| {
                let fraction = mantissa as f64 / f64::powi(2.0, width);
                let scaled = if exponent == 0 {
                    fraction * f64::powi(2.0, 1 - bias)
                } else {
                    (1.0 + fraction) * f64::powi(2.0, exponent as i32 - bias)
                };
                sign * scaled
            };
            let [[e4m3], ..] = floats::<4, 1>(Element::E4m3, &[bits]);
            if bits & 0x7f == 0x7f {
                assert!(e4m3.is_nan());
            } else {
                assert_eq!(e4m3 as f64, value(bits >> 3 & 15, bits & 7, 3, 7));
            }
            let [[e5m2], ..] = floats::<4, 1>(Element::E5m2, &[bits]);
            match (bits >> 2 & 31, bits & 3) {
                (31, 0) => assert_eq!(e5m2 as f64, sign * f64::INFINITY),
                (31, _) => assert!(e5m2.is_nan()),
                (exponent, mantissa) => assert_eq!(e5m2 as f64, value(exponent, mantissa, 2, 15)),
            }
        }
    }

    #[test]
    fn packing_order_and_signs() {
        assert_eq!(integers::<4, 1>(Element::S8, &[0x80ff_017f]), [[127.0], [1.0], [-1.0], [-128.0]]);
        assert_eq!(integers::<4, 1>(Element::U8, &[0x80ff_017f]), [[127.0], [1.0], [255.0], [128.0]]);
        assert_eq!(
            integers::<8, 1>(Element::S4, &[0x8f10_7a95]),
            [5, -7, -6, 7, 0, 1, -1, -8].map(|x: i32| [x as f32])
        );
        assert_eq!(integers::<8, 1>(Element::U4, &[0x8f10_7a95]), [5, 9, 10, 7, 0, 1, 15, 8].map(|x: i32| [x as f32]));
        assert_eq!(floats::<2, 1>(Element::Bf16, &[0x4040_bf80]), [[-1.0], [3.0]]);
        assert_eq!(floats::<1, 1>(Element::Tf32, &[0x3f80_1fff]), [[1.0]]);
    }
}
