//! The rows of a data file, whatever its format.

use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::text::TextRows;

/// The rows of a data file.
#[derive(Debug)]
pub struct Table {
    rows: TextRows,
}

impl Table {
    /// Opens a data file: JSON (a list of rows) or JSONL (one row per line). Rows of a JSONL file are parsed later, by
    /// [`Self::value`].
    ///
    /// # Errors
    /// The file cannot be read, has no rows, or is a list that is not JSON.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { rows: TextRows::open(path)? })
    }

    /// Finds the rows in a JSON or JSONL text. `path` is for error messages.
    ///
    /// # Errors
    /// The text has no rows, or is a list that is not JSON.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        Ok(Self { rows: TextRows::parse(path, text)? })
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Always false: [`Self::open`] refuses files without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The JSON value of row `index`, counted from 0: an object with the columns in the order of the file. A row of a
    /// JSON or JSONL file may be another value; its user checks that.
    ///
    /// # Errors
    /// The row is not JSON or not UTF-8.
    pub fn value(&self, index: usize) -> Result<Value> {
        self.rows.value(index)
    }

    /// `FILE:LINE` of row `index`, for messages.
    pub fn location(&self, index: usize) -> String {
        self.rows.location(index)
    }

    /// The line of row `index`, counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        self.rows.line_number(index)
    }

    /// Fingerprint of the content of the file, by which a resumed run recognises its data.
    pub fn fingerprint(&self) -> String {
        self.rows.fingerprint()
    }
}

#[cfg(test)]
mod tests;
