//! The files and folders that a run has in its output folder OUT. Everything else in OUT belongs to the user and is
//! never moved or removed.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file_names::{
    EVALUATIONS_FILE, EVALUATIONS_FOLDER, HASHES_FILE, METRICS_FILE, ROLLOUTS_FOLDER, RUN_FILE, RUN_STATE_FILE,
    SKIPPED_AFTER_CHECKPOINT_FILE, SKIPPED_FILE, TRAINER_STATE_FILE,
};
use reel_model::lora::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};

use crate::runs::folder::evaluations::is_step_folder;
use crate::runs::reporting::wandb;

/// The files and folders with fixed names.
const FIXED_NAMES: [&str; 10] = [
    METRICS_FILE,
    SKIPPED_FILE,
    SKIPPED_AFTER_CHECKPOINT_FILE,
    RUN_FILE,
    TRAINER_STATE_FILE,
    HASHES_FILE,
    EVALUATIONS_FILE,
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    ROLLOUTS_FOLDER,
];

/// Folders that may also hold files of the user. Only the entries that [`is_run_entry_of`] accepts belong to the run.
pub(super) const SHARED_FOLDERS: [&str; 2] = [wandb::FOLDER, EVALUATIONS_FOLDER];

const CHECKPOINT_PREFIX: &str = "checkpoint-";

/// Returns the name of the folder of a checkpoint: `checkpoint-STEP`.
pub fn checkpoint_folder_name(step: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{step}")
}

/// Returns the step in the name of a checkpoint folder; `None` if the name is not `checkpoint-STEP`.
pub fn step_of_checkpoint_folder(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok()
}

/// Returns the complete checkpoints in `out`: maps a step to the path of its checkpoint folder.
///
/// # Errors
/// The folder `out` exists and cannot be read.
pub fn checkpoints_by_step(out: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let paths = entries_in(out)?.into_iter().map(|entry| entry.path());
    Ok(paths.filter_map(|path| Some((step_of_complete_checkpoint(&path)?, path))).collect())
}

/// Removes the hidden, incomplete files and folders that a killed run left in `out`, and in its folders of rollouts and
/// of evaluations.
///
/// # Errors
/// A folder cannot be read; a file cannot be removed.
pub fn remove_incomplete_files(out: &Path) -> Result<()> {
    let mut folders = vec![out.to_path_buf(), out.join(ROLLOUTS_FOLDER)];
    let evaluations = entries_in(&out.join(EVALUATIONS_FOLDER))?;
    let own = evaluations.iter().filter(|entry| is_step_folder(&entry.file_name().to_string_lossy()));
    folders.extend(own.map(DirEntry::path));
    for folder in folders {
        let paths = entries_in(&folder)?.into_iter().map(|entry| entry.path());
        paths.filter(|path| is_incomplete(path)).try_for_each(|path| remove(&path))?;
    }
    Ok(())
}

/// Returns the files and folders of the run in `out`, as paths relative to `out`, with the files that a killed process
/// left incomplete. Checkpoints without a run state are left out.
///
/// # Errors
/// A folder cannot be read.
pub(super) fn run_entries(out: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = entries_in(out)?;
    entries.retain(|entry| is_run_entry(&entry.path()));
    let mut found: Vec<PathBuf> = entries.iter().map(|entry| entry.file_name().into()).collect();
    for folder in SHARED_FOLDERS {
        let names = entries_in(&out.join(folder))?.into_iter().map(|entry| entry.file_name());
        let own = names.filter(|name| is_run_entry_of(folder, &name.to_string_lossy()));
        found.extend(own.map(|name| Path::new(folder).join(name)));
    }
    Ok(found)
}

fn is_run_entry(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    is_run_file(&name) || is_incomplete(path) || step_of_complete_checkpoint(path).is_some()
}

/// Whether the entry `name` of one of the [`SHARED_FOLDERS`] belongs to the run.
fn is_run_entry_of(folder: &str, name: &str) -> bool {
    match folder {
        wandb::FOLDER => wandb::is_run_folder(name),
        _ => is_step_folder(name),
    }
}

fn is_incomplete(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(".part")
}

fn is_run_file(name: &str) -> bool {
    let is_weight_file =
        name.starts_with("model") && [".safetensors", ".safetensors.index.json"].iter().any(|end| name.ends_with(end));
    FIXED_NAMES.contains(&name) || name.starts_with("events.out.tfevents.") || is_weight_file
}

/// Returns the step of a complete checkpoint; `None` if `folder` is not a checkpoint, or an incomplete one.
fn step_of_complete_checkpoint(folder: &Path) -> Option<u64> {
    step_of_checkpoint_folder(folder).filter(|_| folder.join(RUN_STATE_FILE).is_file())
}

/// Returns the entries of a folder; none if the folder does not exist or is a file.
fn entries_in(folder: &Path) -> Result<Vec<DirEntry>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    match entries {
        Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => Ok(Vec::new()),
        entries => entries.map_err(|e| Error::cannot_read(folder, e)),
    }
}

/// Removes a file or a folder with its contents.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|e| Error::cannot_write(path, e))
}
