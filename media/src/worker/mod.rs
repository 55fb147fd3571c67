//! Decoding in a process of its own: a file that crashes FFmpeg, hangs it or makes it eat memory costs one line of error and
//! nothing else.
//!
//! The worker is the program itself with a hidden argument, which calls [`worker_main`]. It gets one shared memory file as standard
//! input: a request in JSON is in it, and the frames replace it. The answer, JSON without pixels, comes back on standard
//! output. The worker has a group of its own, so Ctrl-C reaches only the caller, and dies when its caller's thread does.

#![allow(unsafe_code)]

mod process;
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use memmap2::{Mmap, MmapMut};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Resource, Rlimit, Signal};

use crate::profile::{MediaOverrides, MediaProfile};
use crate::video::{DecodeLimits, DecodeRequest, DecodedVideo, FrameSize, PixelBuffer, VideoInfo, decode_into, probe};
use crate::{MediaError, Result};
use wire::{DecodedHeader, WorkerJob, WorkerReply, WorkerRequest};

/// The hidden argument that makes the program a worker.
pub const WORKER_ARGUMENT: &str = "__decode-worker";

/// How long a film may take by default.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How much memory a film may take by default, in MiB.
pub const DEFAULT_MEMORY_MIB: u64 = 2048;

/// Decodes films, each in a worker process of its own.
#[derive(Clone, Debug)]
pub struct DecodeWorker {
    /// The program to run as worker; it must call [`worker_main`] when given `args`.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// After this time the worker is killed.
    pub timeout: Duration,
    /// What the worker may allocate beyond its own program, in MiB, frames included.
    pub memory_mib: u64,
    /// Threads that decode.
    pub threads: usize,
}

impl DecodeWorker {
    /// A decoder that runs `exe` with [`WORKER_ARGUMENT`], with the default limits.
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            args: vec![WORKER_ARGUMENT.to_owned()],
            timeout: DEFAULT_TIMEOUT,
            memory_mib: DEFAULT_MEMORY_MIB,
            threads: DecodeLimits::default().threads,
        }
    }

    /// A decoder that runs this very program, whatever has become of its file meanwhile.
    pub fn this_program() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Reads a film's size, rate and number of frames.
    pub fn probe(&self, path: &Path) -> Result<VideoInfo> {
        match self.ask(path, WorkerJob::Probe)? {
            (WorkerReply::Probed(probe), _) => Ok(probe),
            _ => Err(unreadable_answer(path)),
        }
    }

    /// Decodes the frames that `profile` and `overrides` choose, as they are in the film.
    pub fn decode(&self, path: &Path, profile: MediaProfile, overrides: &MediaOverrides) -> Result<DecodedVideo> {
        self.decode_at_size(path, profile, overrides, FrameSize::Original)
    }

    /// The same, each frame resized by the film rule before it leaves the worker.
    pub fn decode_resized(
        &self,
        path: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
    ) -> Result<DecodedVideo> {
        self.decode_at_size(path, profile, overrides, FrameSize::Resized)
    }

    /// Decodes chosen frames in the size asked for.
    pub fn decode_at_size(
        &self,
        path: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
        size: FrameSize,
    ) -> Result<DecodedVideo> {
        let job = WorkerJob::Decode { profile, overrides: *overrides, size };
        match self.ask(path, job)? {
            (WorkerReply::Decoded(sampled), memory) => collect(path, sampled, &memory),
            _ => Err(unreadable_answer(path)),
        }
    }

    /// Runs one worker for one job; the shared memory holds the frames afterwards.
    fn ask(&self, path: &Path, job: WorkerJob) -> Result<(WorkerReply, File)> {
        let order = WorkerRequest {
            caller: std::process::id(),
            path: wire::bytes_of(path),
            memory: self.memory_mib.saturating_mul(1 << 20),
            threads: self.threads.max(1),
            job,
        };
        let cannot = |source| MediaError::Worker { exe: self.exe.clone(), source };
        let mut memory: File = rustix::fs::memfd_create("reel-frames", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| cannot(e.into()))?
            .into();
        let text = serde_json::to_vec(&order).map_err(|e| cannot(e.into()))?;
        memory.write_all(&text).and_then(|()| rewind(&memory)).map_err(cannot)?;
        let answer = process::run(self, path, memory.try_clone().map_err(cannot)?)?;
        match serde_json::from_slice(&answer) {
            Ok(WorkerReply::Failed(failure)) => Err(failure.into_error(path)),
            Ok(reply) => Ok((reply, memory)),
            Err(_) => Err(unreadable_answer(path)),
        }
    }
}

fn rewind(mut file: &File) -> std::io::Result<()> {
    std::io::Seek::rewind(&mut file)
}

/// Maps the frames that a worker left in `memory`, after making sure that they are there and that nobody can change them.
fn collect(path: &Path, s: DecodedHeader, memory: &File) -> Result<DecodedVideo> {
    let bytes = [s.height, s.width, 3].iter().try_fold(s.indices.len() as u64, |n, &side| n.checked_mul(side as u64));
    let there = memory.metadata().map(|m| m.len()).ok();
    if bytes.is_none() || bytes == Some(0) || bytes != there {
        return Err(unreadable_answer(path));
    }
    let io = |source| MediaError::Io { path: path.to_owned(), source };
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(memory, seals).map_err(|e| io(e.into()))?;
    // SAFETY: the seals, which cannot be taken off, keep the length and the bytes as they are; no writable mapping is left,
    // or sealing would have failed.
    let map = unsafe { Mmap::map(memory) }.map_err(io)?;
    Ok(DecodedVideo {
        data: PixelBuffer::Shared(map),
        height: s.height,
        width: s.width,
        indices: s.indices,
        total_frames: s.total_frames,
        video_fps: s.video_fps,
        sample_fps: s.sample_fps,
    })
}

fn unreadable_answer(path: &Path) -> MediaError {
    MediaError::file(
        path,
        "the decoder's answer is cut short or not in its language",
        "run the same version of the program as worker, and check that memory is not full",
    )
}

/// The worker's side: reads one order from standard input, does it, answers on standard output.
///
/// Never returns an error: whatever is wrong with the film is in the answer, and the exit code says whether one was given.
pub fn worker_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("the decoding worker cannot work: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    let memory: File = rustix::io::dup(rustix::stdio::stdin())?.into();
    let mut text = Vec::new();
    (&memory).read_to_end(&mut text)?;
    let order: WorkerRequest = serde_json::from_slice(&text)?;
    confine(&order)?;
    let path = wire::path_of(&order.path);
    let limits = DecodeLimits { threads: order.threads, memory: order.memory };
    let done = match order.job {
        WorkerJob::Probe => probe(&path).map(WorkerReply::Probed),
        WorkerJob::Decode { profile, overrides, size } => {
            let request = DecodeRequest { path: &path, profile, overrides, size, limits };
            decode_into(&request, |bytes| share(&path, &memory, bytes))
                .map(|(frames, _)| WorkerReply::Decoded(frames.into()))
        }
    };
    let reply = done.unwrap_or_else(|e| WorkerReply::Failed(e.into()));
    let mut out = std::io::stdout().lock();
    out.write_all(&serde_json::to_vec(&reply)?)?;
    out.flush()
}

/// Makes the shared file `bytes` long and maps it.
fn share(path: &Path, memory: &File, bytes: usize) -> Result<MmapMut> {
    let io = |source: std::io::Error| {
        MediaError::file(
            path,
            format!("no shared memory for its frames: {source}"),
            "free memory, or take fewer frames",
        )
    };
    // The request is in the file: it goes, so that every byte is zero or a frame's.
    memory.set_len(0).and_then(|()| memory.set_len(bytes as u64)).map_err(io)?;
    // SAFETY: the caller only waits while this process lives, so that nobody else changes the file while it is mapped.
    unsafe { MmapMut::map_mut(memory) }.map_err(io)
}

/// Binds this process to its caller and to its limits, before it touches the film.
fn confine(order: &WorkerRequest) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The caller may have died before that.
    let parent = rustix::process::getppid().map(|p| p.as_raw_nonzero().get());
    if parent != i32::try_from(order.caller).ok() {
        return Err(std::io::Error::other("its caller is gone"));
    }
    let limit = |resource, most: u64| {
        let Rlimit { current, maximum } = rustix::process::getrlimit(resource);
        let most = [current, maximum].into_iter().flatten().fold(most, u64::min);
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    limit(Resource::Core, 0)?;
    // Program and libraries are counted apart: how large they are says nothing about the film.
    limit(Resource::As, own_size()?.saturating_add(order.memory))?;
    Ok(())
}

/// Bytes of address space in use (first field of /proc/self/statm, in pages).
fn own_size() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| std::io::Error::other("/proc/self/statm cannot be read"))?;
    Ok(pages * rustix::param::page_size() as u64)
}
