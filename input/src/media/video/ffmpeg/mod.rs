//! Decodes videos through FFmpeg's libraries: [`demux`] reads the container, [`plan`] decides which packets to
//! decode, [`decode`] decodes them in several threads, on a GPU with [`nvdec`], [`convert`] writes RGB pixels.

mod av1;
mod convert;
mod decode;
mod demux;
mod error;
pub(crate) mod nvdec;
mod packets;
mod plan;
mod truncation;

use std::path::Path;
use std::time::Instant;

use reel_support::diagnostic::input;

use super::types::{
    DecodeRequest, DecodeTimes, DecodedFrameSize, DecodedVideo, PixelBuffer, VideoInfo, frames_too_large_error,
};
use crate::error::{Error, Result};
use crate::media::error::{cannot_read_media, with_image_name};
use crate::media::libraries::load_ffmpeg_for_video;
use crate::media::resize::{FrameFilter, ResizeTarget, VideoPixelLimits, refuse_side_of_zero};
use crate::media::selection::select_frames_of_file;

/// Checks that FFmpeg is installed and that the file can be opened, is not empty and does not begin as other files do.
///
/// # Errors
/// FFmpeg is not installed, or the file cannot be opened, is empty, or is known to be something else.
pub(crate) fn check_video_file(path: &Path) -> Result<()> {
    load_ffmpeg_for_video(path)?;
    let cannot_read = |e| cannot_read_media(path, &e);
    let metadata = std::fs::metadata(path).map_err(cannot_read)?;
    if metadata.is_dir() {
        return Err(Error::media_file(path, "is a folder, not a video", "give the path of a video file"));
    }
    if metadata.is_file() {
        // Only a regular file is opened here, because opening a pipe would wait for its writer.
        if let Some(other) = input::recognise_file(path).map_err(cannot_read)? {
            return Err(cannot_read(other.into()));
        }
        if metadata.len() == 0 {
            return Err(Error::media_file(path, "is empty (0 bytes)", "copy or download it again"));
        }
    }
    Ok(())
}

/// Reads size, frame rate and number of frames of a video without decoding it.
///
/// # Errors
/// The file cannot be read, is not a video of a supported container, is truncated, or has no frames or no frame rate.
pub fn probe(path: &Path) -> Result<VideoInfo> {
    check_video_file(path)?;
    demux::VideoFile::read_container(path, 0).map(|video| video.video_info())
}

/// Decodes selected frames into memory that `allocate` provides; `allocate` gets the number of bytes needed. The
/// pixels are in the returned memory, so `DecodedVideo::data` is empty.
///
/// # Errors
/// The video cannot be read or decoded, the selection is invalid, or the frames exceed the memory limit.
pub fn decode_into<B: AsMut<[u8]>>(
    request: &DecodeRequest<'_>,
    allocate: impl FnOnce(usize) -> Result<B>,
) -> Result<(DecodedVideo, B)> {
    let (limits, begun) = (request.limits, Instant::now());
    check_video_file(request.path)?;
    let video = demux::VideoFile::read_container(request.path, limits.memory_bytes / 4)?;
    let selection = select_frames_of_file(
        request.path,
        video.total_frames(),
        video.video_fps,
        request.profile,
        &request.overrides,
    )?;
    let count = selection.indices.len();
    let (original_height, original_width) = video.displayed_height_and_width();
    let target = match request.size {
        DecodedFrameSize::Original => None,
        DecodedFrameSize::Resized(family) => {
            let pixel_limits = VideoPixelLimits::new(request.profile.for_family(family), &request.overrides);
            let size = pixel_limits.resized_height_and_width(count, original_height, original_width)?;
            refuse_side_of_zero((original_height, original_width), size)
                .map_err(|e| with_image_name(e, &request.path.display().to_string()))?;
            // The processor resizes u8 frames by torchvision's path for u8, which rounds after each pass as Pillow
            // does.
            let filter = if pixel_limits.by_processor { FrameFilter::Pillow } else { FrameFilter::Torch };
            Some(ResizeTarget { size, filter })
        }
    };
    let (height, width) = target.map_or((original_height, original_width), |target| target.size);
    let bytes = [height, width, 3].iter().try_fold(count, |n, &side| n.checked_mul(side));
    let bytes = bytes.filter(|&n| n as u64 <= limits.memory_bytes / 2 + limits.memory_bytes / 4);
    let Some(bytes) = bytes else {
        let needed = (count as u64).saturating_mul(height as u64).saturating_mul(width as u64).saturating_mul(3);
        return Err(frames_too_large_error(request.path, needed, limits.memory_bytes));
    };
    let mut memory = allocate(bytes)?;
    let read_seconds = begun.elapsed().as_secs_f64();
    let resize_seconds = decode::decode_frames(&video, &selection.indices, target, limits, memory.as_mut())?;
    let decode_seconds = begun.elapsed().as_secs_f64() - read_seconds;
    let decoded = DecodedVideo {
        data: PixelBuffer::default(),
        height,
        width,
        indices: selection.indices,
        total_frames: video.total_frames(),
        left_out_frames: video.left_out_frames,
        video_fps: video.video_fps,
        sample_fps: selection.sample_fps,
        times: DecodeTimes {
            read_seconds,
            decode_seconds,
            resize_seconds,
            cpu_seconds: 0.0,
            on_gpu: limits.gpu.is_some(),
        },
    };
    Ok((decoded, memory))
}

#[cfg(test)]
mod tests;
