//! Tracks the best checkpoint of a run. It has the highest mean score or the lowest validation loss of its evaluation
//! or, in a run without evaluations, the highest mean reward over the steps since the previous checkpoint.
//! `--save-total-limit` never removes the best checkpoint, and `OUT/trainer_state.json` names it.

use std::path::Path;

use crate::metrics::StepMetrics;
use serde::{Deserialize, Serialize};

use crate::runs::folder::entries;
use crate::runs::folder::evaluations::EvaluationLine;

/// The name of the metric when checkpoints are compared by their mean reward.
const REWARD: &str = "reward";

/// The name of the metric when checkpoints are compared by their validation loss.
const EVAL_LOSS: &str = "eval_loss";

/// The best checkpoint: its step, and its value of the metric by which checkpoints are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Step of the checkpoint.
    pub step: u64,
    /// The mean score or validation loss of the checkpoint's evaluation, or the mean reward over the steps since the
    /// previous checkpoint.
    pub value: f64,
    /// The name of the metric in `value`: `reward`, `eval_loss`, or a name that lists the benchmarks
    /// ([`EvaluationLine::metric_name`]).
    pub metric: String,
    /// Fingerprint of the validation rows, if `value` is the loss on these rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
}

/// Adds up the rewards since the last scheduled checkpoint, and remembers the best checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BestCheckpointTracker {
    sum: f64,
    steps: u64,
    /// The best checkpoint so far.
    pub best: Option<BestCheckpoint>,
}

impl BestCheckpointTracker {
    /// Adds the mean reward of a step, if the step has one.
    pub fn add_step_reward(&mut self, m: &StepMetrics) {
        if let Some(reward) = m.grpo.reward {
            (self.sum, self.steps) = (self.sum + reward, self.steps + 1);
        }
    }

    /// Records that the scheduled checkpoint of step `step` is written. This checkpoint becomes the best one if its
    /// mean reward is the highest so far.
    pub fn record_checkpoint(&mut self, step: u64) {
        if self.steps == 0 {
            return;
        }
        let mean = self.sum / self.steps as f64;
        self.compare(BestCheckpoint { step, value: mean, metric: REWARD.into(), rows: None });
        (self.sum, self.steps) = (0.0, 0);
    }

    /// Records that the scheduled checkpoint of an evaluated step is written. This checkpoint becomes the best one if
    /// its mean score is the highest so far.
    pub fn record_evaluated_checkpoint(&mut self, evaluation: &EvaluationLine) {
        if let Some(value) = evaluation.score {
            let metric = evaluation.metric_name();
            self.compare(BestCheckpoint { step: evaluation.step, value, metric, rows: None });
        }
    }

    /// Records that the scheduled checkpoint of an evaluated step is written. This checkpoint becomes the best one if
    /// its validation loss is the lowest so far.
    pub fn record_validated_checkpoint(&mut self, evaluation: &EvaluationLine) {
        if let Some(loss) = &evaluation.validation {
            let (value, rows) = (loss.eval_loss, Some(loss.eval_data_hash.clone()));
            self.compare(BestCheckpoint { step: evaluation.step, value, metric: EVAL_LOSS.into(), rows });
        }
    }

    /// Replaces the best checkpoint if `new` has a better value, or if the metric or the validation rows differ,
    /// because such values are not comparable.
    fn compare(&mut self, new: BestCheckpoint) {
        let is_better = |best: &BestCheckpoint| match new.metric == EVAL_LOSS {
            true => new.value < best.value,
            false => new.value > best.value,
        };
        let is_comparable = |best: &BestCheckpoint| best.metric == new.metric && best.rows == new.rows;
        if self.best.as_ref().is_none_or(|best| !is_comparable(best) || is_better(best)) {
            self.best = Some(new);
        }
    }

    /// Forgets the best checkpoint if its folder is not in `out`, for example because someone removed it.
    pub fn forget_best_if_missing(&mut self, out: &Path) {
        let is_there = |best: &BestCheckpoint| out.join(entries::checkpoint_folder_name(best.step)).is_dir();
        self.best = self.best.take().filter(is_there);
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::GrpoMetrics;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::runs::folder::evaluations::tests::{line, loss_line};

    fn step(reward: f64) -> StepMetrics {
        let line = json!({"step": 1, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "tokens": 0, "tokens_per_second": 0.0,
            "step_seconds": 0.0, "peak_bytes": 0, "hash": "", "reward": reward});
        serde_json::from_value(line).unwrap()
    }

    proptest! {
        /// The best checkpoint is the first one with the highest mean reward. Storing and loading the tracker during
        /// the run does not change this.
        #[test]
        fn best_checkpoint_is_the_first_with_the_highest_mean(
            rewards in prop::collection::vec(-2i32..3, 1..40),
            every in 1usize..6,
            stored in 0usize..40,
        ) {
            let mut all = BestCheckpointTracker::default();
            for (i, &reward) in rewards.iter().enumerate() {
                all.add_step_reward(&step(f64::from(reward)));
                if (i + 1).is_multiple_of(every) || i + 1 == rewards.len() {
                    all.record_checkpoint(i as u64 + 1);
                }
                if i == stored {
                    all = serde_json::from_value(serde_json::to_value(&all).unwrap()).unwrap();
                }
            }
            let mean = |part: &[i32]| part.iter().sum::<i32>() as f64 / part.len() as f64;
            let mut want: Option<BestCheckpoint> = None;
            for (i, part) in rewards.chunks(every).enumerate() {
                let step = (i * every + part.len()) as u64;
                if want.as_ref().is_none_or(|best| mean(part) > best.value) {
                    want = Some(BestCheckpoint { step, value: mean(part), metric: REWARD.into(), rows: None });
                }
            }
            prop_assert_eq!(all.best, want);
        }
    }

    #[test]
    fn scores_are_compared_with_scores_of_the_same_questions_only() {
        let mut all = BestCheckpointTracker {
            best: Some(BestCheckpoint { step: 1, value: 9.0, metric: REWARD.into(), rows: None }),
            ..Default::default()
        };
        let mut record = |step, scores: &[(&str, f64)]| {
            all.record_evaluated_checkpoint(&line(step, scores));
            all.best.as_ref().map(|best| (best.step, best.value))
        };
        assert_eq!(record(2, &[("a", 0.5), ("b", 0.0)]), Some((2, 0.25)));
        assert_eq!(record(4, &[("a", 0.25), ("b", 0.25)]), Some((2, 0.25)), "the first one of equal ones stays");
        assert_eq!(record(6, &[("a", 0.25), ("b", 0.75)]), Some((6, 0.5)));
        assert_eq!(record(8, &[("a", 0.125)]), Some((8, 0.125)), "other questions");
    }

    #[test]
    fn the_lowest_loss_of_the_same_validation_rows_is_the_best() {
        let mut all = BestCheckpointTracker::default();
        let mut record = |step, loss, rows| {
            all.record_validated_checkpoint(&loss_line(step, loss, rows));
            all.best.as_ref().map(|best| (best.step, best.metric.clone()))
        };
        let best = |step| Some((step, "eval_loss".to_string()));
        assert_eq!(record(1, 2.0, "a"), best(1));
        assert_eq!(record(2, 1.0, "a"), best(2));
        assert_eq!((record(3, 1.0, "a"), record(4, 1.5, "a")), (best(2), best(2)));
        assert_eq!(record(5, 3.0, "b"), best(5), "other rows");
    }

    #[test]
    fn steps_without_rewards_have_no_best_checkpoint() {
        let mut all = BestCheckpointTracker::default();
        let mut plain = step(0.0);
        plain.grpo = GrpoMetrics::default();
        all.add_step_reward(&plain);
        all.record_checkpoint(1);
        assert_eq!(all, BestCheckpointTracker::default());
        let dir = tempfile::tempdir().unwrap();
        all.best = Some(BestCheckpoint { step: 4, value: 0.5, metric: REWARD.into(), rows: None });
        all.forget_best_if_missing(dir.path());
        assert_eq!(all.best, None);
    }
}
