//! The rows of a Parquet file.
//!
//! Columns without bytes (texts, numbers, lists of them) are decoded once, when the file is opened, and kept as one
//! JSON text per row. Columns with bytes, such as embedded images, stay in the file. [`ParquetRows::value`] reads the
//! row's own pages of them. The page index says where these are; in a file without one, the headers of the pages before
//! are read. Only where a column of lists has neither a page index nor data pages of version 2 are the pages of its row
//! group before the row decompressed, because nothing else says which rows they hold.

mod file;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::basic::LogicalType;
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use reel_diagnostic::{catch_panic, input, one_line};
use serde_json::{Map, Value};

use crate::arrow_json::{self, write_text, write_value};
use crate::{DataError, Result, fingerprint};
use file::SharedFile;

/// Number of rows that are decoded together when a file is opened.
const BATCH_ROWS: usize = 256;

const AGAIN: &str = "copy or download it again, or write it again with other software";

/// The rows of a Parquet file.
#[derive(Debug)]
pub(crate) struct ParquetRows {
    path: PathBuf,
    file: SharedFile,
    metadata: ArrowReaderMetadata,
    columns: Vec<Column>,
    /// The columns in memory: JSON objects, one after the other.
    text: Vec<u8>,
    /// The byte range of each row in `text`; empty if all columns stay in the file.
    rows: Vec<Range<usize>>,
    /// The first row of each row group, and the number of all rows.
    group_starts: Vec<usize>,
    fingerprint: String,
}

/// A top-level column of the file.
#[derive(Debug)]
struct Column {
    name: String,
    /// Whether the column has bytes and therefore stays in the file.
    in_file: bool,
    /// Whether the texts of the column are JSON values (the logical type JSON).
    is_json: bool,
    /// Whether a row with null does not have the column.
    null_is_absent: bool,
}

/// The key of the file's metadata that lists, as JSON, the columns in which null means that the row does not have the
/// column. JSON rows can lack a field, rows of Parquet cannot; `reel data convert` writes it.
pub(crate) const OPTIONAL_COLUMNS: &str = "reel.optional_columns";

impl ParquetRows {
    /// Opens a Parquet file and decodes its columns without bytes.
    ///
    /// # Errors
    /// The file cannot be read, is cut short, damaged or encrypted, has no rows, or has a column whose type has no JSON
    /// form.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let cannot_read = |e| DataError::cannot_read(path, &e);
        let file = input::open_regular_file(path).and_then(SharedFile::new).map_err(cannot_read)?;
        file::check_footer(&file)
            .map_err(cannot_read)?
            .map_err(|(what, help)| DataError::data(path.display().to_string(), what, help))?;
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = read(path, "", || ArrowReaderMetadata::load(&file, options))?;
        let columns = columns(path, &metadata)?;
        let fingerprint = fingerprint::file_fingerprint(file.file()).map_err(cannot_read)?;
        let mut rows = Self {
            path: path.to_path_buf(),
            file,
            metadata,
            columns,
            text: Vec::new(),
            rows: Vec::new(),
            group_starts: vec![0],
            fingerprint,
        };
        for group in 0..rows.metadata.metadata().num_row_groups() {
            let count = rows.decode_text_columns(group)?;
            rows.group_starts.push(rows.len() + count);
            if count > 0 && rows.rows.is_empty() {
                // Nothing was decoded that shows that the group has as many rows as its metadata says.
                rows.value(rows.len() - 1)?;
            }
        }
        if rows.len() == 0 {
            return Err(DataError::data(path.display().to_string(), "has no rows", "give a file with rows"));
        }
        Ok(rows)
    }

    /// Number of rows; never 0.
    pub(crate) fn len(&self) -> usize {
        self.group_starts.last().copied().unwrap_or(0)
    }

    /// Decodes the columns that are kept in memory, for the rows of a row group. Returns the number of its rows.
    fn decode_text_columns(&mut self, group: usize) -> Result<usize> {
        let path = self.path.clone();
        let named = self.metadata.metadata().row_group(group).num_rows();
        let count = usize::try_from(named).ok().filter(|rows| *rows <= u32::MAX as usize);
        let Some(count) = count else {
            let what = format!("is damaged: a row group claims to have {named} rows");
            return Err(DataError::data(path.display().to_string(), what, AGAIN));
        };
        let kept: Vec<usize> = (0..self.columns.len()).filter(|&c| !self.columns[c].in_file).collect();
        if kept.is_empty() {
            return Ok(count);
        }
        let before = self.rows.len();
        let mut reader = read(&path, "", || self.builder(group, &kept).with_batch_size(BATCH_ROWS).build())?;
        while let Some(batch) = read(&path, "", || reader.next().transpose().map_err(ParquetError::from))? {
            for row in 0..batch.num_rows() {
                self.push_row(&kept, &batch, row)?;
            }
            if self.text.len() as u64 > input::MAX_ROWS_BYTES {
                let what = format!("has more than {} bytes of text and numbers", input::MAX_ROWS_BYTES);
                return Err(DataError::data(path.display().to_string(), what, "split it"));
            }
        }
        let decoded = self.rows.len() - before;
        if decoded != count {
            let what = format!("is damaged: a row group has {decoded} rows where its metadata says {count}");
            return Err(DataError::data(path.display().to_string(), what, AGAIN));
        }
        Ok(count)
    }

    fn push_row(&mut self, kept: &[usize], batch: &RecordBatch, row: usize) -> Result<()> {
        let start = self.text.len();
        self.text.push(b'{');
        for (&column, array) in kept.iter().zip(batch.columns()) {
            let Column { name, is_json, null_is_absent, .. } = &self.columns[column];
            if *null_is_absent && array.is_null(row) {
                continue;
            }
            if self.text.len() > start + 1 {
                self.text.push(b',');
            }
            write_text(&mut self.text, name);
            self.text.push(b':');
            let text = &mut self.text;
            let written = without_panic(|| match is_json {
                true => write_json_text(text, array, row),
                false => write_value(text, array, row),
            });
            written.map_err(|what| self.column_error(self.rows.len(), column, what))?;
        }
        self.text.push(b'}');
        self.rows.push(start..self.text.len());
        Ok(())
    }

    fn builder(&self, group: usize, columns: &[usize]) -> ParquetRecordBatchReaderBuilder<SharedFile> {
        let schema = self.metadata.parquet_schema();
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(ProjectionMask::roots(schema, columns.iter().copied()))
    }

    fn column_error(&self, row: usize, column: usize, what: impl Into<String>) -> DataError {
        DataError::data(format!("{}: {}", self.location(row), self.columns[column].name), what, AGAIN)
    }

    /// The columns of row `index`, counted from 0, in the order of the file.
    ///
    /// # Errors
    /// The row's pages of a column with bytes cannot be read.
    pub(crate) fn value(&self, index: usize) -> Result<Value> {
        let kept = self.rows.get(index).map_or(&b"{}"[..], |row| &self.text[row.clone()]);
        let mut kept: Map<String, Value> = serde_json::from_slice(kept)
            .map_err(|e| DataError::data(self.location(index), format!("is not JSON: {e}"), AGAIN))?;
        let in_file: Vec<usize> = (0..self.columns.len()).filter(|&c| self.columns[c].in_file).collect();
        if in_file.is_empty() {
            return Ok(Value::Object(kept));
        }
        let group = self.group_starts.partition_point(|&start| start <= index) - 1;
        let before = index - self.group_starts[group];
        let selection = RowSelection::from(vec![RowSelector::skip(before), RowSelector::select(1)]);
        let batch = read(&self.path, &format!("row {}", index + 1), || {
            let builder = self.builder(group, &in_file).with_row_selection(selection);
            builder.with_batch_size(1).build()?.next().transpose().map_err(ParquetError::from)
        })?;
        let Some(batch) = batch.filter(|batch| batch.num_rows() == 1 && batch.num_columns() == in_file.len()) else {
            return Err(DataError::data(self.location(index), "is missing in its row group", AGAIN));
        };
        let mut read: HashMap<usize, &ArrayRef> = in_file.iter().copied().zip(batch.columns()).collect();
        let mut row = Map::with_capacity(self.columns.len());
        for (c, column) in self.columns.iter().enumerate() {
            let value = match read.remove(&c) {
                Some(array) => Some(self.json(index, c, array)?),
                None => kept.shift_remove(&column.name),
            };
            if let Some(value) = value {
                row.insert(column.name.clone(), value);
            }
        }
        Ok(Value::Object(row))
    }

    fn json(&self, row: usize, column: usize, array: &dyn Array) -> Result<Value> {
        let mut text = Vec::new();
        let written = without_panic(|| write_value(&mut text, array, 0));
        let parsed = written.and_then(|()| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        parsed.map_err(|what| self.column_error(row, column, what))
    }

    /// `FILE: row N`.
    pub(crate) fn location(&self, index: usize) -> String {
        format!("{}: row {}", self.path.display(), index + 1)
    }

    /// The fingerprint of the file's bytes.
    pub(crate) fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Appends a text that is a JSON value.
fn write_json_text(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), String> {
    let text = match array.is_null(row) {
        true => "null",
        false => array.as_string_opt::<i32>().ok_or("is JSON, but not text")?.value(row),
    };
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| format!("is not JSON: {e}"))?;
    out.extend(text.trim().as_bytes());
    Ok(())
}

/// The columns that the file's metadata lists under [`OPTIONAL_COLUMNS`].
fn optional_columns(metadata: &ArrowReaderMetadata) -> Vec<String> {
    let values = metadata.metadata().file_metadata().key_value_metadata();
    let own = values.into_iter().flatten().find(|pair| pair.key == OPTIONAL_COLUMNS);
    own.and_then(|pair| serde_json::from_str(pair.value.as_deref()?).ok()).unwrap_or_default()
}

/// Whether a file begins as a Parquet file does.
pub(crate) fn has_magic(start: &[u8]) -> bool {
    start.starts_with(b"PAR1") || start.starts_with(b"PARE")
}

/// The top-level columns of a file.
fn columns(path: &Path, metadata: &ArrowReaderMetadata) -> Result<Vec<Column>> {
    let fields = metadata.schema().fields();
    let optional = optional_columns(metadata);
    let root = metadata.parquet_schema().root_schema().get_fields();
    let mut names = BTreeSet::new();
    let column = |(index, field): (usize, &Arc<Field>)| {
        let error = |what: String, help: &str| {
            let location = format!("{}: column {}", path.display(), field.name());
            Err(DataError::data(location, what, help))
        };
        if !names.insert(field.name().clone()) {
            return error("occurs twice".into(), "rename one of the two");
        }
        if let Err(unsupported) = arrow_json::check_type(field.data_type()) {
            return error(format!("has the type {unsupported}, which is not supported"), "write it as text or numbers");
        }
        let data_type: &DataType = field.data_type();
        let logical_type = root.get(index).and_then(|column| column.get_basic_info().logical_type_ref());
        Ok(Column {
            name: field.name().clone(),
            in_file: arrow_json::has_binary(data_type),
            is_json: *data_type == DataType::Utf8 && matches!(logical_type, Some(LogicalType::Json)),
            null_is_absent: optional.contains(field.name()),
        })
    };
    let columns = fields.iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
    match columns.is_empty() {
        true => Err(DataError::data(path.display().to_string(), "has no columns", "give a file with columns")),
        false => Ok(columns),
    }
}

/// Calls the Parquet reader. Its errors are those of the file, and so are its panics, which damaged data causes.
fn read<T>(path: &Path, place: &str, call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let failed = |reason: &str| {
        let place = if place.is_empty() { String::new() } else { format!(": {place}") };
        let what = format!("cannot be read as Parquet: {}", one_line(reason));
        DataError::data(format!("{}{place}", path.display()), what, AGAIN)
    };
    match catch_panic(call) {
        Ok(result) => result.map_err(|e| failed(&e.to_string())),
        Err(_) => Err(failed(INCONSISTENT)),
    }
}

/// The reason of a file at which the Parquet reader panics.
const INCONSISTENT: &str = "its parts contradict each other";

/// Writes a value. Arrays of damaged files can make that panic.
fn without_panic(call: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_panic(call).unwrap_or_else(|_| Err(INCONSISTENT.to_string()))
}

#[cfg(test)]
mod tests;
