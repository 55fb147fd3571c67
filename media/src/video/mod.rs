//! Films through FFmpeg, inside this process. Files of unknown origin belong in a worker process: see [`crate::worker`].
//!
//! The container is read once, without decoding, for the number of frames and their times. Decoding then starts at the key
//! frame before each wanted frame and only wanted frames become pictures. Frame `i` is the `i`-th in display order,
//! also where a key frame is followed by pictures that are shown before it (open groups).

#![allow(unsafe_code)]

mod convert;
mod decode;
mod demux;
mod plan;
mod source;
mod whole;

use std::path::Path;

use ffmpeg_next as ffmpeg;

use crate::frames::{Frames, Pixels, choose};
use crate::profile::{Overrides, Profile};
use crate::resize::FilmLimits;
use crate::{MediaError, Result};

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

/// Reads a film's size, rate and number of frames.
pub fn probe(path: &Path) -> Result<Probe> {
    demux::Film::read(path, 0).map(|film| film.probe())
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

/// Decodes into memory that `allocate` gives for a number of bytes; the pixels are in that memory, not in `Frames::data`,
/// which comes back empty.
pub fn sample_into<B: AsMut<[u8]>>(
    request: &Request<'_>,
    allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(Frames, B)> {
    let limits = request.limits;
    let film = demux::Film::read(request.path, limits.memory / 4)?;
    let choice = choose(film.total_frames(), film.video_fps, request.profile, &request.overrides)?;
    let count = choice.indices.len();
    let (film_height, film_width) = film.shown_size();
    let target = match request.size {
        Size::Film => None,
        Size::Model => Some(film_limits(request.profile, &request.overrides)?.size(count, film_height, film_width)?),
    };
    let (height, width) = target.unwrap_or((film_height, film_width));
    let bytes = [height, width, 3].iter().try_fold(count, |n, &side| n.checked_mul(side));
    let bytes = bytes.filter(|&n| n as u64 <= limits.memory / 2 + (limits.memory / 4));
    let Some(bytes) = bytes.filter(|&n| n > 0) else {
        let wanted = (count as u64).saturating_mul(height as u64).saturating_mul(width as u64).saturating_mul(3);
        return Err(too_large(request.path, wanted, limits.memory));
    };
    let mut memory = allocate(bytes)?;
    decode::frames(&film, &choice.indices, target, limits, memory.as_mut())?;
    let frames = Frames {
        data: Pixels::Owned(Vec::new()),
        height,
        width,
        indices: choice.indices,
        total_frames: film.total_frames(),
        video_fps: film.video_fps,
        sample_fps: choice.sample_fps,
    };
    Ok((frames, memory))
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

/// FFmpeg's error as this crate's, with the cure that fits it.
fn failed(path: &Path, doing: &str, error: ffmpeg::Error) -> MediaError {
    match error {
        ffmpeg::Error::Other { errno } if errno == ffmpeg::error::ENOMEM => MediaError::file(
            path,
            format!("{doing} ran out of the decoder's memory limit"),
            "raise the memory limit (--media-memory), or use a film of fewer pixels",
        ),
        ffmpeg::Error::Other { errno } if errno == ffmpeg::error::EINVAL => {
            invalid(path, doing, "its settings are not valid")
        }
        ffmpeg::Error::Other { errno } => {
            MediaError::Io { path: path.to_owned(), source: std::io::Error::from_raw_os_error(errno) }
        }
        ffmpeg::Error::InvalidData => invalid(path, doing, "the data are damaged, cut short or of another kind"),
        ffmpeg::Error::DecoderNotFound => MediaError::file(
            path,
            "this FFmpeg has no decoder for its codec",
            "convert it to H.264, or install an FFmpeg with that decoder",
        ),
        other => invalid(path, doing, &other.to_string()),
    }
}

fn invalid(path: &Path, doing: &str, why: &str) -> MediaError {
    MediaError::file(
        path,
        format!("{doing} failed: {why}"),
        "check that it is a whole video file that plays, or convert it",
    )
}

#[cfg(test)]
mod tests;
