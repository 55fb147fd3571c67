//! Writes small videos: the synthetic clips of the demo, and videos of many formats for tests.

mod encoding;
#[cfg(feature = "ffmpeg")]
mod write;

use std::path::Path;

pub use encoding::{VideoCodec, VideoEncodingOptions};

use reel_support::diagnostic::{Diagnostic, create_temporary};

use crate::error::{Error, Kind, MediaFailure, Result};
use crate::media::frames::FrameView;
use crate::media::libraries;

/// Writes `frames` as a video to `path`, whose extension selects the container (mp4, mkv, webm, avi, mov, gif). The
/// file gets its name only when it is complete. Uses one thread, so that equal frames give equal bytes.
///
/// # Errors
/// FFmpeg is missing or lacks the encoder, the frame rate is not positive, `times_ms` is not ascending or does not have
/// one time per frame, a side is odd for a codec that needs even sides, or the file cannot be written.
pub fn encode_video(path: &Path, frames: FrameView<'_>, encoding: &VideoEncodingOptions) -> Result<()> {
    #[cfg(feature = "ffmpeg")]
    libraries::load_ffmpeg_for_video(path)?;
    check(frames, encoding)?;
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| path.to_str().is_some());
    let name = name.ok_or_else(|| Error::media_file(path, "is not valid UTF-8", "choose another file name"))?;
    // The name ends in the file's extension, by which FFmpeg selects the container.
    let path_of = |random: &str| path.with_file_name(format!(".unfinished-{random}-{name}"));
    let created = create_temporary(path_of, |path| std::fs::File::create_new(path));
    let (_, temporary, _unfinished) =
        created.map_err(|e| Kind::Media(MediaFailure::File).error(Diagnostic::cannot_write(path, &e)))?;
    let written = encode_to_file(path, &temporary, frames, encoding);
    let renamed = written.and_then(|()| {
        std::fs::rename(&temporary, path)
            .map_err(|e| Kind::Media(MediaFailure::File).error(Diagnostic::cannot_write(path, &e)))
    });
    if renamed.is_err() {
        // If removing fails, only an empty or incomplete hidden file stays.
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

fn check(frames: FrameView<'_>, encoding: &VideoEncodingOptions) -> Result<()> {
    if encoding.fps.0 <= 0 || encoding.fps.1 <= 0 {
        return Err(Error::setting(
            "fps",
            format!("{}/{} frames per second is not a positive rate", encoding.fps.0, encoding.fps.1),
            "give a positive frame rate",
        ));
    }
    let is_invalid = |times: &Vec<i64>| times.len() != frames.frame_count() || times.windows(2).any(|w| w[0] >= w[1]);
    if let Some(times) = encoding.times_ms.as_ref().filter(|times| is_invalid(times)) {
        return Err(Error::setting(
            "times_ms",
            format!(
                "must have one time per frame, in ascending order, but has {} times for {} frames",
                times.len(),
                frames.frame_count()
            ),
            "give one time per frame, in ascending order",
        ));
    }
    if encoding.codec.available_encoder_name().is_none() {
        return Err(Error::setting(
            "codec",
            format!(
                "{} has no encoder for this codec (one of {})",
                libraries::FFMPEG_BUILD_NAME,
                encoding.codec.ffmpeg_encoder_names().join(", ")
            ),
            "use another codec, or an FFmpeg with that encoder",
        ));
    }
    Ok(())
}

/// A temporary path in the folder of `path`, with the same extension, because FFmpeg selects the container by
/// extension.
#[cfg(feature = "ffmpeg")]
use write::encode_to_file;

/// Never called: in a build without FFmpeg, `check` already reports that no encoder exists.
#[cfg(not(feature = "ffmpeg"))]
fn encode_to_file(
    path: &Path,
    _temporary: &Path,
    _frames: FrameView<'_>,
    _encoding: &VideoEncodingOptions,
) -> Result<()> {
    Err(crate::media::video::no_ffmpeg_error(path))
}
