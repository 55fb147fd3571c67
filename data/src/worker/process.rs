//! The processes: starts workers, keeps the idle ones, and says how a worker ended.

use std::fs::File;
use std::io::{self, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::WORKER_ARGUMENT;
use super::protocol::Job;

/// The program that decodes data files, and its limit of time.
#[derive(Clone, Debug)]
pub struct DataWorker {
    /// The program. With `args`, it must call [`worker_main`](super::worker_main).
    pub program: PathBuf,
    /// The arguments that start the program as a worker.
    pub args: Vec<String>,
    /// Time without a message after which a worker is killed.
    pub timeout: Duration,
}

impl DataWorker {
    /// A worker that starts `program` with [`WORKER_ARGUMENT`] and the default limit of time.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let timeout = Duration::from_secs(60);
        Self { program: program.into(), args: vec![WORKER_ARGUMENT.to_owned()], timeout }
    }
}

static WORKER: RwLock<Option<Arc<DataWorker>>> = RwLock::new(None);

/// From now on, Parquet and Arrow files that are opened are decoded in worker processes. Without this call, as in a
/// test or in another program that uses this library, they are decoded in this process, which a damaged file can end.
pub fn decode_in_worker_process(worker: DataWorker) {
    *WORKER.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(worker));
}

/// The worker to start, if files are to be decoded in one.
pub(crate) fn data_worker() -> Option<Arc<DataWorker>> {
    WORKER.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Workers that wait for a job.
static IDLE: Mutex<Vec<WorkerProcess>> = Mutex::new(Vec::new());

/// Number of [`WorkerUse`].
static USES: AtomicUsize = AtomicUsize::new(0);

/// Keeps idle workers alive. When the last one is dropped, they end.
#[derive(Debug)]
pub(crate) struct WorkerUse(());

impl WorkerUse {
    pub(crate) fn begin() -> Self {
        USES.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for WorkerUse {
    fn drop(&mut self) {
        if USES.fetch_sub(1, Ordering::SeqCst) == 1 {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

/// The most bytes of a worker's standard error that are read.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// A running worker. When dropped, it is killed.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    worker: Arc<DataWorker>,
    child: Child,
    stderr: Option<ChildStderr>,
    pub(super) replies: BufReader<UnixStream>,
    /// The files for which it may have a decoder.
    files: Vec<u64>,
}

impl WorkerProcess {
    /// An idle worker, best one that has a decoder for the file; `None` if there is no idle worker.
    pub(super) fn idle(worker: &Arc<DataWorker>, file: u64) -> Option<Self> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |process: &WorkerProcess| Arc::ptr_eq(&process.worker, worker);
        let at = idle.iter().position(|process| fits(process) && process.files.contains(&file));
        let at = at.or_else(|| idle.iter().position(fits))?;
        Some(idle.swap_remove(at))
    }

    /// Starts a worker.
    pub(super) fn start(worker: &Arc<DataWorker>) -> io::Result<Self> {
        let (socket, other) = UnixStream::pair()?;
        socket.set_read_timeout(Some(worker.timeout))?;
        socket.set_write_timeout(Some(worker.timeout))?;
        let mut child = Command::new(&worker.program)
            .args(&worker.args)
            // Each additional malloc arena reserves address space, which counts against the memory limit.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let stderr = child.stderr.take();
        let replies = BufReader::with_capacity(256 << 10, socket);
        Ok(Self { worker: worker.clone(), child, stderr, replies, files: Vec::new() })
    }

    /// Sends a job and the open file. An error means that the worker has ended.
    pub(super) fn send(&mut self, job: &Job, file: &File) -> io::Result<()> {
        let text = serde_json::to_vec(job)?;
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        attached.push(SendAncillaryMessage::ScmRights(&files));
        let socket = self.replies.get_ref();
        sendmsg(socket, &[IoSlice::new(&[1])], &mut attached, SendFlags::NOSIGNAL)?;
        // The standard library ignores SIGPIPE, so writing to a worker that has ended is an error.
        super::protocol::write_message(&mut &*socket, b'j', &text)?;
        self.files.push(job.file);
        Ok(())
    }

    /// Lets the worker wait for the next job.
    pub(super) fn wait_for_next_job(self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// Waits for a worker that has closed its socket, and says how it ended.
    pub(super) fn into_end(mut self) -> WorkerEnd {
        // A worker that closed the socket and goes on would make this wait for ever.
        let _ = self.child.kill();
        let status = self.child.wait();
        let mut stderr = Vec::new();
        // The worker is dead, and it starts no processes, so the pipe has an end.
        if let Some(pipe) = self.stderr.take() {
            let _ = pipe.take(MAX_STDERR_BYTES).read_to_end(&mut stderr);
        }
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let (signal, code) = status.map_or((None, None), |status| (status.signal(), status.code()));
        WorkerEnd { signal, code, stderr }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a worker ended.
#[derive(Debug)]
pub(super) struct WorkerEnd {
    signal: Option<i32>,
    code: Option<i32>,
    stderr: String,
}

impl WorkerEnd {
    /// Whether it was killed from outside, as the kernel does for lack of memory.
    pub(super) fn was_killed(&self) -> bool {
        const SIGKILL: i32 = 9;
        self.signal == Some(SIGKILL)
    }

    /// What happened, for a message; `memory_bytes` is the worker's limit.
    pub(super) fn describe(&self, memory_bytes: u64) -> String {
        if self.stderr.contains("memory allocation of") || self.stderr.contains("capacity overflow") {
            return format!("decoding needs more than {} MiB of memory", memory_bytes >> 20);
        }
        match (self.signal, self.code) {
            (Some(9), _) => "the process that decodes it was killed, possibly for lack of memory".to_string(),
            (Some(signal), _) => format!("the process that decodes it crashed (signal {signal})"),
            (None, code) => {
                let line = self.stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
                let line: String = line.chars().take(200).collect();
                let detail = if line.is_empty() { line } else { format!(" ({line})") };
                let code = code.map_or(String::new(), |code| format!(" with code {code}"));
                format!("the process that decodes it exited{code}{detail}")
            }
        }
    }
}
