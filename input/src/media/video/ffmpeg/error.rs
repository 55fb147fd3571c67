//! Translates FFmpeg's errors into errors of this crate.

use std::io::Read as _;
use std::path::Path;

use ffmpeg_next as ffmpeg;
use reel_support::diagnostic::input;

use crate::error::Error;
use crate::media::error::{cannot_read_media, cannot_start_threads};

/// Converts an FFmpeg error that occurred during `operation` to a [`Error`], whose help depends on the cause.
pub(super) fn ffmpeg_error(path: &Path, operation: &str, error: ffmpeg::Error) -> Error {
    let failed = |cause: &str| {
        let what = format!("{operation} failed: {cause}");
        Error::media_file(path, what, "check that the file is complete and plays, or convert it")
    };
    let is_unreadable = match error {
        ffmpeg::Error::Other { errno } => errno == ffmpeg::error::EINVAL,
        other => other == ffmpeg::Error::InvalidData,
    };
    if is_unreadable && is_image(path) {
        let help = "give it as an image; for a video of images, list them all as one video";
        return Error::media_file(path, "is an image, not a video", help);
    }
    match error {
        ffmpeg::Error::Other { errno } if errno == ffmpeg::error::ENOMEM => out_of_memory(path, operation),
        // Decoders return `EAGAIN` if a thread cannot be created.
        ffmpeg::Error::Other { errno } if errno == ffmpeg::error::EAGAIN => {
            cannot_start_threads(path, operation, &std::io::Error::from_raw_os_error(errno))
        }
        ffmpeg::Error::Other { errno } if errno == ffmpeg::error::EINVAL => {
            failed("FFmpeg finds no video in this file")
        }
        ffmpeg::Error::Other { errno } => cannot_read_media(path, &std::io::Error::from_raw_os_error(errno)),
        ffmpeg::Error::InvalidData => failed("the data are damaged, truncated or not a video"),
        ffmpeg::Error::DecoderNotFound => Error::media_file(
            path,
            "the installed FFmpeg has no decoder for the codec of the video",
            "convert the video to H.264, or install an FFmpeg with that decoder",
        ),
        other => failed(&other.to_string()),
    }
}

/// Whether a file begins as an image does.
fn is_image(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = input::open_regular_file(path).and_then(|file| file.take(32).read_to_end(&mut start));
    read.is_ok() && ::image::guess_format(&start).is_ok()
}

/// The error for an `operation` that failed because the memory limit is too low for it.
pub(super) fn out_of_memory(path: &Path, operation: &str) -> Error {
    Error::media_memory(
        path,
        format!("{operation} exceeded the decoder's memory limit"),
        "raise the memory limit (--media-memory), or use a video with fewer pixels",
    )
}
