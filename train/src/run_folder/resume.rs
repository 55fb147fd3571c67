//! Going on where a run stopped: what a checkpoint remembers of its run, and whether a command fits it.

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

/// Where a checkpoint keeps its state.
pub const STATE: &str = "training/state.json";

/// How long a run was to be while it made the steps after one: a run that goes on may be given another length, and learning rates
/// follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLength {
    /// The step before the first one that it holds for.
    pub after: u64,
    /// Steps of the whole run as planned then.
    pub steps: u64,
}

/// The lengths of a run that goes on with `state` from the checkpoint in `folder`, whose run's folder is `home`.
pub fn lengths(folder: &Path, home: &Path, state: &RunState) -> Result<Vec<PlannedLength>> {
    let run: Option<Value> = fs::read(home.join(output::RUN)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let known = run.and_then(|mut run| serde_json::from_value::<Vec<PlannedLength>>(run["lengths"].take()).ok());
    let mut lengths = known.unwrap_or_default();
    lengths.retain(|length| length.after < state.step);
    if lengths.is_empty() {
        lengths.push(PlannedLength { after: 0, steps: read(folder)?.steps });
    }
    if lengths.last().is_some_and(|last| last.steps != state.steps) {
        lengths.push(PlannedLength { after: state.step, steps: state.steps });
    }
    Ok(lengths)
}

/// The length that held when step `n` was made.
pub fn length_at(lengths: &[PlannedLength], n: u64) -> Option<u64> {
    lengths.iter().rfind(|length| length.after < n).map(|length| length.steps)
}

/// What `state.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of the program that wrote it.
    pub version: String,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run as planned.
    pub steps: u64,
    /// How far in the data.
    pub position: DataPosition,
    /// The most bytes that the device held so far.
    pub peak_bytes: u64,
    /// Fingerprint of the model that the run started from.
    pub model_hash: String,
    /// Fingerprint of the data file.
    pub data_hash: String,
    /// The options that decide what is computed.
    pub options: Map<String, Value>,
    /// Steps that each parameter has taken, where they differ from `step`.
    pub parameter_steps: BTreeMap<String, u64>,
    /// Rewards since the last checkpoint, and which checkpoint is the best.
    #[serde(default)]
    pub rewards: RewardTracker,
}

/// Options that change no bit of the result, or that are compared by content instead of name.
const FREE: [&str; 15] = [
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

/// Options that lengthen or shorten a run; what was done stays what it was.
const LENGTH: [&str; 2] = ["num_train_epochs", "max_steps"];

/// The options that decide what is computed.
fn deciding<O: TrainingOptions>(setup: &RunSetup<O>) -> Map<String, Value> {
    let mut all = setup.options.resolved();
    FREE.iter().for_each(|name| drop(all.shift_remove(*name)));
    all.insert("command".into(), json!(O::COMMAND));
    all.insert("seed".into(), json!(setup.seed));
    all.insert("dtype".into(), json!(setup.dtype.name()));
    all.insert("profile".into(), json!(setup.media.profile));
    all.insert("media".into(), json!(setup.media.overrides));
    all
}

/// What tells one way of looking at the rows from others: what is found of a row follows from it.
pub fn scan<O: TrainingOptions>(setup: &RunSetup<O>, rows: &impl DataSource) -> Result<String> {
    let all = json!([
        deciding(setup),
        setup.options.strict,
        setup.options.media_root(),
        rows.hash(),
        digest::config(setup.model)?
    ]);
    Ok(digest::bytes(all.to_string().as_bytes()))
}

/// The state before the first step.
pub fn fresh<O: TrainingOptions>(
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
        data_hash: rows.hash(),
        options: deciding(setup),
        parameter_steps: BTreeMap::new(),
        rewards: RewardTracker::default(),
    })
}

/// The state of a checkpoint, once it is known that this command goes on with the same run.
/// `longer` measures the run again where its length is another one now.
pub fn continued<O: TrainingOptions>(
    setup: &RunSetup<O>,
    rows: &impl DataSource,
    folder: &Path,
    longer: impl FnOnce() -> Result<u64>,
) -> Result<RunState> {
    let mut state = read(folder)?;
    let refuse = |what: &str, why: &str| {
        let help = "give what the run was started with, or start a new one in another --out";
        TrainError::option(what, format!("{why} {}", folder.display()), help)
    };
    if output::model_hash(setup.model)? != state.model_hash {
        return Err(refuse("--model", "is not the model that was trained up to"));
    }
    if rows.hash() != state.data_hash {
        return Err(refuse("--data", "is not the file, or no longer has the rows, of the run that wrote"));
    }
    if let Some(row) = state.position.skipped.iter().find(|&&row| row >= rows.row_count()) {
        return Err(TrainError::output(
            folder.join(STATE).display().to_string(),
            format!("speaks of row {row}, which the data does not have"),
            "resume from another checkpoint",
        ));
    }
    let now = deciding(setup);
    let differs = |name: &&String| now.get(*name) != state.options.get(*name);
    let mut different: Vec<&String> = now.keys().chain(state.options.keys()).filter(differs).collect();
    let other_length = different.iter().any(|name| LENGTH.contains(&name.as_str()));
    different.retain(|name| !LENGTH.contains(&name.as_str()));
    if different.iter().any(|name| *name == "command") {
        let was = state.options.get("command").and_then(Value::as_str).unwrap_or("another command");
        return Err(refuse("--resume-from-checkpoint", &format!("is of a run of {was}, not of {}:", O::COMMAND)));
    }
    if let Some(name) = different.first() {
        let value = |options: &Map<String, Value>| options.get(*name).map_or("absent".to_string(), Value::to_string);
        let flag = format!("--{}", name.replace('_', "-"));
        return Err(refuse(&flag, &format!("is {}, but was {} in", value(&now), value(&state.options))));
    }
    if other_length {
        state.steps = longer()?;
        state.options = now;
    }
    Ok(state)
}

/// Reads `state.json` of a checkpoint.
pub fn read(folder: &Path) -> Result<RunState> {
    let path = folder.join(STATE);
    let bytes = fs::read(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => TrainError::output(
            folder.display().to_string(),
            "is no checkpoint of a run (it has no training/state.json)",
            "give an OUT/checkpoint-N folder, or `last`",
        ),
        _ => TrainError::read(&path, e),
    })?;
    serde_json::from_slice(&bytes).map_err(|e| {
        TrainError::output(
            path.display().to_string(),
            format!("cannot be understood: {e}"),
            "resume from another checkpoint",
        )
    })
}
