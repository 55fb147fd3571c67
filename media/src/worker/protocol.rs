//! The messages between caller and worker process, exchanged as JSON.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use reel_diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::MediaError;
use crate::profile::{MediaOverrides, MediaProfile};
use crate::video::{DecodedFrameSize, DecodedVideo, VideoInfo};

/// The request that the caller sends to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerRequest {
    /// Path of the video as bytes, because a path need not be UTF-8.
    pub path: Vec<u8>,
    /// Number of bytes that the worker may allocate.
    pub memory_bytes: u64,
    /// Number of decoding threads.
    pub threads: usize,
    pub job: WorkerJob,
}

/// The work that is requested: only read properties of the video, or decode frames.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum WorkerJob {
    Probe,
    Decode { profile: MediaProfile, overrides: MediaOverrides, size: DecodedFrameSize },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerReply {
    Probed(VideoInfo),
    /// Decoded frames without their pixels, which are in the shared memory.
    Decoded(DecodedVideo),
    Failed(WorkerFailure),
    /// The job failed, and the worker had come so close to its memory limit that this is the likely cause.
    OutOfMemory,
    /// The decoder panicked, with this message. Its threads had been created, so the likely cause is the file.
    Panicked(String),
}

/// A [`MediaError`] as the worker sends it: without the path, which the caller knows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerFailure {
    kind: FailureKind,
    what: String,
    help: String,
}

/// The variant of the [`MediaError`].
#[derive(Debug, Serialize, Deserialize)]
enum FailureKind {
    File,
    Unreadable,
    Memory,
    Worker,
    /// With the name of the setting.
    Setting(String),
}

impl From<MediaError> for WorkerFailure {
    fn from(error: MediaError) -> Self {
        let Diagnostic { location, what, help } = error.diagnostic().clone();
        let kind = match error {
            MediaError::Setting(_) => FailureKind::Setting(location),
            MediaError::Memory(_) => FailureKind::Memory,
            MediaError::Worker(_) => FailureKind::Worker,
            MediaError::Unreadable(_) => FailureKind::Unreadable,
            MediaError::File(_) | MediaError::Timeout(_) | MediaError::Killed(_) => FailureKind::File,
        };
        Self { kind, what, help }
    }
}

impl WorkerFailure {
    pub(super) fn into_error(self, path: &Path) -> MediaError {
        let location = || path.display().to_string();
        match self.kind {
            FailureKind::Setting(setting) => MediaError::setting_error(setting, self.what, self.help),
            FailureKind::Memory => MediaError::memory_error(path, self.what, self.help),
            FailureKind::Worker => MediaError::Worker(Diagnostic::new(location(), self.what, self.help)),
            FailureKind::Unreadable => MediaError::Unreadable(Diagnostic::new(location(), self.what, self.help)),
            FailureKind::File => MediaError::file_error(path, self.what, self.help),
        }
    }
}

pub(super) fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let job = WorkerJob::Decode { profile: MediaProfile::Stride1Fps, overrides, size: DecodedFrameSize::Resized };
            let sent = path_to_bytes(&path_from_bytes(&path));
            let request = WorkerRequest { path: sent, memory_bytes: u64::MAX, threads: 3, job };
            let got: WorkerRequest = serde_json::from_slice(&serde_json::to_vec(&request).unwrap()).unwrap();
            prop_assert_eq!(got.path, path);
            prop_assert_eq!(got.memory_bytes, u64::MAX);
            let WorkerJob::Decode { profile, overrides: received, size } = got.job else { panic!("another job") };
            prop_assert_eq!((profile, received, size), (MediaProfile::Stride1Fps, overrides, DecodedFrameSize::Resized));
        }
    }
}
