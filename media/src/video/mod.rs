//! Films through FFmpeg, inside this process (a build without the feature `ffmpeg` refuses them). Files of unknown origin belong in a worker process: see [`crate::worker`].
//!
//! The container is read once, without decoding, for the number of frames and their times. Decoding then starts at the key
//! frame before each wanted frame and only wanted frames become pictures. Frame `i` is the `i`-th in display order,
//! also where a key frame is followed by pictures that are shown before it (open groups).

#![allow(unsafe_code)]

#[cfg(feature = "ffmpeg")]
mod ffmpeg;

use std::ops::Deref;
use std::path::Path;

use crate::profile::{MediaOverrides, MediaProfile};
use crate::resize::VideoPixelLimits;
use crate::{MediaError, Result};

#[cfg(feature = "ffmpeg")]
pub use ffmpeg::{decode_into, probe};

/// Frames of a film, decoded.
#[derive(Debug)]
pub struct DecodedVideo {
    /// PixelBuffer u8 [T, height, width, 3], red green blue.
    pub data: PixelBuffer,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Number of each frame in display order, [T].
    pub indices: Vec<u64>,
    /// How many frames the film has.
    pub total_frames: u64,
    /// Frames a second of the film: the container's average rate.
    pub video_fps: f64,
    /// Frames taken a second of film.
    pub sample_fps: f64,
}

/// PixelBuffer owned by this process, or shared memory that a worker filled.
#[derive(Debug)]
pub enum PixelBuffer {
    /// Decoded here.
    Owned(Vec<u8>),
    /// Decoded by a worker; unmapped when dropped.
    Shared(memmap2::Mmap),
}

impl Deref for PixelBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(map) => map,
        }
    }
}

/// What a film is, without decoding it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VideoInfo {
    /// FFmpeg's name of the codec, such as `h264`.
    pub codec: String,
    /// Height in pixels as shown, after any rotation.
    pub height: usize,
    /// Width in pixels as shown, after any rotation.
    pub width: usize,
    /// Number of frames.
    pub total_frames: u64,
    /// The container's average number of frames a second.
    pub video_fps: f64,
}

/// Which size the frames come back in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum FrameSize {
    /// As they are in the film.
    Original,
    /// Resized by the film rule of the profile and the overrides (torchvision's bicubic with antialias, on u8).
    Resized,
}

/// What a process may spend on one film.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DecodeLimits {
    /// Threads that decode.
    pub threads: usize,
    /// Bytes that frames and the compressed film may take.
    pub memory: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        Self { threads, memory: 2 << 30 }
    }
}

/// What to sample: frames of one film.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRequest<'a> {
    /// The film.
    pub path: &'a Path,
    /// Which frames, and how large.
    pub profile: MediaProfile,
    /// What replaces the profile's settings.
    pub overrides: MediaOverrides,
    /// Whether to resize.
    pub size: FrameSize,
    /// What this may cost.
    pub limits: DecodeLimits,
}

/// Decodes the frames that `profile` and `overrides` choose, as they are in the film.
pub fn decode(path: &Path, profile: MediaProfile, overrides: &MediaOverrides) -> Result<DecodedVideo> {
    let request = DecodeRequest {
        path,
        profile,
        overrides: *overrides,
        size: FrameSize::Original,
        limits: DecodeLimits::default(),
    };
    let (mut frames, data) = decode_into(&request, |bytes| {
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| too_large(path, bytes as u64, request.limits.memory))?;
        data.resize(bytes, 0);
        Ok(data)
    })?;
    frames.data = PixelBuffer::Owned(data);
    Ok(frames)
}

/// The size rule of a film's frames: the profile's limits with the part keys over them.
pub fn film_limits(profile: MediaProfile, overrides: &MediaOverrides) -> Result<VideoPixelLimits> {
    Ok(VideoPixelLimits::new(profile, overrides))
}

fn too_large(path: &Path, bytes: u64, limit: u64) -> MediaError {
    const MIB: u64 = 1 << 20;
    MediaError::file(
        path,
        format!("its frames need {} MiB, over the decoder's limit of {} MiB", bytes.div_ceil(MIB), limit / MIB),
        "take fewer frames, or raise the memory limit (--media-memory)",
    )
}

/// Refuses the film.
#[cfg(not(feature = "ffmpeg"))]
pub fn probe(path: &Path) -> Result<VideoInfo> {
    Err(absent(path))
}

/// Refuses the film.
#[cfg(not(feature = "ffmpeg"))]
pub fn decode_into<B: AsMut<[u8]>>(
    request: &DecodeRequest<'_>,
    _allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(DecodedVideo, B)> {
    Err(absent(request.path))
}

/// The refusal of a film where there is no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub(crate) fn absent(path: &Path) -> MediaError {
    MediaError::file(
        path,
        "is a film, and this build of reel has no FFmpeg",
        "use a build with the feature `ffmpeg`, or give pictures",
    )
}
