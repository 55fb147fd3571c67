//! The length reward: a little more for right answers that thought neither too little nor too much.

/// What a completion gets.
pub const REWARD: f32 = 0.2;

/// Tokens, the one that ends the completion counted.
pub const TOKENS: std::ops::RangeInclusive<usize> = 320..=512;

/// Accuracy above which an answer counts as right, here and for the temporal reward.
pub const RIGHT: f32 = 0.1;

/// The reward of each completion of a group: [`REWARD`] for right ones of [`TOKENS`], if more than one of the group is right.
pub fn of(accuracy: &[f32], lengths: &[usize]) -> Vec<f32> {
    let several = accuracy.iter().filter(|a| **a > RIGHT).count() > 1;
    let paid = |(accuracy, tokens): (&f32, &usize)| several && *accuracy > RIGHT && TOKENS.contains(tokens);
    accuracy.iter().zip(lengths).map(|pair| if paid(pair) { REWARD } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive_and_one_is_not_enough() {
        assert_eq!(of(&[1.0; 4], &[319, 320, 512, 513]), [0.0, 0.2, 0.2, 0.0]);
        assert_eq!(of(&[1.0, 0.0, 0.1], &[400; 3]), [0.0; 3]);
        assert_eq!(of(&[1.0, 0.0, 0.11], &[400; 3]), [0.2, 0.0, 0.2]);
    }
}
