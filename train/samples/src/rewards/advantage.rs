//! Advantages: the reward of each completion relative to its group.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::rewards::torch_stats::{mean, std};

/// Added to the standard deviation, so that groups with nearly equal rewards do not get huge advantages.
pub(crate) const EPSILON: f32 = 1e-4;

/// The standard deviation by which rewards are divided to get advantages (TRL's `scale_rewards`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// The standard deviation of the rewards in the group.
    #[default]
    Group,
    /// The standard deviation of all rewards in the step. The mean that is subtracted is still the group's mean.
    Batch,
    /// No division: advantages are not scaled.
    None,
    /// The moving standard deviation of the rewards of the kind of problem (EMA-GRPO of OneThinker).
    Ema,
}

/// Returns the advantages `(reward - group mean) / (std + 1e-4)` of each group in f32 with torch's order of operations.
/// The standard deviation has the divisor n - 1. [`ScaleRewards::Ema`], which needs the moments of earlier steps,
/// divides by the deviation of the group here.
///
/// In a group of 1 the advantage is 0. A completion whose reward is NaN has no reward: its advantage is 0, and it does
/// not enter mean and deviation (TRL 1.10 and newer).
pub fn group_advantages(groups: &[&[f32]], scale: ScaleRewards) -> Vec<Vec<f32>> {
    let batch_divisor = std(&groups.concat()) + EPSILON;
    let advantages = groups.iter().map(|group| {
        let mean = mean(group);
        let divisor = match scale {
            ScaleRewards::Group | ScaleRewards::Ema => std(group) + EPSILON,
            ScaleRewards::Batch => batch_divisor,
            ScaleRewards::None => 1.0,
        };
        group.iter().map(|reward| if reward.is_nan() { 0.0 } else { (reward - mean) / divisor }).collect()
    });
    advantages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Advantages of groups of `size` rewards that follow each other.
    fn group_advantages(rewards: &[f32], size: usize, scale: ScaleRewards) -> Vec<f32> {
        super::group_advantages(&rewards.chunks(size).collect::<Vec<_>>(), scale).concat()
    }

    #[test]
    fn scale_only_changes_the_divisor() {
        let rewards = [2.0, 1.0, 4.0, 0.0];
        let pair = |spread: f32| 0.5 / (spread + 1e-4);
        assert_eq!(group_advantages(&rewards, 2, ScaleRewards::None), [0.5, -0.5, 2.0, -2.0]);
        let group = group_advantages(&rewards, 2, ScaleRewards::Group);
        assert!((group[0] - pair(0.5f32.sqrt())).abs() < 1e-6 && (group[2] + group[3]).abs() < 1e-6);
        let batch = group_advantages(&rewards, 2, ScaleRewards::Batch);
        assert!((batch[0] - pair((8.75f32 / 3.0).sqrt())).abs() < 1e-6 && (batch[2] - 4.0 * batch[0]).abs() < 1e-6);
        assert_eq!(group_advantages(&[3.0, 5.0], 1, ScaleRewards::Group), [0.0, 0.0]);
        assert!(group_advantages(&[], 8, ScaleRewards::Batch).is_empty());
    }

    #[test]
    fn completions_without_a_reward_do_not_change_the_others() {
        let nan = f32::NAN;
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            let without = group_advantages(&[2.0, 1.0, 4.0], 3, scale);
            let [a, b, c] = without[..] else { panic!("three advantages") };
            assert_eq!(group_advantages(&[nan, 2.0, 1.0, nan, 4.0, nan], 6, scale), [0.0, a, b, 0.0, c, 0.0]);
            assert_eq!(group_advantages(&[nan, nan, 3.0, nan], 2, scale), [0.0; 4]);
        }
    }

    proptest! {
        #[test]
        fn advantages_have_mean_0_and_keep_the_order_of_rewards(
            groups in prop::collection::vec(prop::collection::vec(0u8..6, 4), 1..5),
            scale in prop::sample::select(vec![ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None]),
        ) {
            let rewards: Vec<f32> = groups.concat().into_iter().map(|r| f32::from(r) * 0.5).collect();
            let advantages = group_advantages(&rewards, 4, scale);
            for (rewards, advantages) in rewards.chunks(4).zip(advantages.chunks(4)) {
                prop_assert!(advantages.iter().sum::<f32>().abs() < 1e-3);
                for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                    prop_assert_eq!(rewards[i].partial_cmp(&rewards[j]), advantages[i].partial_cmp(&advantages[j]));
                }
                if scale == ScaleRewards::Group && rewards.iter().any(|r| *r != rewards[0]) {
                    prop_assert!((std(advantages) - 1.0).abs() < 1e-3);
                }
            }
        }
    }
}
