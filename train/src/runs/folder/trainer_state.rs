//! Writes `OUT/trainer_state.json` with the fields of transformers' `TrainerState` (`trainer_callback.py`), which
//! scripts read: the best checkpoint and the metrics of the reported steps. That class refuses fields that it does not
//! know, so what it has no field for is in `stateful_callbacks`, whose entries are free.

use std::path::Path;

use crate::error::{Error, Result};
use crate::file_names::{METRICS_FILE, TRAINER_STATE_FILE};
use crate::metrics::StepMetrics;
use reel_support::files::{log, replace_synced};
use serde_json::{Map, Value, json};

use crate::runs::folder::best::BestCheckpoint;
use crate::runs::folder::entries;

/// The fields of `metrics.jsonl` that `log_history` has, under the names that transformers and TRL give them.
const HISTORY_FIELDS: [&str; 8] =
    ["step", "loss", "grad_norm", "learning_rate", "eval_loss", "reward", "reward_std", "kl"];

/// Writes `OUT/trainer_state.json` after step `step` of a run of `steps` steps, with the metrics of every
/// `logging_steps` steps.
///
/// # Errors
/// `metrics.jsonl` cannot be read, or the file cannot be written.
pub fn write(out: &Path, best: Option<&BestCheckpoint>, (step, steps): (u64, u64), logging_steps: u64) -> Result<()> {
    let path = out.join(TRAINER_STATE_FILE);
    let reported = |m: &StepMetrics| m.step <= step && m.step.is_multiple_of(logging_steps);
    let lines = log::read_matching_lines(&out.join(METRICS_FILE), reported)?;
    let history = lines.iter().filter_map(|line| {
        let mut fields: Map<String, Value> = serde_json::from_str(line).ok()?;
        fields.retain(|name, _| HISTORY_FIELDS.contains(&name.as_str()));
        Some(fields)
    });
    let callbacks =
        best.map(|best| json!({"reel": {"args": {"metric_for_best_model": best.metric}, "attributes": {}}}));
    let state = json!({
        "best_metric": best.map(|best| best.value),
        "best_model_checkpoint": best.map(|best| out.join(entries::checkpoint_folder_name(best.step))),
        "best_global_step": best.map(|best| best.step),
        "global_step": step,
        "max_steps": steps,
        "logging_steps": logging_steps,
        "log_history": history.collect::<Vec<_>>(),
        "stateful_callbacks": callbacks.unwrap_or_else(|| json!({})),
    });
    replace_synced(&path, format!("{state:#}\n").as_bytes(), false).map_err(|e| Error::cannot_write(&path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters of `TrainerState.__init__` of transformers 4.57 and 5. Another field makes
    /// `TrainerState.load_from_json` fail.
    const KNOWN: &str = "epoch global_step max_steps logging_steps eval_steps save_steps train_batch_size num_train_epochs \
                         num_input_tokens_seen total_flos log_history best_metric best_global_step \
                         best_model_checkpoint is_local_process_zero is_world_process_zero is_hyper_param_search \
                         trial_name trial_params stateful_callbacks";

    #[test]
    fn the_file_has_fields_of_transformers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let line = |step: u64| {
            json!({"step": step, "loss": 0.5, "grad_norm": 0.0, "learning_rate": 1e-3, "tokens": 0, "reward": 0.25,
                "tokens_per_second": 0.0, "step_seconds": 0.0, "peak_bytes": 0, "hash": ""})
        };
        let lines: String = (1..=6).map(|step| format!("{}\n", line(step))).collect();
        std::fs::write(dir.path().join(METRICS_FILE), lines).unwrap();
        let best = BestCheckpoint { step: 4, value: 0.5, metric: "reward".into(), rows: None };
        for best in [None, Some(&best)] {
            write(dir.path(), best, (5, 9), 2).unwrap();
            let state: Value =
                serde_json::from_slice(&std::fs::read(dir.path().join(TRAINER_STATE_FILE)).unwrap()).unwrap();
            let known: Vec<&str> = KNOWN.split_whitespace().collect();
            assert!(state.as_object().unwrap().keys().all(|name| known.contains(&name.as_str())), "{state}");
            let history = &state["log_history"];
            assert_eq!(history.as_array().map(Vec::len), Some(2), "{state}");
            assert_eq!(
                history[1],
                json!({"step": 4, "loss": 0.5, "grad_norm": 0.0, "learning_rate": 1e-3, "reward": 0.25})
            );
            let checkpoint = best.map(|_| dir.path().join("checkpoint-4"));
            assert_eq!(state["best_model_checkpoint"], json!(checkpoint));
            assert_eq!((&state["best_metric"], &state["global_step"]), (&json!(best.map(|_| 0.5)), &json!(5)));
        }
    }
}
