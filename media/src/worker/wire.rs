//! What caller and worker say to each other.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::MediaError;
use crate::profile::{MediaOverrides, MediaProfile};
use crate::video::{DecodedVideo, FrameSize, VideoInfo};

/// From the caller.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerRequest {
    /// The caller's process id.
    pub caller: u32,
    /// The film's path: bytes, because a path need not be UTF-8.
    pub path: Vec<u8>,
    /// Bytes that the worker may allocate.
    pub memory: u64,
    /// Threads that decode.
    pub threads: usize,
    pub job: WorkerJob,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerJob {
    Probe,
    Decode { profile: MediaProfile, overrides: MediaOverrides, size: FrameSize },
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerReply {
    Probed(VideoInfo),
    Decoded(DecodedHeader),
    Failed(Failure),
}

/// `DecodedVideo` without the pixels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DecodedHeader {
    pub height: usize,
    pub width: usize,
    pub indices: Vec<u64>,
    pub total_frames: u64,
    pub video_fps: f64,
    pub sample_fps: f64,
}

impl From<DecodedVideo> for DecodedHeader {
    fn from(f: DecodedVideo) -> Self {
        Self {
            height: f.height,
            width: f.width,
            indices: f.indices,
            total_frames: f.total_frames,
            video_fps: f.video_fps,
            sample_fps: f.sample_fps,
        }
    }
}

/// A `MediaError`; the caller knows the path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    System(i32),
    File { what: String, cure: String },
    Setting { field: String, what: String, cure: String },
}

impl From<MediaError> for Failure {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::File { what, cure, .. } => Self::File { what, cure },
            MediaError::Setting { field, what, cure } => Self::Setting { field, what, cure },
            MediaError::Io { source, .. } | MediaError::Worker { source, .. } => match source.raw_os_error() {
                Some(code) => Self::System(code),
                None => Self::File { what: source.to_string(), cure: "check the file".to_owned() },
            },
        }
    }
}

impl Failure {
    pub(super) fn into_error(self, path: &Path) -> MediaError {
        match self {
            Self::System(code) => {
                MediaError::Io { path: path.to_owned(), source: std::io::Error::from_raw_os_error(code) }
            }
            Self::File { what, cure } => MediaError::file(path, what, cure),
            Self::Setting { field, what, cure } => MediaError::setting(field, what, cure),
        }
    }
}

pub(super) fn bytes_of(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Paths of any bytes and numbers to the last bit arrive as they were sent.
        #[test]
        fn orders_arrive_unchanged(
            path in proptest::collection::vec(any::<u8>(), 0..40),
            fps in proptest::num::f64::NORMAL, start in proptest::num::f64::NORMAL, nframes in any::<i64>(), pixels in any::<u64>(),
        ) {
            let overrides = MediaOverrides {
                nframes: Some(nframes), fps: Some(fps), video_start: Some(start), min_pixels: Some(pixels),
                ..Default::default()
            };
            let job = WorkerJob::Decode { profile: MediaProfile::Stride1Fps, overrides, size: FrameSize::Resized };
            let order = WorkerRequest { caller: 7, path: bytes_of(&path_of(&path)), memory: u64::MAX, threads: 3, job };
            let got: WorkerRequest = serde_json::from_slice(&serde_json::to_vec(&order).unwrap()).unwrap();
            prop_assert_eq!(got.path, path);
            prop_assert_eq!(got.memory, u64::MAX);
            let WorkerJob::Decode { profile, overrides: received, size } = got.job else { panic!("another job") };
            prop_assert_eq!((profile, received, size), (MediaProfile::Stride1Fps, overrides, FrameSize::Resized));
        }
    }
}
