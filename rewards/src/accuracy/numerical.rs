//! Numbers to be met: equal after rounding to two decimals.

use crate::python_number::{parse_number, round_to_2_decimals};

/// 1 where both answers are the same number to two decimals, else 0. An answer with a point or comma never equals one without:
/// the rule takes both for decimal signs before it throws the commas away. nan equals nothing.
pub fn numerical_accuracy(given: &str, right: &str) -> f64 {
    let decimal = |text: &str| text.contains(['.', ',']);
    if decimal(given) != decimal(right) {
        return 0.0;
    }
    match (parse_number(given), parse_number(right)) {
        (Some(given), Some(right)) => f64::from(round_to_2_decimals(given) == round_to_2_decimals(right)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::numerical_accuracy;

    #[test]
    fn signs_and_rounding() {
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
