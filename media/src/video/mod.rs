//! Films through FFmpeg, inside this process (a build without the feature `ffmpeg` refuses them). Files of unknown origin belong in a worker process: see [`crate::worker`].
//!
//! The container is read once, without decoding, for the number of frames and their times. Decoding then starts at the key
//! frame before each wanted frame and only wanted frames become pictures. Frame `i` is the `i`-th in display order,
//! also where a key frame is followed by pictures that are shown before it (open groups).

#![allow(unsafe_code)]

#[cfg(feature = "ffmpeg")]
mod film;

use std::path::Path;

use crate::frames::{Frames, Pixels};
use crate::profile::{Overrides, Profile};
use crate::resize::FilmLimits;
use crate::{MediaError, Result};

#[cfg(feature = "ffmpeg")]
pub use film::{probe, sample_into};

/// What a film is, without decoding it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Probe {
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
pub enum Size {
    /// As they are in the film.
    Film,
    /// Resized by the film rule of the profile and the overrides (torchvision's bicubic with antialias, on u8).
    Model,
}

/// What a process may spend on one film.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Threads that decode.
    pub threads: usize,
    /// Bytes that frames and the compressed film may take.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        Self { threads, memory: 2 << 30 }
    }
}

/// What to sample: frames of one film.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The film.
    pub path: &'a Path,
    /// Which frames, and how large.
    pub profile: Profile,
    /// What replaces the profile's settings.
    pub overrides: Overrides,
    /// Whether to resize.
    pub size: Size,
    /// What this may cost.
    pub limits: Limits,
}

/// Decodes the frames that `profile` and `overrides` choose, as they are in the film.
pub fn sample(path: &Path, profile: Profile, overrides: &Overrides) -> Result<Frames> {
    let request = Request { path, profile, overrides: *overrides, size: Size::Film, limits: Limits::default() };
    let (mut frames, data) = sample_into(&request, |bytes| {
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| too_large(path, bytes as u64, request.limits.memory))?;
        data.resize(bytes, 0);
        Ok(data)
    })?;
    frames.data = Pixels::Owned(data);
    Ok(frames)
}

/// The size rule of a film's frames: the profile's limits with the part keys over them.
pub fn film_limits(profile: Profile, overrides: &Overrides) -> Result<FilmLimits> {
    Ok(FilmLimits::new(profile, overrides))
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
pub fn probe(path: &Path) -> Result<Probe> {
    Err(absent(path))
}

/// Refuses the film.
#[cfg(not(feature = "ffmpeg"))]
pub fn sample_into<B: AsMut<[u8]>>(
    request: &Request<'_>,
    _allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(Frames, B)> {
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
