//! Reads and writes `OUT/.skipped-later.jsonl`. The file lists the rows that a stopped run skipped after the
//! checkpoint from which the run is resumed.
//!
//! A row can fail by accident, for example when a busy machine kills the row's decoder. The resumed run skips the same
//! rows when it reaches them, so the set of skipped rows does not depend on how often the run was stopped. The file is
//! removed when the run ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use crate::error::{Error, Result};
use crate::file_names::{SKIPPED_AFTER_CHECKPOINT_FILE, SKIPPED_FILE};
use reel_samples::skipped_row::SkippedRow;
use reel_support::files::log::{self, JsonlLog};

/// Returns the rows that the run in `home` skipped after a checkpoint. `known` are the rows skipped before the
/// checkpoint.
///
/// # Errors
/// A file cannot be read.
pub fn read(home: &Path, known: &[usize]) -> Result<Vec<SkippedRow>> {
    let known: BTreeSet<usize> = known.iter().copied().collect();
    let mut rows: BTreeMap<usize, SkippedRow> = BTreeMap::new();
    for file in [SKIPPED_AFTER_CHECKPOINT_FILE, SKIPPED_FILE] {
        for line in log::read_matching_lines(&home.join(file), |row: &SkippedRow| !known.contains(&row.row))? {
            if let Ok(row) = serde_json::from_str::<SkippedRow>(&line) {
                rows.insert(row.row, row);
            }
        }
    }
    Ok(rows.into_values().collect())
}

/// Writes `rows` to the file in `out`. Must be called before `skipped.jsonl` is cut back to the checkpoint, so that no
/// row is lost if the process is killed.
///
/// # Errors
/// The file cannot be written.
pub fn write(out: &Path, rows: &[SkippedRow]) -> Result<()> {
    if rows.is_empty() {
        return remove(out);
    }
    let failed =
        |e: serde_json::Error| Error::cannot_write(out.join(SKIPPED_AFTER_CHECKPOINT_FILE), std::io::Error::from(e));
    let lines = rows.iter().map(|row| serde_json::to_string(row).map_err(failed)).collect::<Result<Vec<_>>>()?;
    JsonlLog::resume(&out.join(SKIPPED_AFTER_CHECKPOINT_FILE), &lines)?;
    Ok(())
}

/// Removes the file at the end of the run.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(out: &Path) -> Result<()> {
    let path = out.join(SKIPPED_AFTER_CHECKPOINT_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::cannot_write(&path, e)),
        _ => Ok(()),
    }
}
