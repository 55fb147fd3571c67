//! The worker's side: reads one request from standard input, decodes the video, and replies on standard output.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use memmap2::MmapMut;
use rustix::process::{Resource, Rlimit, Signal};

use super::protocol::{WorkerJob, WorkerReply, WorkerRequest, path_from_bytes};
use crate::video::{DecodeLimits, DecodeRequest, decode_into, probe};
use crate::{MediaError, Result};

/// The `main` function of a worker process.
///
/// Errors about the video are part of the reply; the exit code says only whether a reply was written.
pub fn worker_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("the decoding worker failed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    let memory: File = rustix::io::dup(rustix::stdio::stdin())?.into();
    let mut text = Vec::new();
    (&memory).read_to_end(&mut text)?;
    let request: WorkerRequest = serde_json::from_slice(&text)?;
    apply_limits(&request)?;
    let path = path_from_bytes(&request.path);
    let limits = DecodeLimits { threads: request.threads, memory_bytes: request.memory_bytes };
    let result = match request.job {
        WorkerJob::Probe => probe(&path).map(WorkerReply::Probed),
        WorkerJob::Decode { profile, overrides, size } => {
            let request = DecodeRequest { path: &path, profile, overrides, size, limits };
            decode_into(&request, |bytes| map_output(&path, &memory, bytes))
                .map(|(video, _)| WorkerReply::Decoded(video))
        }
    };
    let reply = result.unwrap_or_else(|e| WorkerReply::Failed(e.into()));
    let mut out = std::io::stdout().lock();
    out.write_all(&serde_json::to_vec(&reply)?)?;
    out.flush()
}

/// Resizes the shared memory to `bytes` and maps it for writing.
fn map_output(path: &Path, memory: &File, bytes: usize) -> Result<MmapMut> {
    let cannot_allocate = |e: std::io::Error| {
        let what = format!("shared memory for its frames cannot be allocated: {e}");
        MediaError::file_error(path, what, "free memory, or take fewer frames")
    };
    // Setting the length to 0 first discards the request in the memory, so all bytes are zero until a frame is
    // written.
    memory.set_len(0).and_then(|()| memory.set_len(bytes as u64)).map_err(cannot_allocate)?;
    // SAFETY: the caller does not touch the memory while this process lives, so nothing else changes it while it is
    // mapped.
    unsafe { MmapMut::map_mut(memory) }.map_err(cannot_allocate)
}

/// Makes this process end when its caller ends, and limits its address space. Runs before the video is read.
fn apply_limits(request: &WorkerRequest) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the caller exited before the signal was requested, the signal never comes; this process then has another
    // parent than the caller.
    let parent = rustix::process::getppid().map(|p| p.as_raw_nonzero().get());
    if parent != i32::try_from(request.caller_pid).ok() {
        return Err(std::io::Error::other("its caller has exited"));
    }
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
