//! Arrays of pixels: frames of one size, borrowed ([`FrameView`]) or owned ([`FrameBuf`]).

use std::sync::Arc;

use crate::error::{Error, Result};

/// Images with more pixels (height × width) than this are refused before memory is allocated for them. The value is
/// Pillow's limit against decompression bombs.
pub const MAX_IMAGE_PIXELS: usize = 178_956_970;

/// Borrowed frames of one size, u8 RGB `[T, H, W, 3]`, row-major. An image is one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameView<'a> {
    data: &'a [u8],
    frames: usize,
    height: usize,
    width: usize,
}

impl<'a> FrameView<'a> {
    /// Views `data` as u8 `[frames, height, width, 3]`.
    ///
    /// # Errors
    /// `data` has another length, or a dimension is 0.
    pub fn new(data: &'a [u8], frames: usize, height: usize, width: usize) -> Result<Self> {
        let wanted = [frames, height, width, 3].into_iter().try_fold(1usize, usize::checked_mul);
        if wanted != Some(data.len()) || data.is_empty() {
            return Err(Error::setting(
                "frames",
                format!("{} bytes do not hold {frames} RGB frames of {height} x {width}", data.len()),
                "give at least one frame and exactly frames x height x width x 3 bytes",
            ));
        }
        Ok(Self { data, frames, height, width })
    }

    /// The pixels, u8 `[T, H, W, 3]`.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The number of frames, T.
    pub fn frame_count(&self) -> usize {
        self.frames
    }

    /// `(height, width)` in pixels.
    pub fn height_and_width(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Iterates over the frames, each u8 `[H, W, 3]`.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        self.data.chunks_exact(self.height * self.width * 3)
    }
}

/// Frames of one size, u8 RGB `[T, H, W, 3]`, row-major. Clones share the pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameBuf {
    /// The pixels, u8 `[T, H, W, 3]`.
    pub data: Arc<Vec<u8>>,
    /// Number of frames, T.
    pub frames: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl FrameBuf {
    /// Borrows the frames.
    ///
    /// # Errors
    /// `data` does not have the length that the other fields state.
    pub fn view(&self) -> Result<FrameView<'_>> {
        FrameView::new(&self.data, self.frames, self.height, self.width)
    }
}
