//! The best checkpoint: the one with the highest mean reward over the steps since the previous checkpoint.
//! `--save-total-limit` never removes it, and `OUT/trainer_state.json` names it with the keys of transformers' Trainer:
//! `best_model_checkpoint`, `best_metric`, `best_global_step`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::reporting::metrics::StepMetrics;
use crate::run_folder::checkpoint::{self, write_synced};
use crate::{Result, TrainError};

/// The name of the file in OUT.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";

/// The step of a checkpoint, and the mean reward by which checkpoints are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Step of the checkpoint.
    pub step: u64,
    /// Mean reward over the steps from the previous checkpoint to this one.
    pub reward: f64,
}

/// Sums up the rewards since the last scheduled checkpoint, and remembers the best checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardTracker {
    sum: f64,
    steps: u64,
    /// The best checkpoint so far.
    pub best: Option<BestCheckpoint>,
}

impl RewardTracker {
    /// Adds the mean reward of a step, if the step has one.
    pub fn add_step_reward(&mut self, m: &StepMetrics) {
        if let Some(reward) = m.grpo.reward {
            (self.sum, self.steps) = (self.sum + reward, self.steps + 1);
        }
    }

    /// To be called when the scheduled checkpoint of step `step` is written. It becomes the best one if its mean
    /// reward is the highest so far.
    pub fn record_checkpoint(&mut self, step: u64) {
        if self.steps == 0 {
            return;
        }
        let reward = self.sum / self.steps as f64;
        if self.best.is_none_or(|best| reward > best.reward) {
            self.best = Some(BestCheckpoint { step, reward });
        }
        (self.sum, self.steps) = (0.0, 0);
    }

    /// Forgets the best checkpoint if its folder is not in `out`, for example because someone removed it.
    pub fn forget_best_if_missing(&mut self, out: &Path) {
        self.best = self.best.filter(|best| out.join(checkpoint::checkpoint_folder_name(best.step)).is_dir());
    }
}

/// Writes `OUT/trainer_state.json` after step `step` of a run of `steps` steps, if there is a best checkpoint.
pub fn write_trainer_state(out: &Path, best: Option<BestCheckpoint>, step: u64, steps: u64) -> Result<()> {
    let Some(best) = best else { return Ok(()) };
    let path = out.join(TRAINER_STATE_FILE);
    let part = out.join(format!(".{TRAINER_STATE_FILE}.part"));
    let state = json!({
        "best_metric": best.reward,
        "best_model_checkpoint": out.join(checkpoint::checkpoint_folder_name(best.step)),
        "best_global_step": best.step,
        "global_step": step,
        "max_steps": steps,
    });
    let failed = |e| TrainError::cannot_write(&path, e);
    write_synced(&part, format!("{state:#}\n").as_bytes()).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporting::metrics::GrpoMetrics;
    use proptest::prelude::*;

    fn step(reward: f64) -> StepMetrics {
        let line = json!({"step": 1, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "tokens": 0, "tokens_per_second": 0.0,
            "step_seconds": 0.0, "peak_bytes": 0, "hash": "", "reward": reward});
        serde_json::from_value(line).unwrap()
    }

    proptest! {
        /// The best checkpoint is the first one with the highest mean reward, also when the tracker is stored and
        /// loaded in between.
        #[test]
        fn best_checkpoint_is_the_first_with_the_highest_mean(
            rewards in prop::collection::vec(-2i32..3, 1..40),
            every in 1usize..6,
            stored in 0usize..40,
        ) {
            let mut all = RewardTracker::default();
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
                if want.is_none_or(|best| mean(part) > best.reward) {
                    want = Some(BestCheckpoint { step, reward: mean(part) });
                }
            }
            prop_assert_eq!(all.best, want);
        }
    }

    #[test]
    fn steps_without_rewards_have_no_best_checkpoint() {
        let mut all = RewardTracker::default();
        let mut plain = step(0.0);
        plain.grpo = GrpoMetrics::default();
        all.add_step_reward(&plain);
        all.record_checkpoint(1);
        assert_eq!(all, RewardTracker::default());
        let dir = tempfile::tempdir().unwrap();
        write_trainer_state(dir.path(), None, 1, 2).unwrap();
        assert!(!dir.path().join(TRAINER_STATE_FILE).exists());
        all.best = Some(BestCheckpoint { step: 4, reward: 0.5 });
        write_trainer_state(dir.path(), all.best, 5, 9).unwrap();
        let message: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(TRAINER_STATE_FILE)).unwrap()).unwrap();
        assert_eq!(message["best_model_checkpoint"], json!(dir.path().join("checkpoint-4")));
        all.forget_best_if_missing(dir.path());
        assert_eq!(all.best, None);
    }
}
