//! Films through FFmpeg: what is in a container, and the pictures of chosen frames.

mod convert;
mod decode;
mod demux;
mod plan;
mod source;
mod whole;

use std::path::Path;

use ffmpeg_next as ffmpeg;

use super::{DecodeRequest, DecodedVideo, FrameSize, PixelBuffer, VideoInfo, film_limits, too_large};
use crate::selection::select_frames;
use crate::{MediaError, Result};

/// Reads a film's size, rate and number of frames.
pub fn probe(path: &Path) -> Result<VideoInfo> {
    demux::VideoFile::read(path, 0).map(|film| film.probe())
}

/// Decodes into memory that `allocate` gives for a number of bytes; the pixels are in that memory, not in `DecodedVideo::data`,
/// which comes back empty.
pub fn decode_into<B: AsMut<[u8]>>(
    request: &DecodeRequest<'_>,
    allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(DecodedVideo, B)> {
    let limits = request.limits;
    let film = demux::VideoFile::read(request.path, limits.memory / 4)?;
    let choice = select_frames(film.total_frames(), film.video_fps, request.profile, &request.overrides)?;
    let count = choice.indices.len();
    let (film_height, film_width) = film.shown_size();
    let target = match request.size {
        FrameSize::Original => None,
        FrameSize::Resized => {
            Some(film_limits(request.profile, &request.overrides)?.size(count, film_height, film_width)?)
        }
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
    let frames = DecodedVideo {
        data: PixelBuffer::Owned(Vec::new()),
        height,
        width,
        indices: choice.indices,
        total_frames: film.total_frames(),
        video_fps: film.video_fps,
        sample_fps: choice.sample_fps,
    };
    Ok((frames, memory))
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
