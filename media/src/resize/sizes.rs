//! Which size a picture or a frame is resized to: the rules of qwen-vl-utils 0.0.10 and of the image processor
//! (transformers 4.51.3), in f64 as Python computes them.

use crate::profile::{MediaOverrides, MediaProfile};
use crate::{MediaError, Result};

/// Sides of a picture above this ratio are refused, as both references do.
pub const MAX_RATIO: u64 = 200;
/// Patch side times merge size: each resized side is a multiple of it.
pub const FACTOR: usize = 28;
/// qwen-vl-utils' smallest area of a picture, in pixels.
pub const MIN_PIXELS: u64 = 4 * 28 * 28;
/// qwen-vl-utils' largest area of a picture, in pixels.
pub const MAX_PIXELS: u64 = 16384 * 28 * 28;
/// Frames that share one temporal patch; film budgets count pairs.
const FRAME_FACTOR: f64 = 2.0;
/// Longer sides are refused: up to here every product and quotient below is what Python's unbounded integers give.
const MAX_SIDE: usize = 1 << 26;

/// A part's `resized_height` and `resized_width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestedSize {
    /// `resized_height` in pixels.
    pub height: usize,
    /// `resized_width` in pixels.
    pub width: usize,
    /// The profile's smallest area of a picture: films and pictures are both held to it, whatever the other keys say.
    pub min_pixels: u64,
    /// The profile's largest area of a picture.
    pub max_pixels: u64,
}

impl RequestedSize {
    /// Both keys or none: one alone is not used, as in the reference.
    fn new(profile: MediaProfile, keys: &MediaOverrides) -> Option<Self> {
        // A key beyond usize becomes a side that smart_resize refuses.
        let side = |key: u64| usize::try_from(key).unwrap_or(usize::MAX);
        let limits = profile.pixels();
        Some(Self {
            height: side(keys.resized_height?),
            width: side(keys.resized_width?),
            min_pixels: limits.image_min,
            max_pixels: limits.image_max,
        })
    }

    fn size(&self) -> Result<(usize, usize)> {
        smart_resize(self.height, self.width, FACTOR, self.min_pixels, self.max_pixels as f64)
    }
}

/// Size limits of a picture, from a profile with the part's keys over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePixelLimits {
    /// Smallest area in pixels.
    pub min_pixels: u64,
    /// Largest area in pixels.
    pub max_pixels: u64,
    /// The size that the part asks for, if any: then the limits above are not used.
    pub resized: Option<RequestedSize>,
}

impl Default for ImagePixelLimits {
    fn default() -> Self {
        Self { min_pixels: MIN_PIXELS, max_pixels: MAX_PIXELS, resized: None }
    }
}

impl ImagePixelLimits {
    /// The profile's limits with the part's keys over them.
    pub fn new(profile: MediaProfile, keys: &MediaOverrides) -> Self {
        let limits = profile.pixels();
        Self {
            min_pixels: keys.min_pixels.unwrap_or(limits.image_min),
            max_pixels: keys.max_pixels.unwrap_or(limits.image_max),
            resized: RequestedSize::new(profile, keys),
        }
    }

    /// Size `(height, width)` that a picture of `height` x `width` is resized to.
    pub fn size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        match self.resized {
            Some(wanted) => wanted.size(),
            None => smart_resize(height, width, FACTOR, self.min_pixels, self.max_pixels as f64),
        }
    }
}

/// Size limits of a film's frames, from a profile with the part's keys over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoPixelLimits {
    /// Smallest area of a frame in pixels (the profile's `VIDEO_MIN_PIXELS`, or the part's `min_pixels`).
    pub min_pixels: u64,
    /// The profile's largest area of a frame (`VIDEO_MAX_PIXELS`).
    pub video_max_pixels: u64,
    /// Budget of the whole film (the profile's `VIDEO_TOTAL_PIXELS`, or the part's `total_pixels`).
    pub total_pixels: u64,
    /// The part's `max_pixels`: it can only lower the limit.
    pub max_pixels: Option<u64>,
    /// The size that the part asks for, if any: then the limits above are not used.
    pub resized: Option<RequestedSize>,
}

impl VideoPixelLimits {
    /// The profile's limits with the part's keys over them.
    pub fn new(profile: MediaProfile, keys: &MediaOverrides) -> Self {
        let limits = profile.pixels();
        Self {
            min_pixels: keys.min_pixels.unwrap_or(limits.video_min),
            video_max_pixels: limits.video_max,
            total_pixels: keys.total_pixels.unwrap_or(limits.video_total),
            max_pixels: keys.max_pixels,
            resized: RequestedSize::new(profile, keys),
        }
    }

    /// Size `(height, width)` that each of `nframes` frames of `height` x `width` is resized to.
    pub fn size(&self, nframes: usize, height: usize, width: usize) -> Result<(usize, usize)> {
        if let Some(wanted) = self.resized {
            return wanted.size();
        }
        if nframes == 0 {
            return Err(MediaError::setting(
                "nframes",
                "is 0, so there is nothing to resize",
                "take at least one frame",
            ));
        }
        let share = self.total_pixels as f64 / nframes as f64 * FRAME_FACTOR;
        let floor = (self.min_pixels as f64 * 1.05).trunc();
        let limit = share.min(self.video_max_pixels as f64).max(floor);
        let max_pixels = self.max_pixels.map_or(limit, |key| limit.min(key as f64));
        smart_resize(height, width, FACTOR, self.min_pixels, max_pixels)
    }
}

/// qwen-vl-utils' `smart_resize`: sides to the nearest multiple of `factor` (half to even, at least one `factor`), scaled
/// into `min_pixels..=max_pixels` where the product leaves it.
///
/// A side of 0 in the result is real (a long thin picture under a small `max_pixels`): resizing to it is refused later.
/// Refused here: a side of 0 or a ratio above [`MAX_RATIO`].
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: f64,
) -> Result<(usize, usize)> {
    check(height, width, factor, max_pixels)?;
    let sides = |side| round_by(side, factor).max(factor);
    Ok(fit((height, width), (sides(height), sides(width)), factor, min_pixels, max_pixels))
}

/// The image processor's own `smart_resize` (transformers 4.51.3): like [`smart_resize`], but a side shorter than `factor` is
/// refused instead of stretched.
pub fn processor_smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(usize, usize)> {
    check(height, width, factor, max_pixels as f64)?;
    if height < factor || width < factor {
        return Err(MediaError::setting(
            "height and width",
            format!("{height} x {width} has a side shorter than {factor}, which the image processor refuses"),
            "give a larger picture or a larger min_pixels",
        ));
    }
    Ok(fit((height, width), (round_by(height, factor), round_by(width, factor)), factor, min_pixels, max_pixels as f64))
}

fn check(height: usize, width: usize, factor: usize, max_pixels: f64) -> Result<()> {
    let refuse = |what: String, cure: &str| Err(MediaError::setting("height and width", what, cure));
    if height == 0 || width == 0 {
        return refuse(format!("{height} x {width} has a side of 0"), "give sides of at least 1");
    }
    if height > MAX_SIDE || width > MAX_SIDE {
        return refuse(
            format!("{height} x {width} has a side longer than {MAX_SIDE}"),
            "no picture is that large; correct the sides",
        );
    }
    let ratio = height.max(width) as f64 / height.min(width) as f64;
    if ratio > MAX_RATIO as f64 {
        return refuse(
            format!("{height} x {width} has a ratio of sides of {ratio:.1}, above {MAX_RATIO}"),
            "crop it, or set resized_height and resized_width",
        );
    }
    if factor == 0 || factor > MAX_SIDE {
        return Err(MediaError::setting("factor", format!("is {factor}"), "give 28 (patch side 14 x merge size 2)"));
    }
    // Not `max_pixels < 1.0`: a NaN is refused as well.
    if !(max_pixels >= 1.0) {
        return Err(MediaError::setting("max_pixels", format!("is {max_pixels}"), "give at least 784 (28 x 28)"));
    }
    Ok(())
}

/// Python's `round(side / factor) * factor`: halves go to the even multiple.
fn round_by(side: usize, factor: usize) -> usize {
    (side as f64 / factor as f64).round_ties_even() as usize * factor
}

/// Scales the original sides down or up where the `rounded` ones leave the limits.
fn fit(
    (height, width): (usize, usize),
    rounded: (usize, usize),
    factor: usize,
    min_pixels: u64,
    max_pixels: f64,
) -> (usize, usize) {
    let (height, width, step) = (height as f64, width as f64, factor as f64);
    let area = rounded.0 as f64 * rounded.1 as f64;
    if area > max_pixels {
        let beta = (height * width / max_pixels).sqrt();
        let floor = |side: f64| (side / beta / step).floor() as usize * factor;
        (floor(height), floor(width))
    } else if area < min_pixels as f64 {
        let beta = (min_pixels as f64 / (height * width)).sqrt();
        let ceil = |side: f64| ((side * beta / step).ceil() as usize).saturating_mul(factor);
        (ceil(height), ceil(width))
    } else {
        rounded
    }
}
