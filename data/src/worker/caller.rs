//! The caller's side: sends jobs for a file and reads the worker's messages.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use reel_diagnostic::{Diagnostic, input};

use super::process::{DataWorker, WorkerProcess, WorkerUse};
use super::protocol::{COLUMNS, END, FAILED, Failure, Job, PART, ROW, ROWS, Task, read_number, read_rows};
use crate::columnar::{ColumnInfo, ColumnarFormat, Part, RowTexts};
use crate::{DataError, Result};

/// The memory that a worker may take for any file, and at most for a large one. A page or a batch of rows is in memory
/// as a whole, up to three times (compressed, decompressed, as text).
const MIN_MEMORY_BYTES: u64 = 1 << 30;
const MAX_MEMORY_BYTES: u64 = 8 << 30;
const MEMORY_PER_FILE_BYTE: u64 = 8;

/// The most bytes of a message that is not rows.
const MAX_MESSAGE_BYTES: u64 = 64 << 20;

/// The number of times that workers may exceed the time limit at a file before it is refused: each row of a damaged
/// file can take the whole time.
const MAX_TIMEOUTS: usize = 3;

/// An open file that workers decode.
#[derive(Debug)]
pub(crate) struct WorkerFile {
    worker: Arc<DataWorker>,
    /// A number of its own in this process.
    number: u64,
    path: PathBuf,
    format: ColumnarFormat,
    file: File,
    memory_bytes: u64,
    timeouts: AtomicUsize,
    _use: WorkerUse,
}

/// The last message of a job.
enum Reply {
    End(usize),
    Columns(Vec<ColumnInfo>),
    Row(Vec<u8>),
}

/// Why a worker gave no reply.
enum JobError {
    /// The file is at fault: the worker said so, or sent too much.
    File(DataError),
    /// The worker died or sent a message that is none. With the part that it had begun.
    Ended { how: String, was_killed: bool, part: Option<Part> },
    /// The worker sent nothing for too long.
    Timeout(Option<Part>),
}

impl WorkerFile {
    /// Prepares to decode an open file; `path` is for messages.
    pub(crate) fn new(worker: &Arc<DataWorker>, path: &Path, format: ColumnarFormat, file: File) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory_bytes = MIN_MEMORY_BYTES.saturating_add(file.metadata()?.len().saturating_mul(MEMORY_PER_FILE_BYTE));
        Ok(Self {
            worker: worker.clone(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            path: path.to_path_buf(),
            format,
            file,
            memory_bytes: memory_bytes.min(MAX_MEMORY_BYTES),
            timeouts: AtomicUsize::new(0),
            _use: WorkerUse::begin(),
        })
    }

    /// The columns of the file.
    pub(crate) fn columns(&self) -> Result<Vec<ColumnInfo>> {
        match self.run(Task::Columns, &mut RowTexts::default()).map_err(|e| self.error("", e))? {
            Reply::Columns(columns) => Ok(columns),
            _ => Err(self.invalid_reply()),
        }
    }

    /// Appends all rows to `rows`, which has none. Returns their number, also if all columns stay in the file.
    pub(crate) fn decode_rows(&self, rows: &mut RowTexts) -> Result<usize> {
        let reply = self.run(Task::Rows, rows).map_err(|e| match e {
            JobError::Ended { how, was_killed, part: Some(Part { name, group: Some(group) }) } => {
                let name = self.column_that_ends_the_worker(group).unwrap_or(name);
                JobError::Ended { how, was_killed, part: Some(Part { name, group: None }) }
            }
            other => other,
        });
        match reply.map_err(|e| self.error("", e))? {
            Reply::End(count) if rows.ends.is_empty() || rows.ends.len() == count => Ok(count),
            _ => Err(self.invalid_reply()),
        }
    }

    /// The columns of row `index` that stay in the file, as a JSON object.
    pub(crate) fn row(&self, index: usize) -> Result<Vec<u8>> {
        let reply = self.run(Task::Row(index), &mut RowTexts::default());
        match reply.map_err(|e| self.error(&format!("row {}", index + 1), e))? {
            Reply::Row(text) => Ok(text),
            _ => Err(self.invalid_reply()),
        }
    }

    /// Decodes the columns of a row group one by one. Returns the name of the one at which the worker dies.
    fn column_that_ends_the_worker(&self, group: usize) -> Option<String> {
        match self.run(Task::TryColumns(group), &mut RowTexts::default()) {
            Err(JobError::Ended { part, .. } | JobError::Timeout(part)) => part.map(|part| part.name),
            _ => None,
        }
    }

    /// Runs a job in an idle worker or in a new one. A worker that ends although it had ended well before, or that is
    /// killed, is replaced once.
    fn run(&self, task: Task, rows: &mut RowTexts) -> Result<Reply, JobError> {
        if self.timeouts.load(Ordering::Relaxed) >= MAX_TIMEOUTS {
            let what = format!("is not decoded any more: decoding exceeded its time limit {MAX_TIMEOUTS} times");
            let help = self.format.damaged_help();
            return Err(JobError::File(DataError::data(self.path.display().to_string(), what, help)));
        }
        if let Some(worker) = WorkerProcess::idle(&self.worker, self.number) {
            match self.run_in(worker, task, rows) {
                Err(JobError::Ended { .. }) => {}
                other => return other,
            }
        }
        match self.run_in(self.start()?, task, rows) {
            Err(JobError::Ended { was_killed: true, .. }) => self.run_in(self.start()?, task, rows),
            other => other,
        }
    }

    fn start(&self) -> Result<WorkerProcess, JobError> {
        WorkerProcess::start(&self.worker).map_err(|e| {
            let what = format!("cannot be decoded: {} cannot be started: {e}", self.worker.program.display());
            let help = "free memory, or end other processes";
            JobError::File(DataError::Io(Diagnostic::new(self.path.display().to_string(), what, help)))
        })
    }

    fn run_in(&self, mut worker: WorkerProcess, task: Task, rows: &mut RowTexts) -> Result<Reply, JobError> {
        rows.text.clear();
        rows.ends.clear();
        let job = Job {
            file: self.number,
            path: self.path.as_os_str().as_bytes().to_vec(),
            format: self.format,
            memory_bytes: self.memory_bytes,
            task,
        };
        let mut part = None;
        // If sending fails, the worker has ended.
        let reply = worker.send(&job, &self.file).and_then(|()| read_reply(&mut worker.replies, rows, &mut part));
        match reply {
            Ok(reply) => {
                worker.wait_for_next_job();
                reply.map_err(JobError::File)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.timeouts.fetch_add(1, Ordering::Relaxed);
                Err(JobError::Timeout(part))
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(JobError::File(self.invalid_reply())),
            Err(_) => {
                let end = worker.into_end();
                let (how, was_killed) = (end.describe(self.memory_bytes), end.was_killed());
                Err(JobError::Ended { how, was_killed, part })
            }
        }
    }

    /// The error of a job. `place` is the part of the file if the worker named none.
    fn error(&self, place: &str, error: JobError) -> DataError {
        let (part, what) = match error {
            JobError::File(e) => return e,
            JobError::Ended { how, part, .. } => (part, format!("is damaged, or too large: {how}")),
            JobError::Timeout(part) => {
                let seconds = self.worker.timeout.as_secs_f64();
                (part, format!("is damaged, or its disk is too slow: decoding gave nothing for {seconds} s"))
            }
        };
        let place = part.map_or(place.to_string(), |part| part.name);
        DataError::Data(Diagnostic::new(place, what, self.format.damaged_help()).at(self.path.display()))
    }

    fn invalid_reply(&self) -> DataError {
        let what = format!(
            "cannot be decoded: the worker sent an invalid reply, or more than {} bytes",
            input::MAX_ROWS_BYTES
        );
        let help = "use the same version of the program as worker; split a file with so many rows";
        DataError::data(self.path.display().to_string(), what, help)
    }
}

/// Reads the messages of a job up to its last. `part` becomes the last part that the worker began.
///
/// # Errors
/// The kind `InvalidData` if a message is none or too long; others if the worker has ended or sends nothing.
fn read_reply(
    input: &mut impl Read,
    rows: &mut RowTexts,
    part: &mut Option<Part>,
) -> io::Result<Result<Reply, DataError>> {
    loop {
        let mut kind = [0];
        input.read_exact(&mut kind)?;
        let bytes = read_number(input)?;
        if kind[0] == ROWS {
            read_rows(input, bytes, input::MAX_ROWS_BYTES.saturating_sub(rows.text.len() as u64), rows)?;
            continue;
        }
        let limit = if kind[0] == ROW { input::MAX_ROWS_BYTES } else { MAX_MESSAGE_BYTES };
        if bytes > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut content = Vec::new();
        if input.take(bytes).read_to_end(&mut content)? as u64 != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let invalid = |_: serde_json::Error| io::Error::from(io::ErrorKind::InvalidData);
        return Ok(Ok(match kind[0] {
            PART => {
                *part = Some(serde_json::from_slice(&content).map_err(invalid)?);
                continue;
            }
            END => Reply::End(serde_json::from_slice(&content).map_err(invalid)?),
            COLUMNS => Reply::Columns(serde_json::from_slice(&content).map_err(invalid)?),
            ROW => Reply::Row(content),
            FAILED => return Ok(Err(serde_json::from_slice::<Failure>(&content).map_err(invalid)?.into())),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }));
    }
}
