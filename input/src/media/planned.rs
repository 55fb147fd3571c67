//! Computes the frames and patches of a video from its length and size, without a file. The functions are those that
//! the decoder and the image processor call, so a video of that length and size has the same frames and patches.

use crate::media::Result;
use crate::media::patches::{ImageProcessorSettings, grid_of_size, processor_size};
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::resize::{VideoPixelLimits, refuse_side_of_zero};
use crate::media::selection::select_frames;

/// Length and size of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoShape {
    /// Number of frames.
    pub total_frames: u64,
    /// Frames per second.
    pub video_fps: f64,
    /// Displayed height in pixels.
    pub height: usize,
    /// Displayed width in pixels.
    pub width: usize,
}

/// The frames that a model sees of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedVideo {
    /// Number of selected frames.
    pub frames: usize,
    /// Height of a resized frame in pixels.
    pub height: usize,
    /// Width of a resized frame in pixels.
    pub width: usize,
    /// Number of patches along time, height and width.
    pub grid_thw: [usize; 3],
}

/// Selects frames of a video of this shape and computes the size to which they are resized.
///
/// # Errors
/// No frames can be selected (see [`select_frames`]), or the frames cannot be resized to the limits.
pub fn plan_video(
    video: VideoShape,
    profile: MediaProfile,
    overrides: &MediaOverrides,
    processor: &ImageProcessorSettings,
) -> Result<PlannedVideo> {
    let VideoShape { total_frames, video_fps, height, width } = video;
    let frames = select_frames(total_frames, video_fps, profile, overrides)?.indices.len();
    let rules = profile.for_family(processor.family);
    let overrides = &processor.limits_of_profile(profile, *overrides);
    let first = VideoPixelLimits::new(rules, overrides).resized_height_and_width(frames, height, width)?;
    refuse_side_of_zero((height, width), first)?;
    let (height, width) = processor_size(first, processor)?;
    Ok(PlannedVideo { frames, height, width, grid_thw: grid_of_size(frames, (height, width), processor)? })
}
