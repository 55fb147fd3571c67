//! Decodes Arrow files: the stream format (written by `Dataset.save_to_disk` of the library `datasets`) and the file
//! format. All columns, embedded media included, are decoded when the file is opened. A large file with media should
//! be converted to Parquet: the media of a row in a Parquet file are read only when the row is read.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, SchemaRef};
use reel_support::diagnostic::{catch_panic, input, one_line};

use super::arrow_json::{check_type, write_text, write_value};
use super::file::PositionedFile;
use super::{FilePart, RowSink, RowTexts, row_location};
use crate::error::{Error, Result};
use crate::rows::limits::check_row_count;

pub(super) const DAMAGED_FILE_HELP: &str = "copy or download it again, or write it as Parquet (Dataset.to_parquet)";

/// Decodes an Arrow file.
#[derive(Debug)]
pub(crate) struct ArrowDecoder {
    path: PathBuf,
    file: PositionedFile,
}

/// Tells whether `start`, the first bytes of a file, begins an Arrow file of the file format or of the stream format.
pub(super) fn starts_with_magic(start: &[u8]) -> bool {
    start.starts_with(FILE_MAGIC) || start.starts_with(&[0xff; 4])
}

const FILE_MAGIC: &[u8] = b"ARROW1";

impl ArrowDecoder {
    /// Creates a decoder without reading the file. `path` is used in messages.
    pub(super) fn new(path: &Path, file: PositionedFile) -> Self {
        Self { path: path.to_path_buf(), file }
    }

    /// Decodes all rows and returns their number.
    ///
    /// # Errors
    /// The file cannot be read, is damaged or compressed, or has a column whose type has no JSON form.
    pub(super) fn decode_rows(&self, sink: &mut dyn RowSink) -> Result<usize> {
        let mut start = [0; FILE_MAGIC.len()];
        let is_file_format = self.file.read_from(0).read_exact(&mut start).is_ok() && start == *FILE_MAGIC;
        if is_file_format {
            let mut reader = self.read(|| FileReader::try_new_buffered(self.file.read_from(0), None))?;
            self.decode_batches(&reader.schema(), || reader.next().transpose(), sink)
        } else {
            let reader = BufReader::new(self.file.read_from(0));
            let mut reader = self.read(|| StreamReader::try_new(reader, None))?;
            self.decode_batches(&reader.schema(), || reader.next().transpose(), sink)
        }
    }

    fn decode_batches(
        &self,
        schema: &SchemaRef,
        mut next: impl FnMut() -> Result<Option<RecordBatch>, ArrowError>,
        sink: &mut dyn RowSink,
    ) -> Result<usize> {
        for field in schema.fields() {
            check_type(field.data_type()).map_err(|unsupported| {
                let location = format!("{}: column {}", self.path.display(), field.name());
                let what = format!("has the type {unsupported}, which is not supported");
                Error::data(location, what, "write the column as text or numbers")
            })?;
        }
        let (mut count, mut bytes) = (0, 0);
        let mut rows = RowTexts::default();
        for number in 1.. {
            sink.begin(FilePart { name: format!("record batch {number}"), group: None })?;
            let Some(batch) = self.read(&mut next)? else { break };
            check_row_count(self.path.display(), count + batch.num_rows())?;
            for row in 0..batch.num_rows() {
                let before = rows.text.len();
                self.write_row(&mut rows, schema, &batch, row, count)?;
                count += 1;
                bytes += (rows.text.len() - before) as u64;
                if bytes > input::MAX_ROWS_BYTES {
                    let what = format!("has more than {} bytes of rows", input::MAX_ROWS_BYTES);
                    let help = "write it as Parquet (Dataset.to_parquet), whose images and videos stay in the file";
                    return Err(Error::data(self.path.display().to_string(), what, help));
                }
                // The rows are passed to the sink in parts, because rows with media can take many times the memory of
                // rows of text.
                if rows.text.len() > APPEND_BYTES || row + 1 == batch.num_rows() {
                    sink.append(&rows)?;
                    rows.text.clear();
                    rows.ends.clear();
                }
            }
        }
        Ok(count)
    }

    /// Appends row `row` of a batch. The row has number `index` in the file.
    fn write_row(
        &self,
        rows: &mut RowTexts,
        schema: &SchemaRef,
        batch: &RecordBatch,
        row: usize,
        index: usize,
    ) -> Result<()> {
        rows.text.push(b'{');
        for (i, (field, array)) in schema.fields().iter().zip(batch.columns()).enumerate() {
            if i > 0 {
                rows.text.push(b',');
            }
            write_text(&mut rows.text, field.name());
            rows.text.push(b':');
            let text = &mut rows.text;
            let written = catch_panic(|| write_value(text, field, array as &dyn Array, row));
            let written = written.unwrap_or_else(|_| Err("is damaged".to_string()));
            let location = || format!("{}: {}", row_location(&self.path, index), field.name());
            written.map_err(|what| Error::data(location(), what, DAMAGED_FILE_HELP))?;
        }
        rows.text.push(b'}');
        rows.end_row();
        Ok(())
    }

    /// Calls the Arrow reader. Its errors and panics become errors about the file.
    fn read<T>(&self, call: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
        let failed = |reason: &str| {
            let what = format!("cannot be read as Arrow data: {}", one_line(reason));
            Error::data(self.path.display().to_string(), what, DAMAGED_FILE_HELP)
        };
        match catch_panic(call) {
            Ok(result) => result.map_err(|e| failed(&e.to_string())),
            Err(_) => Err(failed("the data in the file is inconsistent")),
        }
    }
}

/// Size in bytes of the pending rows' texts at which the rows are passed to the sink.
const APPEND_BYTES: usize = 1 << 20;
