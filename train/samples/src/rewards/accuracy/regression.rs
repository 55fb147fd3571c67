//! Accuracy of regression answers: 1 minus the relative error.

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
