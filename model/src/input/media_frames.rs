//! Decoded images and videos as u8 RGB frames. They are copied to the device in this form, which is an eighth of the
//! bytes of their normalised pixels.

use reel_media::frames::FrameBuf;
use reel_media::patches::{self, PatchProcessor};

use super::window::GridThw;
use crate::error::Result;

/// The images and videos of a sequence, decoded and resized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaFrames {
    /// The images in order, one frame each.
    pub images: Vec<FrameBuf>,
    /// The videos in order. The last frame of a video with an odd number of frames counts twice.
    pub videos: Vec<FrameBuf>,
    /// How frames are normalised and cut into patches.
    pub processor: PatchProcessor,
}

impl MediaFrames {
    /// The size of all frames in bytes.
    pub fn bytes(&self) -> usize {
        self.images.iter().chain(&self.videos).map(|f| f.data.len()).sum()
    }

    /// The grid of an image or video: its patches along time, height and width.
    ///
    /// # Errors
    /// Sides that are not multiples of a square of patches; data whose length does not match the sides.
    pub fn grid(&self, frames: &FrameBuf) -> Result<GridThw> {
        Ok(patches::patch_grid(frames.view()?, &self.processor)?)
    }

    /// The normalised pixels of all patches of `frames`, in processor order.
    ///
    /// # Errors
    /// As [`MediaFrames::grid`]; more pixels than fit in memory.
    pub fn pixels(&self, frames: &[FrameBuf]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for one in frames {
            all.append(&mut patches::patchify(one.view()?, &self.processor)?.pixel_values);
        }
        Ok(all)
    }
}
