//! Pictures and films as frames of levels, which is how they go to the device: an eighth of their pixels' bytes.

use reel_media::frames::FrameBuf;
use reel_media::patches::{self, PatchProcessor};

use super::window::GridThw;
use crate::error::Result;

/// The media of a sequence after both resizes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaFrames {
    /// One frame each, in order.
    pub images: Vec<FrameBuf>,
    /// In order; an odd one's last frame stands for two.
    pub videos: Vec<FrameBuf>,
    /// How they become patches.
    pub processor: PatchProcessor,
}

impl MediaFrames {
    /// Bytes of all levels.
    pub fn bytes(&self) -> usize {
        self.images.iter().chain(&self.videos).map(|f| f.data.len()).sum()
    }

    /// The grid of some frames.
    ///
    /// # Errors
    /// Sides that are no whole blocks of patches, levels that do not fit the sides.
    pub fn grid(&self, frames: &FrameBuf) -> Result<GridThw> {
        Ok(patches::patch_grid(frames.view()?, &self.processor)?)
    }

    /// The normalised pixels of the patches of `frames`, one after the other, as the image processor gives them.
    ///
    /// # Errors
    /// As [`MediaFrames::grid`]; too many to fit in memory.
    pub fn pixels(&self, frames: &[FrameBuf]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for one in frames {
            all.append(&mut patches::patchify(one.view()?, &self.processor)?.pixel_values);
        }
        Ok(all)
    }
}
