//! Worker processes: this program, started again to do work that can crash, hang or take all memory, such as decoding
//! a file from a stranger. Whatever happens to a worker, its caller goes on with one error.
//!
//! A worker is started with the hidden argument [`WORKER_ARGUMENT`] and the name of its [`Kind`]. Its standard input is
//! a socket to the caller:
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
//! A worker that misses its time limit, dies, or sends a reply that is none is killed, by dropping [`Worker`]. Another
//! worker may then try the job again: by rules of the caller, who gets a [`Failure`]. Idle workers wait in a [`Pool`].
//!
//! A worker has a process group of its own, so that Ctrl-C in a terminal reaches only the caller. If memory runs out,
//! the kernel ends workers first.

mod caller;
mod message;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

pub use caller::{End, Failure, Pool, Worker};
pub use serve::{Replies, limit_memory, limit_processor_time, serve, serve_in_forks};

/// The hidden command line argument that makes the program a worker. The next argument is the name of a [`Kind`].
pub const WORKER_ARGUMENT: &str = "__worker";

/// The time limit of [`Program::new`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A kind of worker.
#[derive(Debug)]
pub struct Kind {
    /// Its name on the command line.
    pub name: &'static str,
    /// The most arenas of malloc, a number. Each one reserves address space, which counts against the memory limit.
    pub malloc_arenas: &'static str,
    /// Its `main` function, which calls [`serve`] or [`serve_in_forks`].
    pub main: fn() -> ExitCode,
}

/// Runs the worker that the command line asks for. Returns its exit code, or `None` if this process is no worker. Call
/// this function before the program starts any thread, because a worker may fork.
pub fn run_if_worker(kinds: &[&Kind]) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().filter(|arg| arg == WORKER_ARGUMENT).and(args.next())?;
    let kind = kinds.iter().find(|kind| name == kind.name)?;
    Some((kind.main)())
}

/// How to start a worker, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program. With `args` and the name of a kind, it must call the kind's `main` function.
    pub path: PathBuf,
    /// The arguments before the name of the kind.
    pub args: Vec<String>,
    /// Time without a reply after which a worker is killed.
    pub timeout: Duration,
}

impl Program {
    /// Starts the program at `path` with [`WORKER_ARGUMENT`] and the default time limit.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: vec![WORKER_ARGUMENT.to_owned()], timeout: DEFAULT_TIMEOUT }
    }

    /// Starts the running program. This works even if its file was replaced or deleted after the start.
    pub fn this() -> Self {
        Self::new("/proc/self/exe")
    }
}

static PROGRAM: RwLock<Option<Program>> = RwLock::new(None);

/// From now on, work from strangers is done in workers that `program` starts. Without this call, as in a test or in
/// another program that uses these libraries, it is done in this process, which a hostile input can end.
pub fn use_workers(program: Program) {
    *PROGRAM.write().unwrap_or_else(PoisonError::into_inner) = Some(program);
}

/// The program of [`use_workers`].
pub fn program() -> Option<Program> {
    PROGRAM.read().unwrap_or_else(PoisonError::into_inner).clone()
}
