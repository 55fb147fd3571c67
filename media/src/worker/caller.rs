//! The caller's side: sends a request to a worker and maps the frames that it returns.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memmap2::Mmap;
use reel_diagnostic::Diagnostic;
use reel_diagnostic::input::UnsuitableFile;
use rustix::fs::{MemfdFlags, SealFlags};

use super::frame_cache::{FrameCache, FrameKey};
use super::process::{self, WorkerCommand};
use super::protocol::{WorkerJob, WorkerReply, WorkerRequest, path_to_bytes};
use crate::profile::{MediaOverrides, MediaProfile};
use crate::video::{DecodeLimits, DecodedFrameSize, DecodedVideo, PixelBuffer, VideoInfo};
use crate::{MediaError, Result};

/// The hidden command line argument that makes the program a worker.
pub const WORKER_ARGUMENT: &str = "__decode-worker";

/// Default time limit for one video.
pub const DEFAULT_DECODE_TIMEOUT: Duration = Duration::from_secs(60);

/// Default memory limit for one video, in MiB.
pub const DEFAULT_DECODE_MEMORY_MIB: u64 = 2048;

/// The pause before a second attempt if this machine had no threads, processes or open files left.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// Decodes videos, each one in its own worker process.
#[derive(Clone, Debug)]
pub struct DecodeWorker {
    /// The program to run as worker. It must call [`super::worker_main`] when it is started with `args`.
    pub exe: PathBuf,
    /// The arguments that start the program as a worker.
    pub args: Vec<String>,
    /// Time after which the worker is killed.
    pub timeout: Duration,
    /// Memory in MiB that the worker may allocate, including the frames but not the program itself.
    pub memory_mib: u64,
    /// Number of decoding threads.
    pub threads: usize,
    /// Keeps the frames of [`DecodeWorker::decode_resized`] for later requests; `None` decodes each time.
    pub cache: Option<Arc<FrameCache>>,
}

impl DecodeWorker {
    /// A decoder that starts `exe` with [`WORKER_ARGUMENT`] and the default limits.
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            args: vec![WORKER_ARGUMENT.to_owned()],
            timeout: DEFAULT_DECODE_TIMEOUT,
            memory_mib: DEFAULT_DECODE_MEMORY_MIB,
            threads: DecodeLimits::default().threads,
            cache: None,
        }
    }

    /// A decoder that starts this program as its worker. This works even if the program's file was replaced or
    /// deleted after the start.
    pub fn from_this_program() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Reads size, frame rate and number of frames of a video.
    ///
    /// # Errors
    /// The video cannot be read, or the worker fails, exceeds its limits or cannot be started.
    pub fn probe(&self, path: &Path) -> Result<VideoInfo> {
        match self.run(path, WorkerJob::Probe)? {
            (WorkerReply::Probed(info), _) => Ok(info),
            _ => Err(invalid_reply(path)),
        }
    }

    /// Decodes the frames that `profile` and `overrides` select, in the displayed size of the video.
    ///
    /// # Errors
    /// The video cannot be decoded, the selection is invalid, or the worker fails, exceeds its limits or cannot be
    /// started.
    pub fn decode(&self, path: &Path, profile: MediaProfile, overrides: &MediaOverrides) -> Result<DecodedVideo> {
        self.decode_at_size(path, profile, overrides, DecodedFrameSize::Original)
    }

    /// Decodes the frames that `profile` and `overrides` select, resized by their pixel limits inside the worker; or
    /// takes them from the cache.
    ///
    /// # Errors
    /// Those of [`DecodeWorker::decode`], and a video that cannot be resized to the pixel limits.
    pub fn decode_resized(
        &self,
        path: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
    ) -> Result<DecodedVideo> {
        let decode = || self.decode_at_size(path, profile, overrides, DecodedFrameSize::Resized);
        let Some(cache) = &self.cache else { return decode() };
        let Some(key) = FrameKey::new(path, profile, overrides) else { return decode() };
        match cache.get(&key) {
            Some(video) => Ok(video),
            None => Ok(cache.keep(key, decode()?)),
        }
    }

    /// Decodes the frames that `profile` and `overrides` select, in the given size.
    ///
    /// # Errors
    /// Those of [`DecodeWorker::decode_resized`].
    pub fn decode_at_size(
        &self,
        path: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
        size: DecodedFrameSize,
    ) -> Result<DecodedVideo> {
        let job = WorkerJob::Decode { profile, overrides: *overrides, size };
        match self.run(path, job)? {
            (WorkerReply::Decoded(video), memory) => map_pixels(path, video, &memory),
            _ => Err(invalid_reply(path)),
        }
    }

    /// Runs one job in a worker. Returns the worker's reply and the shared memory that holds the frames.
    ///
    /// If the worker is killed, fails without a reply, cannot be started or misses its deadline, a new worker tries the
    /// job once more. On a busy machine such a failure can be an accident (the kernel killed the process for lack of
    /// memory, a disk was slow, there were too many threads for a moment). Without a second attempt, a run would lose
    /// the row, or end.
    fn run(&self, path: &Path, job: WorkerJob) -> Result<(WorkerReply, File)> {
        // FFmpeg would wait for a pipe's writer or read a device without end, until the deadline.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            return Err(MediaError::cannot_read(path, &UnsuitableFile::Special.into()));
        }
        match self.run_once(path, job) {
            Err(MediaError::Timeout(_) | MediaError::Killed(_)) => self.run_once(path, job).map_err(tried_twice),
            Err(MediaError::Worker(_)) => {
                std::thread::sleep(RESTART_PAUSE);
                self.run_once(path, job).map_err(tried_twice)
            }
            result => result,
        }
    }

    fn run_once(&self, path: &Path, job: WorkerJob) -> Result<(WorkerReply, File)> {
        let request = WorkerRequest {
            path: path_to_bytes(path),
            memory_bytes: self.memory_mib.saturating_mul(1 << 20),
            threads: self.threads.max(1),
            job,
        };
        let cannot_start = |e: std::io::Error| MediaError::cannot_start_worker(&self.exe, &e);
        let mut memory: File = rustix::fs::memfd_create("reel-frames", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| cannot_start(e.into()))?
            .into();
        let text = serde_json::to_vec(&request).map_err(|e| cannot_start(e.into()))?;
        memory.write_all(&text).and_then(|()| memory.rewind()).map_err(cannot_start)?;
        let command =
            WorkerCommand { exe: &self.exe, args: &self.args, timeout: self.timeout, memory_mib: self.memory_mib };
        let reply = process::run_worker(&command, path, memory.try_clone().map_err(cannot_start)?)?;
        match serde_json::from_slice(&reply) {
            Ok(WorkerReply::Failed(failure)) => Err(failure.into_error(path)),
            Ok(WorkerReply::Panicked(message)) => Err(process::decoder_panicked(path, &message)),
            Ok(WorkerReply::OutOfMemory) => Err(process::memory_limit_exceeded(path, self.memory_mib)),
            Ok(reply) => Ok((reply, memory)),
            Err(_) => Err(invalid_reply(path)),
        }
    }
}

/// Says in the error of a second worker that a first one failed, too.
fn tried_twice(e: MediaError) -> MediaError {
    let note = |d: Diagnostic| Diagnostic { what: format!("{}, twice", d.what), ..d };
    match e {
        MediaError::Timeout(d) => MediaError::Timeout(note(d)),
        MediaError::Killed(d) => MediaError::Killed(note(d)),
        other => other,
    }
}

/// Maps the shared memory as pixels, after checking its length and sealing it against changes.
fn map_pixels(path: &Path, mut video: DecodedVideo, memory: &File) -> Result<DecodedVideo> {
    let expected = [video.height, video.width, 3]
        .iter()
        .try_fold(video.indices.len() as u64, |n, &side| n.checked_mul(side as u64));
    let actual = memory.metadata().map(|m| m.len()).ok();
    if expected.is_none() || expected == Some(0) || expected != actual {
        return Err(invalid_reply(path));
    }
    let cannot_read = |e: std::io::Error| MediaError::cannot_read(path, &e);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(memory, seals).map_err(|e| cannot_read(e.into()))?;
    // SAFETY: the seals, which cannot be removed, fix the length and the bytes. Sealing would have failed if a writable
    // mapping were left.
    let map = unsafe { Mmap::map(memory) }.map_err(cannot_read)?;
    video.data = PixelBuffer::Shared(Arc::new(map));
    Ok(video)
}

fn invalid_reply(path: &Path) -> MediaError {
    MediaError::file_error(
        path,
        "the decoding worker sent an incomplete or invalid reply",
        "use the same version of the program as worker, and check that there is free memory",
    )
}
