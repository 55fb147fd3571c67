//! Resizes images and video frames exactly as the reference stack does, to the last bit.
//!
//! Target sizes come from [`smart_resize`] and the size limits in `sizes.rs`. Pixels come from a separable bicubic
//! filter with antialiasing: Pillow's for images ([`pillow_bicubic`]), torchvision's for video frames
//! ([`torch_bicubic`]).
//! ```text
//! weights = filter taps of each output column and row        taps.rs
//! middle  = each row resized to the new width                passes.rs, resize_along_rows
//! result  = each column of middle resized to the new height  passes.rs, resize_down_columns
//! ```
//! Pillow computes in fixed point and rounds after each pass; torch computes in f32 and rounds once at the end.

mod passes;
mod sizes;
mod taps;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub use sizes::{
    DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS, ImagePixelLimits, MAX_ASPECT_RATIO, RequestedSize, VideoPixelLimits,
    processor_smart_resize, qwen3_processor_frame_size, qwen3_processor_image_size, smart_resize,
};

use crate::error::{Error, Result};
use crate::media::frames::{FrameBuf, FrameView, MAX_IMAGE_PIXELS};
use passes::{FixedPoint, FloatingPoint};
use taps::FilterTaps;

/// Images with a side longer than this are refused, because the workspace of a pass grows with the side.
const MAX_SOURCE_SIDE: usize = 1 << 20;

/// Resizes each frame to `size` = `(height, width)` as Pillow 13's `Image.resize` with bicubic filter does on mode
/// RGB; all bits are equal.
///
/// # Errors
/// A side of 0, a frame of more than [`MAX_IMAGE_PIXELS`], a source side above 2^20 pixels, or too little memory.
pub fn pillow_bicubic(frames: FrameView<'_>, size: (usize, usize)) -> Result<FrameBuf> {
    resample(frames, size, taps::pillow_taps, |from, horizontal, vertical, to| {
        let (height, width) = frames.height_and_width();
        if pillow_resizes_columns_first((height, width), (vertical.output_len(), horizontal.output_len())) {
            let mut middle = vec![0u8; vertical.output_len() * width * 3];
            passes::resize_down_columns::<FixedPoint, u8, u8>(from, width * 3, vertical, &mut middle);
            passes::resize_along_rows::<FixedPoint, u8, u8>(&middle, width, horizontal, to);
        } else {
            let mut middle = vec![0u8; height * horizontal.output_len() * 3];
            passes::resize_along_rows::<FixedPoint, u8, u8>(from, width, horizontal, &mut middle);
            passes::resize_down_columns::<FixedPoint, u8, u8>(&middle, horizontal.output_len() * 3, vertical, to);
        }
    })
}

/// Whether Pillow 13 resizes columns before rows. It does so if the height shrinks by more than twice as many pixels as
/// the width. The order matters for equal bits, because Pillow rounds after each pass. Earlier versions always resized
/// rows first. Source: `Resample.c`, `ImagingResampleInner`.
fn pillow_resizes_columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let (height_loss, width_loss) = (from.0 as i64 - to.0 as i64, from.1 as i64 - to.1 as i64);
    height_loss > 0 && height_loss > width_loss * 2
}

/// Resizes each frame to `size` = `(height, width)` as torchvision's `functional.resize` does on u8 tensors (bicubic,
/// antialias: computed in f32, clamped, rounded half to even). All bits are equal to torch 2.7 on a CPU with fused
/// multiply-add.
///
/// # Errors
/// A side of 0, a frame of more than [`MAX_IMAGE_PIXELS`], a source side above 2^20 pixels, or too little memory.
pub fn torch_bicubic(frames: FrameView<'_>, size: (usize, usize)) -> Result<FrameBuf> {
    resample(frames, size, taps::torch_taps, |from, horizontal, vertical, to| {
        let (height, width) = frames.height_and_width();
        let mut middle = vec![0f32; height * horizontal.output_len() * 3];
        passes::resize_along_rows::<FloatingPoint, u8, f32>(from, width, horizontal, &mut middle);
        passes::resize_down_columns::<FloatingPoint, f32, u8>(&middle, horizontal.output_len() * 3, vertical, to);
    })
}

/// A size to which frames are resized, and how.
#[derive(Clone, Copy, Debug)]
pub struct ResizeTarget {
    /// Height and width in pixels.
    pub size: (usize, usize),
    /// [`pillow_bicubic`] or [`torch_bicubic`].
    pub resize: fn(FrameView<'_>, (usize, usize)) -> Result<FrameBuf>,
}

/// Refuses to resize `from` to a size with a side of 0. [`smart_resize`] returns such a size for a long thin image or
/// video if `max_pixels` is small.
pub(crate) fn refuse_side_of_zero(from: (usize, usize), to: (usize, usize)) -> Result<()> {
    if to.0 > 0 && to.1 > 0 {
        return Ok(());
    }
    Err(Error::setting(
        "height and width",
        format!("{} x {} would be resized to {} x {}, which has a side of 0", from.0, from.1, to.0, to.1),
        "raise max_pixels, crop the image or video, or set resized_height and resized_width",
    ))
}

/// Checks the sizes, then calls `resize(source, horizontal taps, vertical taps, target)` for each frame, in parallel.
fn resample<W: Copy + Send + Sync>(
    frames: FrameView<'_>,
    (height, width): (usize, usize),
    taps: fn(usize, usize) -> FilterTaps<W>,
    resize: impl Fn(&[u8], &FilterTaps<W>, &FilterTaps<W>, &mut [u8]) + Sync,
) -> Result<FrameBuf> {
    let (from_height, from_width) = frames.height_and_width();
    let sizes = format!("{from_height} x {from_width} would be resized to {height} x {width}");
    let refuse = |what: &str, help: &str| Err(Error::setting("height and width", format!("{sizes}, {what}"), help));
    refuse_side_of_zero((from_height, from_width), (height, width))?;
    if height.checked_mul(width).is_none_or(|pixels| pixels > MAX_IMAGE_PIXELS) {
        return refuse("which is too large", "lower min_pixels");
    }
    if from_height.max(from_width) > MAX_SOURCE_SIDE {
        return refuse("but the longer side of the original exceeds 2^20 pixels", "crop the image or video");
    }
    let mut data = Vec::new();
    let frame_len = height * width * 3;
    let len = frame_len.saturating_mul(frames.frame_count());
    if data.try_reserve_exact(len).is_err() {
        let what = format!("{sizes}, for which there is not enough memory");
        return Err(Error::media_memory("height and width", what, "take fewer frames or lower max_pixels"));
    }
    if (height, width) == frames.height_and_width() {
        data.extend_from_slice(frames.data());
    } else {
        data.resize(len, 0);
        let (horizontal, vertical) = (taps(from_width, width), taps(from_height, height));
        data.par_chunks_exact_mut(frame_len)
            .zip(frames.data().par_chunks_exact(from_height * from_width * 3))
            .for_each(|(to, from)| resize(from, &horizontal, &vertical, to));
    }
    Ok(FrameBuf { data, frames: frames.frame_count(), height, width })
}
