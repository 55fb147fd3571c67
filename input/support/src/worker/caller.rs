//! The caller's side of the worker protocol: starts workers, sends them jobs, reads their replies, and reports how a
//! worker ended.

use std::io::{self, BufReader, ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::worker::message::{CANCEL_BYTE, JOB_BYTE, read_message, write_message};
use crate::worker::program::{WorkerKind, WorkerProgram};

/// The maximum size of a reply's header in bytes.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// The maximum number of bytes that are read from a worker's standard error.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// The time to wait until a killed worker has exited. A process that waits for a broken disk can survive SIGKILL for
/// a while.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The time to wait until a worker that has closed its socket has exited. After this time, the worker is killed.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// The time between two questions of [`Worker::wait_for_reply`] whether it should go on.
const CHECK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A running worker. When this value is dropped, the worker is killed together with its fork.
#[derive(Debug)]
pub struct Worker {
    program: WorkerProgram,
    process: Child,
    socket: BufReader<Socket>,
    stderr: UnixStream,
    /// The number of jobs that were sent to this worker.
    pub jobs: usize,
    /// The subjects of this worker's jobs; see [`WorkerPool::take_idle_worker`].
    subjects: Vec<u64>,
    timeout: Duration,
}

/// The socket to a worker, with a deadline at which reading fails. `None` waits forever.
#[derive(Debug)]
struct Socket {
    stream: UnixStream,
    deadline: Option<Instant>,
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        self.stream.read(bytes)
    }
}

/// The reason why a worker sent no valid reply.
#[derive(Debug)]
pub enum WorkerFailure {
    /// The worker sent no reply in time.
    Timeout,
    /// The worker sent a message that is not a reply, or that is too long.
    Invalid,
    /// The worker ended.
    Ended(WorkerExit),
}

/// The way in which a worker ended.
#[derive(Debug)]
pub struct WorkerExit {
    /// The signal that killed the worker.
    pub signal: Option<i32>,
    /// The exit code of the worker, if it exited.
    pub code: Option<i32>,
    stderr: String,
}

impl WorkerExit {
    /// Whether SIGKILL ended the worker. The kernel sends SIGKILL if memory runs out.
    pub fn was_killed(&self) -> bool {
        self.signal == Some(Signal::KILL.as_raw())
    }

    /// Whether the worker's standard error says that an allocation failed.
    pub fn is_out_of_memory(&self) -> bool {
        self.stderr.contains("memory allocation of") || self.stderr.contains("capacity overflow")
    }

    /// Returns the first line that the worker printed to its standard error since the start of its last job (or of
    /// the worker), in brackets after a space. Empty if there is no line.
    pub fn stderr_detail(&self) -> String {
        let line = self.stderr.lines().map(str::trim).find(|line| !line.is_empty());
        line.map_or(String::new(), |line| format!(" ({})", line.chars().take(200).collect::<String>()))
    }
}

/// Cancels the job that a worker of [`serve_in_prepared_forks`](crate::worker::serve_in_prepared_forks) runs. The
/// worker then replies that the job's fork was killed.
#[derive(Debug)]
pub struct JobCanceller(UnixStream);

impl JobCanceller {
    /// Cancels the job. Has no effect if the job or the worker has ended.
    pub fn cancel(&self) {
        let _ = send(&self.0, &[CANCEL_BYTE], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

impl Worker {
    /// Starts a worker.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(program: &WorkerProgram, kind: &WorkerKind) -> io::Result<Self> {
        let (stream, other) = UnixStream::pair()?;
        let (stderr, stderr_end) = UnixStream::pair()?;
        // If the worker prints more than the socket holds, the excess is lost. So the worker never waits for a
        // reader.
        stderr.set_nonblocking(true)?;
        stderr_end.set_nonblocking(true)?;
        let process = Command::new(&program.path)
            .args(&program.args)
            .arg(kind.name)
            .env("MALLOC_ARENA_MAX", kind.malloc_arenas)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(OwnedFd::from(stderr_end)))
            .process_group(0)
            .spawn()?;
        let socket = BufReader::with_capacity(256 << 10, Socket { stream, deadline: None });
        let (program, timeout) = (program.clone(), program.timeout);
        Ok(Self { program, process, socket, stderr, jobs: 0, subjects: Vec::new(), timeout })
    }

    /// Sends a job, with or without an open file. Each reply to the job must then arrive within `timeout`.
    ///
    /// # Errors
    /// The worker has ended, or does not accept the job in time.
    pub fn send(
        &mut self,
        job: &impl Serialize,
        file: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<(), WorkerFailure> {
        // Before its first job, a worker prints only the reason why it cannot start, such as a missing library.
        if self.jobs > 0 {
            self.read_stderr();
        }
        self.jobs += 1;
        self.timeout = timeout;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        if file.is_some() {
            attached.push(SendAncillaryMessage::ScmRights(file.as_slice()));
        }
        let mut stream = &self.socket.get_ref().stream;
        let sent = stream
            .set_write_timeout(Some(timeout.max(Duration::from_millis(1))))
            .and_then(|()| Ok(sendmsg(stream, &[IoSlice::new(&[JOB_BYTE])], &mut attached, SendFlags::NOSIGNAL)?))
            // The standard library ignores SIGPIPE. So writing to a worker that has ended returns an error.
            .and_then(|_| write_message(&mut stream, job, &[]));
        sent.map_err(|e| self.failure(&e))
    }

    /// Returns a value that cancels the job that was sent last.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn job_canceller(&self) -> io::Result<JobCanceller> {
        self.socket.get_ref().stream.try_clone().map(JobCanceller)
    }

    /// Waits for a reply. Appends its body of at most `max_body` bytes to `body`, and returns its header.
    ///
    /// # Errors
    /// The worker sent no valid reply in time, or it ended.
    pub fn receive<H: DeserializeOwned>(&mut self, max_body: u64, body: &mut Vec<u8>) -> Result<H, WorkerFailure> {
        self.socket.get_mut().deadline = Instant::now().checked_add(self.timeout);
        read_message(&mut self.socket, MAX_HEADER_BYTES, max_body, body).map_err(|e| self.failure(&e))
    }

    /// Waits until a reply begins, and calls `goes_on` every 20 ms meanwhile. Returns false if `goes_on` did; the caller
    /// then drops the worker, which kills it.
    ///
    /// # Errors
    /// No reply began in time.
    pub fn wait_for_reply(&mut self, mut goes_on: impl FnMut() -> bool) -> Result<bool, WorkerFailure> {
        let deadline = Instant::now().checked_add(self.timeout);
        while self.socket.buffer().is_empty() {
            let mut events = [PollFd::new(&self.socket.get_ref().stream, PollFlags::IN)];
            // An error, such as an interruption by a signal, is treated as a time-out.
            if poll(&mut events, Some(&CHECK_INTERVAL)).is_ok_and(|ready| ready > 0) {
                break;
            }
            if !goes_on() {
                return Ok(false);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(WorkerFailure::Timeout);
            }
        }
        Ok(true)
    }

    fn failure(&mut self, error: &io::Error) -> WorkerFailure {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => return WorkerFailure::Timeout,
            ErrorKind::InvalidData => return WorkerFailure::Invalid,
            _ => {}
        }
        // A worker that ends closes the socket before it exits. Killing it at once would hide its exit code. A worker
        // that continues is killed.
        self.wait_for_exit(EXIT_GRACE);
        let status = self.kill();
        let (signal, code) = status.map_or((None, None), |status| (status.signal(), status.code()));
        WorkerFailure::Ended(WorkerExit { signal, code, stderr: self.read_stderr() })
    }

    /// Reads the output of the worker and its forks on standard error since the start of the last job (or of the
    /// worker), or since the last call.
    pub fn read_stderr(&self) -> String {
        let mut bytes = Vec::new();
        // The read ends with an error when reading more would block.
        let _ = (&self.stderr).take(MAX_STDERR_BYTES).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Kills the worker and its fork. Returns the exit status of the worker; `None` if it does not exit.
    fn kill(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait();
        let group = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(group)) = (&status, group) {
            // The call fails if the process group has already exited.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.wait_for_exit(KILL_GRACE)
    }

    /// Waits at most `limit` for the worker to exit. Returns its exit status; `None` if it does not exit in this
    /// time.
    fn wait_for_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        let mut status = self.process.try_wait();
        let mut pause = Duration::from_micros(200);
        while matches!(status, Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            status = self.process.try_wait();
        }
        status.ok().flatten()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pool of idle workers of one kind. Dropping the pool ends the workers.
#[derive(Debug)]
pub struct WorkerPool(Mutex<Vec<Worker>>);

impl WorkerPool {
    /// Creates a pool without workers.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Takes an idle worker of a program, preferably one that already had a job with this subject. Returns `None` if
    /// no worker of the program is idle.
    pub fn take_idle_worker(&self, program: &WorkerProgram, subject: u64) -> Option<Worker> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain_mut(|worker| matches!(worker.process.try_wait(), Ok(None)));
        let fits = |worker: &Worker| worker.program.path == program.path && worker.program.args == program.args;
        let at = idle.iter().position(|worker| fits(worker) && worker.subjects.contains(&subject));
        let at = at.or_else(|| idle.iter().position(fits))?;
        Some(idle.swap_remove(at))
    }

    /// Returns a worker to the pool after a job with this subject.
    pub fn return_worker(&self, mut worker: Worker, subject: u64) {
        if !worker.subjects.contains(&subject) {
            worker.subjects.push(subject);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }
}

impl Default for WorkerPool {
    fn default() -> Self {
        Self::new()
    }
}
