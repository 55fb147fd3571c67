//! The caller's side of a decoding worker: sends a request to the worker and maps the frames that the worker returns.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use memmap2::MmapOptions;
use reel_support::diagnostic::input::UnsuitableFile;
use reel_support::diagnostic::{Diagnostic, escape_controls, print_note_once};
use reel_support::ranges::record_span;
use reel_support::worker::{Worker, WorkerFailure, WorkerPool, WorkerProgram};
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::{Value, json};

use super::disk_cache::DiskFrameCache;
use super::frame_cache::{FrameCache, FrameKey};
use super::{DecodeControl, GPU_VIDEO_WORKER, VIDEO_WORKER, WorkerJob, WorkerReply, WorkerRequest};
use crate::error::{Error, Kind, MediaFailure, Result};
use crate::media::error::{cannot_read_media, cannot_start_worker};
use crate::media::profile::{MediaOverrides, MediaProfile, MediaRules};
use crate::media::video::{DecodeLimits, DecodeTimes, DecodedFrameSize, DecodedVideo, PixelBuffer, VideoInfo};

/// Default memory limit for one video, in MiB.
pub const DEFAULT_DECODE_MEMORY_MIB: u64 = 2048;

/// The pause before a job is tried again because this machine had no threads, processes or open files left.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// Number of workers of this process that decode on a GPU at the same time. Each has a CUDA context and the frames of its
/// decoders in the memory of the GPU, which the model needs.
const MAX_GPU_WORKERS: usize = 4;

/// Decodes videos, each one in its own worker process.
#[derive(Clone, Debug)]
pub struct DecodeWorker {
    /// The program to run as worker, and the time limit for one video.
    pub program: WorkerProgram,
    /// Memory in MiB that the worker may allocate, including the frames but not the program itself.
    pub memory_mib: u64,
    /// Number of decoding threads.
    pub threads: usize,
    /// The GPU that decodes H.264 and HEVC, as its index in CUDA's order. Frames have the same bits. A video that the
    /// GPU does not decode is decoded in software, with a note on stderr for each reason.
    pub gpu: Option<usize>,
    /// Cache of the frames that [`DecodeWorker::decode_resized`] returns; with `None`, each request decodes its video.
    pub cache: Option<Arc<FrameCache>>,
    /// Cache on disk of the same frames, which further processes and runs use.
    pub disk_cache: Option<Arc<DiskFrameCache>>,
    /// Stops the decoding when its result is no longer needed. With a control, a video that exceeds the time limit is
    /// not tried again.
    pub control: Option<Arc<dyn DecodeControl>>,
}

impl DecodeWorker {
    /// Creates a decoder that starts the program at `path` as its worker, with the default limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            program: WorkerProgram::new(path),
            memory_mib: DEFAULT_DECODE_MEMORY_MIB,
            threads: DecodeLimits::default().threads,
            gpu: None,
            cache: None,
            disk_cache: None,
            control: None,
        }
    }

    /// Asks the control whether decoding goes on after an image of `decoded_pixels` pixels.
    ///
    /// # Errors
    /// The control has stopped the decoding.
    pub fn check(&self, decoded_pixels: u64) -> Result<()> {
        self.control.as_ref().map_or(Ok(()), |control| control.check(decoded_pixels))
    }

    /// Creates a decoder that starts the running program's own binary as its worker.
    pub fn from_this_program() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Opens the GPU of [`DecodeWorker::gpu`], if there is one, in a worker that stays ready to decode.
    ///
    /// # Errors
    /// FFmpeg cannot decode on this GPU, the machine has no such GPU, or the worker fails.
    pub fn check_gpu(&self) -> Result<()> {
        if self.gpu.is_none() {
            return Ok(());
        }
        match self.run_once(Path::new("decoder nvdec"), WorkerJob::OpenGpu, self.gpu) {
            Err(e) if e.kind != Kind::Media(MediaFailure::Setting) => {
                let help = "check the GPU with nvidia-smi, or leave this option out";
                Err(Error::setting("decoder nvdec", e.diagnostic.what, help))
            }
            done => done.map(drop),
        }
    }

    /// Reads size, frame rate and number of frames of a video.
    ///
    /// # Errors
    /// The video cannot be read, or the worker fails, exceeds its limits or cannot be started.
    pub fn probe(&self, path: &Path) -> Result<VideoInfo> {
        let begun = Instant::now();
        match self.run(path, WorkerJob::Probe)? {
            (WorkerReply::Probed(info), _) => {
                record_video_span("probe", path, begun, json!({"codec": info.codec, "frames": info.total_frames}));
                note_left_out_frames(path, info.left_out_frames);
                Ok(info)
            }
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

    /// Decodes the frames that `rules` and `overrides` select and resizes them to the pixel limits inside the worker,
    /// or returns them from a cache.
    ///
    /// # Errors
    /// The video cannot be decoded or resized, the selection is invalid, or the worker fails or cannot be started.
    pub fn decode_resized(&self, path: &Path, rules: MediaRules, overrides: &MediaOverrides) -> Result<DecodedVideo> {
        let decode = || self.read_or_decode_resized(path, rules, overrides);
        let begun = Instant::now();
        let Some(cache) = &self.cache else { return decode() };
        let Some(key) = FrameKey::new(path, rules, overrides) else { return decode() };
        match cache.get(&key) {
            Some(video) => {
                record_video_span("take from the frame cache", path, begun, json!({"frames": video.indices.len()}));
                Ok(video)
            }
            None => Ok(cache.insert(key, decode()?)),
        }
    }

    /// Reads resized frames from the cache on disk, or decodes them and writes them there.
    fn read_or_decode_resized(
        &self,
        path: &Path,
        rules: MediaRules,
        overrides: &MediaOverrides,
    ) -> Result<DecodedVideo> {
        let decode = || self.decode_at_size(path, rules.profile, overrides, DecodedFrameSize::Resized(rules.family));
        let begun = Instant::now();
        let Some(cache) = &self.disk_cache else { return decode() };
        let Some(entry) = cache.entry(path, rules, overrides, self.gpu.is_some()) else { return decode() };
        if let Some(video) = cache.read(&entry) {
            note_left_out_frames(path, video.left_out_frames);
            let frames = video.indices.len();
            record_video_span("read from the frame cache on disk", path, begun, json!({"frames": frames}));
            return Ok(video);
        }
        let video = decode()?;
        cache.write(&entry, &video);
        Ok(video)
    }

    /// Decodes the frames that `profile` and `overrides` select, in the given size.
    ///
    /// # Errors
    /// The video cannot be decoded or resized, the selection is invalid, or the worker fails, exceeds its limits or
    /// cannot be started.
    pub fn decode_at_size(
        &self,
        path: &Path,
        profile: MediaProfile,
        overrides: &MediaOverrides,
        size: DecodedFrameSize,
    ) -> Result<DecodedVideo> {
        let job = WorkerJob::Decode { profile, overrides: *overrides, size };
        let begun = Instant::now();
        match self.run(path, job)? {
            (WorkerReply::Decoded(video), memory) => {
                record_decoding(path, &video, begun);
                note_left_out_frames(path, video.left_out_frames);
                map_pixels(path, video, &memory)
            }
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
        // Only regular files and folders are passed on. With a pipe or a device, FFmpeg would wait for the pipe's
        // writer or read without end, until the deadline.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            return Err(cannot_read_media(path, &UnsuitableFile::Special.into()));
        }
        if self.gpu.is_none() || matches!(job, WorkerJob::Probe) {
            return self.run_in_software(path, job);
        }
        static SLOTS: [Mutex<()>; MAX_GPU_WORKERS] = [const { Mutex::new(()) }; MAX_GPU_WORKERS];
        let slot = loop {
            let free = SLOTS.iter().find_map(|slot| match slot.try_lock() {
                Ok(slot) => Some(slot),
                Err(TryLockError::Poisoned(slot)) => Some(slot.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            });
            match free {
                Some(slot) => break slot,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
            self.check(0)?;
        };
        let on_gpu = self.run_once(path, job, self.gpu);
        drop(slot);
        let Err(failure) = on_gpu else { return on_gpu };
        self.check(0)?;
        let decoded = self.run_in_software(path, job)?;
        // Most videos of a data set have the same reason, so the path is left out.
        let what = escape_controls(&failure.diagnostic.what);
        print_note_once(format!("--decoder nvdec: a video, and others like it, are decoded in software: {what}"));
        Ok(decoded)
    }

    fn run_in_software(&self, path: &Path, job: WorkerJob) -> Result<(WorkerReply, File)> {
        let first = self.run_once(path, job, None);
        match first.as_ref().map_err(|e| e.kind) {
            Err(Kind::Media(MediaFailure::Timeout)) if self.control.is_some() => return first,
            Err(Kind::Media(MediaFailure::Timeout | MediaFailure::Killed)) => {}
            Err(Kind::Media(MediaFailure::Worker)) => std::thread::sleep(RESTART_PAUSE),
            _ => return first,
        }
        self.run_once(path, job, None).map_err(tried_twice)
    }

    fn run_once(&self, path: &Path, job: WorkerJob, gpu: Option<usize>) -> Result<(WorkerReply, File)> {
        static SOFTWARE: WorkerPool = WorkerPool::new();
        static GPU: WorkerPool = WorkerPool::new();
        let (kind, idle) = if gpu.is_some() { (&GPU_VIDEO_WORKER, &GPU) } else { (&VIDEO_WORKER, &SOFTWARE) };
        let request = WorkerRequest {
            path: path.into(),
            memory_bytes: self.memory_mib.saturating_mul(1 << 20),
            threads: self.threads.max(1),
            max_pixels: DecodeLimits::max_pixels_within(self.program.timeout, self.threads),
            gpu,
            job,
        };
        let cannot_start = |e: std::io::Error| cannot_start_worker(&self.program.path, &e);
        let memory: File = rustix::fs::memfd_create("reel-frames", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| cannot_start(e.into()))?
            .into();
        let mut worker = match idle.take_idle_worker(&self.program, 0) {
            Some(worker) => worker,
            None => Worker::start(&self.program, kind).map_err(cannot_start)?,
        };
        let sent = worker.send(&request, Some(memory.as_fd()), self.program.timeout);
        let mut stopped = Ok(());
        let waited = sent.and_then(|()| {
            let goes_on = || {
                stopped = self.check(0);
                stopped.is_ok()
            };
            if self.control.is_some() { worker.wait_for_reply(goes_on) } else { Ok(true) }
        });
        stopped?;
        let reply = waited.and_then(|_| worker.receive(0, &mut Vec::new()));
        let reply = reply.map_err(|failure| self.worker_failed(path, failure))?;
        idle.return_worker(worker, 0);
        match reply {
            WorkerReply::Failed(error) => Err(error),
            WorkerReply::Panicked(message) => Err(decoder_panicked(path, &message)),
            WorkerReply::OutOfMemory => Err(self.memory_limit_exceeded(path)),
            reply => Ok((reply, memory)),
        }
    }

    /// The error for a job whose worker gave no reply. A signal may come from a damaged file
    /// ([`MediaFailure::Killed`]). An exit code does not come from a damaged file ([`MediaFailure::Worker`]), because a
    /// worker reports damage in a reply.
    fn worker_failed(&self, path: &Path, failure: WorkerFailure) -> Error {
        let end = match failure {
            WorkerFailure::Timeout => {
                return Kind::Media(MediaFailure::Timeout).error(Diagnostic::new(
                    path.display().to_string(),
                    format!("decoding timed out after {} s", self.program.timeout.as_secs_f64()),
                    "raise the time limit (--media-timeout), or leave the file out if it hangs the decoder",
                ));
            }
            WorkerFailure::Invalid => return invalid_reply(path),
            WorkerFailure::Ended(end) if end.is_out_of_memory() => return self.memory_limit_exceeded(path),
            WorkerFailure::Ended(end) => end,
        };
        let how = match (end.signal, end.code) {
            (Some(signal), _) => format!("was killed by signal {signal}{}", signal_name(signal)),
            (None, Some(code)) => format!("exited with code {code}"),
            (None, None) => "ended without an exit status".to_owned(),
        };
        let what = format!("the decoding worker {how}{}", end.stderr_detail());
        let diagnostic = |help| Diagnostic::new(path.display().to_string(), what, help);
        match end.signal {
            Some(9 | 15) => Kind::Media(MediaFailure::Killed).error(diagnostic(
                "another program or the kernel killed the worker: make sure that the machine has free memory, or leave the file out",
            )),
            Some(_) => Kind::Media(MediaFailure::Killed).error(diagnostic(DAMAGED)),
            None => Kind::Media(MediaFailure::Worker).error(diagnostic(
                "check the limits of processes, threads, memory and open files (ulimit -a, and those of the container)",
            )),
        }
    }

    /// The error for a job that failed because its worker had too little memory.
    fn memory_limit_exceeded(&self, path: &Path) -> Error {
        Error::media_memory(
            path,
            format!("the decoding worker exceeded its memory limit of {} MiB", self.memory_mib),
            "raise the limit (--media-memory), take fewer frames, or leave the file out",
        )
    }
}

/// Records a span of a trace about a video that ends now. Its details are the path and `details`, an object.
fn record_video_span(work: &str, path: &Path, begun: Instant, mut details: Value) {
    details["path"] = json!(path.display().to_string());
    let file = path.file_name().unwrap_or(path.as_os_str()).display();
    record_span(format!("{work} {file}"), begun, begun.elapsed().as_secs_f64(), details);
}

/// Records the span of a decoded video and, inside it, what its worker did: the worker's work ended with its reply.
fn record_decoding(path: &Path, video: &DecodedVideo, begun: Instant) {
    let DecodeTimes { read_seconds, decode_seconds, resize_seconds, cpu_seconds, on_gpu } = video.times;
    WORKER_MICROSECONDS.fetch_add((cpu_seconds * 1e6) as u64, Ordering::Relaxed);
    let details = json!({"frames": video.indices.len(), "worker_cpu_seconds": cpu_seconds, "on_gpu": on_gpu});
    record_video_span("decode", path, begun, details);
    // The times come from another process, so they are kept within those of this one.
    let elapsed = begun.elapsed().as_secs_f64();
    let decode = decode_seconds.clamp(0.0, elapsed);
    let read = read_seconds.clamp(0.0, elapsed - decode);
    let before_end = |seconds: f64| begun + Duration::from_secs_f64((elapsed - seconds).max(0.0));
    record_span("read packets", before_end(read + decode), read, Value::Null);
    let details = json!({"resize_thread_seconds": resize_seconds});
    record_span("decode and resize frames", before_end(decode), decode, details);
}

/// Processor time of the workers of this process, in microseconds.
static WORKER_MICROSECONDS: AtomicU64 = AtomicU64::new(0);

/// Processor time that the workers of this process have spent on the videos that they have decoded, in seconds.
pub fn worker_cpu_seconds() -> f64 {
    WORKER_MICROSECONDS.load(Ordering::Relaxed) as f64 / 1e6
}

/// Says once how many frames at the start of a video cannot be decoded. A data set may have many such videos, so only
/// the first ones are named.
fn note_left_out_frames(path: &Path, frames: u64) {
    const MAX_NAMED: usize = 10;
    static NAMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if frames == 0 || named.contains(path) {
        return;
    }
    if named.len() == MAX_NAMED {
        return print_note_once("further videos that start inside a group of pictures are not named".to_string());
    }
    named.insert(path.to_path_buf());
    print_note_once(format!(
        "{}: starts inside a group of pictures, so its first {frames} frames cannot be decoded and are left out; frame 0 \
         and second 0 are those after them",
        path.display()
    ));
}

/// The help text of an error about a file that may be damaged.
const DAMAGED: &str = "the file may be damaged: leave it out, or convert it";

/// The error for a job whose decoder panicked.
fn decoder_panicked(path: &Path, message: &str) -> Error {
    let message: String = message.chars().take(200).collect();
    Error::media_file(path, format!("the decoder panicked ({message})"), DAMAGED)
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

/// Adds "twice" to the error of the second worker, because the first worker failed on the same job.
fn tried_twice(mut e: Error) -> Error {
    if let Kind::Media(MediaFailure::Timeout | MediaFailure::Killed) = e.kind {
        e.diagnostic.what += ", twice";
    }
    e
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
    let cannot_read = |e: std::io::Error| cannot_read_media(path, &e);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(memory, seals).map_err(|e| cannot_read(e.into()))?;
    // SAFETY: the seals, which cannot be removed, fix the length and the bytes. Sealing would have failed if a writable
    // mapping were left.
    let map = unsafe { MmapOptions::new().populate().map(memory) }.map_err(cannot_read)?;
    video.data = PixelBuffer::Shared(Arc::new(map));
    Ok(video)
}

fn invalid_reply(path: &Path) -> Error {
    Error::media_file(
        path,
        "the decoding worker sent an incomplete or invalid reply",
        "use the same version of the program as the worker, and check that there is free memory",
    )
}
