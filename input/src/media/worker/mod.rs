//! Decodes videos in worker processes (see [`reel_support::worker`]): a file that crashes FFmpeg, hangs it or exhausts
//! its memory gives one error message and does not harm the caller.
//!
//! The caller sends a [`WorkerRequest`] with a memfd. The worker decodes the video into the memfd and sends a
//! [`WorkerReply`] without pixels. The caller checks and seals the memfd, and maps it as pixels.
//!
//! Starting a process takes ten times as long as decoding a short clip, because the dynamic linker loads FFmpeg's
//! hundred libraries. So a worker loads the libraries once and decodes each video in a separate fork.
//!
//! With [`DecodeWorker::gpu`], videos are decoded by workers of another kind, on a GPU. They do all jobs in one process,
//! because CUDA does not work in a fork, and opening a GPU takes longer than decoding a short video. Whenever such a
//! worker returns no frames, for whatever reason, a worker of the first kind decodes the video in software. So frames
//! and errors are those of the software, also if a damaged file crashes the GPU's driver.
//!
//! If a worker is killed, misses the deadline or fails without a reply, a new worker tries to decode the video once
//! more. A worker reports a damaged file in its reply, even if its decoder panicked. A failure without a reply, or for
//! lack of threads, processes or open files, is [`MediaFailure::Worker`](crate::error::MediaFailure::Worker), which is
//! never the file's fault.

#![allow(unsafe_code)]

mod cache_options;
mod caller;
mod control;
mod disk_cache;
mod frame_cache;
mod serve;

use std::ffi::OsString;

use reel_support::worker::WorkerKind;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::video::{DecodedFrameSize, DecodedVideo, VideoInfo};

pub use cache_options::FrameCacheOptions;
pub use caller::{DEFAULT_DECODE_MEMORY_MIB, DecodeWorker, worker_cpu_seconds};
pub use control::DecodeControl;
pub use disk_cache::{DiskFrameCache, FrameCacheCounts};
pub use frame_cache::FrameCache;
pub use serve::run_job;

/// The kind of worker that decodes videos.
pub const VIDEO_WORKER: WorkerKind = WorkerKind { name: "video", malloc_arenas: "2", main: serve::worker_main };

/// The kind of worker that decodes videos on a GPU.
pub const GPU_VIDEO_WORKER: WorkerKind =
    WorkerKind { name: "gpu-video", malloc_arenas: "2", main: serve::gpu_worker_main };

/// The request that the caller sends to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerRequest {
    /// Path of the video.
    path: OsString,
    /// Number of bytes that the worker may allocate.
    memory_bytes: u64,
    /// Number of decoding threads.
    threads: usize,
    /// Number of pixels that may be decoded, all frames together.
    max_pixels: u64,
    /// The GPU that decodes, as its index in CUDA's order; `None`: software.
    gpu: Option<usize>,
    job: WorkerJob,
}

/// The work that is requested: only read properties of the video, decode frames, or only open the GPU.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one job for each video, and nearly all of them decode it")]
enum WorkerJob {
    Probe,
    Decode { profile: MediaProfile, overrides: MediaOverrides, size: DecodedFrameSize },
    OpenGpu,
}

#[derive(Debug, Serialize, Deserialize)]
enum WorkerReply {
    Probed(VideoInfo),
    /// The decoded frames without their pixels; the pixels are in the shared memory.
    Decoded(DecodedVideo),
    Failed(Error),
    GpuIsOpen,
    /// The job failed when the worker was so close to its memory limit that lack of memory is the likely cause.
    OutOfMemory,
    /// The decoder panicked, with this message. Its threads had been created, so the likely cause is the file.
    Panicked(String),
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;
    use crate::family::Family;

    proptest! {
        #[test]
        fn requests_round_trip_exactly(
            path in proptest::collection::vec(any::<u8>(), 0..40),
            fps in proptest::num::f64::NORMAL, start in proptest::num::f64::NORMAL, nframes in any::<i64>(), pixels in any::<u64>(),
        ) {
            let overrides = MediaOverrides {
                nframes: Some(nframes), fps: Some(fps), video_start: Some(start), min_pixels: Some(pixels),
                ..Default::default()
            };
            let job = WorkerJob::Decode { profile: MediaProfile::Stride1Fps, overrides, size: DecodedFrameSize::Resized(Family::Qwen3Vl) };
            let path = OsString::from_vec(path);
            let request = WorkerRequest { path: path.clone(), memory_bytes: u64::MAX, threads: 3, max_pixels: 5, gpu: None, job };
            let got: WorkerRequest = serde_json::from_slice(&serde_json::to_vec(&request).unwrap()).unwrap();
            prop_assert_eq!(got.path, path);
            prop_assert_eq!(got.memory_bytes, u64::MAX);
            let WorkerJob::Decode { profile, overrides: received, size } = got.job else { panic!("another job") };
            prop_assert_eq!((profile, received, size), (MediaProfile::Stride1Fps, overrides, DecodedFrameSize::Resized(Family::Qwen3Vl)));
        }
    }
}
