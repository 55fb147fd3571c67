//! The temporal reward of T-GRPO (Video-R1): a group that answers better with its frames in order than shuffled has looked at
//! their order.

use crate::length::CORRECT_THRESHOLD;
use crate::torch_stats::mean;

/// What a right completion gets.
pub const TEMPORAL_REWARD: f32 = 0.3;

/// The reward of each completion: [`TEMPORAL_REWARD`] for right ones, if the mean accuracy is at least `share` of the mean accuracy of the
/// answers to shuffled frames (all in f32).
pub fn temporal_reward(accuracy: &[f32], shuffled: &[f32], share: f32) -> Vec<f32> {
    let holds = mean(accuracy) >= share * mean(shuffled);
    accuracy.iter().map(|a| if holds && *a > CORRECT_THRESHOLD { TEMPORAL_REWARD } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_is_in_f32() {
        let group = |right: usize, of: usize| [vec![1.0; right], vec![0.0; of - right]].concat();
        // 0.6 is less than 0.8 times 0.75 in f64.
        assert_eq!(temporal_reward(&group(3, 5), &group(3, 4), 0.8), [0.3, 0.3, 0.3, 0.0, 0.0]);
        assert_eq!(temporal_reward(&group(3, 5), &group(3, 4), 1.0), [0.0; 5]);
        assert_eq!(temporal_reward(&group(4, 8), &group(2, 4), 1.0), [[0.3; 4], [0.0; 4]].concat());
        assert_eq!(temporal_reward(&group(0, 8), &group(0, 4), 1.0), [0.0; 8]);
    }
}
