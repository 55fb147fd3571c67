//! Defines the run state that a checkpoint stores. Before a run resumes, checks that the command's options, model and
//! data match this state.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::file_names::{RUN_FILE, RUN_STATE_FILE};
use crate::options::TrainingOptions;
use crate::setup::RunSetup;
use reel_input::video_marks::VideoMarks;
use reel_samples::dataset::{DataFile, differences_from};
use reel_samples::feed::DataPosition;
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::DataSource;
use reel_support::diagnostic::input;
use reel_support::files::digest::{self, ModelFiles};
use reel_support::files::fingerprint::bytes_fingerprint;
use reel_support::files::json::redact_urls_in_json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::runs::folder::best::BestCheckpointTracker;
use crate::runs::folder::{entries, output};

/// A planned total number of steps, and the step after which this plan applies. A resumed run may plan another number
/// of steps, which changes the learning rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStepCount {
    /// The plan applies to the steps after this step.
    pub after: u64,
    /// Planned number of steps of the whole run.
    pub steps: u64,
}

/// Returns all total numbers of steps that a run has planned so far, for a run that resumes with `state` from the
/// checkpoint in `folder`. `home` is the output folder of the run that wrote the checkpoint.
///
/// # Errors
/// `run.json` is damaged.
pub fn planned_step_counts(folder: &Path, home: &Path, state: &RunState) -> Result<Vec<PlannedStepCount>> {
    // Without `run.json`, the number of steps in the checkpoint counts as the plan of all steps before the checkpoint.
    let run = home.join(RUN_FILE).exists().then(|| output::read_run_json(home)).transpose()?;
    let known = run.and_then(|mut run| serde_json::from_value::<Vec<PlannedStepCount>>(run["lengths"].take()).ok());
    let mut lengths = known.unwrap_or_default();
    lengths.retain(|length| length.after < state.step);
    if lengths.is_empty() {
        lengths.push(PlannedStepCount { after: 0, steps: read_run_state(folder)?.steps });
    }
    if lengths.last().is_some_and(|last| last.steps != state.steps) {
        lengths.push(PlannedStepCount { after: state.step, steps: state.steps });
    }
    Ok(lengths)
}

/// Returns the total number of steps that the run had planned when it did step `n`.
pub fn planned_steps_at(lengths: &[PlannedStepCount], n: u64) -> Option<u64> {
    lengths.iter().rfind(|length| length.after < n).map(|length| length.steps)
}

/// The state of a run after a step, as a checkpoint stores it in `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of reel that wrote the checkpoint.
    pub version: String,
    /// Number of finished steps.
    pub step: u64,
    /// Planned number of steps of the whole run.
    pub steps: u64,
    /// Position in the data after the finished steps.
    pub position: DataPosition,
    /// Largest number of bytes in the device's buffers so far.
    pub peak_bytes: u64,
    /// Fingerprint of the model from which the run started.
    pub model_hash: String,
    /// Fingerprints of the files of the model from which the run started.
    pub model_files: ModelFiles,
    /// Fingerprint of the data file.
    pub data_hash: String,
    /// The data files.
    pub data_files: Vec<DataFile>,
    /// The options that influence the resulting weights.
    pub options: Map<String, Value>,
    /// The number of optimizer steps by parameter name. Only parameters whose number differs from `step` are listed.
    pub parameter_steps: BTreeMap<String, u64>,
    /// The rewards since the last checkpoint, and the best checkpoint.
    pub rewards: BestCheckpointTracker,
    /// The last step whose evaluation is complete; absent in runs without evaluations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<u64>,
    /// Fingerprint of the trained weights after the step; empty before the first step.
    pub hash: String,
}

/// Options that a resumed run may change. They do not influence the resulting weights, or they are paths of files
/// whose fingerprints are compared instead.
const NOT_COMPARED: [&str; 37] = [
    "decoder",
    "frame_cache",
    "frame_cache_limit",
    "model",
    "data",
    "media_root",
    "out",
    "zero_stage",
    "save_steps",
    "save_total_limit",
    "folder_format",
    "logging_steps",
    "report_to",
    "report_command",
    "run_name",
    "wandb_project",
    "gradient_checkpointing",
    "strict",
    "check_data",
    "quarantine",
    "rollouts",
    "reward_env",
    "reward_timeout",
    "serve",
    "serve_kv_memory",
    "serve_share",
    "eval_steps",
    "eval_file",
    "eval_on_start",
    "eval_benchmark",
    "eval_data",
    "eval_media_root",
    "eval_limit",
    "eval_skip_bad_rows",
    "eval_max_new_tokens",
    "eval_batch_size",
    "metric_for_best_model",
];

/// Options that set the number of steps. A resumed run may also change them, because the finished steps stay valid.
const LENGTH_OPTIONS: [&str; 2] = ["num_train_epochs", "max_steps"];

/// Returns the options of a command that influence the resulting weights.
fn result_options<O: TrainingOptions>(setup: &RunSetup<O>) -> Map<String, Value> {
    let mut all = setup.options.resolved();
    NOT_COMPARED.iter().for_each(|name| drop(all.shift_remove(*name)));
    all.insert("command".into(), json!(O::COMMAND));
    all.insert("seed".into(), json!(setup.data.seed));
    all.insert("dtype".into(), json!(setup.trainer.dtype.name()));
    all.insert("profile".into(), json!(setup.data.media.profile));
    all.insert("media".into(), json!(setup.data.media.overrides));
    // Recorded only where they are not the default, so checkpoints of earlier versions stay comparable.
    if let Some(VideoMarks::Outer) = setup.data.media.video_marks {
        all.insert("video_marks".into(), json!(VideoMarks::Outer));
    }
    if setup.data.media.add_vision_id {
        all.insert("add_vision_id".into(), json!(true));
    }
    all.values_mut().for_each(redact_urls_in_json);
    all
}

/// Returns the options of a checkpoint, prepared for comparison with those of this version: options that did not exist
/// when the checkpoint was written get their defaults.
fn stored_options<O: TrainingOptions>(stored: &Map<String, Value>, now: &Map<String, Value>) -> Map<String, Value> {
    let mut all = O::default().resolved();
    all.retain(|name, _| now.contains_key(name) && !stored.contains_key(name));
    all.extend(stored.clone());
    NOT_COMPARED.iter().for_each(|name| drop(all.shift_remove(*name)));
    all
}

/// Returns the fingerprint of everything that decides whether a row can be used: data, options and tokenizer. A
/// `--check-data` continues the journal of an earlier one only if both have this fingerprint.
pub fn data_check_fingerprint<O: TrainingOptions>(setup: &RunSetup<O>, rows: &impl DataSource) -> Result<String> {
    let all = json!([
        result_options(setup),
        setup.options.strict,
        setup.options.media_root(),
        rows.fingerprint(),
        digest::config_files_fingerprint(setup.data.model)?
    ]);
    Ok(bytes_fingerprint(all.to_string().as_bytes()))
}

/// Returns the state of a run before its first step. `model_files` are the files of its model.
pub fn fresh_run_state<O: TrainingOptions>(
    setup: &RunSetup<O>,
    model_files: ModelFiles,
    rows: &impl DataSource,
    steps: u64,
    skipped: &[SkippedRow],
) -> RunState {
    RunState {
        version: env!("CARGO_PKG_VERSION").to_string(),
        step: 0,
        steps,
        position: DataPosition { slot: 0, skipped: skipped.iter().map(|s| s.row).collect() },
        peak_bytes: 0,
        model_hash: model_files.fingerprint(),
        model_files,
        data_hash: rows.fingerprint(),
        data_files: rows.files().to_vec(),
        options: result_options(setup),
        parameter_steps: BTreeMap::new(),
        rewards: BestCheckpointTracker::default(),
        evaluated: None,
        hash: String::new(),
    }
}

/// Reads the state of the checkpoint in `folder`, and checks that the model of the files `model`, data and options are
/// the same as in the run that wrote it. If the options change the number of steps, `measure_steps` computes the new
/// number.
pub fn resumed_run_state<O: TrainingOptions>(
    setup: &RunSetup<O>,
    model: &ModelFiles,
    rows: &impl DataSource,
    folder: &Path,
    measure_steps: impl FnOnce() -> Result<u64>,
) -> Result<RunState> {
    let mut state = read_run_state(folder)?;
    let refuse = |what: &str, why: &str| {
        let help = "give the value that the run was started with, or start a new run in another --out";
        Error::usage(what, format!("{why} {}", folder.display()), help)
    };
    if model.fingerprint() != state.model_hash {
        let which = model.differences_from(&state.model_files);
        let what = format!("is not the model of the run that wrote {}{which}", folder.display());
        let help = "give the model that the run was started with, unchanged, or start a new run in another --out";
        return Err(Error::usage("--model", what, help));
    }
    if rows.fingerprint() != state.data_hash {
        let which = differences_from(rows.files(), &state.data_files);
        let what = format!("differs from the data of the run that wrote {}{which}", folder.display());
        let help = "give the data that the run was started with, or start a new run in another --out";
        return Err(Error::usage("--data", what, help));
    }
    if let Some(row) = state.position.skipped.iter().find(|&&row| row >= rows.row_count()) {
        return Err(Error::failed(
            folder.join(RUN_STATE_FILE).display().to_string(),
            format!("lists the skipped row {row}, but the data file has fewer rows"),
            "resume from another checkpoint",
        ));
    }
    let now = result_options(setup);
    let then = stored_options::<O>(&state.options, &now);
    let differs = |name: &&String| now.get(*name) != then.get(*name);
    let mut different: Vec<&String> = now.keys().chain(then.keys()).filter(differs).collect();
    let other_length = different.iter().any(|name| LENGTH_OPTIONS.contains(&name.as_str()));
    different.retain(|name| !LENGTH_OPTIONS.contains(&name.as_str()));
    if different.iter().any(|name| *name == "command") {
        let was = then.get("command").and_then(Value::as_str).unwrap_or("another command");
        return Err(refuse("--resume-from-checkpoint", &format!("belongs to a run of {was}, not of {}:", O::COMMAND)));
    }
    if let Some(name) = different.first() {
        let (mut name, mut values) = (*name, [now.get(*name), then.get(*name)]);
        // The media options are stored as one JSON object. The error names only the option of this object that
        // differs.
        if let [Some(Value::Object(now)), Some(Value::Object(then))] = values
            && let Some(key) = now.keys().chain(then.keys()).find(|key| now.get(*key) != then.get(*key))
        {
            (name, values) = (key, [now.get(key), then.get(key)]);
        }
        let text = |value: Option<&Value>| match value {
            None | Some(Value::Null) => "not given".to_string(),
            Some(value) => value.to_string(),
        };
        let flag = format!("--{}", name.replace('_', "-"));
        return Err(refuse(&flag, &format!("is {}, but was {} in", text(values[0]), text(values[1]))));
    }
    if other_length {
        state.steps = measure_steps()?;
        state.options = now;
    }
    if state.step > state.steps {
        let flag = if setup.options.requested_step_count().is_some() { "--max-steps" } else { "--num-train-epochs" };
        let what =
            format!("gives a run of {} steps, but {} is after step {}", state.steps, folder.display(), state.step);
        return Err(Error::usage(flag, what, "raise it, or resume from an earlier checkpoint"));
    }
    Ok(state)
}

/// The error for a checkpoint that does not exist. It names the checkpoints that exist.
fn missing_checkpoint_error(folder: &Path) -> Error {
    let out = folder.parent().unwrap_or(Path::new(""));
    let found = entries::checkpoints_by_step(out).unwrap_or_default();
    let names = found.values().rev().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy());
    // Only the newest checkpoints are named, because a run may have hundreds.
    let names: Vec<_> = names.take(4).collect();
    let help = match names.is_empty() {
        true => "give an OUT/checkpoint-N folder, or `last`".to_string(),
        false => format!("{} has {}{}", out.display(), names.join(", "), if found.len() > 4 { ", …" } else { "" }),
    };
    Error::failed(folder.display().to_string(), "does not exist", help)
}

/// Reads `state.json` of a checkpoint.
pub fn read_run_state(folder: &Path) -> Result<RunState> {
    let path = folder.join(RUN_STATE_FILE);
    let bytes = input::read_file(&path, input::MAX_ROWS_BYTES).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound if !folder.exists() => missing_checkpoint_error(folder),
        io::ErrorKind::NotFound => Error::failed(
            folder.display().to_string(),
            "is not a checkpoint of a run (it has no training/state.json)",
            "give an OUT/checkpoint-N folder, or `last`",
        ),
        _ => Error::cannot_read(&path, e),
    })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::failed(path.display().to_string(), format!("is not valid: {e}"), "resume from another checkpoint")
    })
}
