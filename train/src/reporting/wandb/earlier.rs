//! Folders of earlier parts of a run, and what of them a further part takes over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value};

use super::log;
use super::record::Record;
use crate::{Result, TrainError};

/// What names of folders begin with.
const PREFIX: &str = "offline-run-";
const TIME: &str = "%Y%m%d_%H%M%S";

/// The folder of one part of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunPart {
    /// When it began, to the second.
    pub start: DateTime<Utc>,
    /// The run's id.
    pub id: String,
}

/// A step as a log has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LoggedStep {
    /// Paths below `files/`.
    pub media: Vec<String>,
    /// Its values by name.
    pub values: Map<String, Value>,
}

impl RunPart {
    /// The folder's name, as the client gives it; the time is UTC.
    pub fn name(&self) -> String {
        format!("{PREFIX}{}-{}", self.start.format(TIME), self.id)
    }

    fn of(name: &str) -> Option<Self> {
        let (time, id) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let start = NaiveDateTime::parse_from_str(time, TIME).ok()?.and_utc();
        let whole = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
        whole.then(|| Self { start, id: id.to_string() })
    }

    /// The log's name.
    pub fn log(&self) -> String {
        format!("run-{}.wandb", self.id)
    }

    /// Whether the client began to upload the folder, of those in `wandb`: it leaves `.synced` at the end, and newer ones `.syncstate` at the start.
    pub fn is_uploaded(&self, wandb: &Path) -> bool {
        ["synced", "syncstate"].iter().any(|mark| self.mark(wandb, mark).exists())
    }

    fn mark(&self, wandb: &Path, mark: &str) -> PathBuf {
        wandb.join(self.name()).join(format!("{}.{mark}", self.log()))
    }

    /// The folder's name until all of the earlier parts is in it.
    pub fn draft(&self) -> String {
        format!(".{}.part", self.name())
    }
}

/// Folders of runs in `wandb`, drafts among them: their names.
fn names(wandb: &Path) -> Result<Vec<String>> {
    let failed = |e| TrainError::read(wandb, e);
    let entries = match fs::read_dir(wandb) {
        Ok(entries) => entries,
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// The newest part in the folder `wandb`.
pub(super) fn newest(wandb: &Path) -> Result<Option<RunPart>> {
    Ok(names(wandb)?.iter().filter_map(|name| RunPart::of(name)).max())
}

/// Removes what a killed run left before its folder had its name, and with `all` every run.
pub(super) fn sweep(wandb: &Path, all: bool) -> Result<()> {
    for name in names(wandb)? {
        let draft = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).and_then(RunPart::of).is_some();
        if draft || all && RunPart::of(&name).is_some() {
            let path: PathBuf = wandb.join(name);
            fs::remove_dir_all(&path).map_err(|e| TrainError::write(&path, e))?;
        }
    }
    Ok(())
}

/// Marks the other folders with the id of `now` as uploaded: all that counts of them is in its folder.
pub(super) fn pass_over(wandb: &Path, now: &RunPart) -> Result<()> {
    let others = names(wandb)?.into_iter().filter_map(|name| RunPart::of(&name));
    for part in others.filter(|part| part.id == now.id && part.name() != now.name()) {
        let mark = part.mark(wandb, "synced");
        fs::File::create(&mark).map_err(|e| TrainError::write(&mark, e))?;
    }
    Ok(())
}

/// The steps up to `last` that the log has.
pub(super) fn steps(log: &Path, last: u64) -> Result<BTreeMap<u64, LoggedStep>> {
    let (mut steps, mut media) = (BTreeMap::new(), Vec::new());
    for record in log::read(log)?.iter().filter_map(|bytes| Record::parse(bytes)) {
        // The files of a step stand before it.
        media.extend(record.media());
        let Some(values) = record.history_values() else { continue };
        let media = std::mem::take(&mut media);
        if let Some(step) = values.get("_step").and_then(Value::as_u64).filter(|&step| step <= last) {
            steps.insert(step, LoggedStep { media, values });
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_folder_is_the_one_that_began_last() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(&dir.path().join("none")).unwrap(), None);
        for name in [
            "offline-run-20260102_000000-aaaaaaaa",
            "offline-run-20251231_235959-zzzzzzzz",
            ".offline-run-20270101_000000-aaaaaaaa.part",
            "offline-run-x-aaaaaaaa",
            "latest-run",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let part = newest(dir.path()).unwrap().unwrap();
        assert_eq!((part.name().as_str(), part.id.as_str()), ("offline-run-20260102_000000-aaaaaaaa", "aaaaaaaa"));
        sweep(dir.path(), false).unwrap();
        assert_eq!(names(dir.path()).unwrap().len(), 4);
        sweep(dir.path(), true).unwrap();
        let mut left = names(dir.path()).unwrap();
        left.sort();
        assert_eq!(left, ["latest-run", "offline-run-x-aaaaaaaa"]);
    }
}
