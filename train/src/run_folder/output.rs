//! The output folder of a run (OUT): refused if it has other files, cleared of an earlier run's files with
//! `--overwrite`.

use std::fs;
use std::path::{Path, PathBuf};

use reel_model::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};
use serde_json::Value;

use crate::data::quarantine::{self, QUARANTINE_FILE};
use crate::options::RunOptions;
use crate::reporting::metrics::{self, JsonlLog, SkippedRow, StepMetrics};
use crate::reporting::wandb;
use crate::rollout::ROLLOUTS_FOLDER;
use crate::run_folder::best::TRAINER_STATE_FILE;
use crate::run_folder::checkpoint;
use crate::run_folder::digest;
use crate::run_folder::hashes::HASHES_FILE;
use crate::{Result, TrainError};

/// `metrics.jsonl` in OUT.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// `skipped.jsonl` in OUT.
pub const SKIPPED_FILE: &str = "skipped.jsonl";
/// `run.json` in OUT.
pub const RUN_FILE: &str = "run.json";

/// Where a run starts: at step 1 or after a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum RunStart {
    /// A fresh run starts at step 1.
    Fresh,
    /// A resumed run continues after the step of this checkpoint folder.
    From(PathBuf),
}

impl RunStart {
    /// The folder of the checkpoint that the run resumes from; `None` for a fresh run.
    pub fn checkpoint(&self) -> Option<&Path> {
        match self {
            Self::Fresh => None,
            Self::From(folder) => Some(folder),
        }
    }

    /// The output folder whose logs the run continues: the one that contains the checkpoint; for a fresh run `out`.
    pub fn run_folder<'a>(&'a self, out: &'a Path) -> &'a Path {
        self.checkpoint().map_or(out, |folder| folder.parent().unwrap_or(Path::new("")))
    }
}

/// Decides where the run starts, by its options and by what is in OUT. Changes no file.
pub fn find_run_start(options: &RunOptions) -> Result<RunStart> {
    let out = &options.out;
    let entries = match fs::read_dir(out) {
        // The files of an earlier --check-data may be in OUT; they do not make it count as non-empty.
        Ok(entries) => entries.filter(|entry| !entry.as_ref().is_ok_and(|entry| is_check_file(&entry.path()))).count(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            let what = "is a file, or has a file in place of a parent folder";
            return Err(TrainError::output(format!("--out {}", out.display()), what, "give a folder"));
        }
        Err(e) => return Err(TrainError::cannot_read(out, e)),
    };
    match options.resume_from_checkpoint.as_deref() {
        Some("last") => match checkpoint::checkpoints_by_step(out)?.pop_last() {
            Some((_, path)) => Ok(RunStart::From(path)),
            // The run was stopped before its first checkpoint, so it starts from the beginning.
            None if entries == 0 || out.join(RUN_FILE).is_file() => Ok(RunStart::Fresh),
            None => Err(not_empty(out, "holds no run to resume", "give the OUT of the run, or an empty folder")),
        },
        Some(folder) if entries == 0 || options.overwrite || lies_in(Path::new(folder), out) => {
            Ok(RunStart::From(PathBuf::from(folder)))
        }
        Some(_) => Err(not_empty(
            out,
            "has files that do not belong to the run of the checkpoint",
            "choose an empty folder, or give --overwrite",
        )),
        None if entries == 0 || options.overwrite => Ok(RunStart::Fresh),
        None => Err(not_empty(
            out,
            "is not empty",
            "choose another folder, resume with --resume-from-checkpoint last, or give --overwrite",
        )),
    }
}

fn is_check_file(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name == QUARANTINE_FILE || *name == *quarantine::journal_path(Path::new(QUARANTINE_FILE)))
}

/// Whether `checkpoint` is a folder directly in `out`. True if it does not exist.
fn lies_in(checkpoint: &Path, out: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    // A missing checkpoint gets its own error later.
    real(checkpoint).is_none_or(|path| path.parent().map(Path::to_path_buf) == real(out))
}

fn not_empty(out: &Path, what: &str, help: &str) -> TrainError {
    TrainError::output(format!("--out {}", out.display()), what, help)
}

/// Creates `out`, or removes from it the files of an earlier run. An error if the model to train is in `out`, because
/// it would be removed.
fn clear(out: &Path, model: &Path) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| TrainError::cannot_write(out, e))?;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if real(model).starts_with(real(out)) {
        return Err(not_empty(out, "holds the model to train", "choose another folder"));
    }
    checkpoint::remove_incomplete_files(out)?;
    checkpoint::checkpoints_by_step(out)?.values().try_for_each(|path| checkpoint::remove_checkpoint(path))?;
    match fs::remove_dir_all(out.join(ROLLOUTS_FOLDER)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrainError::cannot_write(out.join(ROLLOUTS_FOLDER), e));
        }
        _ => {}
    }
    wandb::remove_run_folders(out)?;
    for entry in fs::read_dir(out).map_err(|e| TrainError::cannot_read(out, e))? {
        let path = entry.map_err(|e| TrainError::cannot_read(out, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_a_run = [
            METRICS_FILE,
            SKIPPED_FILE,
            RUN_FILE,
            TRAINER_STATE_FILE,
            HASHES_FILE,
            ADAPTER_CONFIG_FILE,
            ADAPTER_WEIGHTS_FILE,
        ]
        .contains(&name.as_str())
            || name.starts_with("events.out.tfevents.");
        if of_a_run
            || name.starts_with("model")
                && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
        {
            fs::remove_file(&path).map_err(|e| TrainError::cannot_write(&path, e))?;
        }
    }
    Ok(())
}

/// The open logs of a run: `metrics.jsonl` and `skipped.jsonl`.
#[derive(Debug)]
pub struct RunLogs {
    /// One line per step.
    pub metrics: JsonlLog,
    /// One line per row that cannot be used.
    pub skipped: JsonlLog,
}

/// Opens the logs of a run that resumes after `step`. Copies into them what the checkpoint's run had logged up to
/// there: `step` lines of metrics and `skipped` lines of skipped rows. If OUT is not that run's folder, an earlier
/// run in OUT is removed.
pub fn resume_logs(out: &Path, checkpoint: &Path, step: u64, skipped: usize) -> Result<RunLogs> {
    fs::create_dir_all(out).map_err(|e| TrainError::cannot_write(out, e))?;
    checkpoint::remove_incomplete_files(out)?;
    let home = checkpoint.parent().filter(|home| !home.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let done = metrics::read_matching_lines(&home.join(METRICS_FILE), |m: &StepMetrics| m.step <= step)?;
    if done.len() as u64 != step {
        let what = format!("has {} lines instead of {step}, one per step up to {}", done.len(), checkpoint.display());
        return Err(TrainError::output(
            home.join(METRICS_FILE).display().to_string(),
            what,
            "put the run's own metrics.jsonl there",
        ));
    }
    if !lies_in(checkpoint, out) {
        clear(out, checkpoint)?;
    }
    let mut skipped_rows = metrics::read_matching_lines(&home.join(SKIPPED_FILE), |_: &SkippedRow| true)?;
    skipped_rows.truncate(skipped);
    Ok(RunLogs {
        metrics: JsonlLog::resume(&out.join(METRICS_FILE), &done)?,
        skipped: JsonlLog::resume(&out.join(SKIPPED_FILE), &skipped_rows)?,
    })
}

/// Opens the logs of a fresh run, after removing any earlier run from the folder. The rows `unusable`, which are
/// already known to be unusable, are logged as skipped.
pub fn fresh_logs(out: &Path, model: &Path, unusable: &[SkippedRow]) -> Result<RunLogs> {
    clear(out, model)?;
    let (metrics, mut skipped) =
        (JsonlLog::create(&out.join(METRICS_FILE))?, JsonlLog::create(&out.join(SKIPPED_FILE))?);
    unusable.iter().try_for_each(|row| skipped.append(row))?;
    Ok(RunLogs { metrics, skipped })
}

/// Writes `run.json`: every resolved option, the version, the device and the fingerprints of model and data.
pub fn write_run_json(out: &Path, run: &Value) -> Result<()> {
    let path = out.join(RUN_FILE);
    let part = out.join(format!(".{RUN_FILE}.part"));
    let failed = |e| TrainError::cannot_write(&path, e);
    let text = serde_json::to_string_pretty(run).map_err(|e| failed(e.into()))?;
    fs::write(&part, text + "\n").map_err(failed)?;
    fs::rename(&part, &path).map_err(failed)
}

/// The fingerprint of the model folder that a run starts from.
pub fn model_folder_fingerprint(model: &Path) -> Result<String> {
    digest::folder_fingerprint(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(out: &Path) -> RunOptions {
        RunOptions { out: out.to_path_buf(), ..Default::default() }
    }

    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }

    #[test]
    fn non_empty_folder_is_refused_without_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        assert_eq!(find_run_start(&options(&out)).unwrap(), RunStart::Fresh);
        touch(out.join("quarantine.jsonl"));
        touch(out.join("quarantine.jsonl.journal"));
        assert_eq!(find_run_start(&options(&out)).unwrap(), RunStart::Fresh);
        touch(out.join("x"));
        let e = find_run_start(&options(&out)).unwrap_err().to_string();
        assert!(e.contains("out: is not empty; ") && e.contains("--overwrite"), "{e}");
        assert_eq!(find_run_start(&RunOptions { overwrite: true, ..options(&out) }).unwrap(), RunStart::Fresh);
        for file in [out.join("x"), out.join("x/below")] {
            let e = find_run_start(&RunOptions { overwrite: true, ..options(&file) }).unwrap_err().to_string();
            assert!(
                e.starts_with("--out ") && e.contains(": is a file, or has a file in place of a parent folder; "),
                "{e}"
            );
        }
    }

    #[test]
    fn last_resumes_the_newest_complete_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let last = || RunOptions { resume_from_checkpoint: Some("last".into()), ..options(out) };
        assert_eq!(find_run_start(&last()).unwrap(), RunStart::Fresh);
        touch(out.join("x"));
        assert!(find_run_start(&last()).unwrap_err().to_string().contains("holds no run to resume"));
        touch(out.join(RUN_FILE));
        assert_eq!(find_run_start(&last()).unwrap(), RunStart::Fresh);
        for step in [2, 9, 10] {
            touch(out.join(format!("checkpoint-{step}/training/state.json")));
        }
        touch(out.join("checkpoint-11/config.json"));
        touch(out.join(".checkpoint-12.part/training/state.json"));
        assert_eq!(find_run_start(&last()).unwrap(), RunStart::From(out.join("checkpoint-10")));
        checkpoint::remove_old_checkpoints(out, Some(1), Some(2)).unwrap();
        assert_eq!(checkpoint::checkpoints_by_step(out).unwrap().into_keys().collect::<Vec<_>>(), [2, 10]);
        checkpoint::remove_incomplete_files(out).unwrap();
        assert!(!out.join(".checkpoint-12.part").exists() && out.join("checkpoint-11").exists());
    }

    #[test]
    fn clearing_removes_only_the_files_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        for name in [
            "metrics.jsonl",
            "run.json",
            "trainer_state.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "adapter_config.json",
            "adapter_model.safetensors",
            "notes.txt",
            "checkpoint-3/training/state.json",
            "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb",
            "wandb/.offline-run-20260101_000000-abcd1234.part/run-abcd1234.wandb",
        ] {
            touch(out.join(name));
        }
        clear(&out, &dir.path().join("model")).unwrap();
        let left: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        touch(out.join("base/config.json"));
        let e = clear(&out, &out.join("base")).unwrap_err().to_string();
        assert!(e.contains("holds the model to train"), "{e}");
    }
}
