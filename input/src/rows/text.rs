//! The rows of a JSON or JSONL text. Only the text and the byte range of each row are kept in memory. A row is parsed
//! when it is used.

use std::collections::BTreeSet;
use std::fmt::Formatter;
use std::ops::Range;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::input;
use reel_support::files::fingerprint;
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::rows::limits::{MAX_ROWS, check_row_bytes, check_row_count};

/// The rows of a JSON or JSONL text.
#[derive(Debug)]
pub(crate) struct TextRows {
    path: PathBuf,
    text: String,
    rows: Vec<RowPosition>,
    /// Whether several rows of a list begin on one line. Then a line number does not identify a row.
    rows_share_lines: bool,
}

/// The byte range and line number of a row in the text of a data file.
#[derive(Clone, Debug)]
struct RowPosition {
    bytes: Range<usize>,
    line: usize,
    /// Whether the row's line contains bytes that are not UTF-8. In `text` these bytes are replaced by U+FFFD, and
    /// using the row is an error.
    damaged: bool,
}

const NOT_UTF8: &str = "is not UTF-8";
const SAVE_UTF8: &str = "save the file as UTF-8";
const LISTS: &str = "write a JSON list of objects, or JSONL: one object per line";

impl TextRows {
    /// Reads a data file. Rows of a JSONL file are parsed and checked later, by [`Self::value`].
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(path, text),
            Err(e) => Self::parse_damaged(path, e.as_bytes()),
        }
    }

    /// Finds the rows in the text of a data file. `path` is used in error messages.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        let start = text.len() - text.trim_start_matches('\u{feff}').trim_start().len();
        let rows = match text[start..].starts_with('[') {
            true => list(path, &text, start)?,
            false => objects_over_lines(&text, start).unwrap_or_else(|| lines(&text, start)),
        };
        Self::of_rows(path, text, rows)
    }

    /// Finds the rows of a file that is not valid UTF-8. In JSONL only lines with invalid bytes are unusable. A JSON
    /// list is rejected as a whole.
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
            return Err(Error::data(format!("{}:{line}", path.display()), NOT_UTF8, SAVE_UTF8));
        }
        let mut rows = lines(&text, start);
        rows.iter_mut().for_each(|row| row.damaged = damaged.contains(&row.line));
        Self::of_rows(path, text, rows)
    }

    fn of_rows(path: &Path, text: String, rows: Vec<RowPosition>) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::data(path.display().to_string(), "has no rows", LISTS));
        }
        check_row_count(path.display(), rows.len())?;
        let rows_share_lines = rows.windows(2).any(|pair| pair[0].line == pair[1].line);
        Ok(Self { path: path.to_path_buf(), text, rows, rows_share_lines })
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Parses the JSON value of row `index`, counted from 0. Does not check its type.
    pub fn value(&self, index: usize) -> Result<Value> {
        let RowPosition { bytes, damaged, .. } = &self.rows[index];
        if *damaged {
            return Err(Error::data(self.location(index), NOT_UTF8, SAVE_UTF8));
        }
        check_row_bytes(|| self.location(index), bytes.len())?;
        let text = &self.text[bytes.clone()];
        if let Some(number) = whole_number_beyond_64_bits(text) {
            let shown: String = number.chars().take(40).collect();
            let what = format!("has the whole number {shown}, which does not fit in 64 bits");
            return Err(Error::data(self.location(index), what, "write the number as text, in quotes"));
        }
        serde_json::from_str(text).map_err(|e| Error::data(self.location(index), format!("is not JSON: {e}"), LISTS))
    }

    /// Returns the whole text. Fails if a line is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        match self.rows.iter().position(|row| row.damaged) {
            Some(row) => Err(Error::data(self.location(row), NOT_UTF8, SAVE_UTF8)),
            None => Ok(&self.text),
        }
    }

    /// Returns the location of row `index` for messages: `FILE:LINE`, or `FILE: row N` in a list with several rows on
    /// one line.
    pub fn location(&self, index: usize) -> String {
        let number = self.line_number(index);
        match self.rows_share_lines {
            true => format!("{}: row {number}", self.path.display()),
            false => format!("{}:{number}", self.path.display()),
        }
    }

    /// Returns the line of row `index`, counted from 1. In a list with several rows on one line, returns the number
    /// of the row, counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        if self.rows_share_lines { index + 1 } else { self.rows[index].line }
    }

    /// Returns the fingerprint of the file's text. A resumed run compares it to check that the data have not changed.
    pub fn fingerprint(&self) -> String {
        fingerprint::bytes_fingerprint(self.text.as_bytes())
    }
}

/// Finds a whole number in a JSON text that fits neither in an i64 nor in a u64. The parser would round such a
/// number.
pub(crate) fn whole_number_beyond_64_bits(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begin = at;
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_in_number = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                at += bytes[at..].iter().take_while(is_in_number).count();
                let number = &text[begin..at];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let is_whole = digits.len() > 18 && digits.bytes().all(|byte| byte.is_ascii_digit());
                if is_whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Some(number);
                }
            }
            _ => at += 1,
        }
    }
    None
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
        if rows.len() > MAX_ROWS {
            break;
        }
        at += piece.len() + 1;
    }
    rows
}

/// Finds the rows of a text of objects that span several lines each, such as a single pretty-printed row. `None` if
/// the first line is not the beginning of such an object, as in JSONL, or if the text is not a sequence of objects.
fn objects_over_lines(text: &str, start: usize) -> Option<Vec<RowPosition>> {
    let first = text[start..].lines().next().filter(|line| line.starts_with('{'))?;
    serde_json::from_str::<IgnoredAny>(first).err().filter(serde_json::Error::is_eof)?;
    let objects = serde_json::Deserializer::from_str(&text[start..]).into_iter::<&RawValue>();
    let objects: Vec<&RawValue> = objects.take(MAX_ROWS + 1).collect::<Result<_, _>>().ok()?;
    let is_all = objects.iter().all(|raw| raw.get().starts_with('{'));
    is_all.then(|| positions(text, objects))
}

fn list(path: &Path, text: &str, start: usize) -> Result<Vec<RowPosition>> {
    let found: FirstValues<'_> = serde_json::from_str(&text[start..]).map_err(|e| {
        let line = e.line() + text[..start].matches('\n').count();
        Error::data(format!("{}:{line}", path.display()), format!("is not JSON: {e}"), LISTS)
    })?;
    Ok(positions(text, found.0))
}

/// The values of a JSON list, at most one more than [`MAX_ROWS`]. The others are only checked to be JSON.
struct FirstValues<'t>(Vec<&'t RawValue>);

impl<'t> Deserialize<'t> for FirstValues<'t> {
    fn deserialize<D: Deserializer<'t>>(from: D) -> Result<Self, D::Error> {
        struct OfList;
        impl<'t> Visitor<'t> for OfList {
            type Value = FirstValues<'t>;

            fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'t>>(self, mut list: A) -> Result<FirstValues<'t>, A::Error> {
                let mut values = Vec::new();
                while values.len() <= MAX_ROWS {
                    match list.next_element()? {
                        Some(value) => values.push(value),
                        None => return Ok(FirstValues(values)),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstValues(values))
            }
        }
        from.deserialize_seq(OfList)
    }
}

/// Returns the positions of the values `found`, which are parts of `text` in the same order.
fn positions(text: &str, found: Vec<&RawValue>) -> Vec<RowPosition> {
    let (mut line, mut seen) = (1, 0);
    found
        .into_iter()
        .map(|raw| {
            let begin = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            line += text[seen..begin].matches('\n').count();
            seen = begin;
            RowPosition { bytes: begin..begin + raw.get().len(), line, damaged: false }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_that_the_parser_would_round_are_found() {
        for text in [r#"{"a": 123456789012345678901}"#, "[1, -9223372036854775809]", r#"{"a\\": 18446744073709551616}"#]
        {
            assert!(whole_number_beyond_64_bits(text).is_some(), "{text}");
        }
        for text in [
            r#"{"a": 18446744073709551615, "b": -9223372036854775808}"#,
            r#"{"123456789012345678901": "a\"123456789012345678901"}"#,
            "[1e30, 123456789012345678901.5, 123456789012345678901e2]",
            "-------------------------",
            r#""unfinished \"#,
        ] {
            assert_eq!(whole_number_beyond_64_bits(text), None, "{text}");
        }
    }

    #[test]
    fn objects_may_span_lines() {
        let parse = |text: &str| TextRows::parse(Path::new("d.json"), text.to_string()).unwrap();
        let rows = parse("\n{\n  \"a\": 1\n}\n");
        assert_eq!((rows.len(), rows.value(0).unwrap(), rows.location(0)), (1, json!({"a": 1}), "d.json:2".into()));
        let rows = parse("{\n\"a\": 1}\n{\"a\":\n2}");
        assert_eq!((rows.len(), rows.value(1).unwrap(), rows.location(1)), (2, json!({"a": 2}), "d.json:3".into()));
        // In JSONL each line is a row, whatever follows the first line.
        assert_eq!(parse("{\"a\": 1}\n{\n").len(), 2);
        assert_eq!(parse("{\"a\": 1\n{\"a\": 1}\n").len(), 2);
    }

    #[test]
    fn a_file_with_very_many_rows_and_a_very_long_row_are_refused() {
        for text in ["1\n".repeat(MAX_ROWS + 1), format!("[1{}]", ",1".repeat(MAX_ROWS + 5))] {
            let e = TextRows::parse(Path::new("d.json"), text).unwrap_err().to_string();
            assert_eq!(e, "d.json: has more than 10000000 rows; split it into several files");
        }
        let long = format!("{{\"a\": 1}}\n{{\"a\": \"{}\"}}\n", " ".repeat(crate::rows::limits::MAX_ROW_BYTES));
        let rows = TextRows::parse(Path::new("d.jsonl"), long).unwrap();
        assert_eq!(rows.value(0).unwrap(), json!({"a": 1}));
        let e = rows.value(1).unwrap_err().to_string();
        assert!(
            e.starts_with("d.jsonl:2: is a row of 67108873 bytes, above the limit of 67108864 bytes; split"),
            "{e}"
        );
    }

    #[test]
    fn a_row_with_such_a_number_is_refused_by_line() {
        let rows =
            TextRows::parse(Path::new("d.jsonl"), "{\"a\": 1}\n{\"a\": 123456789012345678901}\n".into()).unwrap();
        assert_eq!(rows.value(0).unwrap(), serde_json::json!({"a": 1}));
        let e = rows.value(1).unwrap_err().to_string();
        assert!(e.starts_with("d.jsonl:2: has the whole number 123456789012345678901, which"), "{e}");
    }
}
