//! Numbers to come near to: 1 less the relative error.

use crate::python_number::parse_number;

/// `1 - clamp((|o - g| + 1e-9) / (|g| + 1e-9), 0, 1)`; 0 where one is no number.
///
/// The clamp is Python's `min(1, max(0, x))`, which turns a nan into 0: a nan answer scores 1, and so does anything against an
/// infinite truth.
pub fn regression_accuracy(given: &str, right: &str) -> f64 {
    let (Some(given), Some(right)) = (parse_number(given), parse_number(right)) else { return 0.0 };
    let error = ((given - right).abs() + 1e-9) / (right.abs() + 1e-9);
    let error = if error > 0.0 { error } else { 0.0 };
    1.0 - error.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::regression_accuracy;
    use proptest::prelude::*;

    #[test]
    fn corners_are_those_of_the_code() {
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
        fn nearer_is_never_worse(right in 1e-3f64..1e6, near in 0.0f64..2.0, more in 0.0f64..1.0, above in any::<bool>()) {
            let at = |distance: f64| regression_accuracy(&format!("{}", if above { right * (1.0 + distance) } else { right * (1.0 - distance) }), &format!("{right}"));
            prop_assert!(at(near) >= at(near + more) - 1e-12);
            prop_assert!(at(near).max(0.0) >= 1.0 - near - 1e-5);
        }
    }
}
