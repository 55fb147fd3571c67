//! The rows of an Arrow file, in the stream format (`Dataset.save_to_disk` of the library `datasets` writes it) or the
//! file format. All columns are decoded when the file is opened, embedded media too. A large file with media should be
//! converted to Parquet, whose media stay in the file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::root_as_message;
use arrow_schema::{ArrowError, SchemaRef};
use reel_diagnostic::{catch_panic, input, one_line};
use serde_json::Value;

use crate::arrow_json::{check_type, write_text, write_value};
use crate::{DataError, Result, fingerprint};

const AGAIN: &str = "copy or download it again, or write it as Parquet (Dataset.to_parquet)";

/// The rows of an Arrow file.
#[derive(Debug)]
pub(crate) struct ArrowRows {
    path: PathBuf,
    /// The rows as JSON objects, one after the other.
    text: Vec<u8>,
    /// The byte range of each row in `text`.
    rows: Vec<Range<usize>>,
    fingerprint: String,
}

/// Whether a file begins as an Arrow file of the file format or of the stream format does.
pub(crate) fn has_magic(start: &[u8]) -> bool {
    start.starts_with(FILE_MAGIC) || start.starts_with(&[0xff; 4])
}

const FILE_MAGIC: &[u8] = b"ARROW1";

impl ArrowRows {
    /// Decodes an Arrow file.
    ///
    /// # Errors
    /// The file cannot be read, is damaged or compressed, or has a column whose type has no JSON form.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let cannot_read = |e| DataError::cannot_read(path, &e);
        let mut file = input::open_regular_file(path).map_err(cannot_read)?;
        let fingerprint = fingerprint::file_fingerprint(&file).map_err(cannot_read)?;
        let mut start = [0; FILE_MAGIC.len()];
        let is_file_format = file.read_exact(&mut start).is_ok() && start == *FILE_MAGIC;
        file.rewind().map_err(cannot_read)?;
        let mut rows = Self { path: path.to_path_buf(), text: Vec::new(), rows: Vec::new(), fingerprint };
        if is_file_format {
            let mut reader = read(path, || FileReader::try_new_buffered(file, None))?;
            rows.add_batches(&reader.schema(), || reader.next().transpose())?;
        } else {
            check_messages(&file).map_err(cannot_read)?.map_err(|what| damaged(path, what))?;
            file.rewind().map_err(cannot_read)?;
            let mut reader = read(path, || StreamReader::try_new(BufReader::new(file), None))?;
            rows.add_batches(&reader.schema(), || reader.next().transpose())?;
        }
        Ok(rows)
    }

    fn add_batches(
        &mut self,
        schema: &SchemaRef,
        mut next: impl FnMut() -> Result<Option<RecordBatch>, ArrowError>,
    ) -> Result<()> {
        let path = self.path.clone();
        for field in schema.fields() {
            check_type(field.data_type()).map_err(|unsupported| {
                let location = format!("{}: column {}", path.display(), field.name());
                let what = format!("has the type {unsupported}, which is not supported");
                DataError::data(location, what, "write it as text or numbers")
            })?;
        }
        while let Some(batch) = read(&path, &mut next)? {
            for row in 0..batch.num_rows() {
                self.push_row(schema, &batch, row)?;
                if self.text.len() as u64 > input::MAX_ROWS_BYTES {
                    let what = format!("has more than {} bytes of rows", input::MAX_ROWS_BYTES);
                    let help = "write it as Parquet (Dataset.to_parquet), whose images and videos stay in the file";
                    return Err(DataError::data(path.display().to_string(), what, help));
                }
            }
        }
        Ok(())
    }

    fn push_row(&mut self, schema: &SchemaRef, batch: &RecordBatch, row: usize) -> Result<()> {
        let start = self.text.len();
        let location = format!("{}: row {}", self.path.display(), self.rows.len() + 1);
        for (i, (field, array)) in schema.fields().iter().zip(batch.columns()).enumerate() {
            self.text.push(if i == 0 { b'{' } else { b',' });
            write_text(&mut self.text, field.name());
            self.text.push(b':');
            let text = &mut self.text;
            let written = catch_panic(|| write_value(text, array as &dyn Array, row));
            let written = written.unwrap_or_else(|_| Err("is damaged".to_string()));
            written.map_err(|what| DataError::data(format!("{location}: {}", field.name()), what, AGAIN))?;
        }
        if self.text.len() == start {
            self.text.push(b'{');
        }
        self.text.push(b'}');
        self.rows.push(start..self.text.len());
        Ok(())
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The columns of row `index`, counted from 0.
    pub(crate) fn value(&self, index: usize) -> Result<Value> {
        serde_json::from_slice(&self.text[self.rows[index].clone()])
            .map_err(|e| DataError::data(self.location(index), format!("is not JSON: {e}"), AGAIN))
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

fn damaged(path: &Path, what: impl Into<String>) -> DataError {
    DataError::data(path.display().to_string(), what, AGAIN)
}

/// Calls the Arrow reader. Its errors and panics are those of the file.
fn read<T>(path: &Path, call: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
    let failed = |reason: &str| damaged(path, format!("cannot be read as Arrow data: {}", one_line(reason)));
    match catch_panic(call) {
        Ok(result) => result.map_err(|e| failed(&e.to_string())),
        Err(_) => Err(failed("its parts contradict each other")),
    }
}

/// Checks that each message of a stream lies in the file, because the reader allocates what a message claims to have.
fn check_messages(file: &File) -> io::Result<Result<(), String>> {
    let bytes = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut position = 0;
    loop {
        let mut word = [0; 4];
        match reader.read_exact(&mut word) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Ok(())),
            other => other?,
        }
        position += 4;
        // Streams of earlier versions do not have this mark before a length.
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
            return Ok(Err("is cut short or damaged".to_string()));
        }
        let mut message = vec![0; length as usize];
        reader.read_exact(&mut message)?;
        position += length;
        let body = match root_as_message(&message) {
            Ok(message) => u64::try_from(message.bodyLength()).unwrap_or(u64::MAX),
            Err(_) => return Ok(Err("is not an Arrow file: a message cannot be parsed".to_string())),
        };
        if body > bytes - position {
            return Ok(Err("is cut short or damaged".to_string()));
        }
        position = reader.seek(SeekFrom::Start(position + body))?;
    }
}
