//! The temporal reward of T-GRPO (Video-R1): a bonus for correct answers if the group's mean accuracy with ordered
//! frames is at least `min_ratio` times the mean with shuffled frames (1 in the paper, 0.8 in Video-R1's code).

use crate::rewards::length::CORRECT_ACCURACY_THRESHOLD;
use crate::rewards::torch_stats::mean;

/// The temporal reward of a correct answer.
pub const TEMPORAL_REWARD: f32 = 0.3;

/// Returns the temporal reward of each completion, computed in f32: [`TEMPORAL_REWARD`] for correct completions if
/// the mean accuracy is at least `min_ratio` times the mean accuracy with shuffled frames, else 0.
pub fn temporal_reward(accuracy: &[f32], shuffled_accuracy: &[f32], min_ratio: f32) -> Vec<f32> {
    let is_earned = mean(accuracy) >= min_ratio * mean(shuffled_accuracy);
    accuracy.iter().map(|a| if is_earned && *a > CORRECT_ACCURACY_THRESHOLD { TEMPORAL_REWARD } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_compared_in_f32() {
        let group = |correct: usize, n: usize| [vec![1.0; correct], vec![0.0; n - correct]].concat();
        // In f64, 0.6 is less than 0.8 times 0.75, so computing in f64 would give the completions no reward.
        assert_eq!(temporal_reward(&group(3, 5), &group(3, 4), 0.8), [0.3, 0.3, 0.3, 0.0, 0.0]);
        assert_eq!(temporal_reward(&group(3, 5), &group(3, 4), 1.0), [0.0; 5]);
        assert_eq!(temporal_reward(&group(4, 8), &group(2, 4), 1.0), [[0.3; 4], [0.0; 4]].concat());
        assert_eq!(temporal_reward(&group(0, 8), &group(0, 4), 1.0), [0.0; 8]);
    }
}
