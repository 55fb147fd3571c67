//! The length reward: a bonus for correct answers that are neither too short nor too long.

/// The reward of a correct answer whose number of tokens is in [`REWARDED_TOKEN_COUNTS`].
pub const LENGTH_REWARD: f32 = 0.2;

/// The numbers of tokens, including the end token, for which a completion gets the length reward.
pub const REWARDED_TOKEN_COUNTS: std::ops::RangeInclusive<usize> = 320..=512;

/// The length and the temporal reward count an answer as correct if its accuracy is above this threshold.
pub const CORRECT_ACCURACY_THRESHOLD: f32 = 0.1;

/// Returns the length reward of each completion of a group: [`LENGTH_REWARD`] for a correct answer with a length in
/// [`REWARDED_TOKEN_COUNTS`], if more than one answer of the group is correct; else 0.
pub fn length_reward(accuracy: &[f32], lengths: &[usize]) -> Vec<f32> {
    let several = accuracy.iter().filter(|a| **a > CORRECT_ACCURACY_THRESHOLD).count() > 1;
    let paid = |(accuracy, tokens): (&f32, &usize)| {
        several && *accuracy > CORRECT_ACCURACY_THRESHOLD && REWARDED_TOKEN_COUNTS.contains(tokens)
    };
    accuracy.iter().zip(lengths).map(|pair| if paid(pair) { LENGTH_REWARD } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive_and_two_correct_answers_are_needed() {
        assert_eq!(length_reward(&[1.0; 4], &[319, 320, 512, 513]), [0.0, 0.2, 0.2, 0.0]);
        assert_eq!(length_reward(&[1.0, 0.0, 0.1], &[400; 3]), [0.0; 3]);
        assert_eq!(length_reward(&[1.0, 0.0, 0.11], &[400; 3]), [0.2, 0.0, 0.2]);
    }
}
