//! Computes the size to which an image or frame is resized: the rules of qwen-vl-utils 0.0.10 and of the image
//! processor (transformers 4.51.3), in f64 as Python computes them.
//!
//! ```text
//! smart_resize(h, w):  h', w' = each side rounded to the nearest multiple of 28 (half to even), at least 28
//!                      h' w' > max_pixels:  beta = sqrt(h w / max_pixels), sides = floor(side / beta / 28) * 28
//!                      h' w' < min_pixels:  beta = sqrt(min_pixels / (h w)), sides = ceil(side * beta / 28) * 28
//! example:             1080 x 1920, max_pixels 200704: 1092 x 1932 is too large, so 336 x 588
//! ```

use crate::error::{Error, Result};
use crate::media::profile::{MediaOverrides, MediaProfile};

/// Images whose longer side exceeds this multiple of the shorter one are refused, as in qwen-vl-utils and transformers.
pub const MAX_ASPECT_RATIO: u64 = 200;
/// Each resized side is a multiple of this number of pixels: patch side 14 × merge size 2.
pub const RESIZED_SIDE_MULTIPLE: usize = 28;
/// Default minimum area of an image in pixels (qwen-vl-utils).
pub const DEFAULT_MIN_PIXELS: u64 = 4 * 28 * 28;
/// Default maximum area of an image in pixels (qwen-vl-utils).
pub const DEFAULT_MAX_PIXELS: u64 = 16384 * 28 * 28;
/// Number of frames that share one temporal patch; the pixel budget of a video counts pairs of frames.
const FRAME_FACTOR: f64 = 2.0;
/// Sides longer than this are refused, because f64 would no longer give the results of Python's unbounded integers.
const MAX_SIDE: usize = 1 << 26;

/// The size that the overrides `resized_height` and `resized_width` ask for, and the area limits that apply to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestedSize {
    /// The requested height (`resized_height`) in pixels.
    pub height: usize,
    /// The requested width (`resized_width`) in pixels.
    pub width: usize,
    /// The profile's minimum area of an image in pixels. It applies to videos too, and no override changes it.
    pub min_pixels: u64,
    /// The profile's maximum area of an image in pixels.
    pub max_pixels: u64,
}

impl RequestedSize {
    /// Returns `None` unless both `resized_height` and `resized_width` are given: qwen-vl-utils ignores one of them
    /// without the other.
    fn new(profile: MediaProfile, overrides: &MediaOverrides) -> Option<Self> {
        // A value that does not fit into usize becomes a side that [`smart_resize`] refuses.
        let side = |key: u64| usize::try_from(key).unwrap_or(usize::MAX);
        let limits = profile.pixel_limits();
        Some(Self {
            height: side(overrides.resized_height?),
            width: side(overrides.resized_width?),
            min_pixels: limits.image_min,
            max_pixels: limits.image_max,
        })
    }

    fn resized_height_and_width(&self) -> Result<(usize, usize)> {
        smart_resize(self.height, self.width, RESIZED_SIDE_MULTIPLE, self.min_pixels, self.max_pixels as f64)
    }
}

/// Size limits of an image: the limits of a profile, with some replaced by overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePixelLimits {
    /// Minimum area of an image in pixels.
    pub min_pixels: u64,
    /// Maximum area of an image in pixels.
    pub max_pixels: u64,
    /// The requested size, if any; it replaces the other limits.
    pub resized: Option<RequestedSize>,
}

impl Default for ImagePixelLimits {
    fn default() -> Self {
        Self { min_pixels: DEFAULT_MIN_PIXELS, max_pixels: DEFAULT_MAX_PIXELS, resized: None }
    }
}

impl ImagePixelLimits {
    /// The limits of `profile`, except those that `overrides` replaces.
    pub fn new(profile: MediaProfile, overrides: &MediaOverrides) -> Self {
        let limits = profile.pixel_limits();
        Self {
            min_pixels: overrides.image_min_pixels.or(overrides.min_pixels).unwrap_or(limits.image_min),
            max_pixels: overrides.image_max_pixels.or(overrides.max_pixels).unwrap_or(limits.image_max),
            resized: RequestedSize::new(profile, overrides),
        }
    }

    /// The `(height, width)` to which an image of `height` × `width` is resized.
    pub fn resized_height_and_width(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        match self.resized {
            Some(wanted) => wanted.resized_height_and_width(),
            None => smart_resize(height, width, RESIZED_SIDE_MULTIPLE, self.min_pixels, self.max_pixels as f64),
        }
    }
}

/// Size limits of video frames: the limits of a profile, with some replaced by overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoPixelLimits {
    /// Minimum area of a frame in pixels (the profile's `VIDEO_MIN_PIXELS`, or the override `min_pixels`).
    pub min_pixels: u64,
    /// The profile's maximum area of a frame in pixels (`VIDEO_MAX_PIXELS`).
    pub video_max_pixels: u64,
    /// Maximum area of all frames together in pixels (the profile's `VIDEO_TOTAL_PIXELS`, or the override
    /// `total_pixels`).
    pub total_pixels: u64,
    /// The override `max_pixels`, if given. It can lower `video_max_pixels` but not raise it.
    pub max_pixels: Option<u64>,
    /// The requested size, if any; it replaces the other limits.
    pub resized: Option<RequestedSize>,
}

impl VideoPixelLimits {
    /// The limits of `profile`, except those that `overrides` replaces.
    pub fn new(profile: MediaProfile, overrides: &MediaOverrides) -> Self {
        let limits = profile.pixel_limits();
        let (min_pixels, video_max_pixels) = overrides.video_frame_limits(profile);
        Self {
            min_pixels,
            video_max_pixels,
            total_pixels: overrides.total_pixels.unwrap_or(limits.video_total),
            max_pixels: overrides.max_pixels,
            resized: RequestedSize::new(profile, overrides),
        }
    }

    /// The `(height, width)` to which each of `nframes` frames of `height` × `width` is resized.
    pub fn resized_height_and_width(&self, nframes: usize, height: usize, width: usize) -> Result<(usize, usize)> {
        if let Some(wanted) = self.resized {
            return wanted.resized_height_and_width();
        }
        if nframes == 0 {
            return Err(Error::setting("nframes", "is 0", "take at least one frame"));
        }
        let share = self.total_pixels as f64 / nframes as f64 * FRAME_FACTOR;
        let floor = (self.min_pixels as f64 * 1.05).trunc();
        let limit = share.min(self.video_max_pixels as f64).max(floor);
        let max_pixels = self.max_pixels.map_or(limit, |key| limit.min(key as f64));
        smart_resize(height, width, RESIZED_SIDE_MULTIPLE, self.min_pixels, max_pixels)
    }
}

/// The `smart_resize` of qwen-vl-utils: rounds both sides to the nearest multiple of `factor` pixels (half to even, at
/// least one `factor`) and scales them if their product is outside of `min_pixels..=max_pixels`.
///
/// A returned side can be 0 (for a long thin image and a small `max_pixels`), as in qwen-vl-utils; the resize to this
/// size then fails.
///
/// # Errors
/// A side of 0 or above 2^26, a ratio of sides above [`MAX_ASPECT_RATIO`], a `factor` of 0, or `max_pixels` below 1.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: f64,
) -> Result<(usize, usize)> {
    check(height, width, factor, max_pixels)?;
    let sides = |side| round_to_multiple(side, factor).max(factor);
    Ok(fit((height, width), (sides(height), sides(width)), factor, min_pixels, max_pixels))
}

/// The `smart_resize` of the image processor (transformers 4.51.3). It differs from [`smart_resize`] in one point: a
/// side shorter than `factor` pixels is an error instead of being enlarged to `factor`.
///
/// # Errors
/// A side shorter than `factor`, and the errors of [`smart_resize`].
pub fn processor_smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(usize, usize)> {
    check(height, width, factor, max_pixels as f64)?;
    if height < factor || width < factor {
        return Err(Error::setting(
            "height and width",
            format!("{height} x {width} has a side shorter than {factor}, which the image processor refuses"),
            "use a larger image or a larger min_pixels",
        ));
    }
    Ok(fit(
        (height, width),
        (round_to_multiple(height, factor), round_to_multiple(width, factor)),
        factor,
        min_pixels,
        max_pixels as f64,
    ))
}

fn check(height: usize, width: usize, factor: usize, max_pixels: f64) -> Result<()> {
    let refuse = |what: String, help: &str| Err(Error::setting("height and width", what, help));
    if height == 0 || width == 0 {
        return refuse(format!("{height} x {width} has a side of 0"), "give sides of at least 1");
    }
    if height > MAX_SIDE || width > MAX_SIDE {
        return refuse(format!("{height} x {width} has a side longer than {MAX_SIDE} pixels"), "correct the sides");
    }
    let ratio = height.max(width) as f64 / height.min(width) as f64;
    if ratio > MAX_ASPECT_RATIO as f64 {
        return refuse(
            format!("{height} x {width} has an aspect ratio of {ratio:.1}, above {MAX_ASPECT_RATIO}"),
            "crop the image, or set resized_height and resized_width",
        );
    }
    if factor == 0 || factor > MAX_SIDE {
        return Err(Error::setting("factor", format!("is {factor}"), "give 28 (patch side 14 x merge size 2)"));
    }
    // `max_pixels < 1.0` would accept NaN; this condition refuses it.
    if !(max_pixels >= 1.0) {
        return Err(Error::setting("max_pixels", format!("is {max_pixels}"), "give at least 784 (28 x 28)"));
    }
    Ok(())
}

/// Python's `round(side / factor) * factor`: halves go to the even multiple.
fn round_to_multiple(side: usize, factor: usize) -> usize {
    (side as f64 / factor as f64).round_ties_even() as usize * factor
}

/// Returns the `rounded` sides if their area is within the limits. Otherwise scales the original sides up or down, so
/// that their area is within the limits.
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
