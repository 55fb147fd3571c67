//! Multiple choice: the same text or not.

/// 1 where both answers are the same, to the letter, else 0.
pub fn multiple_choice_accuracy(given: &str, right: &str) -> f64 {
    f64::from(given == right)
}

#[cfg(test)]
mod tests {
    use super::multiple_choice_accuracy;

    #[test]
    fn to_the_letter() {
        assert_eq!(multiple_choice_accuracy("C", "C"), 1.0);
        assert_eq!(multiple_choice_accuracy("", ""), 1.0);
        for wrong in ["c", "C.", "Ｃ", "С", "C. a cat", ""] {
            assert_eq!(multiple_choice_accuracy(wrong, "C"), 0.0, "{wrong}");
        }
    }
}
