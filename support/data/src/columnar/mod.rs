//! The rows of files whose values are stored by column: Parquet and Arrow.
//!
//! A [`Decoder`] reads such a file and gives its rows as JSON texts. [`ColumnarRows`] keeps these texts, and asks the
//! decoder again for the columns that stay in the file (embedded images and videos). The libraries for these formats
//! can take all memory at a damaged file, so the program runs the decoder in a worker process
//! ([`worker`](crate::worker)); tests and other programs run it in their own process.

mod arrow;
mod arrow_json;
mod file;
mod media_type;
pub(crate) mod parquet;

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{DataError, Result};
use arrow::ArrowDecoder;
use file::SharedFile;
pub(crate) use media_type::media_type;
pub(crate) use parquet::ParquetDecoder;

/// A format of files whose values are stored by column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ColumnarFormat {
    Parquet,
    Arrow,
}

impl ColumnarFormat {
    /// The format of a file that begins with `start`; `None` for other files.
    pub(crate) fn from_magic_bytes(start: &[u8]) -> Option<Self> {
        match () {
            () if parquet::has_magic(start) => Some(Self::Parquet),
            () if arrow::has_magic(start) => Some(Self::Arrow),
            () => None,
        }
    }

    /// What to do with a damaged file.
    pub(crate) fn damaged_file_help(self) -> &'static str {
        match self {
            Self::Parquet => parquet::DAMAGED_FILE_HELP,
            Self::Arrow => arrow::DAMAGED_FILE_HELP,
        }
    }
}

/// What a decoder says about a top-level column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColumnInfo {
    pub(crate) name: String,
    /// Whether the column is left in the file when the other columns are decoded; [`Decoder::row`] reads it later.
    pub(crate) in_file: bool,
}

/// Rows as JSON objects, one after the other.
#[derive(Debug, Default)]
pub(crate) struct RowTexts {
    pub(crate) text: Vec<u8>,
    /// The end of each row in `text`.
    pub(crate) ends: Vec<usize>,
}

impl RowTexts {
    /// Ends the row whose text was appended last.
    fn end_row(&mut self) {
        self.ends.push(self.text.len());
    }

    /// The text of row `index`; `None` if there are not so many rows.
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
    /// The row group of a Parquet file, counted from 0, if its columns can be tried one by one.
    pub(crate) group: Option<usize>,
}

/// Receives the rows while they are decoded.
pub(crate) trait RowSink {
    /// Is called when the decoder begins with this part of the file.
    fn begin(&mut self, part: FilePart) -> Result<()>;

    /// Is called with the next decoded rows. The decoder reuses the memory of `rows` afterwards.
    fn append(&mut self, rows: &RowTexts) -> Result<()>;
}

/// Decodes a file.
#[derive(Debug)]
pub(crate) enum Decoder {
    Parquet(Box<ParquetDecoder>),
    Arrow(ArrowDecoder),
}

impl Decoder {
    /// Reads the metadata of an open file. `path` is for messages.
    ///
    /// # Errors
    /// The file cannot be read or is damaged, or a column has a type that has no JSON form.
    pub(crate) fn open(format: ColumnarFormat, path: &Path, file: File) -> Result<Self> {
        let file = SharedFile::new(file).map_err(|e| DataError::cannot_read(path, &e))?;
        match format {
            ColumnarFormat::Parquet => ParquetDecoder::open(path, file).map(|d| Self::Parquet(Box::new(d))),
            ColumnarFormat::Arrow => Ok(Self::Arrow(ArrowDecoder::new(path, file))),
        }
    }

    /// The columns in the order of the file. Empty for an Arrow file, whose columns are all decoded when it is opened.
    pub(crate) fn columns(&self) -> Vec<ColumnInfo> {
        match self {
            Self::Parquet(file) => file.column_infos(),
            Self::Arrow(_) => Vec::new(),
        }
    }

    /// Decodes the columns that do not stay in the file. Returns the number of rows; if all columns stay in the file,
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

    /// Decodes the columns of a row group one by one and drops the values, to find the column at which the decoder
    /// dies.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub(crate) fn decode_columns_one_by_one(&self, group: usize, sink: &mut dyn RowSink) -> Result<()> {
        match self {
            Self::Parquet(file) => file.decode_columns_one_by_one(group, sink),
            Self::Arrow(_) => Ok(()),
        }
    }

    /// The columns of row `index` that stay in the file, as a JSON object.
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

/// `FILE: row N`, for row `index`, counted from 0.
pub(crate) fn row_location(path: &Path, index: usize) -> String {
    format!("{}: row {}", path.display(), index + 1)
}
