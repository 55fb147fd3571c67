//! Reads what earlier processes of a run wrote for W&B. Each process writes its own folder (a part of the run) and
//! copies the earlier steps into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value};

use super::log;
use super::record::WandbRecord;
use crate::error::{Error, Result};

const PREFIX: &str = "offline-run-";
const TIME: &str = "%Y%m%d_%H%M%S";

/// Identifies a part of a W&B run by the start time and run id in its folder's name. A part is the data that one
/// process of the run wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WandbRunPart {
    /// Start time of the part, in whole seconds.
    pub start: DateTime<Utc>,
    /// The id of the W&B run.
    pub id: String,
}

/// What a log contains about one step: values and media files.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LoggedStep {
    /// Media files of the step: paths below `files/`.
    pub media: Vec<String>,
    /// Values of the step by name.
    pub values: Map<String, Value>,
}

impl WandbRunPart {
    /// The folder name in the W&B client's format. The time is UTC.
    pub fn folder_name(&self) -> String {
        format!("{PREFIX}{}-{}", self.start.format(TIME), self.id)
    }

    /// Parses the name of a part's folder; `None` if it is not one.
    pub fn of(name: &str) -> Option<Self> {
        let (time, id) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let start = NaiveDateTime::parse_from_str(time, TIME).ok()?.and_utc();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let whole = !id.is_empty() && id.bytes().all(allowed);
        whole.then(|| Self { start, id: id.to_string() })
    }

    pub fn log_file_name(&self) -> String {
        format!("run-{}.wandb", self.id)
    }

    /// Whether `wandb sync` has uploaded this part's folder or begun to upload it. Old clients create a file
    /// `.synced` after an upload, newer clients create a file `.syncstate` when an upload begins. `wandb` is the
    /// folder that contains the part's folder.
    pub fn is_uploaded(&self, wandb: &Path) -> bool {
        ["synced", "syncstate"].iter().any(|mark| self.mark(wandb, mark).exists())
    }

    fn mark(&self, wandb: &Path, mark: &str) -> PathBuf {
        wandb.join(self.folder_name()).join(format!("{}.{mark}", self.log_file_name()))
    }

    /// The folder's hidden name while the steps of earlier parts are copied into it. `wandb sync` ignores hidden
    /// folders.
    pub fn hidden_folder_name(&self) -> String {
        format!(".{}.part", self.folder_name())
    }
}

/// Names of the files and folders in the folder `wandb`.
fn names(wandb: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::cannot_read(wandb, e);
    let entries = match fs::read_dir(wandb) {
        Ok(entries) => entries,
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Returns the part with the latest start time in the folder `wandb`, if any.
pub(super) fn newest_run_part(wandb: &Path) -> Result<Option<WandbRunPart>> {
    Ok(names(wandb)?.iter().filter_map(|name| WandbRunPart::of(name)).max())
}

/// Whether `name` is the hidden folder of a part that a killed process did not complete.
pub(super) fn is_incomplete(name: &str) -> bool {
    name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).and_then(WandbRunPart::of).is_some()
}

/// Removes the incomplete parts of killed processes.
pub(super) fn remove_incomplete_part_folders(wandb: &Path) -> Result<()> {
    for name in names(wandb)?.into_iter().filter(|name| is_incomplete(name)) {
        let path: PathBuf = wandb.join(name);
        fs::remove_dir_all(&path).map_err(|e| Error::cannot_write(&path, e))?;
    }
    Ok(())
}

/// Marks all older parts with the run id of `current` as uploaded, so that `wandb sync` skips them. Their steps are
/// also in `current`.
pub(super) fn mark_older_parts_as_uploaded(wandb: &Path, current: &WandbRunPart) -> Result<()> {
    let others = names(wandb)?.into_iter().filter_map(|name| WandbRunPart::of(&name));
    for part in others.filter(|part| part.id == current.id && part.folder_name() != current.folder_name()) {
        let mark = part.mark(wandb, "synced");
        fs::File::create(&mark).map_err(|e| Error::cannot_write(&mark, e))?;
    }
    Ok(())
}

/// Reads the steps up to `last_step` from a log. Returns them by step number.
pub(super) fn read_logged_steps(log: &Path, last_step: u64) -> Result<BTreeMap<u64, LoggedStep>> {
    let (mut steps, mut media) = (BTreeMap::new(), Vec::new());
    for record in log::read_records(log)?.iter().filter_map(|bytes| WandbRecord::parse(bytes)) {
        // The records of a step's files precede the step's history record in the log.
        media.extend(record.media_paths());
        let Some(values) = record.history_values() else { continue };
        let media = std::mem::take(&mut media);
        if let Some(step) = values.get("_step").and_then(Value::as_u64).filter(|&step| step <= last_step) {
            steps.insert(step, LoggedStep { media, values });
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_folder_has_the_latest_start_time() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest_run_part(&dir.path().join("none")).unwrap(), None);
        for name in [
            "offline-run-20260102_000000-aaaaaaaa",
            "offline-run-20251231_235959-zzzzzzzz",
            ".offline-run-20270101_000000-aaaaaaaa.part",
            "offline-run-x-aaaaaaaa",
            "latest-run",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let part = newest_run_part(dir.path()).unwrap().unwrap();
        assert_eq!(
            (part.folder_name().as_str(), part.id.as_str()),
            ("offline-run-20260102_000000-aaaaaaaa", "aaaaaaaa")
        );
        remove_incomplete_part_folders(dir.path()).unwrap();
        assert_eq!(names(dir.path()).unwrap().len(), 4);
    }
}
