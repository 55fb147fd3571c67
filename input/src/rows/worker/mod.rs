//! Decodes Parquet and Arrow files in worker processes (see [`reel_support::worker`]). If a damaged file makes the
//! decoder allocate all memory, hang or crash, the caller gets one error message and is not harmed.
//!
//! The caller opens the files and passes the open file with each [`Job`], so the worker opens no file. The worker
//! keeps a decoder for each file. It sends [`Reply`]s: the parts of the file that it begins, rows, and one last
//! reply.
//!
//! A worker runs one job at a time. Threads that read rows at the same time use several workers. Idle workers end
//! when the last table that needs them is dropped. A job fails if the worker sends nothing for a minute, dies, or
//! sends more than the rows of a file may have. After three jobs that exceeded the time limit, the file is rejected.
//! A worker that was killed is replaced once, because a kernel without free memory kills the worker first.

mod caller;
mod serve;

use std::ffi::OsString;

use reel_support::worker::WorkerKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::rows::columnar::{ColumnInfo, ColumnarFormat, FilePart};

pub(crate) use caller::{WorkerFile, shared_worker_pool};

/// The kind of worker that decodes data files.
pub const WORKER: WorkerKind = WorkerKind { name: "data", malloc_arenas: "1", main: serve::worker_main };

/// A task for a worker: what to do with which file.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// The number that the caller gave to the file. The worker keeps the file's decoder under this number.
    file: u64,
    /// The path of the file, used in messages.
    path: OsString,
    format: ColumnarFormat,
    /// The memory in bytes that the worker may allocate beyond its memory at the start of the job.
    memory_bytes: u64,
    task: Task,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Task {
    /// Sends the columns of the file.
    Columns,
    /// Sends all rows, then their number.
    Rows,
    /// Decodes the columns of a row group one by one, then sends [`Reply::End`].
    TryColumns(usize),
    /// Sends a row's columns that stay in the file.
    Row(usize),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The worker begins with this part of the file.
    Part(FilePart),
    /// Some rows. The body of the reply is their text. The numbers are the offsets in the body at which each row
    /// ends.
    Rows(Vec<usize>),
    /// The last reply, with the number of rows.
    End(usize),
    /// The last reply, with the columns.
    Columns(Vec<ColumnInfo>),
    /// The last reply. Its body is the text of a row.
    Row,
    /// The last reply, with the reason why the job failed.
    Failed(Error),
}
