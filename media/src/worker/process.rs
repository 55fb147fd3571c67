//! Starts one worker process, waits for it until a deadline, and explains in one line how it failed.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use reel_diagnostic::Diagnostic;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{MediaError, Result};

/// Maximum length of a worker's reply in bytes: enough for 2^20 frame indices of 7 digits and the other JSON fields.
const MAX_REPLY_BYTES: u64 = 16 << 20;

/// A worker's standard error is read up to this many bytes.
const MAX_STDERR_BYTES: u64 = 64 << 10;

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

/// Runs a worker with `memory` as its standard input; returns the bytes that it wrote to its standard output.
pub(super) fn run_worker(command: &WorkerCommand<'_>, path: &Path, memory: File) -> Result<Vec<u8>> {
    let deadline = Instant::now() + command.timeout;
    let mut worker = Worker::start(command, memory)?;
    let reply = read_pipe(worker.child.stdout.take(), MAX_REPLY_BYTES);
    let stderr = read_pipe(worker.child.stderr.take(), MAX_STDERR_BYTES);
    let reply = reply.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    let status = match reply {
        Ok(_) => worker.wait_until(deadline),
        Err(_) => None,
    };
    let Some(status) = status else {
        worker.kill();
        return Err(MediaError::Timeout(Diagnostic::new(
            path.display().to_string(),
            format!("decoding timed out after {} s", command.timeout.as_secs_f64()),
            "raise the time limit (--media-timeout), or leave the file out if it hangs the decoder",
        )));
    };
    if status.success() {
        return Ok(reply.unwrap_or_default());
    }
    let stderr = stderr.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    Err(worker_failed(command, path, status, &String::from_utf8_lossy(&stderr)))
}

/// Reads a pipe to its end on another thread; bytes beyond `max_bytes` are discarded.
fn read_pipe(pipe: Option<impl Read + Send + 'static>, max_bytes: u64) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    // If the thread cannot be created, the channel's sender is dropped, and the receiver gets an error instead of
    // bytes.
    let _ = std::thread::Builder::new().name("decoder pipe".to_owned()).spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = Vec::new();
        if pipe.by_ref().take(max_bytes).read_to_end(&mut bytes).is_ok() {
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = send.send(bytes);
    });
    receive
}

/// A running worker process. When dropped, it is killed together with its children.
struct Worker {
    child: Child,
    exited: bool,
}

impl Worker {
    fn start(command: &WorkerCommand<'_>, memory: File) -> Result<Self> {
        let child = Command::new(command.exe)
            .args(command.args)
            // Each additional malloc arena reserves address space, which counts against the memory limit.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::from(memory))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| MediaError::cannot_start_worker(command.exe, &e))?;
        Ok(Self { child, exited: false })
    }

    /// Waits for the worker to exit; `None` if it is still running at the deadline.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
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

    fn kill(&mut self) {
        if self.exited {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // If killing fails, the process group has already exited.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.wait_until(Instant::now() + KILL_GRACE);
        self.exited = true;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Explains the failure of a worker that sent no reply.
fn worker_failed(command: &WorkerCommand<'_>, path: &Path, status: ExitStatus, stderr: &str) -> MediaError {
    let out_of_memory = stderr.contains("memory allocation of") || stderr.contains("capacity overflow");
    if out_of_memory {
        return MediaError::file_error(
            path,
            format!("the decoding worker exceeded its memory limit of {} MiB", command.memory_mib),
            "raise the limit (--media-memory), take fewer frames, or leave the file out",
        );
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended without an exit status".to_owned(),
    };
    let first_line: String =
        stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("").chars().take(200).collect();
    let detail = if first_line.is_empty() { first_line } else { format!(" ({first_line})") };
    let diagnostic = Diagnostic::new(
        path.display().to_string(),
        format!("the decoding worker {how}{detail}"),
        "the file may be damaged: leave it out, or convert it",
    );
    if status.signal().is_some() { MediaError::Killed(diagnostic) } else { MediaError::File(diagnostic) }
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
