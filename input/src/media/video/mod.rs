//! Decodes videos with FFmpeg inside this process; a build without the feature `ffmpeg` refuses them. Untrusted files
//! should be decoded in a worker process: see [`crate::media::worker`].
//!
//! ```text
//! read all packets of the container, without decoding: their times and key flags          ffmpeg/demux.rs
//! select frame indices                                                                    ../selection
//! for each selected frame: start at the key frame before it, decode up to it              ffmpeg/plan.rs, decode.rs
//! convert only selected frames to RGB, rotate and resize them                             ffmpeg/convert.rs
//! ```
//! Frame `i` is the `i`-th frame in display order, also if frames that follow a key frame in the file are displayed
//! before that key frame (open GOP).

#![allow(unsafe_code)]

#[cfg(feature = "ffmpeg")]
mod ffmpeg;
mod types;

use std::path::Path;

use crate::media::Result;
use crate::media::profile::{MediaOverrides, MediaProfile};

#[cfg(feature = "ffmpeg")]
pub(crate) use ffmpeg::check_video_file;
#[cfg(feature = "ffmpeg")]
pub use ffmpeg::{decode_into, probe};
pub use types::{DecodeLimits, DecodeRequest, DecodeTimes, DecodedFrameSize, DecodedVideo, PixelBuffer, VideoInfo};

/// Opens the GPU that decodes in this process ([`DecodeLimits::gpu`]); it stays open.
///
/// # Errors
/// FFmpeg cannot decode on this GPU, or the machine has no such GPU.
#[cfg(feature = "ffmpeg")]
pub(crate) fn open_gpu(index: usize) -> Result<()> {
    ffmpeg::nvdec::Gpu::open(index).map(drop)
}

/// Refuses every GPU, because this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub(crate) fn open_gpu(_index: usize) -> Result<()> {
    let help = "use a build with the feature `ffmpeg`, or leave this option out";
    Err(crate::error::Error::setting("decoder nvdec", "this build of reel has no FFmpeg", help))
}

/// Decodes the frames that `profile` and `overrides` select, in the displayed size of the video.
///
/// # Errors
/// The video cannot be read or decoded, the selection is invalid, or the frames exceed the default memory limit (2
/// GiB).
pub fn decode(path: &Path, profile: MediaProfile, overrides: &MediaOverrides) -> Result<DecodedVideo> {
    let limits = DecodeLimits::default();
    let request = DecodeRequest { path, profile, overrides: *overrides, size: DecodedFrameSize::Original, limits };
    let (mut video, data) = decode_into(&request, |bytes| {
        let mut data = Vec::new();
        data.try_reserve_exact(bytes)
            .map_err(|_| types::frames_too_large_error(path, bytes as u64, limits.memory_bytes))?;
        data.resize(bytes, 0);
        Ok(data)
    })?;
    video.data = PixelBuffer::Owned(data);
    Ok(video)
}

/// Refuses every video, because this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub(crate) fn check_video_file(path: &Path) -> Result<()> {
    Err(no_ffmpeg_error(path))
}

/// Refuses every video, because this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn probe(path: &Path) -> Result<VideoInfo> {
    Err(no_ffmpeg_error(path))
}

/// Refuses every video, because this build has no FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub fn decode_into<B: AsMut<[u8]>>(
    request: &DecodeRequest<'_>,
    _allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(DecodedVideo, B)> {
    Err(no_ffmpeg_error(request.path))
}

/// The error for a video in a build without FFmpeg.
#[cfg(not(feature = "ffmpeg"))]
pub(crate) fn no_ffmpeg_error(path: &Path) -> crate::error::Error {
    crate::error::Error::media_file(
        path,
        "is a video, and this build of reel has no FFmpeg",
        "use a build with the feature `ffmpeg`, or give images",
    )
}
