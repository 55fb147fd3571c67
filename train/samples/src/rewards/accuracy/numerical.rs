//! Accuracy of numerical answers: equality after rounding to two decimals.

use crate::rewards::python_number::{parse_number, round_to_2_decimals};

/// 1 if both answers are equal numbers after rounding to two decimals, else 0. As in VideoRFT and Video-R1, a number
/// with a point or comma never equals a number without one: their code treats a comma as a decimal separator in this
/// check, although it removes commas when it parses the number. NaN equals nothing.
pub fn numerical_accuracy(answer: &str, truth: &str) -> f64 {
    let has_separator = |text: &str| text.contains(['.', ',']);
    if has_separator(answer) != has_separator(truth) {
        return 0.0;
    }
    match (parse_number(answer), parse_number(truth)) {
        (Some(answer), Some(truth)) => f64::from(round_to_2_decimals(answer) == round_to_2_decimals(truth)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::numerical_accuracy;

    #[test]
    fn corner_cases_equal_the_references() {
        for (given, right, want) in [
            ("5", "5", 1.0),
            ("5.0", "5", 0.0),
            ("1,000", "1000.0", 1.0),
            ("2.67", "2.675", 1.0),
            ("0.12", "0.125", 1.0),
            ("0.13", "0.125", 0.0),
            ("-0.0", "0.0", 1.0),
            ("inf", "Infinity", 1.0),
            ("nan", "nan", 0.0),
            ("5%", "5%", 0.0),
            ("٤٢", "42", 1.0),
        ] {
            assert_eq!(numerical_accuracy(given, right), want, "{given} for {right}");
        }
    }
}
