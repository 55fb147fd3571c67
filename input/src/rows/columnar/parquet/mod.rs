//! Decodes Parquet files.
//!
//! Columns without bytes (texts, numbers, lists of them) are decoded once, when the file is opened, to one JSON text
//! per row. Columns with bytes, such as embedded images, stay in the file. [`ParquetDecoder::row`] reads only the
//! pages that hold the row. The page index gives the positions of these pages. In a file without a page index, the
//! headers of the earlier pages are read. A column of lists is slower if it has neither a page index nor data pages
//! of version 2: all earlier pages of its row group are decompressed, because nothing else tells which rows a page
//! holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::Field;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use reel_support::diagnostic::{catch_panic, input, one_line};

use super::arrow_json::{self, write_text, write_value};
use super::file::PositionedFile;
use super::{ColumnInfo, FilePart, RowSink, RowTexts, row_location};
use crate::error::{Error, Result};
use crate::rows::limits::check_row_count;

/// Number of rows that are decoded together when a file is opened.
const BATCH_ROWS: usize = 256;

pub(super) const DAMAGED_FILE_HELP: &str = "copy or download it again, or write it again with other software";

/// Decodes a Parquet file.
#[derive(Debug)]
pub(crate) struct ParquetDecoder {
    path: PathBuf,
    pub(super) file: PositionedFile,
    pub(super) metadata: ArrowReaderMetadata,
    columns: Vec<Column>,
    /// The index of the first row of each row group; the last entry is the number of all rows.
    group_starts: Vec<usize>,
}

/// A top-level column of the file.
#[derive(Debug)]
struct Column {
    name: String,
    /// Whether the column contains bytes and therefore stays in the file.
    in_file: bool,
    /// Whether null in this column means that the field is missing in the row.
    null_is_absent: bool,
}

/// A key of the file's metadata. Its value is a JSON list of the columns in which null means that the field is
/// missing in the row. `reel data convert` writes this key, because a JSON row can lack a field and a Parquet row
/// cannot.
pub(crate) const OPTIONAL_COLUMNS: &str = "reel.optional_columns";

impl ParquetDecoder {
    /// Reads the metadata of a file. `path` is used in messages.
    ///
    /// # Errors
    /// The file cannot be read, is truncated, damaged or encrypted, or has a column whose type has no JSON form.
    pub(super) fn open(path: &Path, file: PositionedFile) -> Result<Self> {
        let end = file.read_exact(file.bytes().saturating_sub(4), file.bytes().min(4));
        let problem = match &*end.map_err(|e| Error::cannot_read(path, &e))? {
            b"PAR1" if file.bytes() >= 12 => None,
            b"PARE" if file.bytes() >= 12 => Some(("is encrypted", "decrypt it before")),
            _ => Some((
                "is not a whole Parquet file: it has no Parquet metadata at its end",
                "copy or download it again",
            )),
        };
        if let Some((what, help)) = problem {
            return Err(Error::data(path.display().to_string(), what, help));
        }
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = read(path, "", || ArrowReaderMetadata::load(&file, options))?;
        let columns = columns(path, &metadata)?;
        let mut group_starts = vec![0];
        for group in metadata.metadata().row_groups() {
            let rows = usize::try_from(group.num_rows()).ok().filter(|rows| *rows <= u32::MAX as usize);
            let Some(rows) = rows else {
                let what = format!("is damaged: a row group claims to have {} rows", group.num_rows());
                return Err(Error::data(path.display().to_string(), what, DAMAGED_FILE_HELP));
            };
            group_starts.push(group_starts[group_starts.len() - 1] + rows);
        }
        check_row_count(path.display(), group_starts[group_starts.len() - 1])?;
        Ok(Self { path: path.to_path_buf(), file, metadata, columns, group_starts })
    }

    /// The columns in the order of the file.
    pub(super) fn column_infos(&self) -> Vec<ColumnInfo> {
        self.columns.iter().map(|c| ColumnInfo { name: c.name.clone(), in_file: c.in_file }).collect()
    }

    /// Decodes the columns that are kept in memory, for all rows. Returns the number of rows.
    pub(super) fn decode_rows(&self, sink: &mut dyn RowSink) -> Result<usize> {
        let kept: Vec<usize> = (0..self.columns.len()).filter(|&c| !self.columns[c].in_file).collect();
        let mut bytes = 0;
        for group in 0..self.group_starts.len() - 1 {
            sink.begin(FilePart { name: group_name(group), group: Some(group) })?;
            let (first, end) = (self.group_starts[group], self.group_starts[group + 1]);
            if !kept.is_empty() {
                self.decode_group(group, &kept, &mut bytes, sink)?;
            } else if end > first {
                // No column of this row group is decoded. So reading its last row checks that the group has as many
                // rows as its metadata claims.
                self.row(end - 1)?;
            }
        }
        Ok(self.group_starts[self.group_starts.len() - 1])
    }

    /// Decodes the columns `kept` of a row group. Adds the length of the texts in bytes to `bytes`.
    fn decode_group(&self, group: usize, kept: &[usize], bytes: &mut u64, sink: &mut dyn RowSink) -> Result<()> {
        let (first, end) = (self.group_starts[group], self.group_starts[group + 1]);
        let mut index = first;
        let mut rows = RowTexts::default();
        let place = group_name(group);
        let mut reader = read(&self.path, &place, || self.builder(group, kept).with_batch_size(BATCH_ROWS).build())?;
        loop {
            let batch = read(&self.path, &place, || reader.next().transpose().map_err(ParquetError::from));
            // The error of a batch does not name the damaged column.
            let batch = batch.or_else(|e| self.decode_columns_one_by_one(group, sink).and(Err(e)))?;
            let Some(batch) = batch else { break };
            for row in 0..batch.num_rows() {
                self.write_row(&mut rows, kept, &batch, row, index)?;
                index += 1;
            }
            *bytes += rows.text.len() as u64;
            if *bytes > input::MAX_ROWS_BYTES {
                let what = format!("has more than {} bytes of text and numbers", input::MAX_ROWS_BYTES);
                return Err(Error::data(self.path.display().to_string(), what, "split it"));
            }
            sink.append(&rows)?;
            rows.text.clear();
            rows.ends.clear();
        }
        if index != end {
            let (decoded, count) = (index - first, end - first);
            let what = format!("is damaged: a row group has {decoded} rows where its metadata says {count}");
            return Err(Error::data(self.path.display().to_string(), what, DAMAGED_FILE_HELP));
        }
        Ok(())
    }

    /// Decodes, one after the other, those columns of a row group that are kept in memory. Drops their values.
    pub(super) fn decode_columns_one_by_one(&self, group: usize, sink: &mut dyn RowSink) -> Result<()> {
        if group >= self.group_starts.len() - 1 {
            return Ok(());
        }
        for column in (0..self.columns.len()).filter(|&c| !self.columns[c].in_file) {
            let name = format!("{}: {}", group_name(group), self.columns[column].name);
            sink.begin(FilePart { name: name.clone(), group: None })?;
            let builder = || self.builder(group, &[column]).with_batch_size(BATCH_ROWS).build();
            let mut reader = read(&self.path, &name, builder)?;
            while read(&self.path, &name, || reader.next().transpose().map_err(ParquetError::from))?.is_some() {}
        }
        Ok(())
    }

    /// Appends the columns `kept` of row `row` of a batch. The row has number `index` in the file.
    fn write_row(
        &self,
        rows: &mut RowTexts,
        kept: &[usize],
        batch: &RecordBatch,
        row: usize,
        index: usize,
    ) -> Result<()> {
        let start = rows.text.len();
        rows.text.push(b'{');
        for (&column, array) in kept.iter().zip(batch.columns()) {
            let Column { name, null_is_absent, .. } = &self.columns[column];
            if *null_is_absent && array.is_null(row) {
                continue;
            }
            if rows.text.len() > start + 1 {
                rows.text.push(b',');
            }
            write_text(&mut rows.text, name);
            rows.text.push(b':');
            let text = &mut rows.text;
            let written = without_panic(|| write_value(text, self.field(column), array, row));
            written.map_err(|what| self.column_error(index, column, what))?;
        }
        rows.text.push(b'}');
        rows.end_row();
        Ok(())
    }

    /// Returns the schema field of a column. Text of the logical type JSON has Arrow's extension type for JSON.
    fn field(&self, column: usize) -> &Field {
        self.metadata.schema().field(column)
    }

    fn builder(&self, group: usize, columns: &[usize]) -> ParquetRecordBatchReaderBuilder<PositionedFile> {
        let schema = self.metadata.parquet_schema();
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(ProjectionMask::roots(schema, columns.iter().copied()))
    }

    fn column_error(&self, row: usize, column: usize, what: impl Into<String>) -> Error {
        let location = format!("{}: {}", row_location(&self.path, row), self.columns[column].name);
        Error::data(location, what, DAMAGED_FILE_HELP)
    }

    /// Returns the columns with bytes of row `index`, counted from 0, as a JSON object.
    ///
    /// # Errors
    /// The row's pages cannot be read.
    pub(super) fn row(&self, index: usize) -> Result<Vec<u8>> {
        let missing = || Error::data(row_location(&self.path, index), "is missing in its row group", DAMAGED_FILE_HELP);
        let in_file: Vec<usize> = (0..self.columns.len()).filter(|&c| self.columns[c].in_file).collect();
        let group = self.group_starts.partition_point(|&start| start <= index) - 1;
        if group >= self.group_starts.len() - 1 {
            return Err(missing());
        }
        let before = index - self.group_starts[group];
        let selection = RowSelection::from(vec![RowSelector::skip(before), RowSelector::select(1)]);
        let mut text = Vec::new();
        // Each column is read by itself, so that an error names the column.
        for (i, &column) in in_file.iter().enumerate() {
            let batch = read(&self.path, &format!("row {}: {}", index + 1, self.columns[column].name), || {
                let builder = self.builder(group, &[column]).with_row_selection(selection.clone());
                builder.with_batch_size(1).build()?.next().transpose().map_err(ParquetError::from)
            })?;
            let is_row = |batch: &RecordBatch| batch.num_rows() == 1 && batch.num_columns() == 1;
            let batch = batch.filter(is_row).ok_or_else(missing)?;
            let array = batch.column(0);
            text.push(if i == 0 { b'{' } else { b',' });
            write_text(&mut text, &self.columns[column].name);
            text.push(b':');
            let written = without_panic(|| write_value(&mut text, self.field(column), array, 0));
            written.map_err(|what| self.column_error(index, column, what))?;
        }
        text.push(b'}');
        Ok(text)
    }
}

/// Returns the name of a row group in messages, where groups are counted from 1.
fn group_name(group: usize) -> String {
    format!("row group {}", group + 1)
}

/// Returns the columns that the file's metadata lists under [`OPTIONAL_COLUMNS`].
fn optional_columns(metadata: &ArrowReaderMetadata) -> Vec<String> {
    let values = metadata.metadata().file_metadata().key_value_metadata();
    let own = values.into_iter().flatten().find(|pair| pair.key == OPTIONAL_COLUMNS);
    own.and_then(|pair| serde_json::from_str(pair.value.as_deref()?).ok()).unwrap_or_default()
}

/// Tells whether `start`, the first bytes of a file, begins a Parquet file.
pub(super) fn starts_with_magic(start: &[u8]) -> bool {
    start.starts_with(b"PAR1") || start.starts_with(b"PARE")
}

/// The top-level columns of a file.
fn columns(path: &Path, metadata: &ArrowReaderMetadata) -> Result<Vec<Column>> {
    let fields = metadata.schema().fields();
    let optional = optional_columns(metadata);
    let mut names = BTreeSet::new();
    let column = |field: &Arc<Field>| {
        let error = |what: String, help: &str| {
            let location = format!("{}: column {}", path.display(), field.name());
            Err(Error::data(location, what, help))
        };
        if !names.insert(field.name().clone()) {
            return error("occurs twice".into(), "rename one of the two");
        }
        if let Err(unsupported) = arrow_json::check_type(field.data_type()) {
            let what = format!("has the type {unsupported}, which is not supported");
            return error(what, "write the column as text or numbers");
        }
        Ok(Column {
            name: field.name().clone(),
            in_file: arrow_json::has_binary(field.data_type()),
            null_is_absent: optional.contains(field.name()),
        })
    };
    let columns = fields.iter().map(column).collect::<Result<Vec<_>>>()?;
    match columns.is_empty() {
        true => Err(Error::data(path.display().to_string(), "has no columns", "give a file with columns")),
        false => Ok(columns),
    }
}

/// Calls the Parquet reader. Errors of the reader become errors about the file, and so do panics, which damaged data
/// can cause.
fn read<T>(path: &Path, place: &str, call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let failed = |reason: &str| {
        let place = if place.is_empty() { String::new() } else { format!(": {place}") };
        let what = format!("cannot be read as Parquet: {}", one_line(reason));
        Error::data(format!("{}{place}", path.display()), what, DAMAGED_FILE_HELP)
    };
    match catch_panic(call) {
        Ok(result) => result.map_err(|e| failed(&e.to_string())),
        Err(_) => Err(failed(INCONSISTENT)),
    }
}

/// The problem in the error message for a file on which the Parquet reader panics.
const INCONSISTENT: &str = "the data in the file is inconsistent";

/// Calls `call` and turns a panic into an error. The arrays of a damaged file can cause panics.
fn without_panic(call: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_panic(call).unwrap_or_else(|_| Err(INCONSISTENT.to_string()))
}

#[cfg(test)]
mod tests;
