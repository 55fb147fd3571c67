//! AWQ: codes of 4 bits with a scale and a zero point for each group of 128 inputs of an output, and the factors of
//! input channels by which weights are multiplied before that (Lin et al. 2023, arXiv 2306.00978).
//!
//! ```text
//! for α in 0, 1/20 … 19/20:
//!     s = mean|x|^α, divided by √(max s · min s)
//!     error = Σ over outputs and inputs: (dequantized(quantized(w · s)) / s − w)² · mean x²
//! take the s with the smallest error; multiply the columns of w by s, and divide what computes x by s
//! ```
//!
//! The error is the expected squared error of the outputs if the rounding errors of weights are independent. With α = 0
//! all factors are 1, so by this measure no layer becomes worse than with plain rounding. Weights are not clipped.

use half::f16;
use rayon::prelude::*;

use crate::checkpoint::AWQ_POSITION;

/// The number of inputs that share a scale and a zero point.
pub(super) const GROUP: usize = 128;

/// The outputs whose codes share a word.
pub(super) const OUTPUTS_IN_WORD: usize = 8;

/// The largest code.
const MAX_CODE: f32 = 15.0;

/// The number of exponents α that are tried.
const GRID: u32 = 20;

/// The scale and the zero point of a group. A weight is about `(code − zero) · scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct GroupScale {
    /// A value of f16; infinite if the weights are too large for it.
    scale: f32,
    zero: f32,
}

impl GroupScale {
    /// The scale with which the codes reach from the smallest to the largest weight and represent 0 exactly.
    fn of(weights: impl Iterator<Item = f32>) -> Self {
        let (min, max) = weights.fold((0f32, 0f32), |(min, max), w| (min.min(w), max.max(w)));
        // As in AutoAWQ, weights of nearly 0 have a scale that f16 can represent.
        let scale = f16::from_f32((max - min).max(1e-5) / MAX_CODE).to_f32();
        Self { scale, zero: round(-min / scale).clamp(0.0, MAX_CODE) }
    }

    fn code(self, weight: f32) -> f32 {
        (round(weight / self.scale) + self.zero).clamp(0.0, MAX_CODE)
    }
}

/// Rounds to the nearest integer, ties to even. |x| is below 2²². The addition drops the fraction, and unlike
/// [`f32::round_ties_even`] it is vectorised on every x86-64 processor.
fn round(x: f32) -> f32 {
    const WITHOUT_FRACTION: f32 = 12_582_912.0; // 1.5 · 2²³
    (x + WITHOUT_FRACTION) - WITHOUT_FRACTION
}

/// The bytes of a tensor that stores a weight with rows of `inner` values in AWQ's layout `gemm`: `qweight` i32
/// `[in, out / 8]`, `qzeros` i32 `[in / 128, out / 8]` or `scales` f16 `[in / 128, out]`. `None` if a group of weights is
/// too large for a scale of f16.
pub(super) fn quantized_part(part: &str, values: &[f32], inner: usize) -> Option<Vec<u8>> {
    let groups: Vec<GroupScale> = values.par_chunks(GROUP).map(|group| GroupScale::of(group.iter().copied())).collect();
    if !groups.iter().all(|group| group.scale.is_finite()) {
        return None;
    }
    let (out, per_row) = (values.len() / inner, inner / GROUP);
    let code = |o: usize, i: usize| groups[o * per_row + i / GROUP].code(values[o * inner + i]) as u32;
    let zero = |o: usize, group: usize| groups[o * per_row + group].zero as u32;
    let scale = |n: usize| f16::from_f32(groups[n % out * per_row + n / out].scale).to_le_bytes();
    Some(match part {
        "qweight" => packed(out, inner, code),
        "qzeros" => packed(out, per_row, zero),
        _ => (0..groups.len()).flat_map(scale).collect(),
    })
}

/// The words `[columns, out / 8]` of the codes `code(output, column)`.
fn packed(out: usize, columns: usize, code: impl Fn(usize, usize) -> u32 + Sync) -> Vec<u8> {
    let word = |column: usize, first: usize| {
        let each = AWQ_POSITION.iter().zip(first..);
        each.fold(0, |word, (position, output)| word | code(output, column) << (4 * position))
    };
    let of_column = |column| (0..out).step_by(OUTPUTS_IN_WORD).map(move |first| word(column, first));
    let words: Vec<Vec<u32>> = (0..columns).into_par_iter().map(|column| of_column(column).collect()).collect();
    words.concat().into_iter().flat_map(u32::to_le_bytes).collect()
}

/// The factors `[in]` of the input channels of weights `[out, in]`, all of which have the same inputs. `means` has the
/// means of |x| and of x² of each channel.
pub(super) fn channel_factors(weights: &[Vec<f32>], means: &[[f64; 2]]) -> Vec<f32> {
    let squares: Vec<f32> = means.iter().map(|&[_, square]| square as f32).collect();
    let candidates = (0..GRID).map(|n| factors(means, f64::from(n) / f64::from(GRID)));
    let with_error = candidates.map(|s| (weights.iter().map(|w| output_error(w, &s, &squares)).sum::<f64>(), s));
    // Of equal errors the first is taken, with the smaller α.
    let best = with_error.min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map_or_else(|| vec![1.0; means.len()], |(_, factors)| factors)
}

/// The factors with exponent `alpha`. The lower bound is that of AutoAWQ.
fn factors(means: &[[f64; 2]], alpha: f64) -> Vec<f32> {
    let raw: Vec<f64> = means.iter().map(|[size, _]| size.powf(alpha).max(1e-4)).collect();
    let (min, max) = raw.iter().fold((f64::MAX, 0f64), |(min, max), &s| (min.min(s), max.max(s)));
    raw.iter().map(|s| (s / (max * min).sqrt()) as f32).collect()
}

/// The expected squared error of the outputs of a weight with these factors.
fn output_error(weight: &[f32], factors: &[f32], squares: &[f32]) -> f64 {
    let of_group = |w: &[f32], s: &[f32], squares: &[f32]| -> f32 {
        let group = GroupScale::of(w.iter().zip(s).map(|(w, s)| w * s));
        let each = w.iter().zip(s).zip(squares);
        each.map(|((w, s), square)| ((group.code(w * s) - group.zero) * group.scale / s - w).powi(2) * square).sum()
    };
    let of_row = |w: &[f32]| -> f64 {
        let groups = w.chunks(GROUP).zip(factors.chunks(GROUP)).zip(squares.chunks(GROUP));
        groups.map(|((w, s), squares)| f64::from(of_group(w, s, squares))).sum()
    };
    // The sum is in the order of the rows, so that the choice does not depend on the number of threads.
    let rows: Vec<f64> = weight.par_chunks(factors.len()).map(of_row).collect();
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn random(seed: u64, i: usize) -> f32 {
        ((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Groups of both signs, of one sign and of zeros; the codes of a second formula in f64; the layout of the words.
        #[test]
        fn weights_are_within_half_a_step(words in 1usize..5, groups in 1usize..4, seed: u64, exponent in -8..8i32) {
            let (out, inner) = (8 * words, GROUP * groups);
            let kind = |o: usize, i: usize| (seed as usize + o + i / GROUP) % 4;
            let value = |n: usize| {
                let (x, size) = (random(seed, n), 2f32.powi(exponent));
                size * match kind(n / inner, n % inner) { 0 => 0.0, 1 => 2.0 + x, 2 => x - 2.0, _ => x }
            };
            let values: Vec<f32> = (0..out * inner).map(value).collect();
            let [qweight, qzeros, scales] =
                ["qweight", "qzeros", "scales"].map(|part| quantized_part(part, &values, inner).unwrap());
            let nibble = |bytes: &[u8], column: usize, o: usize| {
                let order = [0, 2, 4, 6, 1, 3, 5, 7];
                let at = (column * words + o / 8) * 8 + order.iter().position(|n| *n == o % 8).unwrap();
                f64::from(bytes[at / 2] >> (4 * (at % 2)) & 15)
            };
            for (n, &x) in values.iter().enumerate() {
                let (o, i) = (n / inner, n % inner);
                let at = 2 * (i / GROUP * out + o);
                let scale = f64::from(f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32());
                let (code, zero) = (nibble(&qweight, i, o), nibble(&qzeros, i / GROUP, o));
                let distance = ((code - zero) * scale - f64::from(x)).abs();
                // A scale that f16 rounded down does not quite reach the largest weight.
                prop_assert!(distance <= 0.51 * scale, "{x}: code {code}, zero point {zero}, scale {scale}");
                let nearest = (f64::from(x) / scale).round_ties_even() + zero;
                prop_assert!((code - nearest.clamp(0.0, 15.0)).abs() <= f64::from(distance > 0.499 * scale));
            }
        }
    }

    #[test]
    fn weights_that_f16_cannot_scale_are_refused() {
        let mut values = vec![0.5; 8 * GROUP];
        assert!(quantized_part("scales", &values, GROUP).is_some());
        values[3] = 1e6;
        assert!(quantized_part("scales", &values, GROUP).is_none());
    }

    /// With a few channels of large inputs, the factors make the error of the outputs smaller, also the error that is
    /// computed from the inputs themselves.
    #[test]
    fn factors_protect_channels_with_large_inputs() {
        let (out, inner, tokens) = (64, 2 * GROUP, 96);
        let weight: Vec<f32> = (0..out * inner).map(|n| random(1, n)).collect();
        let x = |t: usize, i: usize| random(2, t * inner + i) * if i % 50 == 7 { 30.0 } else { 0.3 };
        let mean = |i: usize, power: i32| (0..tokens).map(|t| f64::from(x(t, i).abs()).powi(power)).sum::<f64>();
        let means: Vec<[f64; 2]> = (0..inner).map(|i| [1, 2].map(|power| mean(i, power) / tokens as f64)).collect();
        let found = channel_factors(std::slice::from_ref(&weight), &means);
        let plain = vec![1.0; inner];
        let squares: Vec<f32> = means.iter().map(|mean| mean[1] as f32).collect();
        let error = |s: &[f32]| {
            let changed = |n: usize| {
                let row = |i: usize| weight[n / inner * inner + i] * s[i];
                let first = n % inner / GROUP * GROUP;
                let group = GroupScale::of((first..first + GROUP).map(row));
                (group.code(row(n % inner)) - group.zero) * group.scale / s[n % inner] - weight[n]
            };
            let errors: Vec<f32> = (0..weight.len()).map(changed).collect();
            let output = |o: usize, t: usize| (0..inner).map(|i| errors[o * inner + i] * x(t, i)).sum::<f32>().powi(2);
            (0..out * tokens).map(|n| f64::from(output(n % out, n / out))).sum::<f64>() / tokens as f64
        };
        let (before, after) = (error(&plain), error(&found));
        assert!(after < 0.5 * before, "{before} {after}");
        for (s, measured) in [(&plain, before), (&found, after)] {
            let expected = output_error(&weight, s, &squares);
            assert!((expected / measured - 1.0).abs() < 0.35, "{expected} {measured}");
        }
    }

    /// Channels without any input, and no channel at all with one.
    #[test]
    fn factors_are_finite() {
        for sizes in [[0.0f64, 0.0], [0.0, 1e6], [1e-30, 1.0]] {
            let means: Vec<[f64; 2]> = (0..GROUP).map(|i| [sizes[i % 2], sizes[i % 2].powi(2)]).collect();
            for alpha in [0.0, 0.5, 0.95] {
                assert!(factors(&means, alpha).iter().all(|s| s.is_finite() && *s > 0.0), "{sizes:?} {alpha}");
            }
        }
    }
}
