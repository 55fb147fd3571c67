//! The server's side: receives jobs and forks a worker for each job. The worker decodes the video.

use std::any::Any;
use std::error::Error;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use memmap2::MmapMut;
use reel_diagnostic::Diagnostic;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, pidfd_open, waitpid};

use super::protocol::{WorkerJob, WorkerReply, WorkerRequest, path_from_bytes};
use crate::video::{DecodeLimits, DecodeRequest, DecodedFrameSize, check_file, decode_into, probe};
use crate::{MediaError, Result};

/// The `main` function of a worker server. Standard input is the socket to the caller. Call this function before the
/// program starts any thread, because the server forks.
pub fn worker_main() -> ExitCode {
    serve_jobs(run_job)
}

/// Receives jobs from the socket at standard input until the caller closes the socket. For each job, forks a worker
/// that calls `job` and exits with the returned code. A real worker calls [`run_job`]; tests use other functions.
pub fn serve_jobs(job: impl Fn() -> u8) -> ExitCode {
    // Loaded here, the libraries are in the memory of every worker. If they are missing, each worker replies so.
    #[cfg(feature = "ffmpeg")]
    let _ = crate::libraries::load();
    match serve(&job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("the decoding worker's server failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(job: &impl Fn() -> u8) -> std::io::Result<()> {
    let socket = rustix::io::dup(rustix::stdio::stdin())?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    while let Some(files) = receive_job(&socket)? {
        let worker = fork_worker(files, job)?;
        match wait_for_worker(&socket, worker)? {
            Some(status) => rustix::io::write(&socket, &status.to_ne_bytes()).map(drop)?,
            None => {
                // When this server exits, the parent-death signal kills the worker, but only if the worker has already
                // requested that signal.
                let _ = rustix::process::kill_process(worker, Signal::KILL);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Receives the three files of a job; `None` if the caller has closed the socket.
fn receive_job(socket: &OwnedFd) -> std::io::Result<Option<[OwnedFd; 3]>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut messages, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let files = messages.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect(),
        _ => Vec::new(),
    });
    match <[OwnedFd; 3]>::try_from(files.collect::<Vec<_>>()) {
        Ok(files) => Ok(Some(files)),
        Err(files) => Err(std::io::Error::other(format!("a job came with {} files instead of 3", files.len()))),
    }
}

/// Forks a worker with the files as its standard input, output and error.
fn fork_worker(files: [OwnedFd; 3], job: &impl Fn() -> u8) -> std::io::Result<Pid> {
    let server = rustix::process::getpid();
    // SAFETY: this process has a single thread, so no other thread holds a lock or changes memory at the fork. The
    // child gets a consistent copy of all memory that the code below uses.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            let run = || become_worker(server, files).map(|()| job());
            let code = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(code)) => code,
                Ok(Err(e)) => {
                    eprintln!("the decoding worker cannot start: {e}");
                    1
                }
                Err(_) => PANICKED,
            };
            let _ = std::io::stdout().flush();
            // SAFETY: `_exit` ends the process. `exit` would run the exit handlers of the libraries, which no result
            // depends on.
            unsafe { libc::_exit(code.into()) }
        }
        child => Pid::from_raw(child).ok_or_else(|| std::io::Error::other("fork returned an invalid process id")),
    }
}

/// The exit code of a Rust program that panicked.
const PANICKED: u8 = 101;

/// Makes `files` the standard input, output and error of this process, and requests from the kernel that this process
/// is killed when its server exits.
fn become_worker(server: Pid, files: [OwnedFd; 3]) -> std::io::Result<()> {
    let [stdin, stdout, stderr] = files;
    rustix::stdio::dup2_stderr(stderr)?;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the server ended before the signal was requested, the signal never comes; this process then has another
    // parent.
    match rustix::process::getppid() == Some(server) {
        true => Ok(()),
        false => Err(std::io::Error::other("its server has exited")),
    }
}

/// Waits for the exit status of the worker; `None` if the caller closes the socket before the worker exits.
fn wait_for_worker(socket: &OwnedFd, worker: Pid) -> std::io::Result<Option<i32>> {
    let ended = pidfd_open(worker, PidfdFlags::empty())?;
    loop {
        // No event is requested for the socket: `poll` always reports that the other end was closed.
        let mut events =
            [PollFd::new(&ended, PollFlags::IN), PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
        match poll(&mut events, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [worker_ended, socket_closed] = events.map(|event| !event.revents().is_empty());
        if worker_ended {
            let status = waitpid(Some(worker), WaitOptions::empty())?;
            return Ok(status.map(|(_, status)| status.as_raw()));
        }
        if socket_closed {
            return Ok(None);
        }
    }
}

/// The job of a worker: reads one request from standard input, decodes the video, and replies on standard output.
/// Errors about the video are part of the reply. Returns the exit code: 0 if a reply was written, else 1.
pub fn run_job() -> u8 {
    match decode_requested_video() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("the decoding worker failed: {e}");
            1
        }
    }
}

fn decode_requested_video() -> std::io::Result<()> {
    let memory: File = rustix::io::dup(rustix::stdio::stdin())?.into();
    let mut text = Vec::new();
    (&memory).read_to_end(&mut text)?;
    let request: WorkerRequest = serde_json::from_slice(&text)?;
    let path = path_from_bytes(&request.path);
    // Checked before the limits, so that an error that does not depend on memory is never taken for lack of memory.
    let reply = match check_file(&path) {
        Ok(()) => {
            apply_limits(&request)?;
            run_with_limits(&request, &path, &memory)
        }
        Err(e) => WorkerReply::Failed(e.into()),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(&serde_json::to_vec(&reply)?)?;
    out.flush()
}

/// Does the requested job. If it fails near the memory limit, the reply says so and drops the error of the job, which
/// would blame the file: with too little memory FFmpeg may lose frames, find damaged data, or end the file early.
fn run_with_limits(request: &WorkerRequest, path: &Path, memory: &File) -> WorkerReply {
    let limits = DecodeLimits { threads: request.threads, memory_bytes: request.memory_bytes };
    let job = || match request.job {
        WorkerJob::Probe => probe(path).map(WorkerReply::Probed),
        WorkerJob::Decode { profile, overrides, size } => {
            if matches!(size, DecodedFrameSize::Resized) {
                create_resize_threads(path)?;
            }
            let request = DecodeRequest { path, profile, overrides, size, limits };
            decode_into(&request, |bytes| map_output(path, memory, bytes)).map(|(video, _)| WorkerReply::Decoded(video))
        }
    };
    to_reply(catch_unwind(AssertUnwindSafe(job)))
}

/// The reply of a job that ended, failed or panicked.
fn to_reply(ended: std::thread::Result<Result<WorkerReply>>) -> WorkerReply {
    match ended {
        Ok(Ok(reply)) => reply,
        Ok(Err(MediaError::File(_) | MediaError::Unreadable(_) | MediaError::Worker(_))) | Err(_)
            if is_near_memory_limit() =>
        {
            WorkerReply::OutOfMemory
        }
        Ok(Err(e)) => WorkerReply::Failed(e.into()),
        Err(panic) => match panic_message(&*panic) {
            "capacity overflow" => WorkerReply::OutOfMemory,
            message => WorkerReply::Panicked(message.to_owned()),
        },
    }
}

/// Creates the threads of the resize, which would panic later if they cannot be created: a panic while decoding is
/// blamed on the file.
fn create_resize_threads(path: &Path) -> Result<()> {
    let created = rayon::ThreadPoolBuilder::new().build_global();
    // Rayon's error has the operating system's one as its source only. Another error says that the threads exist.
    let cause = created.as_ref().err().and_then(|e| e.source()?.downcast_ref::<std::io::Error>());
    cause.map_or(Ok(()), |e| Err(MediaError::cannot_start_threads(path, "resizing its frames", e)))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// How close to its limit the address space must have come for [`is_near_memory_limit`]. The largest allocations whose
/// failure FFmpeg does not report as such are smaller: stacks of threads (8 MiB), packets and buffers for reading.
const NEAR_LIMIT_BYTES: u64 = 16 << 20;

/// Whether the address space of this process has come so close to its limit that an allocation may have failed. The
/// peak is what counts, because after a failure memory is free again.
fn is_near_memory_limit() -> bool {
    let Some(limit) = rustix::process::getrlimit(Resource::As).current else { return false };
    // Reading fails only if there is no memory left for the text.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak_kib = peak.and_then(|n| n.parse::<u64>().ok());
    peak_kib.is_some_and(|kib| kib.saturating_mul(1024).saturating_add(NEAR_LIMIT_BYTES) > limit)
}

/// Resizes the shared memory to `bytes` and maps it for writing.
fn map_output(path: &Path, memory: &File, bytes: usize) -> Result<MmapMut> {
    let cannot_allocate = |e: std::io::Error| match e.kind() {
        ErrorKind::OutOfMemory => {
            let what = format!("no memory is left for its selected frames, {} MiB", bytes.div_ceil(1 << 20));
            MediaError::memory_error(path, what, "take fewer frames, or raise the memory limit (--media-memory)")
        }
        _ => {
            let what = format!("shared memory for its frames cannot be allocated: {e}");
            MediaError::Worker(Diagnostic::new(path.display().to_string(), what, "free memory, or take fewer frames"))
        }
    };
    // Setting the length to 0 first discards the request in the memory, so all bytes are zero until a frame is
    // written.
    memory.set_len(0).and_then(|()| memory.set_len(bytes as u64)).map_err(cannot_allocate)?;
    // SAFETY: the caller does not touch the memory while this process lives, so nothing else changes it while it is
    // mapped.
    unsafe { MmapMut::map_mut(memory) }.map_err(cannot_allocate)
}

/// Limits the address space of this process. Runs before the video is read.
fn apply_limits(request: &WorkerRequest) -> std::io::Result<()> {
    let set_limit = |resource, limit: u64| {
        let Rlimit { current, maximum } = rustix::process::getrlimit(resource);
        let limit = [current, maximum].into_iter().flatten().fold(limit, u64::min);
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
    };
    set_limit(Resource::Core, 0)?;
    // The limit is `memory_bytes` plus the address space that the program and its libraries already use, because
    // `memory_bytes` is meant for the video alone.
    set_limit(Resource::As, address_space_bytes()?.saturating_add(request.memory_bytes))?;
    Ok(())
}

/// Bytes of address space that this process uses (the first field of /proc/self/statm, in pages).
fn address_space_bytes() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| std::io::Error::other("/proc/self/statm cannot be parsed"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_decoder_is_a_reply() {
        let panicked = |message: &'static str| to_reply(Err(Box::new(message)));
        assert!(matches!(panicked("an index"), WorkerReply::Panicked(message) if message == "an index"));
        assert!(matches!(panicked("capacity overflow"), WorkerReply::OutOfMemory));
        let shortage = std::io::Error::from_raw_os_error(libc::EAGAIN);
        let failed = to_reply(Ok(Err(MediaError::cannot_start_threads(Path::new("a.mp4"), "decoding", &shortage))));
        let WorkerReply::Failed(failure) = failed else { panic!("another reply: {failed:?}") };
        assert!(matches!(failure.into_error(Path::new("a.mp4")), MediaError::Worker(_)));
    }
}
