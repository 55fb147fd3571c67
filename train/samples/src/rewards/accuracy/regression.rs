//! Accuracy of regression answers: 1 minus the relative error, or the mean relative accuracy.

use crate::rewards::python_number::parse_number;

/// `1 - clamp((|answer - truth| + 1e-9) / (|truth| + 1e-9), 0, 1)`; 0 if the answer or the truth is not a number.
///
/// The clamp is Python's `min(1, max(0, x))`, which turns NaN into 0. So a NaN answer scores 1, and any answer to an
/// infinite truth also scores 1.
pub fn regression_accuracy(answer: &str, truth: &str) -> f64 {
    let (Some(answer), Some(truth)) = (parse_number(answer), parse_number(truth)) else { return 0.0 };
    let error = ((answer - truth).abs() + 1e-9) / (truth.abs() + 1e-9);
    let error = if error > 0.0 { error } else { 0.0 };
    1.0 - error.min(1.0)
}

/// Mean relative accuracy (J. Yang et al., "Thinking in Space", 2024): the fraction of the thresholds 0.5, 0.55, …,
/// 0.95 with `|answer - truth| / (|truth| + 1e-8) < 1 - threshold`, in f32 as in the evaluation scripts and in
/// OneThinker's reward; `None` if the answer or the truth is not a number.
pub fn mean_relative_accuracy(answer: &str, truth: &str) -> Option<f32> {
    let (answer, truth) = (parse_number(answer)? as f32, parse_number(truth)? as f32);
    let error = (answer - truth).abs() / (truth.abs() + 1e-8);
    // The scripts use torch.arange, which computes in f64 and rounds each threshold to f32.
    let thresholds = (0..10).map(|i| (0.5 + 0.05 * f64::from(i)) as f32);
    Some(thresholds.filter(|threshold| error < 1.0 - threshold).count() as f32 / 10.0)
}

#[cfg(test)]
mod tests {
    use super::regression_accuracy;
    use proptest::prelude::*;

    #[test]
    fn corner_cases_equal_the_references() {
        for (given, right, want) in [
            ("0", "0", 0.0),
            ("nan", "157", 1.0),
            ("157", "nan", 1.0),
            ("inf", "157", 0.0),
            ("inf", "inf", 1.0),
            ("3", "-inf", 1.0),
            ("314", "157", 0.0),
            ("-157", "157", 0.0),
            ("5%", "5", 0.0),
            ("1e308", "-1e308", 0.0),
        ] {
            assert_eq!(regression_accuracy(given, right), want, "{given} for {right}");
        }
        assert!((regression_accuracy("261,494", "261494.0") - 1.0).abs() < 1e-9);
        assert!((regression_accuracy("-125.6", "-157") - 0.8).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn smaller_error_never_scores_less(right in 1e-3f64..1e6, near in 0.0f64..2.0, more in 0.0f64..1.0, above in any::<bool>()) {
            let at = |distance: f64| regression_accuracy(&format!("{}", if above { right * (1.0 + distance) } else { right * (1.0 - distance) }), &format!("{right}"));
            prop_assert!(at(near) >= at(near + more) - 1e-12);
            prop_assert!(at(near).max(0.0) >= 1.0 - near - 1e-5);
        }
    }
}
