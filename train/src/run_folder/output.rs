//! The output folder of a run (OUT): locked while a process writes it, refused if it has other files; with
//! `--overwrite` an earlier run's files are replaced.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reel_diagnostic::{Diagnostic, input};
use reel_model::save::{FOLDER_LOCK_FILE, FolderLock, LockError};
use serde_json::Value;

use crate::data::quarantine::{self, QUARANTINE_FILE};
use crate::options::RunOptions;
use crate::reporting::metrics::{self, JsonlLog, SkippedRow, StepMetrics};
use crate::run_folder::checkpoint::{self, write_synced_with_mode};
use crate::run_folder::digest;
use crate::run_folder::digests::{self, CheckpointDigests};
use crate::run_folder::evaluations::EVALUATIONS_FILE;
use crate::run_folder::later_skipped;
use crate::run_folder::previous::PreviousRun;
use crate::run_folder::resume::RunState;
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

/// Locks OUT for this process, until the returned lock is dropped, and restores what a killed process left half done
/// there.
///
/// # Errors
/// Another process writes OUT, or OUT cannot be created.
pub fn lock(out: &Path) -> Result<FolderLock> {
    let lock = FolderLock::acquire(out).map_err(|e| lock_error(e, "--out", out))?;
    PreviousRun::recover(out)?;
    Ok(lock)
}

/// The error of a lock for the file or folder `path` of the option `flag`.
pub(crate) fn lock_error(e: LockError, flag: &str, path: &Path) -> TrainError {
    let refuse = |what: String, help: &str| TrainError::output(format!("{flag} {}", path.display()), what, help);
    match e {
        LockError::InUse(holder) => {
            refuse(format!("is in use by {holder}"), "wait until that process ends, or give another path")
        }
        LockError::Io(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            refuse("is a file, or has a file in place of a parent folder".into(), "give a folder")
        }
        LockError::Io(e) => TrainError::cannot_write(path, e),
    }
}

/// Decides where the run starts, by its options and by what is in OUT. Changes no file.
pub fn find_run_start(options: &RunOptions) -> Result<RunStart> {
    let out = &options.out;
    let entries = match fs::read_dir(out) {
        // The lock and the files of an earlier --check-data do not make OUT count as non-empty.
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
            None => Err(TrainError::option(
                "--resume-from-checkpoint",
                format!("{} has no checkpoint", out.display()),
                match out.join(RUN_FILE).is_file() {
                    true => "give --overwrite instead, to start its run again from the first step",
                    false => "leave it out to start a new run, or give the --out of the run to resume",
                },
            )),
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
            match checkpoint::checkpoints_by_step(out)?.is_empty() {
                true => "choose another folder, or give --overwrite",
                false => "choose another folder, resume with --resume-from-checkpoint last, or give --overwrite",
            },
        )),
    }
}

fn is_check_file(path: &Path) -> bool {
    let list = Path::new(QUARANTINE_FILE);
    let own =
        [list.to_path_buf(), quarantine::journal_path(list), quarantine::lock_path(list), FOLDER_LOCK_FILE.into()];
    path.file_name().is_some_and(|name| own.iter().any(|own| own == Path::new(name)))
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

/// Refuses a run whose model, or checkpoint to resume from, is in OUT: it would be replaced.
fn refuse_model_inside(out: &Path, model: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match real(model).starts_with(real(out)) {
        true => Err(not_empty(out, "holds the model to train", "choose another folder")),
        false => Ok(()),
    }
}

/// The open logs of a run: `metrics.jsonl` and `skipped.jsonl`.
#[derive(Debug)]
pub struct RunLogs {
    /// One line per step.
    pub metrics: JsonlLog,
    /// One line per row that cannot be used.
    pub skipped: JsonlLog,
    /// What the run replaces in OUT, until its first step is done.
    pub previous: PreviousRun,
}

/// What the checkpoint in `folder` says about the logs of its run, checked against the logs themselves.
#[derive(Debug)]
pub struct RecordedLogs {
    /// The lines of `metrics.jsonl` up to the checkpoint.
    metrics: Vec<String>,
    /// The lines of `skipped.jsonl` up to the checkpoint.
    skipped: Vec<String>,
    /// The last of these steps.
    pub last: Option<StepMetrics>,
}

/// Reads what the run that wrote the checkpoint in `folder` had logged up to there: one line of metrics per step, and
/// the skipped rows.
///
/// # Errors
/// The logs lack lines, or are not what the run wrote.
pub fn recorded_logs(folder: &Path, state: &RunState, digests: Option<&CheckpointDigests>) -> Result<RecordedLogs> {
    let home = home_of(folder);
    for name in [METRICS_FILE, SKIPPED_FILE, EVALUATIONS_FILE] {
        digests::verify_log(folder, home, name, digests)?;
    }
    let step = state.step;
    let metrics = metrics::read_matching_lines(&home.join(METRICS_FILE), |m: &StepMetrics| m.step <= step)?;
    if metrics.len() as u64 != step {
        let what = format!("has {} lines instead of {step}, one per step up to {}", metrics.len(), folder.display());
        let file = home.join(METRICS_FILE).display().to_string();
        return Err(TrainError::output(file, what, "put the run's own metrics.jsonl there"));
    }
    let mut skipped = metrics::read_matching_lines(&home.join(SKIPPED_FILE), |_: &SkippedRow| true)?;
    skipped.truncate(state.position.skipped.len());
    let last = metrics.last().and_then(|line| serde_json::from_str::<StepMetrics>(line).ok());
    Ok(RecordedLogs { metrics, skipped, last })
}

/// The output folder of the run that wrote the checkpoint in `folder`.
fn home_of(folder: &Path) -> &Path {
    folder.parent().filter(|home| !home.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens the logs of a run that resumes from the checkpoint in `folder`, with the lines up to there. `later_skipped`
/// are the rows that the run skipped after it. If OUT is not the folder of the checkpoint's run, an earlier run in OUT
/// is set aside.
///
/// # Errors
/// The logs cannot be written.
pub fn resume_logs(out: &Path, folder: &Path, logs: &RecordedLogs, later_skipped: &[SkippedRow]) -> Result<RunLogs> {
    fs::create_dir_all(out).map_err(|e| TrainError::cannot_write(out, e))?;
    checkpoint::remove_incomplete_files(out)?;
    let previous = if lies_in(folder, out) {
        PreviousRun::none(out)
    } else {
        refuse_model_inside(out, folder)?;
        PreviousRun::set_aside(out)?
    };
    later_skipped::write(out, later_skipped)?;
    Ok(RunLogs {
        metrics: JsonlLog::resume(&out.join(METRICS_FILE), &logs.metrics)?,
        skipped: JsonlLog::resume(&out.join(SKIPPED_FILE), &logs.skipped)?,
        previous,
    })
}

/// Opens the logs of a fresh run, after setting any earlier run in OUT aside. The rows `unusable`, which are already
/// known to be unusable, are logged as skipped.
///
/// # Errors
/// The model to train is in OUT, or a file cannot be moved or written.
pub fn fresh_logs(out: &Path, model: &Path, unusable: &[SkippedRow]) -> Result<RunLogs> {
    fs::create_dir_all(out).map_err(|e| TrainError::cannot_write(out, e))?;
    refuse_model_inside(out, model)?;
    let previous = PreviousRun::set_aside(out)?;
    let (metrics, mut skipped) =
        (JsonlLog::create(&out.join(METRICS_FILE))?, JsonlLog::create(&out.join(SKIPPED_FILE))?);
    unusable.iter().try_for_each(|row| skipped.append(row))?;
    Ok(RunLogs { metrics, skipped, previous })
}

/// Whether OUT has the trained model of the run whose last step the checkpoint in `folder` is after: OUT's weights are
/// those of the checkpoint.
///
/// # Errors
/// A weight file cannot be read.
pub fn has_final_model(out: &Path, folder: &Path) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(|e| TrainError::cannot_read(folder, e))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let weights: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".safetensors")).collect();
    for name in &weights {
        let own = out.join(name);
        if !own.exists() || digest::file_fingerprint(&own)? != digest::file_fingerprint(&folder.join(name))? {
            return Ok(false);
        }
    }
    Ok(lies_in(folder, out) && !weights.is_empty())
}

/// Whether a run's options hold a command of the user, which may contain secrets. Files with them are readable by the
/// user alone.
pub(crate) fn holds_commands(options: &Value) -> bool {
    options.get("reward_command").is_some_and(|command| !command.is_null())
}

/// Writes `run.json`: every resolved option, the version, the device and the fingerprints of model and data.
pub fn write_run_json(out: &Path, run: &Value) -> Result<()> {
    let path = out.join(RUN_FILE);
    let part = out.join(format!(".{RUN_FILE}.part"));
    let failed = |e| TrainError::cannot_write(&path, e);
    let text = format!("{:#}\n", digests::with_own_digest(run.clone()));
    write_synced_with_mode(&part, text.as_bytes(), holds_commands(&run["options"])).map_err(failed)?;
    fs::rename(&part, &path).map_err(failed)
}

/// Reads the `run.json` of the run in `out`.
///
/// # Errors
/// The file cannot be read, is not a JSON object, or is not what the run wrote.
pub fn read_run_json(out: &Path) -> Result<Value> {
    let path = out.join(RUN_FILE);
    let text = input::read_file(&path, input::MAX_MESSAGES_BYTES).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let what = format!("is not the output folder of a run: it has no {RUN_FILE}");
            TrainError::output(out.display().to_string(), what, "give the --out of reel sft or reel grpo")
        }
        _ => TrainError::cannot_read(&path, e),
    })?;
    let damaged =
        |what: String, help: &str| TrainError::Damaged(Diagnostic::new(path.display().to_string(), what, help));
    let restore = "restore it from a copy, or remove it: a resume works without it, a replay does not";
    // A folder with the log of steps is that of a run.
    let help = if out.join(METRICS_FILE).exists() { restore } else { "give the output folder of a run" };
    let run: Value = serde_json::from_slice(&text).map_err(|e| damaged(format!("is not JSON: {e}"), help))?;
    if !run.is_object() {
        return Err(damaged("is not a JSON object".into(), help));
    }
    match digests::has_its_own_digest(&run) {
        true => Ok(run),
        false => Err(damaged("is damaged: it is not what the run wrote".into(), restore)),
    }
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
        assert!(e.ends_with("out: is not empty; choose another folder, or give --overwrite"), "{e}");
        touch(out.join("checkpoint-2/training/state.json"));
        let e = find_run_start(&options(&out)).unwrap_err().to_string();
        assert!(e.contains("out: is not empty; ") && e.contains("resume with --resume-from-checkpoint last"), "{e}");
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
        let refused = |help: &str| {
            let e = find_run_start(&last()).unwrap_err();
            let start = format!("--resume-from-checkpoint: {} has no checkpoint; {help}", out.display());
            assert!(e.is_usage_error() && e.to_string().starts_with(&start), "{e}");
        };
        refused("leave it out");
        touch(out.join("x"));
        refused("leave it out");
        touch(out.join(RUN_FILE));
        refused("give --overwrite");
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
    fn model_inside_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        touch(out.join("base/config.json"));
        let e = fresh_logs(&out, &out.join("base"), &[]).unwrap_err().to_string();
        assert!(e.contains("holds the model to train"), "{e}");
    }

    #[test]
    fn run_json_that_is_no_object_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["5", "[]", "\"x\"", "null", "{"] {
            fs::write(dir.path().join(RUN_FILE), text).unwrap();
            let e = read_run_json(dir.path()).unwrap_err().to_string();
            assert!(e.contains("run.json: is not ") && e.ends_with("; give the output folder of a run"), "{e}");
        }
        // In the folder of a run, it was cut short.
        fs::write(dir.path().join(METRICS_FILE), "").unwrap();
        let e = read_run_json(dir.path()).unwrap_err().to_string();
        assert!(e.contains("run.json: is not JSON") && e.contains("; restore it from a copy, or remove it: "), "{e}");
    }

    #[test]
    fn run_json_is_private_where_it_holds_commands() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(dir.path().join(RUN_FILE)).unwrap().permissions().mode() & 0o077;
        let run = |command: Value| serde_json::json!({"options": {"reward_command": command}});
        write_run_json(dir.path(), &run(Value::Null)).unwrap();
        let plain = mode();
        for command in [serde_json::json!("curl -H 'Authorization: x'"), serde_json::json!(["a", "b"])] {
            write_run_json(dir.path(), &run(command)).unwrap();
            assert_eq!(mode(), 0);
        }
        write_run_json(dir.path(), &run(Value::Null)).unwrap();
        assert_eq!(mode(), plain);
        assert_eq!(read_run_json(dir.path()).unwrap()["options"]["reward_command"], Value::Null);
    }
}
