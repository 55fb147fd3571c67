//! Element types of tensors, and their conversions to and from f32.

use half::bf16;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16, the upper half of an f32: 8 exponent bits, 7 mantissa bits.
    BF16,
    /// Signed 32-bit integer: token ids, positions, offsets.
    I32,
    /// Unsigned 16-bit integer: the lower halves of f32 master weights that are stored in two halves.
    U16,
    /// Unsigned byte: pixel values of frames, codes of 8-bit optimizer moments.
    U8,
    /// Signed byte: elements of a quantised weight.
    I8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::U16 => 2,
            DType::U8 | DType::I8 => 1,
        }
    }

    /// The name used in kernel symbols, on the command line and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U16 => "u16",
            DType::U8 => "u8",
            DType::I8 => "i8",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A floating-point element: stored in its own width, computed in f32.
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// The [`DType`] of this type.
    const DTYPE: DType;
    /// Widens exactly to f32.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest value, ties to even; NaN stays NaN.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        // This function has no branches, so that the compiler can vectorise loops over it.
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bf16_rounding_equals_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            prop_assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()));
        }
    }
}
