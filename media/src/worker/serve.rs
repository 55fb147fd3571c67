//! The worker's side: decodes videos.

use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use memmap2::MmapMut;
use reel_diagnostic::{Diagnostic, catch_panic};
use reel_worker::Replies;
use rustix::process::Resource;

use super::{WorkerJob, WorkerReply, WorkerRequest};
use crate::video::{DecodeLimits, DecodeRequest, DecodedFrameSize, check_file, decode_into, probe};
use crate::{MediaError, Result};

/// The `main` function of a worker.
pub(super) fn worker_main() -> ExitCode {
    // Loaded here, the libraries are in the memory of every fork. If they are missing, each fork replies so.
    #[cfg(feature = "ffmpeg")]
    let _ = crate::libraries::load();
    reel_worker::serve_in_forks(run_job)
}

/// Decodes the requested video into `memory`. Errors about the video are part of the reply.
///
/// # Errors
/// The caller has ended, sent no file, or the limits cannot be set.
pub fn run_job(request: WorkerRequest, memory: Option<File>, replies: &mut Replies) -> io::Result<()> {
    let memory = memory.ok_or_else(|| io::Error::other("a job came without a file"))?;
    let path = Path::new(&request.path);
    // Checked before the limits, so that an error that does not depend on memory is never taken for lack of memory.
    let reply = match check_file(path) {
        Ok(()) => {
            // It is meant for the video alone, beyond what the program and its libraries use.
            reel_worker::limit_memory(request.memory_bytes)?;
            run_with_limits(&request, path, &memory)
        }
        Err(e) => WorkerReply::Failed(e),
    };
    replies.send(&reply, &[])
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
    to_reply(catch_panic(job))
}

/// The reply of a job that ended, failed or panicked.
fn to_reply(ended: std::result::Result<Result<WorkerReply>, String>) -> WorkerReply {
    match ended {
        Ok(Ok(reply)) => reply,
        Ok(Err(MediaError::File(_) | MediaError::Unreadable(_) | MediaError::Worker(_))) | Err(_)
            if is_near_memory_limit() =>
        {
            WorkerReply::OutOfMemory
        }
        Ok(Err(e)) => WorkerReply::Failed(e),
        Err(message) if message == "capacity overflow" => WorkerReply::OutOfMemory,
        Err(message) => WorkerReply::Panicked(message),
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
    memory.set_len(bytes as u64).map_err(cannot_allocate)?;
    // SAFETY: the caller does not touch the memory before the reply, which is sent after the mapping has ended.
    unsafe { MmapMut::map_mut(memory) }.map_err(cannot_allocate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_decoder_is_a_reply() {
        let panicked = |message: &'static str| to_reply(Err(message.to_owned()));
        assert!(matches!(panicked("an index"), WorkerReply::Panicked(message) if message == "an index"));
        assert!(matches!(panicked("capacity overflow"), WorkerReply::OutOfMemory));
        let shortage = std::io::Error::from_raw_os_error(libc::EAGAIN);
        let failed = to_reply(Ok(Err(MediaError::cannot_start_threads(Path::new("a.mp4"), "decoding", &shortage))));
        assert!(matches!(failed, WorkerReply::Failed(MediaError::Worker(_))), "{failed:?}");
    }
}
