//! The rows of columnar files: Parquet and Arrow.
//!
//! A [`Decoder`] reads such a file and returns its rows as JSON texts. [`ColumnarRows`] keeps these texts. It calls
//! the decoder again for the columns that stay in the file (embedded images and videos). The libraries for these
//! formats can use up all memory on a damaged file, so the program runs the decoder in a worker process
//! ([`worker`](crate::rows::worker)). Tests of undamaged files run it in their own process.

mod arrow;
mod arrow_json;
mod file;
mod media_type;
pub(crate) mod parquet;

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use arrow::ArrowDecoder;
use file::PositionedFile;

use crate::error::{Error, Result};
pub(crate) use media_type::media_type;
pub(crate) use parquet::ParquetDecoder;

/// A columnar file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ColumnarFormat {
    Parquet,
    Arrow,
}

impl ColumnarFormat {
    /// Detects the format by the first bytes of a file, `start`; `None` for other files.
    pub(crate) fn from_magic_bytes(start: &[u8]) -> Option<Self> {
        match () {
            () if parquet::starts_with_magic(start) => Some(Self::Parquet),
            () if arrow::starts_with_magic(start) => Some(Self::Arrow),
            () => None,
        }
    }

    /// The help text of an error about a damaged file.
    pub(crate) fn damaged_file_help(self) -> &'static str {
        match self {
            Self::Parquet => parquet::DAMAGED_FILE_HELP,
            Self::Arrow => arrow::DAMAGED_FILE_HELP,
        }
    }
}

/// A decoder's description of a top-level column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColumnInfo {
    pub(crate) name: String,
    /// Whether the column stays in the file when the other columns are decoded. [`Decoder::row`] reads such a column
    /// later.
    pub(crate) in_file: bool,
}

/// The JSON objects of rows, one after the other in one text.
#[derive(Debug, Default)]
pub(crate) struct RowTexts {
    pub(crate) text: Vec<u8>,
    /// The offset in `text` at which each row ends.
    pub(crate) ends: Vec<usize>,
}

impl RowTexts {
    /// Ends the current row: its text is complete.
    fn end_row(&mut self) {
        self.ends.push(self.text.len());
    }

    /// Returns the text of row `index`; `None` if there are fewer rows.
    pub(crate) fn row(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.text.get(start..end)
    }
}

/// The part of a file that is being decoded, for the error message if the decoder's process dies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePart {
    /// Name of the part in messages, such as `row group 2`.
    pub(crate) name: String,
    /// The row group of a Parquet file, counted from 0, if its columns can be decoded one by one.
    pub(crate) group: Option<usize>,
}

/// Receives the rows while they are decoded.
pub(crate) trait RowSink {
    /// Called when the decoder begins with this part of the file.
    fn begin(&mut self, part: FilePart) -> Result<()>;

    /// Called with the next decoded rows. The decoder reuses the memory of `rows` afterwards.
    fn append(&mut self, rows: &RowTexts) -> Result<()>;
}

/// A decoder for one file of either format.
#[derive(Debug)]
pub(crate) enum Decoder {
    Parquet(Box<ParquetDecoder>),
    Arrow(ArrowDecoder),
}

impl Decoder {
    /// Reads the metadata of an open file. `path` is used in messages.
    ///
    /// # Errors
    /// The file cannot be read or is damaged, or a column has a type that has no JSON form.
    pub(crate) fn open(format: ColumnarFormat, path: &Path, file: File) -> Result<Self> {
        let file = PositionedFile::new(file).map_err(|e| Error::cannot_read(path, &e))?;
        match format {
            ColumnarFormat::Parquet => ParquetDecoder::open(path, file).map(|d| Self::Parquet(Box::new(d))),
            ColumnarFormat::Arrow => Ok(Self::Arrow(ArrowDecoder::new(path, file))),
        }
    }

    /// Returns the columns in the order of the file. Empty for an Arrow file, because all its columns are decoded
    /// when it is opened.
    pub(crate) fn columns(&self) -> Vec<ColumnInfo> {
        match self {
            Self::Parquet(file) => file.column_infos(),
            Self::Arrow(_) => Vec::new(),
        }
    }

    /// Decodes the columns that do not stay in the file. Returns the number of rows. If all columns stay in the file,
    /// `sink` gets no rows.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub(crate) fn decode_rows(&self, sink: &mut dyn RowSink) -> Result<usize> {
        match self {
            Self::Parquet(file) => file.decode_rows(sink),
            Self::Arrow(file) => file.decode_rows(sink),
        }
    }

    /// Decodes the columns of a row group one by one and drops the values, to find the column that makes the decoder
    /// crash.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub(crate) fn decode_columns_one_by_one(&self, group: usize, sink: &mut dyn RowSink) -> Result<()> {
        match self {
            Self::Parquet(file) => file.decode_columns_one_by_one(group, sink),
            Self::Arrow(_) => Ok(()),
        }
    }

    /// Returns, as a JSON object, those columns of row `index` that stay in the file.
    ///
    /// # Errors
    /// The row's pages cannot be read.
    pub(crate) fn row(&self, index: usize) -> Result<Vec<u8>> {
        match self {
            Self::Parquet(file) => file.row(index),
            Self::Arrow(_) => Ok(b"{}".to_vec()),
        }
    }
}

impl RowSink for RowTexts {
    fn begin(&mut self, _: FilePart) -> Result<()> {
        Ok(())
    }

    fn append(&mut self, rows: &RowTexts) -> Result<()> {
        let start = self.text.len();
        self.text.extend(&rows.text);
        self.ends.extend(rows.ends.iter().map(|end| start + end));
        Ok(())
    }
}

/// Formats the location of row `index` (counted from 0) as `FILE: row N` (counted from 1).
pub(crate) fn row_location(path: &Path, index: usize) -> String {
    format!("{}: row {}", path.display(), index + 1)
}
