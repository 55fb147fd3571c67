//! Checks and locks the output folder of a run (OUT). One process at a time may write OUT. A new run is refused if OUT
//! has files; with `--overwrite` it replaces an earlier run's files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file_names::{METRICS_FILE, QUARANTINE_FILE, RUN_FILE};
use crate::options::RunOptions;
use reel_samples::quarantine;
use reel_support::diagnostic::input;
use reel_support::files::json::{contains_commands, has_valid_digest, with_digest};
use reel_support::files::{FOLDER_LOCK_FILE, FolderLock, digest, replace_synced};
use serde_json::Value;

use crate::runs::folder::entries;
use crate::runs::folder::previous::PreviousRun;

/// Where a run starts: at step 1 or after a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum RunStart {
    /// A fresh run starts at step 1.
    Fresh,
    /// A resumed run continues after the step of this checkpoint folder.
    From(PathBuf),
}

impl RunStart {
    /// The checkpoint folder from which the run resumes; `None` for a fresh run.
    pub fn checkpoint(&self) -> Option<&Path> {
        match self {
            Self::Fresh => None,
            Self::From(folder) => Some(folder),
        }
    }
}

/// Locks OUT for this process until the returned lock is dropped. Then restores an earlier run in OUT that a killed
/// process was replacing.
///
/// # Errors
/// Another process writes OUT, or OUT cannot be created.
pub fn lock_output_folder(out: &Path) -> Result<FolderLock> {
    let lock = FolderLock::acquire(out).map_err(|e| Error::cannot_lock(e, "--out", out))?;
    PreviousRun::recover(out)?;
    Ok(lock)
}

/// If an error says that the disk is full, adds how to continue the run in `out`, which depends on whether the run
/// has a checkpoint. Other errors are returned unchanged.
pub(crate) fn with_help_to_continue(e: Error, out: &Path) -> Error {
    let Some(remedy) = e.remedy_for_space() else { return e };
    let has_checkpoint = entries::checkpoints_by_step(out).is_ok_and(|found| !found.is_empty());
    let then = match (has_checkpoint, out.join(RUN_FILE).exists()) {
        (true, _) => "resume with --resume-from-checkpoint last",
        (false, true) => "start the run again with --overwrite",
        (false, false) => "start the run again",
    };
    e.with_help(format!("{remedy}, then {then}"))
}

/// Decides where the run starts, from its options and the files in OUT. Changes no file.
pub fn find_run_start(options: &RunOptions) -> Result<RunStart> {
    let out = &options.out;
    let entries = match fs::read_dir(out) {
        // OUT counts as empty if it has only the lock, the rendezvous file of the ranks, or the files of an earlier
        // `--check-data`.
        Ok(entries) => entries.filter(|entry| !entry.as_ref().is_ok_and(|entry| is_check_file(&entry.path()))).count(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            let what = "is a file, or has a file in place of a parent folder";
            return Err(Error::failed(format!("--out {}", out.display()), what, "give a folder"));
        }
        Err(e) => return Err(Error::cannot_read(out, e)),
    };
    match options.resume_from_checkpoint.as_deref() {
        Some("last") => match entries::checkpoints_by_step(out)?.pop_last() {
            Some((_, path)) => Ok(RunStart::From(path)),
            None => Err(Error::usage(
                "--resume-from-checkpoint",
                format!("{} has no checkpoint", out.display()),
                match out.join(RUN_FILE).is_file() {
                    true if options.overwrite => {
                        "leave it out: --overwrite alone starts the run again from the first step"
                    }
                    true => "give --overwrite instead, to start the run again from the first step",
                    false => "leave it out to start a new run, or give the --out of the run to resume",
                },
            )),
        },
        Some(folder) if entries == 0 || options.overwrite || is_directly_in(Path::new(folder), out) => {
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
            match entries::checkpoints_by_step(out)?.is_empty() {
                true => "choose another folder, or give --overwrite",
                false => "choose another folder, resume with --resume-from-checkpoint last, or give --overwrite",
            },
        )),
    }
}

/// Whether the run resumes in OUT and `--overwrite` is also given. The option then replaces nothing. Scripts for TRL
/// give both options.
pub fn is_overwrite_without_effect(options: &RunOptions, start: &RunStart) -> bool {
    let resumes_in_out = |folder: &Path| folder.exists() && is_directly_in(folder, &options.out);
    options.overwrite && start.checkpoint().is_some_and(resumes_in_out)
}

fn is_check_file(path: &Path) -> bool {
    let list = Path::new(QUARANTINE_FILE);
    let own =
        [list.to_path_buf(), quarantine::journal_path(list), quarantine::lock_path(list), FOLDER_LOCK_FILE.into()];
    path.file_name().is_some_and(|name| {
        own.iter().any(|own| own == Path::new(name)) || reel_support::ranks::is_rendezvous_file(&name.to_string_lossy())
    })
}

/// Whether `checkpoint` is a folder directly in `out`. Also true if `checkpoint` does not exist.
pub(super) fn is_directly_in(checkpoint: &Path, out: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    // A missing checkpoint is reported later, by the code that reads it.
    real(checkpoint).is_none_or(|path| path.parent().map(Path::to_path_buf) == real(out))
}

fn not_empty(out: &Path, what: &str, help: &str) -> Error {
    Error::failed(format!("--out {}", out.display()), what, help)
}

/// Refuses a run if its model, or the checkpoint from which it resumes, is in OUT, because the run would replace it.
pub(super) fn refuse_model_inside(out: &Path, model: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match real(model).starts_with(real(out)) {
        true => Err(not_empty(out, "holds the model to train", "choose another folder")),
        false => Ok(()),
    }
}

/// Whether OUT holds the final model of a finished run whose last checkpoint is `folder`: the checkpoint is in OUT, and
/// OUT's weight files equal the checkpoint's.
///
/// # Errors
/// A weight file cannot be read.
pub fn has_final_model(out: &Path, folder: &Path) -> Result<bool> {
    let entries = fs::read_dir(folder).map_err(|e| Error::cannot_read(folder, e))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let weights: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".safetensors")).collect();
    for name in &weights {
        let own = out.join(name);
        if !own.exists() || digest::file_fingerprint(&own)? != digest::file_fingerprint(&folder.join(name))? {
            return Ok(false);
        }
    }
    Ok(is_directly_in(folder, out) && !weights.is_empty())
}

/// Writes `run.json`: every resolved option, the version, the device and the fingerprints of model and data.
pub fn write_run_json(out: &Path, run: &Value) -> Result<()> {
    let path = out.join(RUN_FILE);
    let text = format!("{:#}\n", with_digest(run.clone()));
    replace_synced(&path, text.as_bytes(), contains_commands(&run["options"]))
        .map_err(|e| Error::cannot_write(&path, e))
}

/// Reads the `run.json` of the run in `out`.
///
/// # Errors
/// The file cannot be read, is not a JSON object, or is not what the run wrote.
pub fn read_run_json(out: &Path) -> Result<Value> {
    let path = out.join(RUN_FILE);
    let text = input::read_file(&path, input::MAX_MESSAGES_BYTES).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let why = if out.exists() { format!("it has no {RUN_FILE}") } else { "it does not exist".into() };
            let what = format!("is not the output folder of a run: {why}");
            Error::failed(out.display().to_string(), what, "give the --out of reel sft or reel grpo")
        }
        _ => Error::cannot_read(&path, e),
    })?;
    let damaged = |what: String, help: &str| Error::damaged(path.display().to_string(), what, help);
    let restore = "restore it from a copy, or remove it: a resume works without it, a replay does not";
    // A folder with a `metrics.jsonl` is the output folder of a run.
    let help = if out.join(METRICS_FILE).exists() { restore } else { "give the output folder of a run" };
    let run: Value = serde_json::from_slice(&text).map_err(|e| damaged(format!("is not JSON: {e}"), help))?;
    if !run.is_object() {
        return Err(damaged("is not a JSON object".into(), help));
    }
    match has_valid_digest(&run) {
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
        crate::runs::folder::checkpoint::remove_old_checkpoints(out, Some(1), Some(2)).unwrap();
        assert_eq!(entries::checkpoints_by_step(out).unwrap().into_keys().collect::<Vec<_>>(), [2, 10]);
        let left = ["rollouts/.000003.jsonl.3f9a.part", "eval/step-2/.b.jsonl.77aa.part"].map(|name| out.join(name));
        let of_others = ["rollouts/000003.jsonl", "eval/mine/.x.part", "mine/.x.part"].map(|name| out.join(name));
        left.iter().chain(&of_others).for_each(|path| touch(path.clone()));
        entries::remove_incomplete_files(out).unwrap();
        assert!(!out.join(".checkpoint-12.part").exists() && out.join("checkpoint-11").exists());
        assert!(left.iter().all(|path| !path.exists()) && of_others.iter().all(|path| path.exists()));
    }

    #[test]
    fn model_inside_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        touch(out.join("base/config.json"));
        let e = refuse_model_inside(&out, &out.join("base")).unwrap_err().to_string();
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
        // If the folder has a `metrics.jsonl`, it belongs to a run, and the error says how to restore `run.json`.
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

    /// After a full disk, the help text recommends resuming from a checkpoint only if a checkpoint exists.
    #[test]
    fn full_disk_help_names_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let said = |kind| {
            let e = Error::cannot_write(out.join("metrics.jsonl"), std::io::Error::from(kind));
            with_help_to_continue(e, out).to_string()
        };
        let full = || said(ErrorKind::StorageFull);
        assert!(full().ends_with("the disk is full; free space on that disk, then start the run again"), "{}", full());
        fs::write(out.join(RUN_FILE), "{}").unwrap();
        assert!(full().ends_with("then start the run again with --overwrite"), "{}", full());
        fs::create_dir_all(out.join("checkpoint-2/training")).unwrap();
        fs::write(out.join("checkpoint-2/training/state.json"), "{}").unwrap();
        assert!(full().ends_with("then resume with --resume-from-checkpoint last"), "{}", full());
        let limit = said(ErrorKind::FileTooLarge);
        assert!(
            limit
                .ends_with("raise the limit on file sizes (ulimit -f), then resume with --resume-from-checkpoint last")
        );
        assert!(!said(ErrorKind::PermissionDenied).contains("resume"));
    }
}
