//! The checkpoint whose steps earned most: of those that are made every `--save-steps` steps and at the end, the one with the highest mean
//! reward over the steps since the one before. `--save-total-limit` spares it, and `OUT/trainer_state.json` names it as transformers'
//! Trainer does: `best_model_checkpoint`, `best_metric`, `best_global_step`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::reporting::metrics::StepMetrics;
use crate::run_folder::checkpoint::{self, write_synced};
use crate::{Result, TrainError};

/// The file in OUT.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// A checkpoint with what its steps earned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Its step.
    pub step: u64,
    /// The mean reward over its steps.
    pub reward: f64,
}

/// The rewards since the last checkpoint, and the best of those before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardTracker {
    sum: f64,
    steps: u64,
    /// The best checkpoint so far.
    pub best: Option<BestCheckpoint>,
}

impl RewardTracker {
    /// Takes a step's reward, where it has one.
    pub fn add(&mut self, m: &StepMetrics) {
        if let Some(reward) = m.more.get("reward").and_then(serde_json::Value::as_f64) {
            (self.sum, self.steps) = (self.sum + reward, self.steps + 1);
        }
    }

    /// A checkpoint is made of step `step`, when it is one's turn: it is the best if none earned as much before. Rewards count anew from here.
    pub fn checkpoint(&mut self, step: u64) {
        if self.steps == 0 {
            return;
        }
        let reward = self.sum / self.steps as f64;
        if self.best.is_none_or(|best| reward > best.reward) {
            self.best = Some(BestCheckpoint { step, reward });
        }
        (self.sum, self.steps) = (0.0, 0);
    }

    /// Forgets a best checkpoint that is not in `out`: it lies in another folder, or was removed.
    pub fn keep_if_in(&mut self, out: &Path) {
        self.best = self.best.filter(|best| out.join(checkpoint::folder_name(best.step)).is_dir());
    }
}

/// Writes `OUT/trainer_state.json` of a run of `steps` after step `step`, if there is a best checkpoint.
///
/// # Errors
/// What cannot be written.
pub fn write(out: &Path, best: Option<BestCheckpoint>, step: u64, steps: u64) -> Result<()> {
    let Some(best) = best else { return Ok(()) };
    let path = out.join(TRAINER_STATE);
    let part = out.join(format!(".{TRAINER_STATE}.part"));
    let state = json!({
        "best_metric": best.reward,
        "best_model_checkpoint": out.join(checkpoint::folder_name(best.step)),
        "best_global_step": best.step,
        "global_step": step,
        "max_steps": steps,
    });
    let failed = |e| TrainError::write(&path, e);
    write_synced(&part, format!("{state:#}\n").as_bytes()).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(reward: f64) -> StepMetrics {
        let line = json!({"step": 1, "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "tokens": 0, "tokens_per_second": 0.0,
            "step_seconds": 0.0, "peak_bytes": 0, "hash": "", "reward": reward});
        serde_json::from_value(line).unwrap()
    }

    proptest! {
        /// The best is the first of the intervals with the highest mean, also of a run that was stored and read in between.
        #[test]
        fn the_best_is_the_first_highest_mean(
            rewards in prop::collection::vec(-2i32..3, 1..40),
            every in 1usize..6,
            stored in 0usize..40,
        ) {
            let mut all = RewardTracker::default();
            for (i, &reward) in rewards.iter().enumerate() {
                all.add(&step(f64::from(reward)));
                if (i + 1).is_multiple_of(every) || i + 1 == rewards.len() {
                    all.checkpoint(i as u64 + 1);
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
    fn steps_without_a_reward_have_no_best() {
        let mut all = RewardTracker::default();
        let mut plain = step(0.0);
        plain.more.clear();
        all.add(&plain);
        all.checkpoint(1);
        assert_eq!(all, RewardTracker::default());
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), None, 1, 2).unwrap();
        assert!(!dir.path().join(TRAINER_STATE).exists());
        all.best = Some(BestCheckpoint { step: 4, reward: 0.5 });
        write(dir.path(), all.best, 5, 9).unwrap();
        let said: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(TRAINER_STATE)).unwrap()).unwrap();
        assert_eq!(said["best_model_checkpoint"], json!(dir.path().join("checkpoint-4")));
        all.keep_if_in(dir.path());
        assert_eq!(all.best, None);
    }
}
