//! fp8 as Qwen publishes it: codes e4m3, and a scale for each block of 128 × 128 weights, by absolute maximum.

use rayon::prelude::*;

/// The number of rows, and of columns, of a block. Blocks at the edges may have fewer.
pub(super) const BLOCK: usize = 128;

/// The largest value of e4m3.
const MAX: f32 = 448.0;

/// The bytes of `weight` (codes) or `weight_scale_inv` of a weight with rows of `inner` values.
pub(super) fn quantized_part(part: &str, values: &[f32], inner: usize) -> Vec<u8> {
    let (codes, scales) = quantize(values, inner);
    if part == "weight" { codes } else { scales.into_iter().flat_map(f32::to_le_bytes).collect() }
}

/// The codes `[out, in]` of a weight and its scales `[⌈out / 128⌉, ⌈in / 128⌉]`: a weight is about its code's value times
/// the scale of its block.
fn quantize(values: &[f32], inner: usize) -> (Vec<u8>, Vec<f32>) {
    let blocks = inner.div_ceil(BLOCK);
    let mut codes = vec![0; values.len()];
    let rows = codes.par_chunks_mut(BLOCK * inner).zip(values.par_chunks(BLOCK * inner));
    let scales = rows.map(|(codes, values)| {
        let mut largest = vec![0f32; blocks];
        for row in values.chunks_exact(inner) {
            let each = largest.iter_mut().zip(row.chunks(BLOCK));
            each.for_each(|(largest, block)| *largest = block.iter().fold(*largest, |most, x| most.max(x.abs())));
        }
        // The bound keeps the scale of zeros, and of the smallest numbers, above 0.
        let scales: Vec<f32> = largest.iter().map(|largest| (largest / MAX).max(f32::MIN_POSITIVE)).collect();
        for (i, (code, x)) in codes.iter_mut().zip(values).enumerate() {
            *code = e4m3(x / scales[i % inner / BLOCK]);
        }
        scales
    });
    let scales: Vec<Vec<f32>> = scales.collect();
    (codes, scales.concat())
}

/// The code of the value that is nearest to x, of two the one with an even code. |x| is at most [`MAX`], apart from
/// rounding.
fn e4m3(x: f32) -> u8 {
    // Of the exponents that e4m3 has, -6 is the smallest; it is also that of subnormal values.
    let exponent = ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(-6);
    // In units of the last place: 8 to 16, below the smallest normal value 0 to 8. A value of 16 carries into the
    // exponent.
    let units = (x.abs() * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    (((exponent + 6) << 3) + units) as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reel_kernels::dequantize::CodeValues;

    use super::*;

    /// The code whose value is nearest, by trying all of them.
    fn nearest(x: f32) -> u8 {
        let distance = |code: u8| (f64::from(CodeValues::E4m3.value(code)) - f64::from(x.abs())).abs();
        let order = |a: &u8, b: &u8| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)));
        (0..0x7f).min_by(order).unwrap() | if x.is_sign_negative() { 0x80 } else { 0 }
    }

    #[test]
    fn every_code_and_every_tie_is_rounded_to_the_nearest_value() {
        let value = |code: u8| CodeValues::E4m3.value(code);
        for code in 0..0x7e {
            let (x, next) = (value(code), value(code + 1));
            for x in [x, (x + next) / 2.0, x * 0.75 + next * 0.25, x * 0.25 + next * 0.75] {
                assert_eq!((e4m3(x), e4m3(-x)), (nearest(x), nearest(-x)), "{x}");
            }
        }
        assert_eq!((e4m3(448.0), e4m3(448.001), e4m3(f32::MIN_POSITIVE)), (0x7e, 0x7e, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Sizes that are no multiples of a block, blocks of zeros, and weights of very different sizes.
        #[test]
        fn weights_are_within_half_a_step(out in 1usize..200, inner in 1usize..200, seed: u64, exponent in -140..120i32) {
            let random = |i: usize| (seed ^ (i as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let is_zero = |i: usize| i / inner < BLOCK && i % inner < BLOCK && seed.is_multiple_of(2);
            let value = |i: usize| if is_zero(i) { 0.0 } else { (random(i) as f32 / 8e6 - 1.0) * 2f32.powi(exponent) };
            let values: Vec<f32> = (0..out * inner).map(value).collect();
            let (codes, scales) = quantize(&values, inner);
            prop_assert_eq!(scales.len(), out.div_ceil(BLOCK) * inner.div_ceil(BLOCK));
            for (i, (&code, &x)) in codes.iter().zip(&values).enumerate() {
                let scale = scales[i / inner / BLOCK * inner.div_ceil(BLOCK) + i % inner / BLOCK];
                prop_assert!(scale > 0.0 && scale.is_finite());
                prop_assert!(i % 5 > 0 || code == nearest(x / scale), "{}", x);
                let stored = f64::from(CodeValues::E4m3.value(code)) * f64::from(scale);
                // Three bits of mantissa, or a part of the smallest step.
                let step = (f64::from(x).abs() / 8.0).max(f64::from(scale) / 512.0);
                prop_assert!((stored - f64::from(x)).abs() <= step * 0.5001, "{x}: {stored}");
            }
        }
    }
}
