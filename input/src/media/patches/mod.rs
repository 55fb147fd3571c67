//! Converts frames to patches as the processors of Qwen2.5-VL (transformers 4.51.3) and Qwen3-VL (5.24) do.
//!
//! ```text
//! first resize    limits of profile and overrides: resize_image, resize_image_list; videos: in the decoding worker
//! second resize   Qwen2.5-VL: size limits of preprocessor_config.json, usually nothing to do: processor_resize
//! patchify        (pixel / 255 - mean) / std, cut into patches of 2 frames x 14 x 14 pixels (Qwen3-VL: 16 x 16)
//! ```
//! For Qwen3-VL, qwen-vl-utils 0.0.14 resizes once, and the processor is called with `do_resize=False`.
//! Example: 2 frames of 56 x 84 make a grid of 1 x 4 x 6, thus 24 patches of 1176 values (3 channels x 2 x 14 x 14).
//! They are ordered by merge block: the 4 patches of the upper left 28 x 28 pixels first.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::family::Family;
use crate::media::error::with_image_name;
use crate::media::frames::{FrameBuf, FrameView};
use crate::media::image::RgbImage;
use crate::media::profile::{MediaOverrides, MediaProfile};
use crate::media::resize::{
    ImagePixelLimits, VideoPixelLimits, pillow_bicubic, processor_smart_resize, refuse_side_of_zero, torch_bicubic,
};

#[cfg(test)]
mod tests;

/// Number of colour channels (RGB).
const CHANNELS: usize = 3;

/// The patches of one image or video, the input of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Normalised values, f32 `[N, C * t * p * p]` (`[N, 1176]` for Qwen2.5-VL), with N = the product of `grid_thw`,
    /// C channels, t frames per patch and p pixels per side. Patches of a merge block are neighbours; within a patch
    /// the order is channel, frame, row, column.
    pub pixel_values: Vec<f32>,
    /// Number of patches along time, height and width.
    pub grid_thw: [usize; 3],
}

/// The settings of preprocessor_config.json, and the family of the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ImageProcessorSettings {
    /// The model family, whose rules of resizing apply.
    pub family: Family,
    /// Minimum area in pixels: in Qwen2.5-VL after the second resize, in Qwen3-VL with the profile `qwen3-processor`.
    pub min_pixels: u64,
    /// Maximum area in pixels, as `min_pixels`.
    pub max_pixels: u64,
    /// The limits of videos with the profile `qwen3-processor`.
    pub videos: VideoProcessorLimits,
    /// Side of a patch in pixels (p).
    pub patch_size: usize,
    /// Frames per patch (tp).
    pub temporal_patch_size: usize,
    /// Patches along each side of a merge block.
    pub merge_size: usize,
    /// Factor by which pixel values 0..=255 are multiplied before normalisation.
    pub rescale_factor: f64,
    /// Mean of each channel, subtracted after rescaling.
    pub image_mean: [f32; CHANNELS],
    /// Standard deviation of each channel, by which values are divided after the mean is subtracted.
    pub image_std: [f32; CHANNELS],
}

/// The limits of videos in the settings of a video processor (video_preprocessor_config.json).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VideoProcessorLimits {
    /// Minimum frames × height × width in pixels.
    pub min_volume: u64,
    /// Maximum frames × height × width in pixels.
    pub max_volume: u64,
    /// Frames per second of video.
    pub fps: f64,
    /// Minimum number of frames.
    pub min_frames: i64,
    /// Maximum number of frames.
    pub max_frames: i64,
}

impl Default for VideoProcessorLimits {
    /// The limits of the published Qwen3-VL models.
    fn default() -> Self {
        Self { min_volume: 4096, max_volume: 25_165_824, fps: 2.0, min_frames: 4, max_frames: 768 }
    }
}

impl Default for ImageProcessorSettings {
    /// The settings of the published Qwen2.5-VL models.
    fn default() -> Self {
        Self {
            family: Family::Qwen25Vl,
            min_pixels: 3136,
            max_pixels: 12_845_056,
            videos: VideoProcessorLimits::default(),
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

impl ImageProcessorSettings {
    /// The settings of the published models of `family`.
    pub fn of_published(family: Family) -> Self {
        match family {
            Family::Qwen25Vl => Self::default(),
            Family::Qwen3Vl => Self {
                family,
                min_pixels: 65_536,
                max_pixels: 16_777_216,
                patch_size: 16,
                image_mean: [0.5; CHANNELS],
                image_std: [0.5; CHANNELS],
                ..Self::default()
            },
        }
    }

    /// `given` with the limits that `profile` takes from the model folder: with `qwen3-processor`, those of
    /// preprocessor_config.json and of video_preprocessor_config.json, where `given` sets no other limit.
    pub fn limits_of_profile(&self, profile: MediaProfile, given: MediaOverrides) -> MediaOverrides {
        if profile != MediaProfile::Qwen3Processor {
            return given;
        }
        let or_folder = |own: Option<u64>, both: Option<u64>, folder: u64| own.or(both).or(Some(folder));
        MediaOverrides {
            image_min_pixels: or_folder(given.image_min_pixels, given.min_pixels, self.min_pixels),
            image_max_pixels: or_folder(given.image_max_pixels, given.max_pixels, self.max_pixels),
            video_min_pixels: or_folder(given.video_min_pixels, given.min_pixels, self.videos.min_volume),
            video_max_pixels: or_folder(given.video_max_pixels, given.max_pixels, self.videos.max_volume),
            fps: given.fps.or(given.nframes.is_none().then_some(self.videos.fps)),
            min_frames: given.min_frames.or(Some(self.videos.min_frames)),
            max_frames: given.max_frames.or(Some(self.videos.max_frames)),
            ..given
        }
    }
}

/// Resizes an image: to the size within `limits`, then, in Qwen2.5-VL, to the size that the image processor computes.
/// Returns u8 `[1, H, W, 3]`. Error messages use `name` as location.
///
/// # Errors
/// The image cannot be resized to these limits (see [`crate::media::resize::smart_resize`]), or memory runs out.
pub fn resize_image(
    image: &RgbImage,
    limits: &ImagePixelLimits,
    processor: &ImageProcessorSettings,
    name: &str,
) -> Result<FrameBuf> {
    with_file_name(name, || {
        let size = limits.resized_height_and_width(image.height, image.width)?;
        processor_resize(pillow_bicubic(image.view()?, size)?, processor)
    })
}

/// Resizes the images of a video that is given as a list of image files; returns u8 `[T, H, W, 3]` with T even: an odd
/// list repeats its last image. Each image is resized to its own size within `limits`, if there are any. Then all images
/// are resized to one size that follows from the first image: in Qwen2.5-VL the size that the image processor computes,
/// in Qwen3-VL the size of a video frame within `frame_limits`.
///
/// # Errors
/// The list is empty, an image cannot be resized to these limits, or memory runs out. In Qwen3-VL all images must have
/// the same size after the first resize, as in qwen-vl-utils.
pub fn resize_image_list(
    images: &[RgbImage],
    limits: Option<&ImagePixelLimits>,
    frame_limits: &VideoPixelLimits,
    processor: &ImageProcessorSettings,
    name: &str,
) -> Result<FrameBuf> {
    with_file_name(name, || {
        let first = |image: &RgbImage| {
            let size = match limits {
                None => (image.height, image.width),
                Some(limits) => limits.resized_height_and_width(image.height, image.width)?,
            };
            pillow_bicubic(image.view()?, size)
        };
        let frame_size = |size| match processor.family {
            Family::Qwen25Vl => processor_size(size, processor),
            Family::Qwen3Vl => {
                let frames = if frame_limits.by_processor { images.len() } else { images.len().next_multiple_of(2) };
                let target = frame_limits.resized_height_and_width(frames, size.0, size.1)?;
                refuse_side_of_zero(size, target).map(|()| target)
            }
        };
        let second =
            |frame: FrameView<'_>, size| match processor.family == Family::Qwen3Vl && !frame_limits.by_processor {
                true => torch_bicubic(frame, size),
                false => pillow_bicubic(frame, size),
            };
        let mut sizes = None;
        let mut data = Vec::new();
        for (i, image) in images.iter().enumerate() {
            let resized = first(image)?;
            let own = (resized.height, resized.width);
            let (of_first, target) = match sizes {
                Some(sizes) => sizes,
                None => *sizes.insert((own, frame_size(own)?)),
            };
            if processor.family == Family::Qwen3Vl && own != of_first {
                let what = format!(
                    "has frames of different sizes: after the first resize, frame {i} is {} x {}, but frame 0 is {} x {}",
                    own.0, own.1, of_first.0, of_first.1
                );
                return Err(Error::setting("video", what, "give frames of one size"));
            }
            data.extend_from_slice(&second(resized.view()?, target)?.data);
        }
        let size = sizes.map(|(_, target)| target);
        let Some((height, width)) = size else {
            return Err(Error::setting("video", "is an empty list of images", "give at least one image"));
        };
        let mut frames = images.len();
        if frames % 2 == 1 {
            data.extend_from_within(data.len() - height * width * CHANNELS..);
            frames += 1;
        }
        Ok(FrameBuf { data: data.into(), frames, height, width })
    })
}

/// The second resize of Qwen2.5-VL: Pillow's bicubic to the size that the image processor's `smart_resize` computes,
/// usually the same size. Qwen3-VL has no second resize.
///
/// # Errors
/// A side is shorter than a merge block, the ratio of sides is too large, or memory runs out.
pub fn processor_resize(frames: FrameBuf, processor: &ImageProcessorSettings) -> Result<FrameBuf> {
    let size = processor_size((frames.height, frames.width), processor)?;
    if size == (frames.height, frames.width) {
        return Ok(frames);
    }
    pillow_bicubic(frames.view()?, size)
}

/// The size of frames of (height, width) pixels after the second resize.
pub(crate) fn processor_size(
    (height, width): (usize, usize),
    processor: &ImageProcessorSettings,
) -> Result<(usize, usize)> {
    if processor.family == Family::Qwen3Vl {
        return Ok((height, width));
    }
    let factor = processor.patch_size.saturating_mul(processor.merge_size);
    processor_smart_resize(height, width, factor, processor.min_pixels, processor.max_pixels)
}

/// Number of patches of `frames` along time, height and width.
///
/// # Errors
/// The sides are not multiples of `patch_size * merge_size`.
pub fn patch_grid_thw(frames: FrameView<'_>, processor: &ImageProcessorSettings) -> Result<[usize; 3]> {
    grid_of_size(frames.frame_count(), frames.height_and_width(), processor)
}

/// Number of patches of `frames` frames of (height, width) pixels along time, height and width.
pub(crate) fn grid_of_size(
    frames: usize,
    (height, width): (usize, usize),
    processor: &ImageProcessorSettings,
) -> Result<[usize; 3]> {
    let ImageProcessorSettings { patch_size: p, temporal_patch_size: tp, merge_size: merge, .. } = *processor;
    let block = p.saturating_mul(merge);
    if block == 0 || tp == 0 || !height.is_multiple_of(block) || !width.is_multiple_of(block) {
        return Err(Error::setting(
            "frames",
            format!(
                "{height} x {width} pixels cannot be divided into blocks of {merge} x {merge} patches of {p} x {p} pixels and {tp} frames"
            ),
            "resize first; check patch_size, temporal_patch_size and merge_size in preprocessor_config.json",
        ));
    }
    Ok([frames.div_ceil(tp), height / p, width / p])
}

/// Normalises frames and cuts them into patches. The last frame is repeated if the last temporal patch is incomplete,
/// so an image counts as two equal frames.
///
/// # Errors
/// The sides are not multiples of `patch_size * merge_size`, or memory runs out.
pub fn patchify(frames: FrameView<'_>, processor: &ImageProcessorSettings) -> Result<Patches> {
    let grid_thw = patch_grid_thw(frames, processor)?;
    Ok(Patches { pixel_values: patch_values(&[frames], processor)?, grid_thw })
}

/// The values of all patches of several images or videos, one after another; see [`patchify`].
///
/// # Errors
/// As [`patchify`].
pub fn patch_values(media: &[FrameView<'_>], processor: &ImageProcessorSettings) -> Result<Vec<f32>> {
    let patch = patch_len(processor);
    let lens = media.iter().map(|frames| Ok(patch_grid_thw(*frames, processor)?.iter().product::<usize>() * patch));
    let lens = lens.collect::<Result<Vec<usize>>>()?;
    let len = lens.iter().sum::<usize>();
    // Memory that the allocator provides zeroed is not written before the patches are.
    let Ok(mut pixel_values) = bytemuck::allocation::try_zeroed_vec(len) else {
        return Err(Error::setting("frames", format!("not enough memory for {len} patch values"), "take fewer frames"));
    };
    let mut rest = &mut pixel_values[..];
    for (frames, len) in media.iter().zip(lens) {
        let (values, following) = rest.split_at_mut(len);
        write_patches(*frames, processor, values);
        rest = following;
    }
    Ok(pixel_values)
}

/// Number of values of a patch.
fn patch_len(processor: &ImageProcessorSettings) -> usize {
    CHANNELS * processor.temporal_patch_size * processor.patch_size * processor.patch_size
}

/// Writes the patches of frames whose sides are multiples of `patch_size * merge_size`.
fn write_patches(frames: FrameView<'_>, processor: &ImageProcessorSettings, pixel_values: &mut [f32]) {
    let ImageProcessorSettings { patch_size: p, temporal_patch_size: tp, merge_size: merge, .. } = *processor;
    let ((height, width), block) = (frames.height_and_width(), p * merge);
    let (normalised, patch) = (normalisation_table(processor), patch_len(processor));
    let frame_pixels: Vec<&[u8]> = frames.iter().collect();
    let blocks_across = width / block;
    // Each parallel task writes one merge block: merge × merge patches, which are neighbours in the output.
    pixel_values.par_chunks_exact_mut(merge * merge * patch).enumerate().for_each(|(index, out)| {
        let (strip, column) = (index / blocks_across, index % blocks_across);
        let (time, line) = (strip / (height / block), strip % (height / block));
        for (within, out) in out.chunks_exact_mut(patch).enumerate() {
            let y0 = line * block + within / merge * p;
            let x0 = column * block + within % merge * p;
            for (part, out) in out.chunks_exact_mut(p * p).enumerate() {
                let (channel, frame) = (part / tp, time * tp + part % tp);
                let pixels = frame_pixels[frame.min(frame_pixels.len() - 1)];
                for (y, out) in out.chunks_exact_mut(p).enumerate() {
                    let row = &pixels[((y0 + y) * width + x0) * CHANNELS..][..p * CHANNELS];
                    for (value, pixel) in out.iter_mut().zip(row.chunks_exact(CHANNELS)) {
                        *value = normalised[channel][usize::from(pixel[channel])];
                    }
                }
            }
        }
    });
}

/// The normalised value for each pixel value 0..=255 of each channel. Computed with the operations and types of
/// transformers: product in f64, rounded to f32, then subtraction and division in f32.
fn normalisation_table(processor: &ImageProcessorSettings) -> [[f32; 256]; CHANNELS] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|level| {
            let rescaled = (level as f64 * processor.rescale_factor) as f32;
            (rescaled - processor.image_mean[channel]) / processor.image_std[channel]
        })
    })
}

/// Runs `work`; if it fails with an error about sizes, the error names the file `name`.
fn with_file_name<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().map_err(|error| with_image_name(error, name))
}
