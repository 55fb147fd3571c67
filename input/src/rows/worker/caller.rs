//! The caller's side of the worker protocol: sends jobs for a file and reads the worker's replies.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use reel_support::diagnostic::{Diagnostic, input};
use reel_support::worker::{Worker, WorkerExit, WorkerFailure, WorkerPool, WorkerProgram};

use super::{Job, Reply, Task, WORKER};
use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::rows::columnar::{ColumnInfo, ColumnarFormat, FilePart, RowTexts};

/// The minimum and maximum memory limit of a worker. Between them, the limit grows with the size of the file. A page
/// or a batch of rows is in memory as a whole, up to three times (compressed, decompressed, as text).
const MIN_MEMORY_BYTES: u64 = 1 << 30;
const MAX_MEMORY_BYTES: u64 = 8 << 30;
const MEMORY_PER_FILE_BYTE: u64 = 8;

/// The number of timeouts of workers after which a file is rejected. Without this limit, each row of a damaged file
/// could take the whole time limit.
const MAX_TIMEOUTS: usize = 3;

/// Returns the pool of idle workers, which all tables share. The workers end when the last table that needs them is
/// dropped.
pub(crate) fn shared_worker_pool() -> Arc<WorkerPool> {
    static POOL: Mutex<Weak<WorkerPool>> = Mutex::new(Weak::new());
    let mut shared = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let pool = Arc::new(WorkerPool::new());
        *shared = Arc::downgrade(&pool);
        pool
    })
}

/// An open file that workers decode.
#[derive(Debug)]
pub(crate) struct WorkerFile {
    program: WorkerProgram,
    pool: Arc<WorkerPool>,
    /// The number of this file in messages to workers; unique in this process.
    number: u64,
    path: PathBuf,
    format: ColumnarFormat,
    file: File,
    memory_bytes: u64,
    timeouts: AtomicUsize,
}

/// The reason why a job has no result.
enum JobError {
    /// The worker reports an error in the file, or no worker can be started.
    File(Error),
    /// The worker failed while it decoded this part of the file.
    Worker(WorkerFailure, Option<FilePart>),
}

impl WorkerFile {
    /// Prepares to decode an open file. `path` is used in messages.
    pub(crate) fn new(program: &WorkerProgram, path: &Path, format: ColumnarFormat, file: File) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory_bytes = MIN_MEMORY_BYTES.saturating_add(file.metadata()?.len().saturating_mul(MEMORY_PER_FILE_BYTE));
        Ok(Self {
            program: program.clone(),
            pool: shared_worker_pool(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            path: path.to_path_buf(),
            format,
            file,
            memory_bytes: memory_bytes.min(MAX_MEMORY_BYTES),
            timeouts: AtomicUsize::new(0),
        })
    }

    /// The columns of the file.
    pub(crate) fn columns(&self) -> Result<Vec<ColumnInfo>> {
        match self.run(Task::Columns, &mut RowTexts::default()).map_err(|e| self.error("", e))? {
            Reply::Columns(columns) => Ok(columns),
            _ => Err(self.invalid_reply()),
        }
    }

    /// Appends all rows to the empty `rows`. Returns the number of rows, even if all columns stay in the file.
    pub(crate) fn decode_rows(&self, rows: &mut RowTexts) -> Result<usize> {
        let reply = self.run(Task::Rows, rows).map_err(|e| match e {
            JobError::Worker(WorkerFailure::Ended(end), Some(FilePart { name, group: Some(group) })) => {
                let name = self.column_that_ends_the_worker(group).unwrap_or(name);
                JobError::Worker(WorkerFailure::Ended(end), Some(FilePart { name, group: None }))
            }
            other => other,
        });
        match reply.map_err(|e| self.error("", e))? {
            Reply::End(count) if rows.ends.is_empty() || rows.ends.len() == count => Ok(count),
            _ => Err(self.invalid_reply()),
        }
    }

    /// Returns, as a JSON object, those columns of row `index` that stay in the file.
    pub(crate) fn row(&self, index: usize) -> Result<Vec<u8>> {
        let mut row = RowTexts::default();
        match self.run(Task::Row(index), &mut row).map_err(|e| self.error(&format!("row {}", index + 1), e))? {
            Reply::Row => Ok(row.text),
            _ => Err(self.invalid_reply()),
        }
    }

    /// Decodes the columns of a row group one by one. Returns the name of the column that makes the worker crash.
    fn column_that_ends_the_worker(&self, group: usize) -> Option<String> {
        match self.run(Task::TryColumns(group), &mut RowTexts::default()) {
            Err(JobError::Worker(WorkerFailure::Ended(_) | WorkerFailure::Timeout, part)) => part.map(|part| part.name),
            _ => None,
        }
    }

    /// Runs a job in an idle worker or in a new one, and returns the last reply. If an idle worker ends during the
    /// job, or a new worker is killed, a new worker runs the job again. Each of the two happens at most once.
    fn run(&self, task: Task, rows: &mut RowTexts) -> Result<Reply, JobError> {
        if self.timeouts.load(Ordering::Relaxed) >= MAX_TIMEOUTS {
            let what = format!("is not decoded any more: decoding exceeded its time limit {MAX_TIMEOUTS} times");
            let help = self.format.damaged_file_help();
            return Err(JobError::File(Error::data(self.path.display().to_string(), what, help)));
        }
        if let Some(worker) = self.pool.take_idle_worker(&self.program, self.number) {
            match self.run_in(worker, task, rows) {
                Err(JobError::Worker(WorkerFailure::Ended(_), _)) => {}
                other => return other,
            }
        }
        match self.run_in(self.start()?, task, rows) {
            Err(JobError::Worker(WorkerFailure::Ended(end), _)) if end.was_killed() => {
                self.run_in(self.start()?, task, rows)
            }
            other => other,
        }
    }

    fn start(&self) -> Result<Worker, JobError> {
        Worker::start(&self.program, &WORKER).map_err(|e| {
            let what = format!("cannot be decoded: {} cannot be started: {e}", self.program.path.display());
            let help = "free memory, or end other processes";
            JobError::File(Error::io(self.path.display().to_string(), what, help))
        })
    }

    fn run_in(&self, mut worker: Worker, task: Task, rows: &mut RowTexts) -> Result<Reply, JobError> {
        rows.text.clear();
        rows.ends.clear();
        let job = Job {
            file: self.number,
            path: self.path.clone().into(),
            format: self.format,
            memory_bytes: self.memory_bytes,
            task,
        };
        let mut part = None;
        let sent = worker.send(&job, Some(self.file.as_fd()), self.program.timeout);
        let reply = sent.and_then(|()| read_replies(&mut worker, rows, &mut part)).map_err(|failure| {
            self.timeouts.fetch_add(matches!(failure, WorkerFailure::Timeout).into(), Ordering::Relaxed);
            JobError::Worker(failure, part)
        })?;
        self.pool.return_worker(worker, self.number);
        match reply {
            Reply::Failed(e) => Err(JobError::File(e)),
            other => Ok(other),
        }
    }

    /// Converts the error of a job. `place` names the part of the file if the worker has not named one.
    fn error(&self, place: &str, error: JobError) -> Error {
        let (failure, part) = match error {
            JobError::File(e) => return e,
            JobError::Worker(failure, part) => (failure, part),
        };
        let what = match failure {
            WorkerFailure::Invalid => return self.invalid_reply(),
            WorkerFailure::Ended(end) => format!("is damaged, or too large: {}", self.how_it_ended(&end)),
            WorkerFailure::Timeout => {
                let seconds = self.program.timeout.as_secs_f64();
                format!("is damaged, or its disk is too slow: decoding made no progress for {seconds} s")
            }
        };
        let place = part.map_or(place.to_string(), |part| part.name);
        Kind::Row(RowFailureKind::Data)
            .error(Diagnostic::new(place, what, self.format.damaged_file_help()).at(self.path.display()))
    }

    fn how_it_ended(&self, end: &WorkerExit) -> String {
        if end.is_out_of_memory() {
            return format!("decoding needs more than {} MiB of memory", self.memory_bytes >> 20);
        }
        let how = match (end.signal, end.code) {
            (Some(_), _) if end.was_killed() => "was killed, possibly for lack of memory".to_string(),
            (Some(signal), _) => format!("crashed (signal {signal})"),
            (None, Some(code)) => format!("exited with code {code}{}", end.stderr_detail()),
            (None, None) => "does not end".to_string(),
        };
        format!("the process that decodes the file {how}")
    }

    fn invalid_reply(&self) -> Error {
        let what = format!(
            "cannot be decoded: the worker sent an invalid reply, or more than {} bytes",
            input::MAX_ROWS_BYTES
        );
        let help = "use the same version of the program for the worker, or split the file if it has very many rows";
        Error::data(self.path.display().to_string(), what, help)
    }
}

/// Reads the replies to a job. Appends their rows to `rows`, sets `part` to the last part of the file that the worker
/// began, and returns the last reply.
fn read_replies(worker: &mut Worker, rows: &mut RowTexts, part: &mut Option<FilePart>) -> Result<Reply, WorkerFailure> {
    loop {
        let start = rows.text.len();
        match worker.receive(input::MAX_ROWS_BYTES.saturating_sub(start as u64), &mut rows.text)? {
            Reply::Part(begun) => *part = Some(begun),
            Reply::Rows(ends) if ends.is_sorted() && ends.last() == Some(&(rows.text.len() - start)) => {
                rows.ends.extend(ends.iter().map(|end| start + end));
            }
            Reply::Rows(_) => return Err(WorkerFailure::Invalid),
            last => return Ok(last),
        }
    }
}
