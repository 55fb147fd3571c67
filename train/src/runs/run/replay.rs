//! Repeats a step of a finished run and compares the resulting weights with the recorded hashes.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::file_names::{HASHES_FILE, METRICS_FILE, RUN_FILE};
use crate::metrics::StepMetrics;
use crate::options::RunOptions;
use crate::setup::RunSetup;
use reel_support::files::log;
use serde_json::Value;

use crate::runs::folder::{entries, hashes, output};
use crate::runs::run::{self, TrainLoop};

/// The start of a replay, and the fingerprint of the weights that the replay must reproduce.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayStart {
    /// The step of the checkpoint from which the replay starts; 0 if it starts at the beginning of the run.
    pub step: u64,
    /// The newest checkpoint before the replayed step; `None` if the replay starts at the beginning of the run.
    pub checkpoint: Option<PathBuf>,
    /// The fingerprint of all weights that the run recorded after the replayed step.
    pub hash: String,
}

/// The comparison of replayed weights with the recorded ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayReport {
    /// Whether all weights have the recorded bits.
    pub same: bool,
    /// Name of the first tensor whose bits differ; `None` if no tensor differs or the run recorded no hash per tensor.
    pub first: Option<String>,
}

/// Finds where the replay of step `step` of the run in `out` must start: at the newest checkpoint before this step.
pub fn find_replay_start(out: &Path, step: u64) -> Result<ReplayStart> {
    let file = out.join(METRICS_FILE);
    let lines = log::read_matching_lines(&file, |m: &StepMetrics| m.step == step)?;
    let recorded = lines.first().and_then(|line| serde_json::from_str::<StepMetrics>(line).ok());
    let Some(recorded) = recorded.filter(|_| step > 0) else {
        let done = log::read_matching_lines(&file, |_: &StepMetrics| true)?.len();
        let help = if done == 0 { "give the output folder of a run".to_string() } else { format!("give 1 to {done}") };
        return Err(Error::usage("--step", format!("is {step}, but {} does not have this step", file.display()), help));
    };
    let nearest = entries::checkpoints_by_step(out)?.range(..step).next_back().map(|(n, path)| (*n, path.clone()));
    Ok(ReplayStart { step: nearest.as_ref().map_or(0, |n| n.0), checkpoint: nearest.map(|n| n.1), hash: recorded.hash })
}

/// Repeats the steps up to `step` and compares the weights with those of the run in `recorded`. `want` is the
/// recorded fingerprint of the weights. `setup` has the options of that run, with three changes: a separate output
/// folder, a checkpoint from which to resume, and no checkpoints to write.
pub(crate) fn replay<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    recorded: &Path,
    step: u64,
    want: &str,
) -> Result<ReplayReport> {
    debug_assert!(setup.options.save_steps == 0);
    let run = output::read_run_json(recorded)?;
    let trainer = run::replay_steps::<W>(setup, step, &run).map_err(|e| help_of_replay(e, setup.options))?;
    if trainer.weights_fingerprint()? == want {
        return Ok(ReplayReport { same: true, first: None });
    }
    let now = trainer.tensor_hashes()?;
    let then = hashes::read_step_hashes(recorded, step, now.len())?;
    let differs = |((_, hash), then): &(&(String, u64), &u32)| hashes::low_32_bits(*hash) != **then;
    let first = now.iter().zip(then.iter().flatten()).find(differs).map(|((name, _), _)| name.clone());
    if then.is_some() && first.is_none() {
        let location = recorded.join(METRICS_FILE).display().to_string();
        let what = format!(
            "is damaged: its hash of step {step} is {want}, but the weights of the replay have the hashes in {HASHES_FILE}"
        );
        return Err(Error::damaged(location, what, "restore the file from a copy"));
    }
    Ok(ReplayReport { same: false, first })
}

/// Adds help to the error for a damaged checkpoint: how to repeat the step without that checkpoint.
fn help_of_replay(e: Error, options: &RunOptions) -> Error {
    let help = "restore it from a copy, or remove this checkpoint to repeat the step from the previous checkpoint";
    match &options.resume_from_checkpoint {
        Some(folder) if e.kind == Kind::Damaged && e.diagnostic.location.starts_with(folder.as_str()) => {
            e.with_help(help)
        }
        _ => e,
    }
}

/// Reads the command and the options of a run from its `run.json`.
pub fn recorded_command_and_options(out: &Path) -> Result<(String, Value)> {
    let mut run = output::read_run_json(out)?;
    match (run["command"].as_str().map(String::from), run["options"].take()) {
        (Some(command), options @ Value::Object(_)) => Ok((command, options)),
        _ => Err(damaged(&out.join(RUN_FILE), "lacks the command or the options of the run".into())),
    }
}

/// Returns the working directory in which a run was started, to which paths in its options are relative. `None` if
/// the run's `run.json` does not record it.
pub fn recorded_working_directory(out: &Path) -> Result<Option<PathBuf>> {
    Ok(output::read_run_json(out)?["working_directory"].as_str().map(PathBuf::from))
}

fn damaged(path: &Path, what: String) -> Error {
    Error::failed(path.display().to_string(), what, "give the output folder of a run")
}
