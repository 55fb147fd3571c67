//! Opens and writes the logs of a run in OUT. A resumed run first cuts the logs back to what its checkpoint recorded.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::file_names::{EVALUATIONS_FILE, HASHES_FILE, METRICS_FILE, SKIPPED_FILE};
use crate::metrics::StepMetrics;
use reel_samples::skipped_row::SkippedRow;
use reel_support::files::log::{self, JsonlLog};

use crate::runs::folder::digests::{self, CheckpointDigests, LogDigests};
use crate::runs::folder::hashes::TensorHashLog;
use crate::runs::folder::output::{is_directly_in, refuse_model_inside};
use crate::runs::folder::previous::PreviousRun;
use crate::runs::folder::resume::RunState;
use crate::runs::folder::{entries, evaluations, later_skipped};

/// The open logs of a run.
#[derive(Debug)]
pub struct RunLogs {
    /// The log `metrics.jsonl`: one line per step.
    pub metrics: JsonlLog,
    /// The log `skipped.jsonl`: one line per row that cannot be used.
    pub skipped: JsonlLog,
    /// The hashes of all tensors after each step.
    pub hashes: TensorHashLog,
    /// The log with one line per evaluation; `None` in a run that has no evaluations, neither now nor before its
    /// checkpoint.
    pub evaluations: Option<JsonlLog>,
}

impl RunLogs {
    /// Opens the logs of a new run. First moves the files of an earlier run in OUT aside; this earlier run is also
    /// returned. The rows in `unusable`, which are known to be unusable, are logged as skipped. `tensors` is the
    /// number of trained tensors.
    ///
    /// # Errors
    /// The model to train is in OUT, or a file cannot be moved or written.
    pub fn create(
        out: &Path,
        model: &Path,
        unusable: &[SkippedRow],
        tensors: usize,
        evaluates: bool,
    ) -> Result<(Self, PreviousRun)> {
        fs::create_dir_all(out).map_err(|e| Error::cannot_write(out, e))?;
        refuse_model_inside(out, model)?;
        let previous = PreviousRun::set_aside(out)?;
        let metrics = JsonlLog::create(&out.join(METRICS_FILE))?;
        let mut skipped = JsonlLog::create(&out.join(SKIPPED_FILE))?;
        unusable.iter().try_for_each(|row| skipped.append(row))?;
        let hashes = TensorHashLog::open(out, out, 0, tensors)?;
        let evaluations = if evaluates { Some(evaluations::open(out, out, None)?) } else { None };
        Ok((Self { metrics, skipped, hashes, evaluations }, previous))
    }

    /// Opens the logs of a run that resumes from the checkpoint in `folder`, and keeps the lines up to the
    /// checkpoint. `later_skipped` lists the rows that the run skipped after the checkpoint. If the checkpoint is not
    /// in OUT, the files of an earlier run in OUT are moved aside, and this earlier run is also returned.
    ///
    /// # Errors
    /// The logs cannot be written.
    pub fn resume(
        out: &Path,
        folder: &Path,
        recorded: &RecordedLogs,
        later_skipped: &[SkippedRow],
        tensors: usize,
        evaluates: bool,
    ) -> Result<(Self, PreviousRun)> {
        fs::create_dir_all(out).map_err(|e| Error::cannot_write(out, e))?;
        entries::remove_incomplete_files(out)?;
        let previous = if is_directly_in(folder, out) {
            PreviousRun::none(out)
        } else {
            refuse_model_inside(out, folder)?;
            PreviousRun::set_aside(out)?
        };
        later_skipped::write(out, later_skipped)?;
        let home = output_folder_of(folder);
        let metrics = JsonlLog::resume(&out.join(METRICS_FILE), &recorded.metrics)?;
        let skipped = JsonlLog::resume(&out.join(SKIPPED_FILE), &recorded.skipped)?;
        let hashes = TensorHashLog::open(out, home, recorded.step, tensors)?;
        let evaluations = match evaluates || home.join(EVALUATIONS_FILE).exists() {
            true => Some(evaluations::open(out, home, Some(recorded.step))?),
            false => None,
        };
        Ok((Self { metrics, skipped, hashes, evaluations }, previous))
    }

    /// Waits until all lines are on the disk (fsync).
    ///
    /// # Errors
    /// A log cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.skipped.sync()?;
        self.hashes.sync()?;
        self.evaluations.as_ref().map_or(Ok(()), |log| log.sync())
    }

    /// Returns the present length and fingerprint of each log, by file name.
    pub fn digests(&self) -> LogDigests {
        let logs = [
            (METRICS_FILE, self.metrics.digest()),
            (SKIPPED_FILE, self.skipped.digest()),
            (HASHES_FILE, self.hashes.digest()),
        ];
        let evaluations = self.evaluations.as_ref().map(|log| (EVALUATIONS_FILE, log.digest()));
        logs.into_iter().chain(evaluations).map(|(name, digest)| (name.to_string(), digest)).collect()
    }
}

/// The contents of a run's logs up to a checkpoint, after checking them against the checkpoint's digests.
#[derive(Debug)]
pub struct RecordedLogs {
    /// The lines of `metrics.jsonl` up to the checkpoint.
    metrics: Vec<String>,
    /// The lines of `skipped.jsonl` up to the checkpoint.
    skipped: Vec<String>,
    /// Metrics of the last step up to the checkpoint.
    pub last: Option<StepMetrics>,
    /// The step of the checkpoint.
    step: u64,
}

/// Reads the logs up to the checkpoint in `folder` from the output folder of its run: one line of metrics per step, and
/// the skipped rows.
///
/// # Errors
/// A log lacks lines, or differs from what the run wrote.
pub fn recorded_logs(folder: &Path, state: &RunState, digests: &CheckpointDigests) -> Result<RecordedLogs> {
    let home = output_folder_of(folder);
    for name in [METRICS_FILE, SKIPPED_FILE, EVALUATIONS_FILE] {
        digests::verify_log(folder, home, name, digests)?;
    }
    let step = state.step;
    let metrics = log::read_matching_lines(&home.join(METRICS_FILE), |m: &StepMetrics| m.step <= step)?;
    if metrics.len() as u64 != step {
        let what = format!("has {} lines instead of {step}, one per step up to {}", metrics.len(), folder.display());
        let file = home.join(METRICS_FILE).display().to_string();
        return Err(Error::failed(file, what, "put the run's own metrics.jsonl there"));
    }
    let mut skipped = log::read_matching_lines(&home.join(SKIPPED_FILE), |_: &SkippedRow| true)?;
    skipped.truncate(state.position.skipped.len());
    let last = metrics.last().and_then(|line| serde_json::from_str::<StepMetrics>(line).ok());
    Ok(RecordedLogs { metrics, skipped, last, step })
}

/// The output folder of the run that wrote the checkpoint in `folder`.
pub(crate) fn output_folder_of(folder: &Path) -> &Path {
    folder.parent().filter(|home| !home.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
