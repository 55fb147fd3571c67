//! The messages between caller and worker. A [`Job`] is JSON after its length. A message of the worker is a byte for
//! its kind, the length of its content, and the content; lengths are `u64`, little-endian.

use std::io::{self, Read, Write};

use reel_diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::columnar::{ColumnarFormat, RowTexts};

/// What the worker is to do with a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The number that the caller gave to the file: the worker keeps the decoders of some files.
    pub(super) file: u64,
    /// The path for messages, as bytes, because a path need not be UTF-8.
    pub(super) path: Vec<u8>,
    pub(super) format: ColumnarFormat,
    /// The memory in bytes that the worker may allocate, in addition to what it has when it begins.
    pub(super) memory_bytes: u64,
    pub(super) task: Task,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Sends the columns of the file ([`COLUMNS`]).
    Columns,
    /// Sends all rows ([`ROWS`]), then their number ([`END`]).
    Rows,
    /// Decodes the columns of a row group one by one, then sends [`END`].
    TryColumns(usize),
    /// Sends a row's columns that stay in the file ([`ROW`]).
    Row(usize),
}

/// The kinds of the worker's messages. A part begins (JSON of `Part`).
pub(super) const PART: u8 = b'p';
/// Rows: their number, the length of each, their texts.
pub(super) const ROWS: u8 = b'r';
/// A last message: the number of rows, as JSON.
pub(super) const END: u8 = b'.';
/// A last message: the columns (JSON of a list of `ColumnInfo`).
pub(super) const COLUMNS: u8 = b'c';
/// A last message: the text of a row.
pub(super) const ROW: u8 = b'v';
/// A last message: why the job failed (JSON of [`Failure`]).
pub(super) const FAILED: u8 = b'f';

/// A [`DataError`] as the worker sends it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    is_io: bool,
    location: String,
    what: String,
    help: String,
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        let is_io = matches!(error, DataError::Io(_));
        let Diagnostic { location, what, help } = error.into_diagnostic();
        Self { is_io, location, what, help }
    }
}

impl From<Failure> for DataError {
    fn from(failure: Failure) -> Self {
        let diagnostic = Diagnostic::new(failure.location, failure.what, failure.help);
        if failure.is_io { Self::Io(diagnostic) } else { Self::Data(diagnostic) }
    }
}

/// Writes a message.
pub(super) fn write_message(out: &mut impl Write, kind: u8, content: &[u8]) -> io::Result<()> {
    out.write_all(&[kind])?;
    write_number(out, content.len())?;
    out.write_all(content)
}

/// Writes rows as a message.
pub(super) fn write_rows(out: &mut impl Write, rows: &RowTexts) -> io::Result<()> {
    out.write_all(&[ROWS])?;
    write_number(out, 8 + 8 * rows.ends.len() + rows.text.len())?;
    write_number(out, rows.ends.len())?;
    let mut start = 0;
    for &end in &rows.ends {
        write_number(out, end - start)?;
        start = end;
    }
    out.write_all(&rows.text)
}

/// Reads the content of a message of rows, of `bytes` bytes, and appends the rows. The error of the kind `InvalidData`
/// says that the content contradicts itself or has more than `limit` bytes of text.
pub(super) fn read_rows(input: &mut impl Read, bytes: u64, limit: u64, rows: &mut RowTexts) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let count = read_number(input)?;
    let text = count.checked_mul(8).and_then(|lengths| bytes.checked_sub(lengths.checked_add(8)?));
    let text = text.filter(|text| *text <= limit).ok_or_else(invalid)?;
    let mut end = rows.text.len() as u64;
    let wanted = end + text;
    for _ in 0..count {
        end = end.checked_add(read_number(input)?).filter(|end| *end <= wanted).ok_or_else(invalid)?;
        rows.ends.push(end as usize);
    }
    if end != wanted {
        return Err(invalid());
    }
    if input.take(text).read_to_end(&mut rows.text)? as u64 != text {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

pub(super) fn write_number(out: &mut impl Write, number: usize) -> io::Result<()> {
    out.write_all(&(number as u64).to_le_bytes())
}

pub(super) fn read_number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(rows: &[String]) -> RowTexts {
        let mut texts = RowTexts::default();
        for row in rows {
            texts.text.extend(row.as_bytes());
            texts.ends.push(texts.text.len());
        }
        texts
    }

    proptest! {
        #[test]
        fn rows_round_trip_and_damaged_messages_are_refused(
            rows in prop::collection::vec("\\PC{0,12}", 0..6), at in any::<prop::sample::Index>(), value: u8,
        ) {
            let sent = texts(&rows);
            let mut message = Vec::new();
            write_rows(&mut message, &sent).unwrap();
            prop_assert_eq!(message[0], ROWS);
            let content = &mut message[9..];
            let bytes = content.len() as u64;
            let mut got = texts(&["earlier".to_string()]);
            read_rows(&mut &content[..], bytes, sent.text.len() as u64, &mut got).unwrap();
            prop_assert_eq!(&got.text[7..], &sent.text);
            prop_assert_eq!(got.ends.len(), 1 + rows.len());
            prop_assert_eq!(got.ends.last().copied(), Some(got.text.len()));
            if !sent.text.is_empty() {
                let limit = sent.text.len() as u64 - 1;
                prop_assert!(read_rows(&mut &content[..], bytes, limit, &mut RowTexts::default()).is_err());
            }
            *at.get_mut(content) = value;
            let mut damaged = RowTexts::default();
            if read_rows(&mut &content[..], bytes, u64::MAX, &mut damaged).is_ok() {
                prop_assert!(damaged.ends.is_sorted());
                prop_assert_eq!(damaged.ends.last().copied().unwrap_or(0), damaged.text.len());
            }
        }
    }
}
