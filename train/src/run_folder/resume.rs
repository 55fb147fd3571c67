//! Resuming: the state that a checkpoint stores, and the check that a command's options, model and data match it.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::data::feed::DataPosition;
use crate::options::TrainingOptions;
use crate::reporting::metrics::SkippedRow;
use crate::run::{DataSource, RunSetup};
use crate::run_folder::best::RewardTracker;
use crate::run_folder::digest;
use crate::run_folder::output;
use crate::{Result, TrainError};

/// The file of the run state in a checkpoint.
pub const STATE_FILE: &str = "training/state.json";

/// A planned number of steps, and the step from which this plan holds. A resumed run may plan another number, which
/// changes the learning rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLength {
    /// The plan holds for the steps after this one.
    pub after: u64,
    /// Planned number of steps of the whole run.
    pub steps: u64,
}

/// The planned numbers of steps of a run that resumes with `state` from the checkpoint in `folder`. `home` is the
/// output folder of the run that wrote the checkpoint.
pub fn planned_lengths(folder: &Path, home: &Path, state: &RunState) -> Result<Vec<PlannedLength>> {
    let run: Option<Value> =
        fs::read(home.join(output::RUN_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let known = run.and_then(|mut run| serde_json::from_value::<Vec<PlannedLength>>(run["lengths"].take()).ok());
    let mut lengths = known.unwrap_or_default();
    lengths.retain(|length| length.after < state.step);
    if lengths.is_empty() {
        lengths.push(PlannedLength { after: 0, steps: read_state(folder)?.steps });
    }
    if lengths.last().is_some_and(|last| last.steps != state.steps) {
        lengths.push(PlannedLength { after: state.step, steps: state.steps });
    }
    Ok(lengths)
}

/// The planned number of steps of the run that held in step `n`.
pub fn planned_steps_at(lengths: &[PlannedLength], n: u64) -> Option<u64> {
    lengths.iter().rfind(|length| length.after < n).map(|length| length.steps)
}

/// The run state that a checkpoint stores in `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of the program that wrote the checkpoint.
    pub version: String,
    /// Number of finished steps.
    pub step: u64,
    /// Planned number of steps of the whole run.
    pub steps: u64,
    /// Position in the data after these steps.
    pub position: DataPosition,
    /// Peak number of bytes in the device's buffers.
    pub peak_bytes: u64,
    /// Fingerprint of the model that the run started from.
    pub model_hash: String,
    /// Fingerprint of the data file.
    pub data_hash: String,
    /// The options that influence results.
    pub options: Map<String, Value>,
    /// Optimizer step counts of the parameters whose count differs from `step`.
    pub parameter_steps: BTreeMap<String, u64>,
    /// Sum of the rewards since the last checkpoint, and the best checkpoint.
    #[serde(default)]
    pub rewards: RewardTracker,
}

/// Options that a resume does not compare: those that influence no result, and those whose content is compared
/// instead of their name.
const NOT_COMPARED: [&str; 15] = [
    "model",
    "data",
    "media_root",
    "out",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "run_name",
    "wandb_project",
    "gradient_checkpointing",
    "strict",
    "check_data",
    "quarantine",
    "rollouts",
];

/// Options that change the length of a run; a resumed run may change them, because finished steps stay valid.
const LENGTH_OPTIONS: [&str; 2] = ["num_train_epochs", "max_steps"];

/// The options of a command that influence results.
fn result_options<O: TrainingOptions>(setup: &RunSetup<O>) -> Map<String, Value> {
    let mut all = setup.options.resolved();
    NOT_COMPARED.iter().for_each(|name| drop(all.shift_remove(*name)));
    all.insert("command".into(), json!(O::COMMAND));
    all.insert("seed".into(), json!(setup.seed));
    all.insert("dtype".into(), json!(setup.dtype.name()));
    all.insert("profile".into(), json!(setup.media.profile));
    all.insert("media".into(), json!(setup.media.overrides));
    all
}

/// The fingerprint of everything that decides whether a row can be used: data, options and tokenizer. A journal of
/// `--check-data` is continued only if it has the same fingerprint.
pub fn scan_fingerprint<O: TrainingOptions>(setup: &RunSetup<O>, rows: &impl DataSource) -> Result<String> {
    let all = json!([
        result_options(setup),
        setup.options.strict,
        setup.options.media_root(),
        rows.fingerprint(),
        digest::config_files_fingerprint(setup.model)?
    ]);
    Ok(digest::bytes_fingerprint(all.to_string().as_bytes()))
}

/// The state of a fresh run.
pub fn fresh_state<O: TrainingOptions>(
    setup: &RunSetup<O>,
    rows: &impl DataSource,
    steps: u64,
    skipped: &[SkippedRow],
) -> Result<RunState> {
    Ok(RunState {
        version: env!("CARGO_PKG_VERSION").to_string(),
        step: 0,
        steps,
        position: DataPosition { slot: 0, skipped: skipped.iter().map(|s| s.row).collect() },
        peak_bytes: 0,
        model_hash: output::model_hash(setup.model)?,
        data_hash: rows.fingerprint(),
        options: result_options(setup),
        parameter_steps: BTreeMap::new(),
        rewards: RewardTracker::default(),
    })
}

/// Reads the state of a checkpoint and checks that this command continues the same run. `measure_steps` counts the
/// steps again if the options change the length of the run.
pub fn resumed_state<O: TrainingOptions>(
    setup: &RunSetup<O>,
    rows: &impl DataSource,
    folder: &Path,
    measure_steps: impl FnOnce() -> Result<u64>,
) -> Result<RunState> {
    let mut state = read_state(folder)?;
    let refuse = |what: &str, why: &str| {
        let help = "give the value that the run was started with, or start a new run in another --out";
        TrainError::option(what, format!("{why} {}", folder.display()), help)
    };
    if output::model_hash(setup.model)? != state.model_hash {
        return Err(refuse("--model", "is not the model of the run that wrote"));
    }
    if rows.fingerprint() != state.data_hash {
        return Err(refuse("--data", "differs from the data of the run that wrote"));
    }
    if let Some(row) = state.position.skipped.iter().find(|&&row| row >= rows.row_count()) {
        return Err(TrainError::output(
            folder.join(STATE_FILE).display().to_string(),
            format!("lists row {row}, which the data does not have"),
            "resume from another checkpoint",
        ));
    }
    let now = result_options(setup);
    let differs = |name: &&String| now.get(*name) != state.options.get(*name);
    let mut different: Vec<&String> = now.keys().chain(state.options.keys()).filter(differs).collect();
    let other_length = different.iter().any(|name| LENGTH_OPTIONS.contains(&name.as_str()));
    different.retain(|name| !LENGTH_OPTIONS.contains(&name.as_str()));
    if different.iter().any(|name| *name == "command") {
        let was = state.options.get("command").and_then(Value::as_str).unwrap_or("another command");
        return Err(refuse("--resume-from-checkpoint", &format!("belongs to a run of {was}, not of {}:", O::COMMAND)));
    }
    if let Some(name) = different.first() {
        let value = |options: &Map<String, Value>| options.get(*name).map_or("absent".to_string(), Value::to_string);
        let flag = format!("--{}", name.replace('_', "-"));
        return Err(refuse(&flag, &format!("is {}, but was {} in", value(&now), value(&state.options))));
    }
    if other_length {
        state.steps = measure_steps()?;
        state.options = now;
    }
    Ok(state)
}

/// Reads `state.json` of a checkpoint.
pub fn read_state(folder: &Path) -> Result<RunState> {
    let path = folder.join(STATE_FILE);
    let bytes = fs::read(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => TrainError::output(
            folder.display().to_string(),
            "is not a checkpoint of a run (it has no training/state.json)",
            "give an OUT/checkpoint-N folder, or `last`",
        ),
        _ => TrainError::cannot_read(&path, e),
    })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        TrainError::output(path.display().to_string(), format!("is not valid: {e}"), "resume from another checkpoint")
    })
}
