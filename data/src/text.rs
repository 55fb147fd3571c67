//! The rows of a JSON or JSONL text. Only the text and the byte range of each row are kept in memory; a row is parsed
//! when it is used.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use reel_diagnostic::input;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{DataError, Result, fingerprint};

/// The rows of a JSON or JSONL text.
#[derive(Debug)]
pub(crate) struct TextRows {
    path: PathBuf,
    text: String,
    rows: Vec<RowPosition>,
}

/// The byte range and line number of a row in the text of a data file.
#[derive(Clone, Debug)]
struct RowPosition {
    bytes: Range<usize>,
    line: usize,
    /// Whether the row's line has bytes that are not UTF-8. In `text` they are replaced by U+FFFD, and using the row
    /// is an error.
    damaged: bool,
}

const NOT_UTF8: &str = "is not UTF-8";
const SAVE_UTF8: &str = "save the file as UTF-8";
const LISTS: &str = "write a JSON list of objects, or JSONL: one object per line";

impl TextRows {
    /// Reads a data file. Rows of a JSONL file are parsed and checked later, by [`Self::row`].
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| DataError::cannot_read(path, &e))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(path, text),
            Err(e) => Self::parse_damaged(path, e.as_bytes()),
        }
    }

    /// Finds the rows in the text of a data file. `path` is for error messages.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        let start = text.len() - text.trim_start_matches('\u{feff}').trim_start().len();
        let rows = if text[start..].starts_with('[') { list(path, &text, start)? } else { lines(&text, start) };
        Self::of_rows(path, text, rows)
    }

    /// Finds the rows of a file that is not valid UTF-8. In JSONL only lines with invalid bytes are unusable; a JSON
    /// list is refused as a whole.
    fn parse_damaged(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged: BTreeSet<usize> = (1..)
            .zip(bytes.split(|&b| b == b'\n'))
            .filter(|(_, l)| str::from_utf8(l).is_err())
            .map(|(n, _)| n)
            .collect();
        let text = String::from_utf8_lossy(bytes).into_owned();
        let start = text.len() - text.trim_start_matches('\u{feff}').trim_start().len();
        if text[start..].starts_with('[') {
            let line = damaged.first().copied().unwrap_or(1);
            return Err(DataError::data(format!("{}:{line}", path.display()), NOT_UTF8, SAVE_UTF8));
        }
        let mut rows = lines(&text, start);
        rows.iter_mut().for_each(|row| row.damaged = damaged.contains(&row.line));
        Self::of_rows(path, text, rows)
    }

    fn of_rows(path: &Path, text: String, rows: Vec<RowPosition>) -> Result<Self> {
        if rows.is_empty() {
            return Err(DataError::data(path.display().to_string(), "has no rows", LISTS));
        }
        Ok(Self { path: path.to_path_buf(), text, rows })
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The JSON value of row `index`, counted from 0, unchecked.
    pub fn value(&self, index: usize) -> Result<Value> {
        let RowPosition { bytes, damaged, .. } = &self.rows[index];
        if *damaged {
            return Err(DataError::data(self.location(index), NOT_UTF8, SAVE_UTF8));
        }
        serde_json::from_str(&self.text[bytes.clone()])
            .map_err(|e| DataError::data(self.location(index), format!("is not JSON: {e}"), LISTS))
    }

    /// The whole text. Fails if a line is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        match self.rows.iter().position(|row| row.damaged) {
            Some(row) => Err(DataError::data(self.location(row), NOT_UTF8, SAVE_UTF8)),
            None => Ok(&self.text),
        }
    }

    /// `FILE:LINE` of row `index`, for messages.
    pub fn location(&self, index: usize) -> String {
        format!("{}:{}", self.path.display(), self.line_number(index))
    }

    /// The line of row `index`, counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        self.rows[index].line
    }

    /// Fingerprint of the file's text, by which a resumed run recognises its data.
    pub fn fingerprint(&self) -> String {
        fingerprint::bytes_fingerprint(self.text.as_bytes())
    }
}

fn lines(text: &str, start: usize) -> Vec<RowPosition> {
    let mut rows = Vec::new();
    let mut at = start;
    let first = 1 + text[..start].matches('\n').count();
    for (line, piece) in (first..).zip(text[start..].split('\n')) {
        let row = piece.trim();
        if !row.is_empty() {
            let begin = at + (piece.len() - piece.trim_start().len());
            rows.push(RowPosition { bytes: begin..begin + row.len(), line, damaged: false });
        }
        at += piece.len() + 1;
    }
    rows
}

fn list(path: &Path, text: &str, start: usize) -> Result<Vec<RowPosition>> {
    let found: Vec<&RawValue> = serde_json::from_str(&text[start..]).map_err(|e| {
        let line = e.line() + text[..start].matches('\n').count();
        DataError::data(format!("{}:{line}", path.display()), format!("is not JSON: {e}"), LISTS)
    })?;
    let (mut line, mut seen) = (1, 0);
    Ok(found
        .into_iter()
        .map(|raw| {
            let begin = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            line += text[seen..begin].matches('\n').count();
            seen = begin;
            RowPosition { bytes: begin..begin + raw.get().len(), line, damaged: false }
        })
        .collect())
}
