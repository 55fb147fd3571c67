//! Decoded images and videos as u8 RGB frames. They are copied to the device in this form, because their normalised
//! f32 pixels would take four times as many bytes for a video, and eight times as many for an image (which is
//! normalised as two equal frames).

use crate::media::frames::FrameBuf;
use crate::media::patches::{self, ImageProcessorSettings};

use crate::error::Result;
use crate::window::GridThw;

/// The images and videos of a sequence, decoded and resized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaFrames {
    /// The images in order, one frame each.
    pub images: Vec<FrameBuf>,
    /// The videos in order. The last frame of a video with an odd number of frames counts twice.
    pub videos: Vec<FrameBuf>,
    /// For each video in `videos`, the time of each frame in seconds: the frame's index divided by the average frame
    /// rate of the file, or by `fps` for a list of images. Empty if the times are not known.
    pub video_times: Vec<Vec<f64>>,
    /// How frames are normalised and cut into patches.
    pub processor: ImageProcessorSettings,
}

impl MediaFrames {
    /// The total size of all frames in bytes.
    pub fn total_bytes(&self) -> usize {
        self.images.iter().chain(&self.videos).map(|f| f.data.len()).sum()
    }

    /// Appends the images and the videos of another sequence for the same model.
    pub fn append(&mut self, next: &MediaFrames) {
        if self.images.is_empty() && self.videos.is_empty() {
            self.processor = next.processor;
        }
        self.images.extend_from_slice(&next.images);
        self.videos.extend_from_slice(&next.videos);
        self.video_times.extend_from_slice(&next.video_times);
    }

    /// The grid of an image or video: the number of its patches along time, height and width.
    ///
    /// # Errors
    /// A height or width in pixels that is not a multiple of `patch_size * merge_size`; data whose length does not
    /// match the height and width.
    pub fn grid_thw(&self, frames: &FrameBuf) -> Result<GridThw> {
        patches::patch_grid_thw(frames.view()?, &self.processor)
    }

    /// The normalised pixels of all patches of `frames`, in processor order.
    ///
    /// # Errors
    /// The errors of [`MediaFrames::grid_thw`]; more pixels than fit in memory.
    pub fn patch_pixel_values(&self, frames: &[FrameBuf]) -> Result<Vec<f32>> {
        let views = frames.iter().map(FrameBuf::view).collect::<Result<Vec<_>>>()?;
        patches::patch_values(&views, &self.processor)
    }
}
