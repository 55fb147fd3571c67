//! Rows that a run skipped.

use serde::{Deserialize, Serialize};

use crate::error::{Error, SkipCause};

/// A row that could not be used: one line of `skipped.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// The row, counted from 0.
    pub row: usize,
    /// The line of this row in the data file, counted from 1.
    pub line: usize,
    /// Why the row was skipped.
    pub cause: SkipCause,
    /// The error that made the row unusable.
    pub reason: String,
}

impl SkippedRow {
    /// Records that row `row`, at line `line` of the data file, cannot be used because of the error `e`.
    pub fn new(row: usize, line: usize, e: &Error) -> Self {
        Self { row, line, cause: e.skip_cause(), reason: e.to_string() }
    }
}
