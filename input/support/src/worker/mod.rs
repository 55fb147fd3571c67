//! Worker processes: this program, started again for work that can crash, hang or use up all memory, such as decoding
//! an untrusted file. If a worker fails, its caller gets an error and continues.
//!
//! A worker is started with the hidden argument [`WORKER_ARGUMENT`] and the name of its [`WorkerKind`]. Its standard
//! input is a socket to the caller:
//! ```text
//! caller                                         worker
//! start the worker                          ---> wait for jobs
//! a byte, with an open file attached
//! (SCM_RIGHTS) or without one; a job        ---> limit memory and processor time, do the job
//!                                           <--- one or more replies
//! …                                              (one worker does many jobs)
//! close the socket                          ---> exit, even while a job runs
//! ```
//! A job or a reply is a message: the lengths of its two parts (`u64`, little-endian), a header in JSON, raw bytes.
//!
//! [`serve`] runs the jobs in the worker. [`serve_in_forks`] runs each job in a fork of the worker, which inherits
//! the loaded libraries but no data of other jobs. If a fork fails, the worker ends in the same way, so the caller
//! sees no difference. [`serve_in_prepared_forks`] also runs each job in a fork, after one job that prepares data for
//! all of them; the worker survives forks that fail, and the caller can cancel a job.
//!
//! A worker that exceeds its time limit, dies, or sends an invalid reply is killed when its [`Worker`] is dropped.
//! The caller gets a [`WorkerFailure`] and decides whether another worker tries the job again. Idle workers wait in a
//! [`WorkerPool`].
//!
//! A worker has its own process group, so Ctrl-C in a terminal reaches only the caller. If memory runs out, the
//! kernel kills workers first.

mod caller;
mod message;
mod program;
mod serve;

pub use caller::{JobCanceller, Worker, WorkerExit, WorkerFailure, WorkerPool};
pub use program::{
    DEFAULT_WORKER_TIMEOUT, WORKER_ARGUMENT, WorkerKind, WorkerProgram, run_if_worker, set_worker_program,
    worker_program,
};
pub use serve::{
    ForkExit, ReplySender, limit_memory, limit_private_memory, limit_processor_time, processor_seconds, serve,
    serve_in_forks, serve_in_prepared_forks,
};
