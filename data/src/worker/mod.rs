//! Decodes Parquet and Arrow files in worker processes: a damaged file that makes the decoder allocate all memory, hang
//! or crash gives one error message and does not harm the caller.
//!
//! A worker is the caller's program, started with the hidden argument [`WORKER_ARGUMENT`]; it calls [`worker_main`].
//! Its standard input is a socket to the caller. The caller opens the files and sends the open file with each job, so
//! the worker opens none. Protocol:
//! ```text
//! caller                                          worker
//! start the worker                           ---> wait for jobs
//! a byte with the open file attached
//! (SCM_RIGHTS), a Job (JSON)                 ---> limit the memory by what the job allows
//!                                                 open a decoder for the file, or take that of an earlier job
//!                                            <--- messages: parts of the file that begin, rows, one last message
//! … (one worker serves many files)
//! close the socket                           ---> exit, even while a job runs
//! ```
//! A worker serves one job at a time; threads that read rows at the same time use several workers. Idle workers wait
//! for the next job and end with the last table that needs them. A job ends with an error if the worker sends nothing
//! for a minute, dies, or sends more than a file of rows may have. A file is given up after three jobs without an end.
//! A worker that was killed is replaced once, because a kernel without free memory kills the worker first.
//!
//! A worker has a process group of its own, so that Ctrl-C in a terminal reaches only the caller.

mod caller;
mod process;
mod protocol;
mod serve;

pub(crate) use caller::WorkerFile;
pub use process::{DataWorker, decode_in_worker_process};
pub(crate) use process::{WorkerUse, data_worker};
pub use serve::worker_main;

/// The hidden command line argument that makes the program a worker.
pub const WORKER_ARGUMENT: &str = "__data-worker";
