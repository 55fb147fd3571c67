//! The worker's side of video decoding: receives a request, decodes the video into shared memory, and sends a reply.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use memmap2::{MmapMut, MmapOptions};
use reel_support::diagnostic::{Diagnostic, catch_panic};
use reel_support::worker::{ReplySender, limit_memory, limit_private_memory, processor_seconds};
use rustix::process::Resource;

use super::{WorkerJob, WorkerReply, WorkerRequest};
use crate::error::{Error, Kind, MediaFailure, Result};
use crate::media::video::{DecodeLimits, DecodeRequest, check_video_file, decode_into, open_gpu, probe};

/// The `main` function of a worker.
pub(super) fn worker_main() -> ExitCode {
    // FFmpeg's libraries are loaded before forking, so that every fork inherits them. If they are missing, each fork
    // reports this in its reply.
    #[cfg(feature = "ffmpeg")]
    let _ = crate::media::libraries::load_ffmpeg();
    reel_support::worker::serve_in_forks(run_job)
}

/// The `main` function of a worker that decodes on a GPU.
pub(super) fn gpu_worker_main() -> ExitCode {
    reel_support::worker::serve(run_job)
}

/// Decodes the requested video into `memory`. Errors about the video are part of the reply.
///
/// # Errors
/// The caller has ended, sent no file, or the limits cannot be set.
pub fn run_job(request: WorkerRequest, memory: Option<File>, replies: &mut ReplySender) -> io::Result<()> {
    let memory = memory.ok_or_else(|| io::Error::other("a decoding job came without its shared memory file"))?;
    let path = Path::new(&request.path);
    // GPU and file are checked before memory is limited, so that an error with another cause is never taken for lack of
    // memory.
    let checked = request.gpu.map_or(Ok(()), open_gpu).and_then(|()| match request.job {
        WorkerJob::OpenGpu => Ok(()),
        WorkerJob::Probe | WorkerJob::Decode { .. } => check_video_file(path),
    });
    let reply = match checked {
        Ok(()) => {
            // The limit applies to memory that decoding allocates, beyond what the program and its libraries already
            // use.
            match request.gpu {
                None => limit_memory(request.memory_bytes)?,
                // CUDA reserves as much address space as the GPU and the host have memory.
                Some(_) => limit_private_memory(request.memory_bytes)?,
            }
            run_with_limits(&request, path, &memory)
        }
        Err(e) => WorkerReply::Failed(e),
    };
    replies.send(&reply, &[])
}

/// Does the requested job. If the job fails near the memory limit, the reply is `OutOfMemory` instead of the job's
/// error. With too little memory, FFmpeg may lose frames, report damaged data, or end the file early, and the job's
/// error would wrongly blame the file.
fn run_with_limits(request: &WorkerRequest, path: &Path, memory: &File) -> WorkerReply {
    let WorkerRequest { threads, memory_bytes, max_pixels: pixels, gpu, .. } = *request;
    let limits = DecodeLimits { threads, memory_bytes, pixels, gpu };
    // A fork has one job; a worker that decodes on a GPU had others before.
    let seconds_before = if gpu.is_some() { processor_seconds() } else { 0.0 };
    let job = || match request.job {
        WorkerJob::OpenGpu => Ok(WorkerReply::GpuIsOpen),
        WorkerJob::Probe => probe(path).map(WorkerReply::Probed),
        WorkerJob::Decode { profile, overrides, size } => {
            let request = DecodeRequest { path, profile, overrides, size, limits };
            decode_into(&request, |bytes| map_output(path, memory, bytes)).map(|(mut video, _)| {
                video.times.cpu_seconds = processor_seconds() - seconds_before;
                WorkerReply::Decoded(video)
            })
        }
    };
    to_reply(catch_panic(job))
}

/// Converts the result of a job to the reply for the caller. The outer `Err` is the message of a panic.
fn to_reply(ended: std::result::Result<Result<WorkerReply>, String>) -> WorkerReply {
    match ended {
        Ok(Ok(reply)) => reply,
        Ok(Err(Error {
            kind: Kind::Media(MediaFailure::File | MediaFailure::Unreadable | MediaFailure::Worker),
            ..
        }))
        | Err(_)
            if is_near_memory_limit() =>
        {
            WorkerReply::OutOfMemory
        }
        Ok(Err(e)) => WorkerReply::Failed(e),
        Err(message) if message == "capacity overflow" => WorkerReply::OutOfMemory,
        Err(message) => WorkerReply::Panicked(message),
    }
}

/// [`is_near_memory_limit`] is true if the peak of the address space is within this many bytes of its limit. FFmpeg
/// reports a failure of larger allocations as lack of memory, but not of smaller ones: thread stacks (8 MiB), packets
/// and read buffers.
const NEAR_LIMIT_BYTES: u64 = 16 << 20;

/// Whether the address space of this process has come so close to its limit that an allocation may have failed.
/// Compares the peak size, because the failed job has freed its memory by now.
fn is_near_memory_limit() -> bool {
    let Some(limit) = rustix::process::getrlimit(Resource::As).current else { return false };
    // Reading this file fails only if no memory is left for its text.
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
            Error::media_memory(path, what, "take fewer frames, or raise the memory limit (--media-memory)")
        }
        _ => {
            let what = format!("shared memory for its frames cannot be allocated: {e}");
            Kind::Media(MediaFailure::Worker).error(Diagnostic::new(
                path.display().to_string(),
                what,
                "free memory, or take fewer frames",
            ))
        }
    };
    memory.set_len(bytes as u64).map_err(cannot_allocate)?;
    // SAFETY: the caller does not touch the memory before the reply, which is sent after the mapping has ended.
    unsafe { MmapOptions::new().populate().map_mut(memory) }.map_err(cannot_allocate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::error::cannot_start_threads;

    #[test]
    fn a_panic_of_the_decoder_is_a_reply() {
        let panicked = |message: &'static str| to_reply(Err(message.to_owned()));
        assert!(matches!(panicked("an index"), WorkerReply::Panicked(message) if message == "an index"));
        assert!(matches!(panicked("capacity overflow"), WorkerReply::OutOfMemory));
        let shortage = std::io::Error::from_raw_os_error(libc::EAGAIN);
        let failed = to_reply(Ok(Err(cannot_start_threads(Path::new("a.mp4"), "decoding", &shortage))));
        assert!(matches!(&failed, WorkerReply::Failed(e) if e.kind == Kind::Media(MediaFailure::Worker)), "{failed:?}");
    }
}
