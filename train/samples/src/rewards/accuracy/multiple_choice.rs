//! Accuracy of multiple choice answers: exact text comparison.

/// Returns 1 if both answers are the same text, else 0.
pub fn multiple_choice_accuracy(answer: &str, truth: &str) -> f64 {
    f64::from(answer == truth)
}

#[cfg(test)]
mod tests {
    use super::multiple_choice_accuracy;

    #[test]
    fn comparison_is_exact() {
        assert_eq!(multiple_choice_accuracy("C", "C"), 1.0);
        assert_eq!(multiple_choice_accuracy("", ""), 1.0);
        for wrong in ["c", "C.", "Ｃ", "С", "C. a cat", ""] {
            assert_eq!(multiple_choice_accuracy(wrong, "C"), 0.0, "{wrong}");
        }
    }
}
