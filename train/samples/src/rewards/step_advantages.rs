//! The advantages of all groups of a training step: which baseline and deviation, and how several rewards are joined.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rewards::advantage::{EPSILON, ScaleRewards, group_advantages};
use crate::rewards::ema::{EmaMoments, EmaRules};
use crate::rewards::torch_stats::{mean, std};
use crate::rewards::{RewardWeights, Scores};

/// The baseline that is subtracted from a reward (ms-swift's `advantage_estimator`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdvantageEstimator {
    /// The mean of the group.
    #[default]
    Grpo,
    /// The mean of the other completions of the group: REINFORCE leave-one-out (A. Ahmadian et al., 2024).
    Rloo,
}

/// How several reward functions become one advantage (TRL's `multi_objective_aggregation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum RewardAggregation {
    /// The weighted sum of the rewards is normalized.
    #[default]
    SumThenNormalize,
    /// Each reward is normalized in its group, the weighted sum of these over the step (GDPO, arXiv 2601.05242).
    NormalizeThenSum,
}

/// How the rewards of a step become advantages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdvantageRules {
    /// The standard deviation by which rewards are divided.
    pub scale: ScaleRewards,
    /// The baseline that is subtracted from rewards.
    pub estimator: AdvantageEstimator,
    /// How several reward functions are joined.
    pub aggregation: RewardAggregation,
    /// The options of [`ScaleRewards::Ema`].
    pub ema: EmaRules,
    /// The weights of reward functions, for [`RewardAggregation::NormalizeThenSum`].
    pub weights: RewardWeights,
}

impl AdvantageRules {
    /// Checks that the values have an effect together.
    ///
    /// # Errors
    /// Two options contradict each other, or a value of EMA-GRPO is out of range.
    pub fn validate(&self) -> Result<()> {
        self.ema.validate(self.scale == ScaleRewards::Ema)?;
        let refuse = |flag: &str, what: &str, help: &str| Err(Error::usage(flag, what, help));
        if self.estimator == AdvantageEstimator::Rloo && !matches!(self.scale, ScaleRewards::None | ScaleRewards::Batch)
        {
            let what =
                "is rloo, whose factor a division by the deviation of the group or of the kind of problem removes";
            return refuse("--advantage-estimator", what, "give --scale-rewards none or batch too");
        }
        if self.aggregation == RewardAggregation::SumThenNormalize {
            return Ok(());
        }
        let help = "leave one of the two out: normalize_then_sum divides by the deviations of groups and of the step";
        if self.scale != ScaleRewards::Group {
            return refuse(
                "--multi-objective-aggregation",
                "is normalize_then_sum, but --scale-rewards is given",
                help,
            );
        }
        if self.estimator != AdvantageEstimator::Grpo {
            let what = "is normalize_then_sum, but --advantage-estimator is rloo";
            return refuse("--multi-objective-aggregation", what, help);
        }
        Ok(())
    }

    /// Returns the advantages of the groups of a step, each given as its scores and the key of its kind of problem
    /// ([`ema_task`](crate::rewards::ema_task)). Updates the moments of EMA-GRPO. A completion without a reward (NaN)
    /// has the advantage 0.
    pub fn of_step(&self, groups: &[(&Scores, String)], moments: &mut EmaMoments) -> Vec<Vec<f32>> {
        let rewards: Vec<&[f32]> = groups.iter().map(|(scores, _)| &scores.reward[..]).collect();
        if self.aggregation == RewardAggregation::NormalizeThenSum {
            return self.normalized_then_summed(groups);
        }
        if self.scale == ScaleRewards::Ema {
            let with_tasks: Vec<_> = groups.iter().zip(&rewards).map(|((_, task), r)| (task.clone(), *r)).collect();
            return moments.step(&with_tasks, &self.ema);
        }
        let mut advantages = group_advantages(&rewards, self.scale);
        if self.estimator == AdvantageEstimator::Rloo {
            for (advantages, rewards) in advantages.iter_mut().zip(&rewards) {
                let n = rewards.iter().filter(|r| !r.is_nan()).count() as f32;
                advantages.iter_mut().for_each(|a| *a *= n / (n - 1.0).max(1.0));
            }
        }
        advantages
    }

    /// GDPO as in TRL 1.10: each function's rewards are normalized in their group; their weighted sum is normalized
    /// over the step.
    fn normalized_then_summed(&self, groups: &[(&Scores, String)]) -> Vec<Vec<f32>> {
        let sums: Vec<Vec<f32>> = groups
            .iter()
            .map(|(scores, _)| {
                let mut sums: Vec<f32> =
                    scores.reward.iter().map(|r| if r.is_nan() { f32::NAN } else { 0.0 }).collect();
                for (name, values) in scores.named_rewards() {
                    let (mean, divisor, weight) = (mean(values), std(values) + EPSILON, self.weights.weight(name));
                    let applied = sums.iter_mut().zip(values).filter(|(_, value)| !value.is_nan());
                    applied.for_each(|(sum, value)| *sum += weight * ((value - mean) / divisor));
                }
                sums
            })
            .collect();
        let all = sums.concat();
        let (mean, divisor) = (mean(&all), std(&all) + EPSILON);
        let normalized =
            |sums: Vec<f32>| sums.iter().map(|x| if x.is_nan() { 0.0 } else { (x - mean) / divisor }).collect();
        sums.into_iter().map(normalized).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(groups: &[Scores], rules: &AdvantageRules) -> Vec<Vec<f32>> {
        rules.validate().unwrap();
        let groups: Vec<_> = groups.iter().map(|scores| (scores, "math".to_string())).collect();
        rules.of_step(&groups, &mut EmaMoments::default())
    }

    #[test]
    fn leave_one_out_subtracts_the_mean_of_the_others() {
        let scores = Scores { reward: vec![1.0, 0.0, 0.25, f32::NAN], ..Scores::default() };
        let rules = AdvantageRules {
            estimator: AdvantageEstimator::Rloo,
            scale: ScaleRewards::None,
            ..AdvantageRules::default()
        };
        let got = step(&[scores], &rules).remove(0);
        let want = [1.0 - 0.125, 0.0 - 0.625, 0.25 - 0.5, 0.0];
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6), "{got:?}");
        let scaled = AdvantageRules { scale: ScaleRewards::Group, ..rules };
        assert!(scaled.validate().unwrap_err().to_string().starts_with("--advantage-estimator: is rloo"));
    }

    /// The expected numbers were computed in f64 from TRL's formula, with a deviation of divisor n - 1.
    #[test]
    fn each_reward_is_normalized_before_the_sum() {
        let group = |accuracy: [f32; 3], format: [f32; 3], f: [f32; 3]| Scores {
            accuracy: accuracy.into(),
            format: format.into(),
            custom: vec![("f".into(), f.into())],
            reward: vec![1.0; 3],
            ..Scores::default()
        };
        let groups = [
            group([1.0, 0.0, 0.5], [1.0, 0.0, 1.0], [2.0, f32::NAN, 1.0]),
            group([0.2, 0.2, 0.8], [0.0, 1.0, 1.0], [3.0, 1.0, 5.0]),
        ];
        let weights = RewardWeights::parse("format=0.25,f=0.5", &["f".to_string()]).unwrap();
        let aggregation = RewardAggregation::NormalizeThenSum;
        let got = step(&groups, &AdvantageRules { aggregation, weights, ..AdvantageRules::default() }).concat();
        let want = [1.12868, -0.971023, -0.157657, -0.652518, -0.703041, 1.355559];
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-5), "{got:?}");
    }
}
