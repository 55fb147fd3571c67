//! Decodes Arrow files: the stream format (written by `Dataset.save_to_disk` of the library `datasets`) and the file
//! format. All columns, embedded media included, are decoded when the file is opened. A large file with media should
//! be converted to Parquet: the media of a row in a Parquet file are read only when the row is read.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::{Block, root_as_footer, root_as_message};
use arrow_schema::{ArrowError, SchemaRef};
use reel_diagnostic::{catch_panic, input, one_line};

use super::arrow_json::{check_type, write_text, write_value};
use super::file::PositionedFile;
use super::{FilePart, RowSink, RowTexts, row_location};
use crate::{DataError, Result};

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
        let cannot_read = |e| DataError::cannot_read(&self.path, &e);
        let mut start = [0; FILE_MAGIC.len()];
        let is_file_format = self.file.read_from(0).read_exact(&mut start).is_ok() && start == *FILE_MAGIC;
        if is_file_format {
            check_blocks(&self.file).map_err(cannot_read)?.map_err(|what| self.damaged(what))?;
            let mut reader = self.read(|| FileReader::try_new_buffered(self.file.read_from(0), None))?;
            self.decode_batches(&reader.schema(), || reader.next().transpose(), sink)
        } else {
            check_messages(&self.file).map_err(cannot_read)?.map_err(|what| self.damaged(what))?;
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
                DataError::malformed(location, what, "write the column as text or numbers")
            })?;
        }
        let (mut count, mut bytes) = (0, 0);
        let mut rows = RowTexts::default();
        for number in 1.. {
            sink.begin(FilePart { name: format!("record batch {number}"), group: None })?;
            let Some(batch) = self.read(&mut next)? else { break };
            for row in 0..batch.num_rows() {
                let before = rows.text.len();
                self.write_row(&mut rows, schema, &batch, row, count)?;
                count += 1;
                bytes += (rows.text.len() - before) as u64;
                if bytes > input::MAX_ROWS_BYTES {
                    let what = format!("has more than {} bytes of rows", input::MAX_ROWS_BYTES);
                    let help = "write it as Parquet (Dataset.to_parquet), whose images and videos stay in the file";
                    return Err(DataError::malformed(self.path.display().to_string(), what, help));
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
            written.map_err(|what| DataError::malformed(location(), what, DAMAGED_FILE_HELP))?;
        }
        rows.text.push(b'}');
        rows.end_row();
        Ok(())
    }

    fn damaged(&self, what: impl Into<String>) -> DataError {
        DataError::malformed(self.path.display().to_string(), what, DAMAGED_FILE_HELP)
    }

    /// Calls the Arrow reader. Its errors and panics become errors about the file.
    fn read<T>(&self, call: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
        let failed = |reason: &str| self.damaged(format!("cannot be read as Arrow data: {}", one_line(reason)));
        match catch_panic(call) {
            Ok(result) => result.map_err(|e| failed(&e.to_string())),
            Err(_) => Err(failed("the data in the file is inconsistent")),
        }
    }
}

/// Size in bytes of the pending rows' texts at which the rows are passed to the sink.
const APPEND_BYTES: usize = 1 << 20;

const CUT: &str = "is cut short or damaged";

/// Checks that each block of a file of the file format lies within the file, because the reader allocates the sizes
/// that the footer claims. A footer that cannot be parsed is an error too.
fn check_blocks(file: &PositionedFile) -> io::Result<Result<(), String>> {
    let end = FILE_MAGIC.len() as u64 + 4;
    let Some(footer_end) = file.bytes().checked_sub(end) else { return Ok(Err(CUT.to_string())) };
    let length = file.read_exact(footer_end, 4)?;
    let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    let Some(start) = footer_end.checked_sub(length) else { return Ok(Err(CUT.to_string())) };
    let footer = file.read_exact(start, length)?;
    let Ok(footer) = root_as_footer(&footer) else {
        return Ok(Err("is not an Arrow file: its footer cannot be parsed".to_string()));
    };
    let lies_in_file = |block: &Block| {
        let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
        let parts = parts.map(u64::try_from);
        parts.iter().try_fold(0, |sum: u64, part| sum.checked_add(*part.as_ref().ok()?)).is_some_and(|end| end <= start)
    };
    let mut blocks = footer.dictionaries().into_iter().flatten().chain(footer.recordBatches().into_iter().flatten());
    Ok(if blocks.all(lies_in_file) { Ok(()) } else { Err(CUT.to_string()) })
}

/// Checks that each message of a stream lies within the file, because the reader allocates the size that a message
/// claims.
fn check_messages(file: &PositionedFile) -> io::Result<Result<(), String>> {
    let bytes = file.bytes();
    let mut reader = BufReader::new(file.read_from(0));
    let mut position = 0;
    loop {
        let mut word = [0; 4];
        match reader.read_exact(&mut word) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Ok(())),
            other => other?,
        }
        position += 4;
        // Streams of earlier format versions do not have this mark (four bytes 0xff) before a length.
        if word == [0xff; 4] {
            match reader.read_exact(&mut word) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Ok(())),
                other => other?,
            }
            position += 4;
        }
        let length = u64::from(u32::from_le_bytes(word));
        if length == 0 {
            return Ok(Ok(()));
        }
        if length > bytes - position {
            return Ok(Err(CUT.to_string()));
        }
        let mut message = vec![0; length as usize];
        reader.read_exact(&mut message)?;
        position += length;
        let body = match root_as_message(&message) {
            Ok(message) => u64::try_from(message.bodyLength()).unwrap_or(u64::MAX),
            Err(_) => return Ok(Err("is not an Arrow file: a message cannot be parsed".to_string())),
        };
        if body > bytes - position {
            return Ok(Err(CUT.to_string()));
        }
        position = reader.seek(SeekFrom::Start(position + body))?;
    }
}
