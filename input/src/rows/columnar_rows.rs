//! The rows of a Parquet or Arrow file, decoded in this process or in a worker process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::input;
use reel_support::files::fingerprint;
use reel_support::worker::WorkerProgram;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
#[cfg(test)]
use crate::rows::columnar::ParquetDecoder;
use crate::rows::columnar::{ColumnInfo, ColumnarFormat, Decoder, RowTexts, row_location};
use crate::rows::limits::check_row_bytes;
use crate::rows::worker::WorkerFile;

/// The place where a file is decoded.
#[derive(Debug)]
enum Source {
    ThisProcess(Decoder),
    Worker(WorkerFile),
}

/// The rows of a Parquet or Arrow file.
#[derive(Debug)]
pub(crate) struct ColumnarRows {
    path: PathBuf,
    format: ColumnarFormat,
    columns: Vec<ColumnInfo>,
    /// The rows' texts with the columns that are kept in memory. No rows if all columns stay in the file.
    kept: RowTexts,
    /// Number of rows.
    count: usize,
    /// The decoder for the columns that stay in the file; `None` if there are none.
    source: Option<Source>,
    fingerprint: String,
}

impl ColumnarRows {
    /// Opens a file and decodes its columns without bytes: in a worker process of `program`, or in this process if
    /// `program` is `None`.
    ///
    /// # Errors
    /// The file cannot be read, is truncated, damaged or encrypted, has no rows, or has a column whose type has no
    /// JSON form.
    pub(crate) fn open(path: &Path, format: ColumnarFormat, program: Option<&WorkerProgram>) -> Result<Self> {
        let cannot_read = |e| Error::cannot_read(path, &e);
        let file = input::open_regular_file(path).map_err(cannot_read)?;
        let hashed = file.try_clone().map_err(cannot_read)?;
        let (source, columns) = match program {
            Some(program) => {
                let worker = WorkerFile::new(program, path, format, file).map_err(cannot_read)?;
                let columns = worker.columns()?;
                (Source::Worker(worker), columns)
            }
            None => {
                let decoder = Decoder::open(format, path, file)?;
                let columns = decoder.columns();
                (Source::ThisProcess(decoder), columns)
            }
        };
        let (fingerprint, decoded) = std::thread::scope(|scope| {
            let fingerprint = scope.spawn(|| fingerprint::file_fingerprint(&hashed));
            let mut kept = RowTexts::default();
            let decoded = match &source {
                Source::ThisProcess(decoder) => decoder.decode_rows(&mut kept),
                Source::Worker(worker) => worker.decode_rows(&mut kept),
            };
            let fingerprint = fingerprint.join().unwrap_or_else(|_| Err(std::io::Error::other("hashing it failed")));
            (fingerprint, decoded.map(|count| (count, kept)))
        });
        let (count, kept) = decoded?;
        let fingerprint = fingerprint.map_err(cannot_read)?;
        if count == 0 {
            return Err(Error::data(path.display().to_string(), "has no rows", "give a file with rows"));
        }
        let source = columns.iter().any(|column| column.in_file).then_some(source);
        Ok(Self { path: path.to_path_buf(), format, columns, kept, count, source, fingerprint })
    }

    /// Number of rows; never 0.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Returns the columns of row `index`, counted from 0, in the order of the file.
    ///
    /// # Errors
    /// The row's pages of a column with bytes cannot be read.
    pub(crate) fn value(&self, index: usize) -> Result<Value> {
        let kept = self.kept.row(index).unwrap_or(b"{}");
        check_row_bytes(|| self.location(index), kept.len())?;
        let mut kept = self.parse(index, kept)?;
        let in_file = match &self.source {
            None => return Ok(Value::Object(kept)),
            Some(Source::ThisProcess(decoder)) => decoder.row(index)?,
            Some(Source::Worker(worker)) => worker.row(index)?,
        };
        let mut in_file: HashMap<String, Value> = self.parse(index, &in_file)?.into_iter().collect();
        let mut row = Map::with_capacity(self.columns.len());
        for column in &self.columns {
            let value = match column.in_file {
                true => in_file.remove(&column.name),
                false => kept.shift_remove(&column.name),
            };
            row.extend(value.map(|value| (column.name.clone(), value)));
        }
        Ok(Value::Object(row))
    }

    fn parse(&self, index: usize, text: &[u8]) -> Result<Map<String, Value>> {
        serde_json::from_slice(text).map_err(|e| {
            Error::data(self.location(index), format!("is not JSON: {e}"), self.format.damaged_file_help())
        })
    }

    /// Returns the location of row `index` as `FILE: row N`.
    pub(crate) fn location(&self, index: usize) -> String {
        row_location(&self.path, index)
    }

    /// The fingerprint of the file's bytes.
    pub(crate) fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Returns the Parquet decoder if this process decodes the file.
    #[cfg(test)]
    pub(crate) fn parquet(&self) -> &ParquetDecoder {
        match &self.source {
            Some(Source::ThisProcess(Decoder::Parquet(decoder))) => decoder,
            other => panic!("{other:?}"),
        }
    }
}
