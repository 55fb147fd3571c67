//! Starts worker servers, gives them jobs, waits for each job until a deadline, and describes a failed job in one line.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reel_diagnostic::Diagnostic;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{MediaError, Result};

/// Maximum length of a worker's reply in bytes: enough for 2^20 frame indices of 7 digits and the other JSON fields.
const MAX_REPLY_BYTES: u64 = 16 << 20;

/// Maximum number of bytes that are kept of a worker's standard error.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// How long to wait for the end of the standard error of a process that has exited: a child of the process may still
/// hold the pipe open.
const STDERR_GRACE: Duration = Duration::from_millis(200);

/// How long to wait for a killed worker to exit. A process that waits for a broken disk can survive SIGKILL for a
/// while.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The worker's program and limits.
pub(super) struct WorkerCommand<'a> {
    pub exe: &'a Path,
    pub args: &'a [String],
    /// Time after which the worker is killed.
    pub timeout: Duration,
    /// The worker's memory limit in MiB, for error messages; the worker applies it itself.
    pub memory_mib: u64,
}

/// Servers that wait for a job, with the program and the arguments that started them.
static IDLE_SERVERS: Mutex<Vec<(PathBuf, Vec<String>, Server)>> = Mutex::new(Vec::new());

/// Runs a worker with `memory` as its standard input; returns the bytes that it wrote to its standard output.
pub(super) fn run_worker(command: &WorkerCommand<'_>, path: &Path, memory: File) -> Result<Vec<u8>> {
    let deadline = Instant::now() + command.timeout;
    let cannot_start = |e: std::io::Error| MediaError::cannot_start_worker(command.exe, &e);
    let (reply, reply_end) = std::io::pipe().map_err(cannot_start)?;
    let (stderr, stderr_end) = std::io::pipe().map_err(cannot_start)?;
    let reply = read_pipe(reply, MAX_REPLY_BYTES).map_err(cannot_start)?;
    let stderr = read_pipe(stderr, MAX_STDERR_BYTES).map_err(cannot_start)?;
    let mut server =
        Server::give_job(command, [memory.as_fd(), reply_end.as_fd(), stderr_end.as_fd()]).map_err(cannot_start)?;
    // The worker has its own copies of these files. A reader sees the end of a pipe only after all copies of the
    // pipe's write end are closed.
    drop((memory, reply_end, stderr_end));
    let reply = reply.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    let end = match reply {
        Ok(_) => server.wait_for_job(deadline),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            return Err(cannot_start(std::io::Error::other("the thread that reads its reply has panicked")));
        }
    };
    let (failed, status, stderr) = match end {
        Some(JobEnd::Worker(status)) => {
            server.wait_for_next_job(command);
            ("worker", status, stderr.recv_timeout(STDERR_GRACE).ok())
        }
        Some(JobEnd::Server(status)) => ("worker's server", status, server.stderr()),
        None => {
            drop(server);
            return Err(MediaError::Timeout(Diagnostic::new(
                path.display().to_string(),
                format!("decoding timed out after {} s", command.timeout.as_secs_f64()),
                "raise the time limit (--media-timeout), or leave the file out if it hangs the decoder",
            )));
        }
    };
    match reply {
        Ok(reply) if matches!(end, Some(JobEnd::Worker(_))) && status.success() => Ok(reply),
        _ => {
            let stderr = stderr.unwrap_or_default();
            Err(worker_failed(command, path, failed, status, &String::from_utf8_lossy(&stderr)))
        }
    }
}

/// Reads a pipe to its end on another thread; bytes beyond `max_bytes` are discarded. Fails if the thread cannot be
/// created.
fn read_pipe(mut pipe: impl Read + Send + 'static, max_bytes: u64) -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
    let (send, receive) = mpsc::channel();
    std::thread::Builder::new().name("decoder pipe".to_owned()).spawn(move || {
        let mut bytes = Vec::new();
        if pipe.by_ref().take(max_bytes).read_to_end(&mut bytes).is_ok() {
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = send.send(bytes);
    })?;
    Ok(receive)
}

/// How a job ended: the worker exited, or the server exited before it reported that the worker had. Holds the exit
/// status of the one that exited.
#[derive(Clone, Copy)]
enum JobEnd {
    Worker(ExitStatus),
    Server(ExitStatus),
}

/// A worker server. When dropped, it is killed together with its worker.
struct Server {
    process: Child,
    socket: UnixStream,
    exited: bool,
}

impl Server {
    /// Sends a job to an idle server or to a new one. `files` become standard input, output and error of the worker.
    fn give_job(command: &WorkerCommand<'_>, files: [BorrowedFd<'_>; 3]) -> std::io::Result<Self> {
        while let Some(server) = Self::take_idle(command) {
            // An idle server may have been killed since its last job.
            if server.send(files).is_ok() {
                return Ok(server);
            }
        }
        let server = Self::start(command)?;
        match server.send(files) {
            // If the program exits at once, its end of the socket is closed, and sending fails. The caller of this
            // function then finds the program's exit status, which says more than the error of sending.
            Err(e) if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Err(e),
            _ => Ok(server),
        }
    }

    fn take_idle(command: &WorkerCommand<'_>) -> Option<Self> {
        let mut idle = IDLE_SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().position(|(exe, args, _)| exe == command.exe && args == command.args)?;
        Some(idle.swap_remove(at).2)
    }

    fn start(command: &WorkerCommand<'_>) -> std::io::Result<Self> {
        let (socket, other) = UnixStream::pair()?;
        let process = Command::new(command.exe)
            .args(command.args)
            // Each additional malloc arena reserves address space, which counts against the memory limit.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        Ok(Self { process, socket, exited: false })
    }

    /// Sends a job: one byte with three file descriptors attached (`SCM_RIGHTS`).
    fn send(&self, files: [BorrowedFd<'_>; 3]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(&self.socket, &[IoSlice::new(&[1])], &mut message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for the end of a job; `None` if it is still running at the deadline.
    fn wait_for_job(&mut self, deadline: Instant) -> Option<JobEnd> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut status = [0; 4];
        let read = self.socket.set_read_timeout(Some(left)).and_then(|()| self.socket.read_exact(&mut status));
        match read {
            Ok(()) => Some(JobEnd::Worker(ExitStatus::from_raw(i32::from_ne_bytes(status)))),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(_) => self.wait_until(deadline).map(JobEnd::Server),
        }
    }

    /// Puts the server, which has no worker now, into [`IDLE_SERVERS`] for the next job.
    fn wait_for_next_job(self, command: &WorkerCommand<'_>) {
        let mut idle = IDLE_SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((command.exe.to_owned(), command.args.to_vec(), self));
    }

    /// Returns what the server, which has exited, wrote to its standard error.
    fn stderr(&mut self) -> Option<Vec<u8>> {
        read_pipe(self.process.stderr.take()?, MAX_STDERR_BYTES).ok()?.recv_timeout(STDERR_GRACE).ok()
    }

    /// Waits for the server to exit; `None` if it is still running at the deadline.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                self.exited = true;
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.exited {
            return;
        }
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // If killing fails, the process group has already exited.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.wait_until(Instant::now() + KILL_GRACE);
    }
}

/// Describes the failure of a job: `failed`, its worker or its server, exited with `status`. A signal may come from a
/// damaged file ([`MediaError::Killed`]). An exit code does not ([`MediaError::Worker`]): a worker that has met a
/// damaged file replies so and exits with 0, even if its decoder panicked.
fn worker_failed(
    command: &WorkerCommand<'_>,
    path: &Path,
    failed: &str,
    status: ExitStatus,
    stderr: &str,
) -> MediaError {
    let out_of_memory = stderr.contains("memory allocation of") || stderr.contains("capacity overflow");
    if out_of_memory {
        return memory_limit_exceeded(path, command.memory_mib);
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended without an exit status".to_owned(),
    };
    let first_line: String =
        stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("").chars().take(200).collect();
    let detail = if first_line.is_empty() { first_line } else { format!(" ({first_line})") };
    let what = format!("the decoding {failed} {how}{detail}");
    let diagnostic = |help| Diagnostic::new(path.display().to_string(), what, help);
    match status.signal() {
        Some(9 | 15) => MediaError::Killed(diagnostic(
            "another program or the kernel ended it: see that the machine has free memory, or leave the file out",
        )),
        Some(_) => MediaError::Killed(diagnostic("the file may be damaged: leave it out, or convert it")),
        None => MediaError::Worker(diagnostic(
            "check the limits of processes, threads, memory and open files (ulimit -a, and those of the container)",
        )),
    }
}

/// The error for a job whose decoder panicked.
pub(super) fn decoder_panicked(path: &Path, message: &str) -> MediaError {
    let message: String = message.lines().next().unwrap_or("").chars().take(200).collect();
    let what = format!("the decoder panicked ({message})");
    MediaError::file_error(path, what, "the file may be damaged: leave it out, or convert it")
}

/// The error for a job that failed because its worker had too little memory.
pub(super) fn memory_limit_exceeded(path: &Path, memory_mib: u64) -> MediaError {
    MediaError::memory_error(
        path,
        format!("the decoding worker exceeded its memory limit of {memory_mib} MiB"),
        "raise the limit (--media-memory), take fewer frames, or leave the file out",
    )
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic error)",
        9 => " (killed, possibly for lack of memory)",
        11 => " (segmentation fault)",
        15 => " (terminated)",
        _ => "",
    }
}
