//! The program that runs as a worker, and its command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// The hidden command line argument that makes the program run as a worker. The next argument is the name of a
/// [`WorkerKind`].
pub const WORKER_ARGUMENT: &str = "__worker";

/// The time limit that [`WorkerProgram::new`] sets.
pub const DEFAULT_WORKER_TIMEOUT: Duration = Duration::from_secs(60);

/// A kind of worker.
#[derive(Debug)]
pub struct WorkerKind {
    /// The name of the kind on the command line.
    pub name: &'static str,
    /// The maximum number of malloc arenas, as the text of the environment variable `MALLOC_ARENA_MAX`. Each arena
    /// reserves address space, which counts against the memory limit.
    pub malloc_arenas: &'static str,
    /// The `main` function of a worker of this kind. It calls [`serve`](crate::worker::serve) or
    /// [`serve_in_forks`](crate::worker::serve_in_forks).
    pub main: fn() -> ExitCode,
}

/// Runs as a worker if the command line asks for it. Returns the exit code, or `None` if this process is not a
/// worker. Call this function before the program starts any thread, because a worker may fork.
pub fn run_if_worker(kinds: &[&WorkerKind]) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().filter(|arg| arg == WORKER_ARGUMENT).and(args.next())?;
    let kind = kinds.iter().find(|kind| name == kind.name)?;
    Some((kind.main)())
}

/// The command that starts a worker, and the time limit for its replies.
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// The path of the program. If it is called with `args` and the name of a kind, it must call the kind's `main`
    /// function.
    pub path: PathBuf,
    /// The arguments before the name of the kind.
    pub args: Vec<String>,
    /// The time without a reply after which a worker is killed.
    pub timeout: Duration,
}

impl WorkerProgram {
    /// Describes the program at `path`, which is started with [`WORKER_ARGUMENT`] and has the default time limit.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: vec![WORKER_ARGUMENT.to_owned()], timeout: DEFAULT_WORKER_TIMEOUT }
    }

    /// Describes the running program. This works even if the program's file was replaced or deleted after the start.
    pub fn of_current_executable() -> Self {
        Self::new("/proc/self/exe")
    }
}

static PROGRAM: RwLock<Option<WorkerProgram>> = RwLock::new(None);

/// Makes this process handle untrusted input in workers that `program` starts. Without this call, as in tests or in
/// other programs that use these libraries, this process handles the input itself, and hostile input can crash it.
pub fn set_worker_program(program: WorkerProgram) {
    *PROGRAM.write().unwrap_or_else(PoisonError::into_inner) = Some(program);
}

/// The program that was given to [`set_worker_program`].
pub fn worker_program() -> Option<WorkerProgram> {
    PROGRAM.read().unwrap_or_else(PoisonError::into_inner).clone()
}
