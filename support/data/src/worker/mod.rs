//! Decodes Parquet and Arrow files in worker processes (see [`reel_worker`]): a damaged file that makes the decoder
//! allocate all memory, hang or crash gives one error message and does not harm the caller.
//!
//! The caller opens the files and sends the open file with each [`Job`], so the worker opens none. The worker keeps a
//! decoder for each file. It answers with [`Reply`]s: parts of the file that begin, rows, one last reply.
//!
//! A worker serves one job at a time; threads that read rows at the same time use several workers. Idle workers end
//! with the last table that needs them. A job ends with an error if the worker sends nothing for a minute, dies, or
//! sends more than a file of rows may have. After three jobs that exceeded the time limit, the file is refused. A
//! worker that was killed is replaced once, because a kernel without free memory kills the worker first.

mod caller;
mod serve;

use std::ffi::OsString;

use reel_worker::WorkerKind;
use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::columnar::{ColumnInfo, ColumnarFormat, FilePart};

pub(crate) use caller::{WorkerFile, shared_worker_pool};

/// The kind of worker that decodes data files.
pub const WORKER: WorkerKind = WorkerKind { name: "data", malloc_arenas: "1", main: serve::worker_main };

/// What the worker is to do with a file.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// The number that the caller gave to the file. The worker keeps the file's decoder under this number.
    file: u64,
    /// The path for messages.
    path: OsString,
    format: ColumnarFormat,
    /// The memory in bytes that the worker may allocate, in addition to the memory that it has when the job begins.
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
    /// A part of the file begins.
    Part(FilePart),
    /// Rows. The body of the reply is their text; the numbers are the offsets in the body at which each row ends.
    Rows(Vec<usize>),
    /// The last reply: the number of rows.
    End(usize),
    /// The last reply: the columns.
    Columns(Vec<ColumnInfo>),
    /// The last reply: the body is the text of a row.
    Row,
    /// The last reply: why the job failed.
    Failed(DataError),
}
