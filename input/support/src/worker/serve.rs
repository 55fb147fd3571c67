//! The worker's side of the worker protocol: receives jobs, runs them, sends replies, and limits the memory and
//! processor time of jobs.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use crate::diagnostic::{catch_panic, note};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::worker::message::{CANCEL_BYTE, is_message, read_message, write_message};

/// Sends the replies to a job.
#[derive(Debug)]
pub struct ReplySender(UnixStream);

impl ReplySender {
    /// Sends a reply with a header and a body.
    ///
    /// # Errors
    /// The caller has ended.
    pub fn send(&mut self, header: &impl Serialize, body: &[u8]) -> io::Result<()> {
        write_message(&mut self.0, header, body)
    }
}

/// Runs jobs until the caller closes the socket at standard input. `work` gets a job and its open file, and sends the
/// replies. If `work` fails or panics, the worker prints the error and exits, because its data may be only partly
/// changed.
pub fn serve<J: DeserializeOwned>(
    mut work: impl FnMut(J, Option<File>, &mut ReplySender) -> io::Result<()>,
) -> ExitCode {
    let served = start().and_then(|socket| {
        end_with_caller(socket.try_clone()?)?;
        let mut replies = ReplySender(socket.try_clone()?);
        while let Some((job, file)) = receive_job(&socket)? {
            without_panic(|| work(job, file, &mut replies))?;
        }
        Ok(())
    });
    ExitCode::from(code_of(served))
}

/// Does the same as [`serve`], but runs each job in a fork of the worker. If a fork fails, the worker ends in the
/// same way.
pub fn serve_in_forks<J: DeserializeOwned>(
    work: impl Fn(J, Option<File>, &mut ReplySender) -> io::Result<()>,
) -> ExitCode {
    let served = start().and_then(|socket| {
        let mut replies = ReplySender(socket.try_clone()?);
        while let Some((job, file)) = receive_job(&socket)? {
            let fork = fork(|| without_panic(|| work(job, file, &mut replies)))?;
            wait_for_fork(&socket, fork)?;
        }
        Ok(())
    });
    ExitCode::from(code_of(served))
}

/// How a fork ended that sent no reply.
#[derive(Debug, Serialize, Deserialize)]
pub struct ForkExit {
    /// The signal that killed the fork.
    pub signal: Option<i32>,
    /// The exit code of the fork, if it exited.
    pub code: Option<i32>,
}

/// Prepares data from the first job, then runs each further job in a fork, which inherits the data. The reply to the
/// first job is `Ok(())`. The reply to a further job is what `work` returns, or the [`ForkExit`] of a fork that failed
/// or whose job was cancelled by [`JobCanceller`](crate::worker::JobCanceller). Unlike in [`serve_in_forks`], the
/// worker survives its forks, because preparing the data takes long.
pub fn serve_in_prepared_forks<S: DeserializeOwned, T, J: DeserializeOwned, R: Serialize>(
    prepare: impl FnOnce(S) -> io::Result<T>,
    work: impl Fn(&T, J) -> io::Result<R>,
) -> ExitCode {
    let served = start().and_then(|socket| {
        let mut replies = ReplySender(socket.try_clone()?);
        let Some((setup, _)) = receive_job(&socket)? else { return Ok(()) };
        let data = without_panic(|| prepare(setup))?;
        replies.send(&Ok::<(), ForkExit>(()), &[])?;
        let (work, data) = (&work, &data);
        while let Some((job, _)) = receive_job(&socket)? {
            let (result, result_end) = UnixStream::pair()?;
            // The parent drops this closure, and with it its copy of the fork's end.
            let fork = fork(move || {
                ReplySender(result_end).send(&Ok::<R, ForkExit>(without_panic(|| work(data, job))?), &[])
            })?;
            let reply = read_from_fork(&socket, &result, fork)?;
            let is_whole = is_message(&reply);
            if is_whole {
                (&socket).write_all(&reply)?;
            }
            let status = rustix::process::waitpid(Some(fork), WaitOptions::empty())?.map(|(_, status)| status);
            if !is_whole {
                let (signal, code) = status.map_or((None, None), |s| (s.terminating_signal(), s.exit_status()));
                replies.send(&Err::<(), _>(ForkExit { signal, code }), &[])?;
            }
        }
        Ok(())
    });
    ExitCode::from(code_of(served))
}

/// Prepares this process to run jobs. Returns the socket to the caller.
fn start() -> io::Result<UnixStream> {
    // Damaged input can cause panics. The caller learns of them from the line that `code_of` prints, so the hook
    // prints nothing.
    std::panic::set_hook(Box::new(|_| {}));
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    set_limit(Resource::Core, 0)?;
    // If memory runs out, the kernel should kill the worker before the caller. Without permission for this setting,
    // the kernel chooses by itself.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(socket)
}

fn without_panic<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_panic(work).unwrap_or_else(|panic| Err(io::Error::other(format!("it panicked: {panic}"))))
}

/// Returns the exit code of a process whose work is done. Prints the error, if there is one.
fn code_of(done: io::Result<()>) -> u8 {
    if let Err(e) = &done {
        note!("{e}");
    }
    done.is_err().into()
}

/// Receives a job and its file; `None` if the caller has closed the socket.
fn receive_job<J: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<Option<(J, Option<File>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut first = [CANCEL_BYTE];
    // A job that ended by itself leaves the byte that should have cancelled it.
    while first == [CANCEL_BYTE] {
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut first)], &mut attached, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(None);
        }
    }
    let file = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let job = read_message(&mut socket, u64::MAX, 0, &mut Vec::new())?;
    Ok(Some((job, file.map(File::from))))
}

/// Starts a thread that ends this process when the caller closes the socket, even while a job runs.
fn end_with_caller(socket: UnixStream) -> io::Result<()> {
    let watch = move || {
        let _ = caller_closes(&socket, None);
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    };
    let thread = std::thread::Builder::new().name("caller".to_owned()).stack_size(64 << 10);
    thread.spawn(watch).map(drop)
}

/// Waits until the caller closes the socket, or until the other process ends. Returns true if the caller closed the
/// socket.
fn caller_closes(socket: &UnixStream, other: Option<&OwnedFd>) -> io::Result<bool> {
    loop {
        // No event is requested for the socket, because `poll` always reports that the other end was closed.
        let mut events = vec![PollFd::new(socket, PollFlags::empty())];
        events.extend(other.map(|process| PollFd::new(process, PollFlags::IN)));
        match poll(&mut events, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(!events[0].revents().is_empty()),
        }
    }
}

/// Forks this process. The child process does the work and exits.
fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<Pid> {
    // SAFETY: this process has a single thread (`run_if_worker` is called before any other is started), so no other
    // thread holds a lock or changes memory at the fork. The child gets a consistent copy of all memory.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let watched = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let code = code_of(watched.map_err(io::Error::from).and_then(|()| work()));
            // SAFETY: `_exit` ends the process. `exit` would run the exit handlers of the libraries, which no result
            // depends on.
            unsafe { libc::_exit(code.into()) }
        }
        child => Pid::from_raw(child).ok_or_else(|| io::Error::other("fork returned an invalid process id")),
    }
}

/// Waits until the fork has finished its job. Ends this process if the fork failed or the caller closes the socket.
fn wait_for_fork(socket: &UnixStream, fork: Pid) -> io::Result<()> {
    let ended = rustix::process::pidfd_open(fork, PidfdFlags::empty())?;
    if caller_closes(socket, Some(&ended))? {
        // The fork asks the kernel to kill it when this process ends. But the fork may not have reached this call
        // yet.
        let _ = rustix::process::kill_process(fork, Signal::KILL);
    }
    match rustix::process::waitpid(Some(fork), WaitOptions::empty())? {
        Some((_, status)) if status.exit_status() != Some(0) => end_as(status),
        _ => Ok(()),
    }
}

/// Reads what a fork writes to `result` until it closes its end. Kills the fork if the caller cancels its job or closes
/// the socket.
fn read_from_fork(socket: &UnixStream, mut result: &UnixStream, fork: Pid) -> io::Result<Vec<u8>> {
    let (mut reply, mut part) = (Vec::new(), [0; 4096]);
    let mut is_cancelled = false;
    loop {
        // The caller sends no other job before it has the reply, so any byte cancels this job. `receive_job` reads it.
        let mut events = [PollFd::new(&result, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        match poll(&mut events[..if is_cancelled { 1 } else { 2 }], None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        if !is_cancelled && !events[1].revents().is_empty() {
            is_cancelled = true;
            rustix::process::kill_process(fork, Signal::KILL)?;
        }
        if !events[0].revents().is_empty() {
            match result.read(&mut part)? {
                0 => return Ok(reply),
                n => reply.extend_from_slice(&part[..n]),
            }
        }
    }
}

/// Ends this process in the same way as another process ended: by the same signal, or with the same exit code.
fn end_as(status: WaitStatus) -> ! {
    if let Some(signal) = status.terminating_signal() {
        // SAFETY: both functions take numbers and change no memory of Rust. The signal has ended the other process, so
        // by default it ends this one; without the first call, a handler of the standard library could catch it.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    std::process::exit(status.exit_status().unwrap_or(1))
}

/// Limits the address space of this process to its current size plus `bytes`. The next job may set another limit.
///
/// # Errors
/// The limit cannot be set.
pub fn limit_memory(bytes: u64) -> io::Result<()> {
    const SIZE: usize = 0;
    limit_above_current(Resource::As, SIZE, bytes)
}

/// Limits the private writable memory of this process to its current size plus `bytes`. The next job may set another
/// limit. Other than [`limit_memory`], it leaves out address space that is only reserved and memory that is shared with
/// a device, of which a GPU's driver takes far more than the host has.
///
/// # Errors
/// The limit cannot be set.
pub fn limit_private_memory(bytes: u64) -> io::Result<()> {
    const DATA: usize = 5;
    limit_above_current(Resource::Data, DATA, bytes)
}

/// Limits a resource to `bytes` above the current value, which is this field of `/proc/self/statm`, in pages.
fn limit_above_current(resource: Resource, field: usize, bytes: u64) -> io::Result<()> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(field).and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm cannot be parsed"))?;
    set_limit(resource, (pages * rustix::param::page_size() as u64).saturating_add(bytes))
}

/// Limits the processor time of this process since its start. When the limit is reached, the kernel ends the process
/// with SIGXCPU.
///
/// # Errors
/// The limit cannot be set.
pub fn limit_processor_time(seconds: u64) -> io::Result<()> {
    set_limit(Resource::Cpu, seconds)
}

/// The processor time of all threads of this process since its start, in seconds.
pub fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the function writes to `time`. It cannot fail, because the clock exists and the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn set_limit(resource: Resource, limit: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(resource);
    let current = Some(maximum.map_or(limit, |maximum| limit.min(maximum)));
    Ok(rustix::process::setrlimit(resource, Rlimit { current, maximum })?)
}
