use super::*;
use crate::adamw::{from_bf16_and_remainder, to_bf16_and_remainder};
use proptest::prelude::*;

#[test]
fn edges_of_the_split() {
    for x in [0.0f32, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-45] {
        let (hi, low) = to_bf16_and_remainder(x);
        assert_eq!(from_bf16_and_remainder(hi, low).to_bits(), x.to_bits(), "{x}");
    }
    let (hi, low) = to_bf16_and_remainder(f32::from_bits(0xffff_ffff));
    assert!(from_bf16_and_remainder(hi, low).is_nan() && bf16::from_bits(hi).is_nan());
}

proptest! {
    #[test]
    fn split_is_exact_and_nearest(bits: u32) {
        let x = f32::from_bits(bits);
        prop_assume!(!x.is_nan());
        let (hi, low) = to_bf16_and_remainder(x);
        prop_assert_eq!(from_bf16_and_remainder(hi, low).to_bits(), bits);
        prop_assert_eq!((hi, low), formula::split_to_bf16_and_remainder(x));
        // The high half, which the model reads, is x rounded to the nearest bf16. Ties round away from zero, unlike
        // in the usual rounding.
        let usual = <bf16 as Element>::from_f32(x).to_bits();
        prop_assert!(hi == usual || bits & 0xffff == 0x8000);
    }
}
