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
    f64::from(are_equal_when_rounded(answer, truth) == Some(true))
}

/// Whether both texts are equal numbers after rounding to two decimals, however they are written (OneThinker); `None`
/// if one is not a number.
pub fn are_equal_when_rounded(answer: &str, truth: &str) -> Option<bool> {
    Some(round_to_2_decimals(parse_number(answer)?) == round_to_2_decimals(parse_number(truth)?))
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
