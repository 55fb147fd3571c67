//! Computes the size to which an image or frame is resized: the rules of qwen-vl-utils (0.0.10 for Qwen2.5-VL, 0.0.14
//! for Qwen3-VL) and of the processors (transformers 4.51.3 and 5.24), in f64 as Python computes them.
//!
//! ```text
//! smart_resize(h, w):  h', w' = each side rounded to the nearest multiple of 28 (half to even), at least 28
//!                      h' w' > max_pixels:  beta = sqrt(h w / max_pixels), sides = floor(side / beta / 28) * 28
//!                      h' w' < min_pixels:  beta = sqrt(min_pixels / (h w)), sides = ceil(side * beta / 28) * 28
//! example:             1080 x 1920, max_pixels 200704: 1092 x 1932 is too large, so 336 x 588
//! ```
//! The multiple is 28 in Qwen2.5-VL and 32 in Qwen3-VL ([`Family::token_side`]).

use crate::error::{Error, Result};
use crate::family::Family;
use crate::media::profile::{MediaOverrides, MediaProfile, MediaRules, PixelLimits};

/// Images whose longer side exceeds this multiple of the shorter one are refused, as in qwen-vl-utils and transformers.
pub const MAX_ASPECT_RATIO: u64 = 200;
/// Default minimum area of an image in pixels (qwen-vl-utils, Qwen2.5-VL).
pub const DEFAULT_MIN_PIXELS: u64 = 4 * 28 * 28;
/// Default maximum area of an image in pixels (qwen-vl-utils, Qwen2.5-VL).
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
    /// Each side becomes a multiple of this number of pixels.
    pub factor: usize,
}

impl RequestedSize {
    /// Returns `None` unless both `resized_height` and `resized_width` are given: qwen-vl-utils ignores one of them
    /// without the other.
    fn new(rules: MediaRules, overrides: &MediaOverrides) -> Option<Self> {
        // A value that does not fit into usize becomes a side that [`smart_resize`] refuses.
        let side = |key: u64| usize::try_from(key).unwrap_or(usize::MAX);
        let limits = rules.pixel_limits();
        Some(Self {
            height: side(overrides.resized_height?),
            width: side(overrides.resized_width?),
            min_pixels: limits.image_min,
            max_pixels: limits.image_max,
            factor: rules.family.token_side(),
        })
    }

    fn resized_height_and_width(&self) -> Result<(usize, usize)> {
        smart_resize(self.height, self.width, self.factor, self.min_pixels, self.max_pixels as f64)
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
    /// Each side becomes a multiple of this number of pixels.
    pub factor: usize,
    /// Whether the size follows the rule of Qwen3-VL's processor instead of that of qwen-vl-utils.
    pub by_processor: bool,
}

impl Default for ImagePixelLimits {
    /// The limits of qwen-vl-utils for Qwen2.5-VL.
    fn default() -> Self {
        Self {
            min_pixels: DEFAULT_MIN_PIXELS,
            max_pixels: DEFAULT_MAX_PIXELS,
            resized: None,
            factor: Family::Qwen25Vl.token_side(),
            by_processor: false,
        }
    }
}

impl ImagePixelLimits {
    /// The limits of the profile, except those that `overrides` replaces.
    pub fn new(rules: MediaRules, overrides: &MediaOverrides) -> Self {
        let limits = rules.pixel_limits();
        Self {
            min_pixels: overrides.image_min_pixels.or(overrides.min_pixels).unwrap_or(limits.image_min),
            max_pixels: overrides.image_max_pixels.or(overrides.max_pixels).unwrap_or(limits.image_max),
            resized: RequestedSize::new(rules, overrides),
            factor: rules.family.token_side(),
            by_processor: rules.profile == MediaProfile::Qwen3Processor,
        }
    }

    /// The limits of the images of a list, which are the frames of a video. qwen-vl-utils 0.0.14 first resizes each of
    /// them as an image whose patches are as large as a vision token, so sides are multiples of 64, and limits in
    /// vision tokens cover 64 × 64 pixels each. Version 0.0.10 resizes them as other images.
    pub fn of_listed_frames(rules: MediaRules, overrides: &MediaOverrides) -> Self {
        let limits = Self::new(rules, overrides);
        if rules.family == Family::Qwen25Vl {
            return limits;
        }
        let PixelLimits { image_min, image_max, .. } = rules.pixel_limits();
        let scaled = |given: Option<u64>, limit: u64| given.unwrap_or(4 * limit);
        Self {
            min_pixels: scaled(overrides.image_min_pixels.or(overrides.min_pixels), image_min),
            max_pixels: scaled(overrides.image_max_pixels.or(overrides.max_pixels), image_max),
            factor: 2 * limits.factor,
            resized: limits.resized.map(|wanted| RequestedSize {
                min_pixels: 4 * image_min,
                max_pixels: 4 * image_max,
                factor: 2 * limits.factor,
                ..wanted
            }),
            ..limits
        }
    }

    /// The `(height, width)` to which an image of `height` × `width` is resized.
    pub fn resized_height_and_width(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        match self.resized {
            Some(wanted) => wanted.resized_height_and_width(),
            None if self.by_processor => {
                qwen3_processor_image_size(height, width, self.factor, self.min_pixels, self.max_pixels)
            }
            None => {
                refuse_maximum_below_minimum(self.factor, self.min_pixels, self.max_pixels as f64)?;
                smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels as f64)
            }
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
    /// Each side becomes a multiple of this number of pixels.
    pub factor: usize,
    /// Whether the size follows the rule of Qwen3-VL's processor, in which the limits are volumes, instead of that of
    /// qwen-vl-utils.
    pub by_processor: bool,
}

impl VideoPixelLimits {
    /// The limits of the profile, except those that `overrides` replaces.
    pub fn new(rules: MediaRules, overrides: &MediaOverrides) -> Self {
        let limits = rules.pixel_limits();
        let (min_pixels, video_max_pixels) = overrides.video_frame_limits(rules);
        Self {
            min_pixels,
            video_max_pixels,
            total_pixels: overrides.total_pixels.unwrap_or(limits.video_total),
            max_pixels: overrides.max_pixels,
            resized: RequestedSize::new(rules, overrides),
            factor: rules.family.token_side(),
            by_processor: rules.profile == MediaProfile::Qwen3Processor,
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
        if self.by_processor {
            let max_pixels = self.max_pixels.unwrap_or(self.video_max_pixels);
            return qwen3_processor_frame_size(nframes, (height, width), self.factor, self.min_pixels, max_pixels);
        }
        let share = self.total_pixels as f64 / nframes as f64 * FRAME_FACTOR;
        let floor = (self.min_pixels as f64 * 1.05).trunc();
        let limit = share.min(self.video_max_pixels as f64).max(floor);
        let max_pixels = self.max_pixels.map_or(limit, |key| limit.min(key as f64));
        refuse_maximum_below_minimum(self.factor, self.min_pixels, max_pixels)?;
        smart_resize(height, width, self.factor, self.min_pixels, max_pixels)
    }
}

/// Refuses a maximum area below the minimum, as qwen-vl-utils 0.0.14 does (Qwen3-VL). In 0.0.10 the maximum counts.
fn refuse_maximum_below_minimum(factor: usize, min_pixels: u64, max_pixels: f64) -> Result<()> {
    if factor == Family::Qwen25Vl.token_side() || max_pixels >= min_pixels as f64 {
        return Ok(());
    }
    let what = format!("is {max_pixels}, below the minimum of {min_pixels} pixels");
    Err(Error::setting("max_pixels", what, "raise it, or give a smaller min_pixels too"))
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

/// The size of an image by the processor of Qwen3-VL (transformers 5.24). It differs from [`smart_resize`] in two
/// points: a side is not enlarged to `factor` before the area is compared with the limits, and a side that is reduced
/// stays at least `factor`.
///
/// # Errors
/// The errors of [`smart_resize`].
pub fn qwen3_processor_image_size(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(usize, usize)> {
    check(height, width, factor, max_pixels as f64)?;
    let rounded = (round_to_multiple(height, factor), round_to_multiple(width, factor));
    let (height, width) = fit((height, width), rounded, factor, min_pixels, max_pixels as f64);
    Ok((height.max(factor), width.max(factor)))
}

/// The size of the frames of a video of `frames` frames by the processor of Qwen3-VL (transformers 5.24). The limits
/// apply to frames × height × width, where an odd number of frames is rounded half to even. A shorter side below
/// `factor` is first scaled up to `factor`.
///
/// # Errors
/// Fewer than two frames, and the errors of [`smart_resize`].
pub fn qwen3_processor_frame_size(
    frames: usize,
    (height, width): (usize, usize),
    factor: usize,
    min_volume: u64,
    max_volume: u64,
) -> Result<(usize, usize)> {
    if frames < 2 {
        let what = format!("is {frames}, but the processor of Qwen3-VL takes at least 2 frames of a video");
        return Err(Error::setting("nframes", what, "use a longer video, or give the frame as an image"));
    }
    check(height, width, factor, max_volume as f64)?;
    let scale = factor as f64 / height.min(width) as f64;
    let (height, width) = match scale > 1.0 {
        true => ((height as f64 * scale) as usize, (width as f64 * scale) as usize),
        false => (height, width),
    };
    let rounded = (round_to_multiple(height, factor), round_to_multiple(width, factor));
    let even = (frames as f64 / FRAME_FACTOR).round_ties_even() * FRAME_FACTOR;
    let rounded_volume = even * rounded.0 as f64 * rounded.1 as f64;
    let volume = frames as f64 * height as f64 * width as f64;
    let (height, width) = if rounded_volume > max_volume as f64 {
        reduce((height, width), factor, (volume / max_volume as f64).sqrt())
    } else if rounded_volume < min_volume as f64 {
        enlarge((height, width), factor, (min_volume as f64 / volume).sqrt())
    } else {
        rounded
    };
    Ok((height.max(factor), width.max(factor)))
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
        let help = "give 28 (patch side 14 x merge size 2; Qwen2.5-VL) or 32 (16 x 2; Qwen3-VL)";
        return Err(Error::setting("factor", format!("is {factor}"), help));
    }
    // `max_pixels < 1.0` would accept NaN; this condition refuses it.
    if !(max_pixels >= 1.0) {
        let help = format!("give at least {} ({factor} x {factor})", factor * factor);
        return Err(Error::setting("max_pixels", format!("is {max_pixels}"), help));
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
    let (area, rounded_area) = (height as f64 * width as f64, rounded.0 as f64 * rounded.1 as f64);
    if rounded_area > max_pixels {
        reduce((height, width), factor, (area / max_pixels).sqrt())
    } else if rounded_area < min_pixels as f64 {
        enlarge((height, width), factor, (min_pixels as f64 / area).sqrt())
    } else {
        rounded
    }
}

/// Divides sides by `beta` and rounds each down to a multiple of `factor`.
fn reduce((height, width): (usize, usize), factor: usize, beta: f64) -> (usize, usize) {
    let floor = |side: usize| (side as f64 / beta / factor as f64).floor() as usize * factor;
    (floor(height), floor(width))
}

/// Multiplies sides by `beta` and rounds each up to a multiple of `factor`.
fn enlarge((height, width): (usize, usize), factor: usize, beta: f64) -> (usize, usize) {
    let ceil = |side: usize| ((side as f64 * beta / factor as f64).ceil() as usize).saturating_mul(factor);
    (ceil(height), ceil(width))
}
