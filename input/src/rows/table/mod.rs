//! The rows of a data file of any supported format.

mod foreign;

use std::io::Read;
use std::path::Path;

use reel_support::diagnostic::input;
use reel_support::files::fingerprint;
use reel_support::worker::WorkerProgram;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::rows::columnar::ColumnarFormat;
use crate::rows::columnar_rows::ColumnarRows;
use crate::rows::folder::DatasetFolder;
use crate::rows::text::TextRows;
use crate::rows::worker::shared_worker_pool;

/// The rows of a data file, or of several files one after the other.
#[derive(Debug)]
pub struct Table {
    files: Vec<FileRows>,
    /// The index of the first row of each file; the last entry is the number of all rows.
    starts: Vec<usize>,
}

/// The rows of one file.
#[derive(Debug)]
enum FileRows {
    Text(TextRows),
    Columnar(ColumnarRows),
}

impl Table {
    /// Opens a data file: JSON (a list of rows), JSONL (one row per line), Parquet or Arrow. Also opens the folder of
    /// a data set, as `DIR`, `DIR@split` or `DIR#config@split`. An existing file or folder with the whole name `path`
    /// takes precedence. Rows of a JSONL file are parsed later, by [`Self::value`].
    ///
    /// # Errors
    /// The file cannot be read, has no rows, or is malformed as a whole; the folder has no such split.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, reel_support::worker::worker_program().as_ref())
    }

    /// Opens a data file as [`Self::open`] does, but decodes Parquet and Arrow files in this process, so a damaged
    /// file can crash it. Use this for trusted files, and for tests and measurements of the worker.
    ///
    /// # Errors
    /// The file cannot be read, has no rows, or is malformed as a whole; the folder has no such split.
    pub fn open_in_this_process(path: &Path) -> Result<Self> {
        Self::open_with(path, None)
    }

    fn open_with(path: &Path, program: Option<&WorkerProgram>) -> Result<Self> {
        let files = match DatasetFolder::parse(path) {
            Some(folder) => folder.files()?,
            None => vec![path.to_path_buf()],
        };
        // One worker process decodes all files.
        let _pool = shared_worker_pool();
        Ok(Self::of_files(files.iter().map(|file| open_file(file, program)).collect::<Result<_>>()?))
    }

    /// Concatenates the rows of several tables.
    pub fn concatenate(tables: Vec<Self>) -> Self {
        let mut all = Self { files: Vec::new(), starts: vec![0] };
        for table in tables {
            let before = all.len();
            all.starts.extend(table.starts.iter().skip(1).map(|start| before + start));
            all.files.extend(table.files);
        }
        all
    }

    /// Keeps only the first `count` rows, at least one.
    pub fn first_rows(mut self, count: usize) -> Self {
        let count = count.max(1);
        let files = self.starts.partition_point(|&start| start < count).max(1);
        self.files.truncate(files);
        self.starts.truncate(files + 1);
        if let Some(end) = self.starts.last_mut() {
            *end = count.min(*end);
        }
        self
    }

    /// Finds the rows in a JSON or JSONL text. `path` is used in error messages.
    ///
    /// # Errors
    /// The text has no rows, or is a list that is not JSON.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        Ok(Self::of_files(vec![FileRows::Text(TextRows::parse(path, text)?)]))
    }

    fn of_files(files: Vec<FileRows>) -> Self {
        let mut starts = vec![0];
        starts.extend(files.iter().scan(0, |rows, file| {
            *rows += file.len();
            Some(*rows)
        }));
        Self { files, starts }
    }

    /// Number of rows; never 0.
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Always returns false, because [`Self::open`] returns an error for files without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the file of row `index`, and the index of the row within this file.
    fn file(&self, index: usize) -> (&FileRows, usize) {
        let file = self.starts.partition_point(|&start| start <= index) - 1;
        (&self.files[file], index - self.starts[file])
    }

    /// Returns the JSON value of row `index`, counted from 0: an object with the columns in the order of the file. A
    /// row of a JSON or JSONL file may be a value of another type; the caller must check the type.
    ///
    /// # Errors
    /// The row is not JSON or not UTF-8, or its embedded media cannot be read.
    pub fn value(&self, index: usize) -> Result<Value> {
        match self.file(index) {
            (FileRows::Text(rows), row) => rows.value(row),
            (FileRows::Columnar(rows), row) => rows.value(row),
        }
    }

    /// Returns the location of row `index` for messages: `FILE:LINE`, or `FILE: row N` in a Parquet or Arrow file and
    /// in a JSON list with several rows on one line.
    pub fn location(&self, index: usize) -> String {
        match self.file(index) {
            (FileRows::Text(rows), row) => rows.location(row),
            (FileRows::Columnar(rows), row) => rows.location(row),
        }
    }

    /// Returns the number in [`Self::location`]: the line of row `index` in its file, or the number of the row,
    /// counted from 1.
    pub fn line_number(&self, index: usize) -> usize {
        match self.file(index) {
            (FileRows::Text(rows), row) => rows.line_number(row),
            (FileRows::Columnar(_), row) => row + 1,
        }
    }

    /// Returns the text of a single JSON or JSONL file; `None` for other formats and for several files.
    ///
    /// # Errors
    /// A line is not UTF-8.
    pub fn text(&self) -> Result<Option<&str>> {
        match &self.files[..] {
            [FileRows::Text(rows)] => rows.text().map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the fingerprint of the contents of all files. A resumed run compares it to check that the data have
    /// not changed. The fingerprint of a single file depends only on its bytes.
    pub fn fingerprint(&self) -> String {
        let all: Vec<String> = self.files.iter().map(FileRows::fingerprint).collect();
        match &all[..] {
            [one] => one.clone(),
            all => fingerprint::bytes_fingerprint(all.join("\n").as_bytes()),
        }
    }
}

impl FileRows {
    fn len(&self) -> usize {
        match self {
            Self::Text(rows) => rows.len(),
            Self::Columnar(rows) => rows.len(),
        }
    }

    fn fingerprint(&self) -> String {
        match self {
            Self::Text(rows) => rows.fingerprint(),
            Self::Columnar(rows) => rows.fingerprint(),
        }
    }
}

/// Opens a file and detects its format by the first bytes. A Parquet or Arrow file is decoded in a worker process of
/// `program`, or in this process if `program` is `None`.
fn open_file(path: &Path, program: Option<&WorkerProgram>) -> Result<FileRows> {
    let mut start = Vec::new();
    let file = input::open_regular_file(path);
    let read = file.and_then(|file| file.take(input::SIGNATURE_BYTES as u64).read_to_end(&mut start));
    read.map_err(|e| Error::cannot_read(path, &e))?;
    let location = || path.display().to_string();
    if let Some(other) = input::recognise(&start) {
        return Err(Error::data(location(), other.to_string(), other.help()));
    }
    if let Some(format) = ColumnarFormat::from_magic_bytes(&start) {
        return ColumnarRows::open(path, format, program).map(FileRows::Columnar);
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        let what = "is not a Parquet file: it does not begin with PAR1";
        return Err(Error::data(location(), what, "copy or download it again, or correct its extension"));
    }
    if let Some((what, help)) = foreign::foreign_format(path, &start) {
        return Err(Error::data(location(), what, help));
    }
    TextRows::open(path).map(FileRows::Text)
}

#[cfg(test)]
mod tests;
