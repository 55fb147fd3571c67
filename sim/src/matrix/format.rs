//! The number formats of matrix operands and accumulators, and conversion of their elements to f32.

/// Format of the elements of A or B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementFormat {
    /// `.f64`
    F64,
    /// `.tf32`: a 32-bit register of which only the upper 19 bits are used.
    Tf32,
    /// `.bf16`
    Bf16,
    /// `.f16`
    F16,
    /// `.e4m3`: 8 bits, exponent bias 7, no infinity; NaN is 0x7f or 0xff.
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

impl ElementFormat {
    /// Parses a PTX type qualifier without its dot, for example `bf16`.
    pub fn from_ptx_type(text: &str) -> Option<Self> {
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

    /// Returns the number of bits that an element takes in a register or in memory (32 for tf32).
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

    /// Returns true for `.e4m3` and `.e5m2`.
    pub fn is_fp8(self) -> bool {
        matches!(self, Self::E4m3 | Self::E5m2)
    }

    /// Returns true for integers of 8 or 4 bits.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4)
    }
}

/// Format of the elements of C or D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccumulatorFormat {
    /// `.f16`: two values per register.
    F16,
    /// `.f32`
    F32,
    /// `.s32`
    S32,
    /// `.f64`
    F64,
}

/// Converts to f32 the `E` elements that are packed in each of `L` words. f64 and single bits are handled in
/// `mma/bits_and_f64.rs`.
#[inline(always)]
pub(super) fn unpack_to_f32<const E: usize, const L: usize>(
    element: ElementFormat,
    words: &[u32; L],
    out: &mut [[f32; L]; E],
) {
    match element {
        ElementFormat::Bf16 => each(
            words,
            out,
            #[inline(always)]
            |bits| f32::from_bits(bits << 16),
        ),
        ElementFormat::F16 => each(words, out, f16_bits_to_f32),
        ElementFormat::E5m2 => each(
            words,
            out,
            #[inline(always)]
            |bits| f16_bits_to_f32(bits << 8),
        ),
        ElementFormat::E4m3 => each(words, out, e4m3_value),
        ElementFormat::S8 => each(
            words,
            out,
            #[inline(always)]
            |bits| ((bits << 24) as i32 >> 24) as f32,
        ),
        ElementFormat::S4 => each(
            words,
            out,
            #[inline(always)]
            |bits| ((bits << 28) as i32 >> 28) as f32,
        ),
        ElementFormat::U8 | ElementFormat::U4 => each(
            words,
            out,
            #[inline(always)]
            |bits| bits as i32 as f32,
        ),
        ElementFormat::Tf32 | ElementFormat::F64 | ElementFormat::B1 => each(
            words,
            out,
            #[inline(always)]
            |bits| f32::from_bits(bits & 0xffff_e000),
        ),
    }
}

#[inline(always)]
fn each<const E: usize, const L: usize>(words: &[u32; L], out: &mut [[f32; L]; E], value: impl Fn(u32) -> f32) {
    let mask = (u32::MAX as u64 >> (32 - 32 / E)) as u32;
    for (index, row) in out.iter_mut().enumerate() {
        for (slot, word) in row.iter_mut().zip(words) {
            *slot = value(word >> (index * (32 / E)) & mask);
        }
    }
}

/// Converts f16 bits to f32; branch-free, so that it vectorises.
#[inline(always)]
pub(super) fn f16_bits_to_f32(bits: u32) -> f32 {
    // The exponent biases of f16 and f32 differ by 112; multiplying by 2^112 also normalises subnormals.
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

/// Rounds an f32 to f16 (to nearest, ties to even) and returns its bits; branch-free.
#[inline(always)]
pub(super) fn f32_to_f16_bits(value: f32) -> u32 {
    let (magnitude, sign) = (value.to_bits() & 0x7fff_ffff, value.to_bits() >> 16 & 0x8000);
    // Add 0x1000 (half a unit of the last kept bit) if that bit is 1, else 0xfff: the carry rounds to nearest, ties
    // to even.
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // Below 2^-14, f16 values are multiples of 2^-24. Adding 0.5 to an f32 rounds it to such a multiple.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    // Values from 65520 on become infinity; a NaN stays a quiet NaN.
    let bits = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let bits = if magnitude > 0x7f80_0000 { 0x7e00 } else { bits };
    bits | sign
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_converts_to_its_value() {
        for bits in 0..=0xffffu32 {
            let want = half::f16::from_bits(bits as u16).to_f32();
            let got = f16_bits_to_f32(bits);
            assert!(got == want && got.is_sign_negative() == want.is_sign_negative() || got.is_nan() && want.is_nan());
        }
    }

    #[test]
    fn f16_rounding_matches_the_half_crate() {
        let check = |value: f32| {
            let (want, got) = (half::f16::from_f32(value), half::f16::from_bits(f32_to_f16_bits(value) as u16));
            assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "{value:e}: {got:?}");
        };
        let mut state = 1u32;
        for bits in 0..=0xffffu32 {
            let value = f16_bits_to_f32(bits);
            for near in [-0x1001i32, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001] {
                check(f32::from_bits(value.to_bits().wrapping_add_signed(near)));
            }
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            check(f32::from_bits(state));
        }
    }

    fn values<const E: usize>(element: ElementFormat, word: u32) -> [f32; E] {
        let mut out = [[0.0; 1]; E];
        unpack_to_f32(element, &[word], &mut out);
        out.map(|[value]| value)
    }

    #[test]
    fn every_fp8_converts_to_its_value() {
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
            let [e4m3, ..] = values::<4>(ElementFormat::E4m3, bits);
            if bits & 0x7f == 0x7f {
                assert!(e4m3.is_nan());
            } else {
                assert_eq!(e4m3 as f64, value(bits >> 3 & 15, bits & 7, 3, 7));
            }
            let [e5m2, ..] = values::<4>(ElementFormat::E5m2, bits);
            match (bits >> 2 & 31, bits & 3) {
                (31, 0) => assert_eq!(e5m2 as f64, sign * f64::INFINITY),
                (31, _) => assert!(e5m2.is_nan()),
                (exponent, mantissa) => assert_eq!(e5m2 as f64, value(exponent, mantissa, 2, 15)),
            }
        }
    }

    #[test]
    fn packed_elements_unpack_in_order_with_their_sign() {
        assert_eq!(values(ElementFormat::S8, 0x80ff_017f), [127.0, 1.0, -1.0, -128.0]);
        assert_eq!(values(ElementFormat::U8, 0x80ff_017f), [127.0, 1.0, 255.0, 128.0]);
        assert_eq!(values(ElementFormat::S4, 0x8f10_7a95), [5, -7, -6, 7, 0, 1, -1, -8].map(|value: i32| value as f32));
        assert_eq!(values(ElementFormat::U4, 0x8f10_7a95), [5, 9, 10, 7, 0, 1, 15, 8].map(|value: i32| value as f32));
        assert_eq!(values(ElementFormat::Bf16, 0x4040_bf80), [-1.0, 3.0]);
        assert_eq!(values(ElementFormat::Tf32, 0x3f80_1fff), [1.0]);
    }
}
