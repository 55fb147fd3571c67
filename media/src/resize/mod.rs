//! Resizing as the reference does it. Sizes: [`smart_resize`] and the limits around it. Pixels: Pillow's bicubic for
//! pictures ([`pillow_bicubic`]), torchvision's for films ([`torch_bicubic`]), both to the last bit.

mod passes;
mod sizes;
mod taps;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub use sizes::{
    FACTOR, ImagePixelLimits, MAX_PIXELS, MAX_RATIO, MIN_PIXELS, RequestedSize, VideoPixelLimits,
    processor_smart_resize, smart_resize,
};

use crate::image::MAX_IMAGE_PIXELS;
use crate::{MediaError, Result};
use passes::{Fixed, Float};
use taps::Taps;

/// A picture with a longer side is not resized: the work space of a pass grows with it.
const MAX_SOURCE_SIDE: usize = 1 << 20;

/// Frames of one size, borrowed: u8 RGB [T,H,W,3], row-major. A picture is one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameView<'a> {
    data: &'a [u8],
    frames: usize,
    height: usize,
    width: usize,
}

impl<'a> FrameView<'a> {
    /// Frames over `data` u8 [frames,height,width,3]; refused when the length does not fit or a dimension is 0.
    pub fn new(data: &'a [u8], frames: usize, height: usize, width: usize) -> Result<Self> {
        let wanted = [frames, height, width, 3].into_iter().try_fold(1usize, usize::checked_mul);
        if wanted != Some(data.len()) || data.is_empty() {
            return Err(MediaError::setting(
                "frames",
                format!("{} bytes are not {frames} frames of {height} x {width} in RGB", data.len()),
                "give at least one frame, and exactly frames x height x width x 3 bytes",
            ));
        }
        Ok(Self { data, frames, height, width })
    }

    /// The samples, [T,H,W,3].
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// T, the number of frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// `(H, W)` in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// The frames one by one, each u8 [H,W,3].
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        self.data.chunks_exact(self.frame_len())
    }

    fn frame_len(&self) -> usize {
        self.height * self.width * 3
    }
}

/// Frames of one size, owned: u8 RGB [T,H,W,3], row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameBuf {
    /// The samples, [T,H,W,3].
    pub data: Vec<u8>,
    /// T, the number of frames.
    pub frames: usize,
    /// H in pixels.
    pub height: usize,
    /// W in pixels.
    pub width: usize,
}

impl FrameBuf {
    /// The frames, borrowed; refused when `data` is not [frames,height,width,3].
    pub fn view(&self) -> Result<FrameView<'_>> {
        FrameView::new(&self.data, self.frames, self.height, self.width)
    }
}

/// Resizes each frame to `size` = `(height, width)` with Pillow's bicubic (`Image.resize` on mode RGB), to the bit of Pillow 13.
///
/// Refused: a side of 0, more pixels than [`MAX_IMAGE_PIXELS`] a frame, a source side above 2^20, more memory than there is.
pub fn pillow_bicubic(frames: FrameView<'_>, size: (usize, usize)) -> Result<FrameBuf> {
    resample(frames, size, taps::pillow, |from, horizontal, vertical, to| {
        let (width, height) = (frames.width, frames.height);
        if pillow_takes_columns_first((height, width), (vertical.len(), horizontal.len())) {
            let mut middle = vec![0u8; vertical.len() * width * 3];
            passes::down_columns::<Fixed, u8, u8>(from, width * 3, vertical, &mut middle);
            passes::along_rows::<Fixed, u8, u8>(&middle, width, horizontal, to);
        } else {
            let mut middle = vec![0u8; height * horizontal.len() * 3];
            passes::along_rows::<Fixed, u8, u8>(from, width, horizontal, &mut middle);
            passes::down_columns::<Fixed, u8, u8>(&middle, horizontal.len() * 3, vertical, to);
        }
    })
}

/// Pillow 13 does the columns first when the height shrinks by more than twice what the width does (earlier versions always did
/// the rows first). It shows in the result, which is rounded after each pass. Source: `Resample.c`, `ImagingResampleInner`.
fn pillow_takes_columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let (height, width) = (shrinks(from.0, to.0), shrinks(from.1, to.1));
    height > 0 && height > width * 2
}

/// Resizes each frame to `size` = `(height, width)` as torchvision does u8 tensors (`functional.resize`, bicubic, antialias:
/// through f32, clamped, rounded half to even), to the bit of torch 2.7 on a CPU with fused multiply-add.
///
/// Refused: a side of 0, more pixels than [`MAX_IMAGE_PIXELS`] a frame, a source side above 2^20, more memory than there is.
pub fn torch_bicubic(frames: FrameView<'_>, size: (usize, usize)) -> Result<FrameBuf> {
    resample(frames, size, taps::torch, |from, horizontal, vertical, to| {
        let mut middle = vec![0f32; frames.height * horizontal.len() * 3];
        passes::along_rows::<Float, u8, f32>(from, frames.width, horizontal, &mut middle);
        passes::down_columns::<Float, f32, u8>(&middle, horizontal.len() * 3, vertical, to);
    })
}

/// Checks the size, then runs `resize(from, horizontal taps, vertical taps, to)` on each frame.
fn resample<W: Copy + Send + Sync>(
    frames: FrameView<'_>,
    (height, width): (usize, usize),
    taps: fn(usize, usize) -> Taps<W>,
    resize: impl Fn(&[u8], &Taps<W>, &Taps<W>, &mut [u8]) + Sync,
) -> Result<FrameBuf> {
    let (from_height, from_width) = frames.size();
    let refuse = |what: &str, cure: &str| {
        let what = format!("a picture of {from_height} x {from_width} would be resized to {height} x {width}, {what}");
        Err(MediaError::setting("height and width", what, cure))
    };
    if height == 0 || width == 0 {
        return refuse("a side of 0", "raise max_pixels, crop the picture, or set resized_height and resized_width");
    }
    if height.checked_mul(width).is_none_or(|pixels| pixels > MAX_IMAGE_PIXELS) {
        return refuse("which is too large", "lower min_pixels");
    }
    if from_height.max(from_width) > MAX_SOURCE_SIDE {
        return refuse("from a side that is too long", "crop it");
    }
    let mut data = Vec::new();
    let frame_len = height * width * 3;
    let len = frame_len.saturating_mul(frames.frames);
    if data.try_reserve_exact(len).is_err() {
        return refuse("for which there is not enough memory", "take fewer frames or lower max_pixels");
    }
    if (height, width) == frames.size() {
        data.extend_from_slice(frames.data);
    } else {
        data.resize(len, 0);
        let (horizontal, vertical) = (taps(from_width, width), taps(from_height, height));
        data.par_chunks_exact_mut(frame_len)
            .zip(frames.data.par_chunks_exact(frames.frame_len()))
            .for_each(|(to, from)| resize(from, &horizontal, &vertical, to));
    }
    Ok(FrameBuf { data, frames: frames.frames, height, width })
}
