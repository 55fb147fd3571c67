//! Starting one worker, waiting for it no longer than allowed, and saying in one line what became of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::DecodeWorker;
use crate::{MediaError, Result};

/// No answer is longer: 2^20 indices of 7 digits and a few words.
const LONGEST_ANSWER: u64 = 16 << 20;

/// How much of a failing worker's last words is read.
const LONGEST_LAMENT: u64 = 64 << 10;

/// How long a killed process may take to go. One that waits for a dead disk can outlive even SIGKILL for a while.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a worker with `memory` as its standard input and gives what it wrote to its standard output.
pub(super) fn run(decoder: &DecodeWorker, path: &Path, memory: File) -> Result<Vec<u8>> {
    let deadline = Instant::now() + decoder.timeout;
    let mut worker = Worker::start(decoder, memory)?;
    let answer = reader(worker.child.stdout.take(), LONGEST_ANSWER);
    let lament = reader(worker.child.stderr.take(), LONGEST_LAMENT);
    let left = || deadline.saturating_duration_since(Instant::now());
    let answer = answer.recv_timeout(left());
    let status = match answer {
        Ok(_) => worker.wait_until(deadline),
        Err(_) => None,
    };
    let Some(status) = status else {
        worker.kill();
        return Err(MediaError::file(
            path,
            format!("the decoder was not done after {} s and was stopped", decoder.timeout.as_secs_f64()),
            "the file hangs the decoder or the machine is busy: leave the file out, or raise the time limit (--media-timeout)",
        ));
    };
    if status.success() {
        return Ok(answer.unwrap_or_default());
    }
    let lament = lament.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
    Err(died(decoder, path, status, &String::from_utf8_lossy(&lament)))
}

/// Reads a pipe to its end in the background; what is beyond `most` bytes is thrown away.
fn reader(pipe: Option<impl Read + Send + 'static>, most: u64) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    // Without a thread the sender is dropped, and the caller takes it as no answer.
    let _ = std::thread::Builder::new().name("decoder pipe".to_owned()).spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = Vec::new();
        if pipe.by_ref().take(most).read_to_end(&mut bytes).is_ok() {
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = send.send(bytes);
    });
    receive
}

/// A running worker; killed with all its children when dropped.
struct Worker {
    child: Child,
    gone: bool,
}

impl Worker {
    fn start(decoder: &DecodeWorker, memory: File) -> Result<Self> {
        let child = Command::new(&decoder.exe)
            .args(&decoder.args)
            // Each further arena of the C library reserves address space that counts against the limit.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::from(memory))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| MediaError::Worker { exe: decoder.exe.clone(), source })?;
        Ok(Self { child, gone: false })
    }

    /// The exit status, if the worker ends in time.
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let mut pause = Duration::from_micros(200);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.gone = true;
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
        if self.gone {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Failing means that it is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.wait_until(Instant::now() + GRACE);
        self.gone = true;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Why a worker without an answer ended.
fn died(decoder: &DecodeWorker, path: &Path, status: ExitStatus, lament: &str) -> MediaError {
    let memory = lament.contains("memory allocation of") || lament.contains("capacity overflow");
    if memory {
        return MediaError::file(
            path,
            format!("the decoder ran into its memory limit of {} MiB", decoder.memory_mib),
            "raise the limit (--media-memory), take fewer frames, or leave the file out",
        );
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended without a status".to_owned(),
    };
    let said: String =
        lament.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("").chars().take(200).collect();
    let said = if said.is_empty() { said } else { format!(" ({said})") };
    MediaError::file(path, format!("the decoder {how}{said}"), "the file may be damaged: leave it out, or convert it")
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (it gave up)",
        7 => " (memory that is not there)",
        8 => " (arithmetic error)",
        9 => " (killed: by someone, or for want of memory)",
        11 => " (invalid memory access)",
        15 => " (asked to end)",
        _ => "",
    }
}
