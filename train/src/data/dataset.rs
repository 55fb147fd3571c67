//! A data file: JSON (a list of rows) or JSONL (one row per line). Only its text and the byte range of each row are
//! kept in memory; a row is parsed when it is used.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use reel_diagnostic::{Diagnostic, input};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::data::rows::DataRow;
use crate::run_folder::digest;
use crate::{Result, TrainError};

/// The rows of a data file.
#[derive(Debug)]
pub struct Dataset {
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

impl Dataset {
    /// Reads a data file. Rows of a JSONL file are parsed and checked later, by [`Self::row`].
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| TrainError::cannot_read(path, e))?;
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
            return Err(TrainError::data(format!("{}:{line}", path.display()), NOT_UTF8, SAVE_UTF8));
        }
        let mut rows = lines(&text, start);
        rows.iter_mut().for_each(|row| row.damaged = damaged.contains(&row.line));
        Self::of_rows(path, text, rows)
    }

    fn of_rows(path: &Path, text: String, rows: Vec<RowPosition>) -> Result<Self> {
        if rows.is_empty() {
            return Err(TrainError::data(path.display().to_string(), "has no rows", LISTS));
        }
        Ok(Self { path: path.to_path_buf(), text, rows })
    }

    /// Adds the file name and the line of row `index` to an error of that row.
    pub fn add_location_to_error<T>(&self, index: usize, result: Result<T, Diagnostic>) -> Result<T> {
        result.map_err(|diagnostic| TrainError::Data(diagnostic.at(self.location(index))))
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Always false: [`Self::open`] refuses files without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Parses row `index`, counted from 0, and checks its fields.
    pub fn row(&self, index: usize) -> Result<DataRow> {
        self.add_location_to_error(index, DataRow::parse(self.value(index)?))
    }

    /// The JSON value of row `index`, counted from 0, unchecked.
    pub fn value(&self, index: usize) -> Result<Value> {
        let RowPosition { bytes, damaged, .. } = &self.rows[index];
        if *damaged {
            return Err(TrainError::data(self.location(index), NOT_UTF8, SAVE_UTF8));
        }
        serde_json::from_str(&self.text[bytes.clone()])
            .map_err(|e| TrainError::data(self.location(index), format!("is not JSON: {e}"), LISTS))
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
        digest::bytes_fingerprint(self.text.as_bytes())
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
        TrainError::data(format!("{}:{line}", path.display()), format!("is not JSON: {e}"), LISTS)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Dataset> {
        Dataset::parse(Path::new("d.jsonl"), text.to_string())
    }

    const ROW: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

    #[test]
    fn rows_have_line_numbers() {
        let d = parse(&format!("\n{ROW}\n\n  {ROW}  \r\n")).unwrap();
        assert_eq!((d.len(), d.line_number(0), d.line_number(1)), (2, 2, 4));
        let d = parse(&format!(" [\n{ROW},\n\n{ROW}\n]\n")).unwrap();
        assert_eq!((d.len(), d.line_number(0), d.line_number(1)), (2, 2, 4));
        assert_eq!(d.location(1), "d.jsonl:4");
    }

    #[test]
    fn malformed_files_are_refused_with_the_line() {
        for (text, start) in [
            (String::new(), "d.jsonl: has no rows"),
            (" [ ] ".into(), "d.jsonl: has no rows"),
            (format!("{ROW}\n{{\"messages\": "), "d.jsonl:2: is not JSON"),
            (format!("[{ROW},\n{{\"messages\": ]"), "d.jsonl:2: is not JSON"),
            (format!("{ROW} {ROW}"), "d.jsonl:1: is not JSON"),
            (format!("{ROW}\n7"), "d.jsonl:2: is not an object"),
            (format!("{ROW}\n{{}}"), "d.jsonl:2: has no `messages`"),
            (format!("[{ROW},\n\n{{\"problem\": 3}}]"), "d.jsonl:3: problem: "),
        ] {
            let e = parse(&text)
                .and_then(|d| (0..d.len()).try_for_each(|row| d.row(row).map(drop)))
                .unwrap_err()
                .to_string();
            assert!(e.starts_with(start) && !e.contains('\n') && e.contains("; "), "{text:?}: {e}");
        }
    }

    #[test]
    fn invalid_utf8_damages_one_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let bad = [b"{\"messages\": \"\xff".as_slice(), b"\"}"].concat();
        std::fs::write(&path, [ROW.as_bytes(), b"\n", &bad, b"\n", ROW.as_bytes()].concat()).unwrap();
        let d = Dataset::open(&path).unwrap();
        assert_eq!((d.len(), d.row(0).unwrap()), (3, d.row(2).unwrap()));
        let e = d.row(1).unwrap_err().to_string();
        assert!(e.contains("x.jsonl:2: is not UTF-8"), "{e}");
        std::fs::write(&path, [b"[", ROW.as_bytes(), b",\n", &bad, b"]"].concat()).unwrap();
        let e = Dataset::open(&path).unwrap_err().to_string();
        assert!(e.contains("x.jsonl:2: is not UTF-8"), "{e}");
        let e = Dataset::open(&dir.path().join("none")).unwrap_err().to_string();
        assert!(e.contains("there is no such file"), "{e}");
    }

    proptest! {
        /// A JSON list and JSONL lines with the same rows are parsed to the same rows, whatever characters they
        /// contain.
        #[test]
        fn both_layouts_hold_the_same_rows(texts in prop::collection::vec("\\PC{0,12}", 1..6), gap in "[ \n\r\t]{0,3}") {
            let rows: Vec<Value> = texts
                .iter()
                .map(|t| serde_json::json!({"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "x"}]}))
                .collect();
            let list = parse(&format!("{gap}{}", serde_json::to_string_pretty(&rows).unwrap())).unwrap();
            let lines: Vec<String> = rows.iter().map(|r| format!("{r}\n{gap}")).collect();
            let lines = parse(&lines.concat()).unwrap();
            prop_assert_eq!(list.len(), rows.len());
            prop_assert_eq!(lines.len(), rows.len());
            for i in 0..rows.len() {
                prop_assert_eq!(list.row(i).unwrap(), lines.row(i).unwrap());
            }
        }
    }
}
