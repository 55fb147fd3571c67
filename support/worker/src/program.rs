//! The program that is a worker, and how it is started.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// The hidden command line argument that makes the program a worker. The next argument is the name of a [`WorkerKind`].
pub const WORKER_ARGUMENT: &str = "__worker";

/// The time limit that [`WorkerProgram::new`] sets.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A kind of worker.
#[derive(Debug)]
pub struct WorkerKind {
    /// Its name on the command line.
    pub name: &'static str,
    /// The most arenas of malloc: a number, as the text of the variable `MALLOC_ARENA_MAX`. Each arena reserves address
    /// space, which counts against the memory limit.
    pub malloc_arenas: &'static str,
    /// The `main` function of such a worker, which calls [`serve`](crate::serve) or
    /// [`serve_in_forks`](crate::serve_in_forks).
    pub main: fn() -> ExitCode,
}

/// Runs the worker that the command line asks for. Returns its exit code, or `None` if this process is no worker. Call
/// this function before the program starts any thread, because a worker may fork.
pub fn run_if_worker(kinds: &[&WorkerKind]) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().filter(|arg| arg == WORKER_ARGUMENT).and(args.next())?;
    let kind = kinds.iter().find(|kind| name == kind.name)?;
    Some((kind.main)())
}

/// How to start a worker, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// The program. With `args` and the name of a kind, it must call the kind's `main` function.
    pub path: PathBuf,
    /// The arguments before the name of the kind.
    pub args: Vec<String>,
    /// Time without a reply after which a worker is killed.
    pub timeout: Duration,
}

impl WorkerProgram {
    /// Starts the program at `path` with [`WORKER_ARGUMENT`] and the default time limit.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: vec![WORKER_ARGUMENT.to_owned()], timeout: DEFAULT_TIMEOUT }
    }

    /// Starts the running program. This works even if its file was replaced or deleted after the start.
    pub fn of_current_executable() -> Self {
        Self::new("/proc/self/exe")
    }
}

static PROGRAM: RwLock<Option<WorkerProgram>> = RwLock::new(None);

/// From now on, input from strangers is processed in workers that `program` starts. Without this call, as in a test or
/// in another program that uses these libraries, this process does the work, and a hostile input can crash it.
pub fn use_workers(program: WorkerProgram) {
    *PROGRAM.write().unwrap_or_else(PoisonError::into_inner) = Some(program);
}

/// The program that was given to [`use_workers`].
pub fn worker_program() -> Option<WorkerProgram> {
    PROGRAM.read().unwrap_or_else(PoisonError::into_inner).clone()
}
