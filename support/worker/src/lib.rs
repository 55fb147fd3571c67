//! Worker processes: this program, started again to do work that can crash, hang or take all memory, such as decoding
//! a file from a stranger. Whatever happens to a worker, its caller goes on with one error.
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
//! [`serve`] does the jobs in the worker. [`serve_in_forks`] does each in a fork of the worker, which inherits loaded
//! libraries and no data of other jobs. If a fork fails, the worker ends in the same way, so the caller sees no
//! difference.
//!
//! A worker that misses its time limit, dies, or sends an invalid reply is killed when its [`Worker`] is dropped. The
//! caller gets a [`WorkerFailure`] and decides whether another worker tries the job again. Idle workers wait in a
//! [`Pool`].
//!
//! A worker has a process group of its own, so that Ctrl-C in a terminal reaches only the caller. If memory runs out,
//! the kernel ends workers first.

mod caller;
mod message;
mod program;
mod serve;

pub use caller::{Pool, Worker, WorkerExit, WorkerFailure};
pub use program::{
    DEFAULT_TIMEOUT, WORKER_ARGUMENT, WorkerKind, WorkerProgram, run_if_worker, use_workers, worker_program,
};
pub use serve::{Replies, limit_memory, limit_processor_time, serve, serve_in_forks};
