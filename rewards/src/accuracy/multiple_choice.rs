//! Multiple choice: the same text or not.

/// 1 where both answers are the same, to the letter, else 0.
pub fn of(given: &str, right: &str) -> f64 {
    f64::from(given == right)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn to_the_letter() {
        assert_eq!(of("C", "C"), 1.0);
        assert_eq!(of("", ""), 1.0);
        for wrong in ["c", "C.", "Ｃ", "С", "C. a cat", ""] {
            assert_eq!(of(wrong, "C"), 0.0, "{wrong}");
        }
    }
}
