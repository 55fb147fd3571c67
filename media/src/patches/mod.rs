//! Frames in, patches out: the second resize, the normalisation and the order of patches of Qwen2.5-VL's image processor
//! (transformers 4.51.3), and the three ways into it: a picture, a film, a list of pictures given as a film.

use rayon::prelude::*;

use crate::image::RgbImage;
use crate::resize::{
    FrameBuf, FrameView, ImagePixelLimits, VideoPixelLimits, pillow_bicubic, processor_smart_resize, torch_bicubic,
};
use crate::{MediaError, Result};

#[cfg(test)]
mod tests;

/// RGB channels.
const CHANNELS: usize = 3;

/// What the vision tower reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Normalised samples f32 [N, C*tp*p*p] (N, 1176 for Qwen2.5-VL), N = t*h*w of `grid_thw`. Patches of a merge block are neighbours;
    /// within a patch the order is channel, frame, row, column.
    pub pixel_values: Vec<f32>,
    /// Patches along time, height and width.
    pub grid_thw: [usize; 3],
}

/// The numbers of preprocessor_config.json.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatchProcessor {
    /// Smallest area after the second resize, in pixels.
    pub min_pixels: u64,
    /// Largest area after the second resize, in pixels.
    pub max_pixels: u64,
    /// Side of a patch in pixels (p).
    pub patch_size: usize,
    /// Frames of a patch (tp).
    pub temporal_patch_size: usize,
    /// Patches along each side of a merge block.
    pub merge_size: usize,
    /// What a level of 0..=255 is multiplied with.
    pub rescale_factor: f64,
    /// Mean of each channel after that.
    pub image_mean: [f32; CHANNELS],
    /// Standard deviation of each channel after that.
    pub image_std: [f32; CHANNELS],
}

impl Default for PatchProcessor {
    /// Qwen2.5-VL as published.
    fn default() -> Self {
        Self {
            min_pixels: 3136,
            max_pixels: 12_845_056,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

/// A picture: first resize by its limits, second resize by the processor, patches. `name` is what errors call it.
pub fn still(picture: &RgbImage, limits: &ImagePixelLimits, processor: &PatchProcessor, name: &str) -> Result<Patches> {
    patchify(resize_image(picture, limits, processor, name)?.view()?, processor)
}

/// A film's frames: first resize by the film budget for their number, second resize by the processor, patches.
pub fn film(
    frames: FrameView<'_>,
    limits: &VideoPixelLimits,
    processor: &PatchProcessor,
    name: &str,
) -> Result<Patches> {
    patchify(resize_video(frames, limits, processor, name)?.view()?, processor)
}

/// A film whose frames have had their first resize already (in the decoding worker): second resize by the processor, patches.
pub fn resized_film(frames: FrameView<'_>, processor: &PatchProcessor, name: &str) -> Result<Patches> {
    named(name, || {
        let size = processor_size(frames.size(), processor)?;
        if size == frames.size() {
            return patchify(frames, processor);
        }
        patchify(pillow_bicubic(frames, size)?.view()?, processor)
    })
}

/// A film given as a list of pictures: each by the picture limits, an odd list repeats its last, patches.
pub fn frame_list(
    pictures: &[RgbImage],
    limits: &ImagePixelLimits,
    processor: &PatchProcessor,
    name: &str,
) -> Result<Patches> {
    patchify(resize_image_list(pictures, limits, processor, name)?.view()?, processor)
}

/// The picture as the policy sees it, u8 [1,H,W,3]: after both resizes, before normalisation.
pub fn resize_image(
    picture: &RgbImage,
    limits: &ImagePixelLimits,
    processor: &PatchProcessor,
    name: &str,
) -> Result<FrameBuf> {
    named(name, || {
        let size = limits.size(picture.height, picture.width)?;
        processor_resize(pillow_bicubic(picture.view()?, size)?, processor)
    })
}

/// The film's frames as the policy sees them, u8 [T,H,W,3]: after both resizes, before normalisation.
pub fn resize_video(
    frames: FrameView<'_>,
    limits: &VideoPixelLimits,
    processor: &PatchProcessor,
    name: &str,
) -> Result<FrameBuf> {
    named(name, || processor_resize(video_resize(frames, limits)?, processor))
}

/// A film's first resize alone (torchvision's bicubic to the size of the film budget); [`processor_resize`] follows.
pub fn video_resize(frames: FrameView<'_>, limits: &VideoPixelLimits) -> Result<FrameBuf> {
    let (height, width) = frames.size();
    torch_bicubic(frames, limits.size(frames.frames(), height, width)?)
}

/// The pictures of a list as the policy sees them, u8 [T,H,W,3] with T even. Pictures of several sizes all get the
/// second size of the first one, as the image processor does.
pub fn resize_image_list(
    pictures: &[RgbImage],
    limits: &ImagePixelLimits,
    processor: &PatchProcessor,
    name: &str,
) -> Result<FrameBuf> {
    named(name, || {
        let first = |picture: &RgbImage| {
            let size = limits.size(picture.height, picture.width)?;
            pillow_bicubic(picture.view()?, size)
        };
        let mut size = None;
        let mut data = Vec::new();
        for picture in pictures {
            let resized = first(picture)?;
            let size = match size {
                Some(size) => size,
                None => *size.insert(processor_size((resized.height, resized.width), processor)?),
            };
            data.append(&mut pillow_bicubic(resized.view()?, size)?.data);
        }
        let Some((height, width)) = size else {
            return Err(MediaError::setting("video", "is an empty list of pictures", "give at least one picture"));
        };
        let mut frames = pictures.len();
        if frames % 2 == 1 {
            data.extend_from_within(data.len() - height * width * CHANNELS..);
            frames += 1;
        }
        Ok(FrameBuf { data, frames, height, width })
    })
}

/// The image processor's own resize: Pillow's bicubic to its smart_resize, usually nothing to do.
pub fn processor_resize(frames: FrameBuf, processor: &PatchProcessor) -> Result<FrameBuf> {
    let size = processor_size((frames.height, frames.width), processor)?;
    if size == (frames.height, frames.width) {
        return Ok(frames);
    }
    pillow_bicubic(frames.view()?, size)
}

fn processor_size((height, width): (usize, usize), processor: &PatchProcessor) -> Result<(usize, usize)> {
    let factor = processor.patch_size.saturating_mul(processor.merge_size);
    processor_smart_resize(height, width, factor, processor.min_pixels, processor.max_pixels)
}

/// Patches along time, height and width of frames whose sides are multiples of patch_size x merge_size.
pub fn patch_grid(frames: FrameView<'_>, processor: &PatchProcessor) -> Result<[usize; 3]> {
    let PatchProcessor { patch_size: p, temporal_patch_size: tp, merge_size: merge, .. } = *processor;
    let (height, width) = frames.size();
    let block = p.saturating_mul(merge);
    if block == 0 || tp == 0 || !height.is_multiple_of(block) || !width.is_multiple_of(block) {
        return Err(MediaError::setting(
            "frames",
            format!("{height} x {width} cannot be cut into blocks of {merge} x {merge} patches of {p} x {p} x {tp}"),
            "resize first; check patch_size, temporal_patch_size and merge_size in preprocessor_config.json",
        ));
    }
    Ok([frames.frames().div_ceil(tp), height / p, width / p])
}

/// Normalises and cuts frames whose sides are multiples of patch_size x merge_size. Missing frames of the last temporal
/// patch are copies of the last frame, so a still counts as two equal frames.
pub fn patchify(frames: FrameView<'_>, processor: &PatchProcessor) -> Result<Patches> {
    let PatchProcessor { patch_size: p, temporal_patch_size: tp, merge_size: merge, .. } = *processor;
    let ((height, width), block) = (frames.size(), p.saturating_mul(merge));
    let grid_thw = patch_grid(frames, processor)?;
    let levels = levels(processor);
    let patch = CHANNELS * tp * p * p;
    let len = grid_thw.iter().product::<usize>() * patch;
    let mut pixel_values = Vec::new();
    if pixel_values.try_reserve_exact(len).is_err() {
        return Err(MediaError::setting(
            "frames",
            format!("{len} values of patches do not fit in memory"),
            "take fewer frames",
        ));
    }
    pixel_values.resize(len, 0.0f32);
    let pictures: Vec<&[u8]> = frames.iter().collect();
    let blocks_across = width / block;
    // One task is one merge block: merge x merge patches that are neighbours in the output.
    pixel_values.par_chunks_exact_mut(merge * merge * patch).enumerate().for_each(|(index, out)| {
        let (strip, column) = (index / blocks_across, index % blocks_across);
        let (time, line) = (strip / (height / block), strip % (height / block));
        for (within, out) in out.chunks_exact_mut(patch).enumerate() {
            let y0 = line * block + within / merge * p;
            let x0 = column * block + within % merge * p;
            for (part, out) in out.chunks_exact_mut(p * p).enumerate() {
                let (channel, frame) = (part / tp, time * tp + part % tp);
                let picture = pictures[frame.min(pictures.len() - 1)];
                for (y, out) in out.chunks_exact_mut(p).enumerate() {
                    let row = &picture[((y0 + y) * width + x0) * CHANNELS..][..p * CHANNELS];
                    for (value, pixel) in out.iter_mut().zip(row.chunks_exact(CHANNELS)) {
                        *value = levels[channel][usize::from(pixel[channel])];
                    }
                }
            }
        }
    });
    Ok(Patches { pixel_values, grid_thw })
}

/// What each level of each channel becomes, in the order and types of the reference: the product in f64, rounded to f32, then
/// minus the mean and divided by the deviation in f32.
fn levels(processor: &PatchProcessor) -> [[f32; 256]; CHANNELS] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|level| {
            let rescaled = (level as f64 * processor.rescale_factor) as f32;
            (rescaled - processor.image_mean[channel]) / processor.image_std[channel]
        })
    })
}

/// Puts the file's name on errors that only know sizes.
fn named<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().map_err(|error| match error {
        MediaError::Setting { what, cure, .. } => MediaError::file(name, what, cure),
        other => other,
    })
}
