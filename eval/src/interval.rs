//! Confidence intervals of mean scores.

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Returns the 95 % Wilson score interval of the mean of `score_count` scores from 0 to 1 (E. B. Wilson, 1927); `[0,
/// 1]` without scores. The formula assumes scores of 0 or 1. Fractional scores vary less, so their interval is wider
/// than necessary.
pub fn wilson_interval(mean: f64, score_count: usize) -> [f64; 2] {
    if score_count == 0 {
        return [0.0, 1.0];
    }
    let n = score_count as f64;
    let centre = (n * mean + Z * Z / 2.0) / (n + Z * Z);
    let half = Z / (n + Z * Z) * (n * mean * (1.0 - mean) + Z * Z / 4.0).max(0.0).sqrt();
    // `min(mean)` and `max(mean)` keep the mean inside the interval in spite of rounding errors.
    [(centre - half).max(0.0).min(mean), (centre + half).min(1.0).max(mean)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equals_high_precision_values() {
        // The expected values were computed from the formula with 40 decimal digits.
        for (x, n, want) in [
            (0.0, 10, [0.000_000_000_000, 0.277_532_799_863]),
            (5.0, 10, [0.236_593_090_513, 0.763_406_909_487]),
            (68.5, 100, [0.588_550_903_684, 0.767_761_501_979]),
            (10.0, 10, [0.722_467_200_137, 1.000_000_000_000]),
            (1.0, 3, [0.061_491_944_720, 0.792_340_399_198]),
        ] {
            let got = wilson_interval(x / n as f64, n);
            assert!((got[0] - want[0]).abs() < 1e-11 && (got[1] - want[1]).abs() < 1e-11, "{x} of {n}: {got:?}");
        }
        assert_eq!(wilson_interval(0.0, 0), [0.0, 1.0]);
    }

    proptest! {
        /// Checks the definition of the Wilson interval: the observed mean is 1.96 standard errors away from each end.
        #[test]
        fn ends_are_roots_of_the_score_test(x in 1u32..99, n in 100usize..1000) {
            let mean = f64::from(x) / 100.0;
            for end in wilson_interval(mean, n) {
                let error = (end * (1.0 - end) / n as f64).sqrt();
                prop_assert!(((mean - end).abs() - Z * error).abs() < 1e-9);
            }
        }

        #[test]
        fn more_rows_give_a_narrower_interval(mean in 0.0f64..=1.0, n in 1usize..1000) {
            let width = |[low, high]: [f64; 2]| high - low;
            let [low, high] = wilson_interval(mean, n);
            prop_assert!(0.0 <= low && low <= mean && mean <= high && high <= 1.0);
            prop_assert!(width(wilson_interval(mean, n * 4)) < width([low, high]));
        }
    }
}
