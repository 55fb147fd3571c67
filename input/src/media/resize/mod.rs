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
use passes::{FilterArithmetic, FixedPoint, FloatingPoint, PixelSample, Threads};
use taps::FilterTaps;

/// Images with a side longer than this are refused, because the workspace of a pass grows with the side.
const MAX_SOURCE_SIDE: usize = 1 << 20;

/// Resizes each frame to `size` = `(height, width)` as Pillow 13's `Image.resize` with bicubic filter does on mode
/// RGB; all bits are equal.
///
/// # Errors
/// A side of 0, a frame of more than [`MAX_IMAGE_PIXELS`], a source side above 2^20 pixels, or too little memory.
pub fn pillow_bicubic(frames: FrameView<'_>, size: (usize, usize)) -> Result<FrameBuf> {
    resize_in_all_threads(frames, size, pillow_filter)
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
    resize_in_all_threads(frames, size, torch_filter)
}

/// A size to which the frames of a video are resized, and how.
#[derive(Clone, Copy, Debug)]
pub struct ResizeTarget {
    /// Height and width in pixels.
    pub size: (usize, usize),
    /// The filter.
    pub filter: FrameFilter,
}

/// The filter that resizes the frames of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFilter {
    /// As [`pillow_bicubic`].
    Pillow,
    /// As [`torch_bicubic`].
    Torch,
}

/// Resizes frames of one size one after another, in the calling thread. Keeps the taps of the filter and the memory
/// for intermediate results.
pub(crate) struct FrameResizer(Filter);

enum Filter {
    Unchanged { row_bytes: usize },
    Pillow(Bicubic<FixedPoint, u8>, Vec<[i32; passes::LANES]>, Vec<u8>),
    Torch(Bicubic<FloatingPoint, f32>, Vec<[f32; passes::LANES]>, Vec<f32>),
}

#[cfg_attr(not(feature = "ffmpeg"), expect(dead_code, reason = "only decoding uses it"))]
impl FrameResizer {
    /// A resizer for frames of `(height, width)` pixels.
    ///
    /// # Errors
    /// As [`torch_bicubic`], except that too little memory is found later.
    pub(crate) fn new(from: (usize, usize), target: ResizeTarget) -> Result<Self> {
        check_sizes(from, target.size)?;
        Ok(Self(match target.filter {
            _ if from == target.size => Filter::Unchanged { row_bytes: from.1 * 3 },
            FrameFilter::Pillow => Filter::Pillow(pillow_filter(from, target.size), Vec::new(), Vec::new()),
            FrameFilter::Torch => Filter::Torch(torch_filter(from, target.size), Vec::new(), Vec::new()),
        }))
    }

    /// Resizes a frame, whose rows of RGB pixels are `stride` bytes apart, into `target`, u8 `[height, width, 3]`.
    pub(crate) fn resize(&mut self, source: &[u8], stride: usize, target: &mut [u8]) {
        match &mut self.0 {
            Filter::Unchanged { row_bytes } => {
                for (row, to) in source.chunks(stride).zip(target.chunks_exact_mut(*row_bytes)) {
                    to.copy_from_slice(&row[..*row_bytes]);
                }
            }
            Filter::Pillow(filter, transposed, middle) => {
                filter.resize(source, stride, target, middle, &mut Threads::Calling(transposed));
            }
            Filter::Torch(filter, transposed, middle) => {
                filter.resize(source, stride, target, middle, &mut Threads::Calling(transposed));
            }
        }
    }
}

type AsBytes<M> = fn(&[M]) -> &[u8];
/// Makes a filter from the sizes `(height, width)` before and after.
type MakeFilter<A, M> = fn((usize, usize), (usize, usize)) -> Bicubic<A, M>;

/// A filter between two sizes. `M` is the type of the samples between the two passes.
struct Bicubic<A: FilterArithmetic, M> {
    /// Height and width of the source.
    from: (usize, usize),
    horizontal: FilterTaps<A::Lane>,
    vertical: FilterTaps<A::Lane>,
    /// Views the samples between the passes as the bytes that the second pass reads, where columns are resized first.
    columns_first: Option<AsBytes<M>>,
}

fn pillow_filter(from: (usize, usize), to: (usize, usize)) -> Bicubic<FixedPoint, u8> {
    let (vertical, horizontal) = (taps::pillow_taps(from.0, to.0), taps::pillow_taps(from.1, to.1));
    let columns_first = pillow_resizes_columns_first(from, to).then_some((|bytes| bytes) as AsBytes<u8>);
    Bicubic { from, horizontal, vertical, columns_first }
}

fn torch_filter(from: (usize, usize), to: (usize, usize)) -> Bicubic<FloatingPoint, f32> {
    let (vertical, horizontal) = (taps::torch_taps(from.0, to.0), taps::torch_taps(from.1, to.1));
    Bicubic { from, horizontal, vertical, columns_first: None }
}

impl<A: FilterArithmetic, M: PixelSample<A>> Bicubic<A, M>
where
    u8: PixelSample<A>,
{
    /// Resizes one frame, whose rows are `stride` bytes apart. `middle` is a workspace.
    fn resize(
        &self,
        source: &[u8],
        stride: usize,
        target: &mut [u8],
        middle: &mut Vec<M>,
        threads: &mut Threads<'_, A::Lane>,
    ) {
        let Self { from: (height, width), horizontal, vertical, columns_first } = self;
        let (row, target_row) = (width * 3, horizontal.output_len() * 3);
        match columns_first {
            Some(as_bytes) => {
                middle.resize(vertical.output_len() * row, M::default());
                passes::resize_down_columns(source, stride, row, vertical, middle, threads);
                passes::resize_along_rows(as_bytes(middle), row, *width, horizontal, target, threads);
            }
            None => {
                middle.resize(height * target_row, M::default());
                passes::resize_along_rows(source, stride, *width, horizontal, middle, threads);
                passes::resize_down_columns(middle, target_row, target_row, vertical, target, threads);
            }
        }
    }
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

/// Checks the sizes before and after a resize.
fn check_sizes((from_height, from_width): (usize, usize), (height, width): (usize, usize)) -> Result<()> {
    let sizes = format!("{from_height} x {from_width} would be resized to {height} x {width}");
    let refuse = |what: &str, help: &str| Err(Error::setting("height and width", format!("{sizes}, {what}"), help));
    refuse_side_of_zero((from_height, from_width), (height, width))?;
    if height.checked_mul(width).is_none_or(|pixels| pixels > MAX_IMAGE_PIXELS) {
        return refuse("which is too large", "lower min_pixels");
    }
    if from_height.max(from_width) > MAX_SOURCE_SIDE {
        return refuse("but the longer side of the original exceeds 2^20 pixels", "crop the image or video");
    }
    Ok(())
}

/// Resizes the frames by the filter that `filter` makes for the sizes before and after, in all threads of Rayon.
fn resize_in_all_threads<A: FilterArithmetic, M: PixelSample<A>>(
    frames: FrameView<'_>,
    (height, width): (usize, usize),
    filter: MakeFilter<A, M>,
) -> Result<FrameBuf>
where
    u8: PixelSample<A>,
{
    let from = frames.height_and_width();
    check_sizes(from, (height, width))?;
    let mut data = Vec::new();
    let frame_len = height * width * 3;
    let len = frame_len.saturating_mul(frames.frame_count());
    if data.try_reserve_exact(len).is_err() {
        let what = format!(
            "{} x {} would be resized to {height} x {width}, for which there is not enough memory",
            from.0, from.1
        );
        return Err(Error::media_memory("height and width", what, "take fewer frames or lower max_pixels"));
    }
    if (height, width) == from {
        data.extend_from_slice(frames.data());
    } else {
        data.resize(len, 0);
        let (filter, source_row) = (filter(from, (height, width)), from.1 * 3);
        data.par_chunks_exact_mut(frame_len)
            .zip(frames.data().par_chunks_exact(from.0 * source_row))
            .for_each(|(to, from)| filter.resize(from, source_row, to, &mut Vec::new(), &mut Threads::All));
    }
    Ok(FrameBuf { data: data.into(), frames: frames.frame_count(), height, width })
}
