//! The worker's side: receives jobs and decodes files.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use reel_diagnostic::catch_panic;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, Signal};

use super::protocol::{COLUMNS, END, FAILED, Failure, Job, PART, ROW, Task, read_number, write_message, write_rows};
use crate::columnar::{Decoder, Part, RowSink, RowTexts};
use crate::{DataError, Result};

/// The most decoders that a worker keeps.
const MAX_DECODERS: usize = 64;

/// The `main` function of a worker: decodes files until the caller closes the socket at standard input.
pub fn worker_main() -> ExitCode {
    // Damaged files make the decoder panic; the caller gets the error.
    std::panic::set_hook(Box::new(|_| {}));
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            reel_diagnostic::note!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let socket = UnixStream::from(rustix::io::dup(rustix::stdio::stdin())?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // If memory runs out, the kernel ends the worker before the caller. Without permission it chooses for itself.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    end_with_caller(socket.try_clone()?)?;
    let mut decoders = VecDeque::new();
    let mut out = BufWriter::with_capacity(256 << 10, socket.try_clone()?);
    while let Some((job, file)) = receive_job(&socket)? {
        limit_memory(job.memory_bytes)?;
        match catch_panic(|| run(job, file, &mut decoders, &mut out)) {
            Ok(result) => result?,
            // Memory may be lost, and a decoder may be half changed.
            Err(panic) => return Err(io::Error::other(format!("it panicked: {panic}"))),
        }
        out.flush()?;
    }
    Ok(())
}

/// Starts a thread that ends this process when the caller closes the socket, also while a job runs.
fn end_with_caller(socket: UnixStream) -> io::Result<()> {
    let watch = move || {
        loop {
            // No event is requested: `poll` always reports that the other end was closed.
            let mut closed = [PollFd::new(&socket, PollFlags::empty())];
            match poll(&mut closed, None) {
                Err(rustix::io::Errno::INTR) => continue,
                _ => break,
            }
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    };
    let thread = std::thread::Builder::new().name("caller".to_string()).stack_size(64 << 10);
    thread.spawn(watch).map(drop)
}

/// Receives a job and its file; `None` if the caller has closed the socket.
fn receive_job(mut socket: &UnixStream) -> io::Result<Option<(Job, File)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut attached, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let file = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file: OwnedFd = file.ok_or_else(|| io::Error::other("a job came without a file"))?;
    let mut kind = [0];
    socket.read_exact(&mut kind)?;
    let bytes = read_number(&mut socket)?;
    let mut text = Vec::new();
    socket.take(bytes).read_to_end(&mut text)?;
    Ok(Some((serde_json::from_slice(&text)?, file.into())))
}

/// Limits the address space to what this process has now and `bytes` more. The next job may have another limit.
fn limit_memory(bytes: u64) -> io::Result<()> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm cannot be parsed"))?;
    let limit = (pages * rustix::param::page_size() as u64).saturating_add(bytes);
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::As);
    let limit = maximum.map_or(limit, |maximum| limit.min(maximum));
    Ok(rustix::process::setrlimit(Resource::As, Rlimit { current: Some(limit), maximum })?)
}

/// Runs a job and sends its messages. Errors of the file are among them; the error is that of sending.
fn run(job: Job, file: File, decoders: &mut VecDeque<(u64, Decoder)>, out: &mut impl Write) -> io::Result<()> {
    let mut sink = Sender { out, failed: None };
    let result = answer(&job, file, decoders, &mut sink);
    if let Some(e) = sink.failed {
        return Err(e);
    }
    match result {
        Ok((kind, content)) => write_message(out, kind, &content),
        Err(e) => write_message(out, FAILED, &serde_json::to_vec(&Failure::from(e))?),
    }
}

/// The kind and the content of the last message of a job.
fn answer(
    job: &Job,
    file: File,
    decoders: &mut VecDeque<(u64, Decoder)>,
    sink: &mut Sender<'_, impl Write>,
) -> Result<(u8, Vec<u8>)> {
    if !decoders.iter().any(|(number, _)| *number == job.file) {
        let path = PathBuf::from(OsString::from_vec(job.path.clone()));
        let decoder = Decoder::open(job.format, &path, file)?;
        if decoders.len() == MAX_DECODERS {
            decoders.pop_front();
        }
        decoders.push_back((job.file, decoder));
    }
    let Some((_, decoder)) = decoders.iter().find(|(number, _)| *number == job.file) else {
        return Err(DataError::data("", "has no decoder", ""));
    };
    // Numbers and names are always JSON.
    let json = |value: Result<Vec<u8>, serde_json::Error>| value.unwrap_or_default();
    match job.task {
        Task::Columns => Ok((COLUMNS, json(serde_json::to_vec(&decoder.columns())))),
        Task::Rows => Ok((END, json(serde_json::to_vec(&decoder.decode_rows(sink)?)))),
        Task::TryColumns(group) => decoder.try_columns(group, sink).map(|()| (END, b"0".to_vec())),
        Task::Row(index) => Ok((ROW, decoder.row(index)?)),
    }
}

/// Sends parts and rows to the caller.
struct Sender<'a, W> {
    out: &'a mut W,
    /// Why sending failed: the caller has ended.
    failed: Option<io::Error>,
}

impl<W: Write> Sender<'_, W> {
    fn sent(&mut self, result: io::Result<()>) -> Result<()> {
        result.map_err(|e| {
            let error = DataError::cannot_read("", &e);
            self.failed = Some(e);
            error
        })
    }
}

impl<W: Write> RowSink for Sender<'_, W> {
    fn begin(&mut self, part: Part) -> Result<()> {
        // Sent at once: if decoding the part ends this process, the caller knows the part.
        let text = serde_json::to_vec(&part).map_err(io::Error::from);
        let sent = text.and_then(|text| write_message(self.out, PART, &text)).and_then(|()| self.out.flush());
        self.sent(sent)
    }

    fn append(&mut self, rows: &RowTexts) -> Result<()> {
        let sent = write_rows(self.out, rows);
        self.sent(sent)
    }
}
