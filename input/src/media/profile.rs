//! Profiles: the presets of frame and pixel limits that the reference recipes use. Flags, or keys of a message's video
//! or image part, override single limits. [`crate::media::selection`] and [`crate::media::resize`] apply the limits.
//!
//! A profile has the same number of frames and the same number of vision tokens for every model family. A vision token
//! covers 28 × 28 pixels in Qwen2.5-VL and 32 × 32 pixels in Qwen3-VL, so the areas of the second are larger by
//! (32 / 28)².

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::family::Family;
use crate::media::image::ExifOrientation;

/// A named preset of frame and pixel limits (`--profile`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaProfile {
    /// VideoRFT's training: 16 frames of 128 vision tokens.
    VideorftTrain,
    /// Video-R1's training: 4 to 16 frames at 2 frames/s, of 128 vision tokens.
    VideoR1Train,
    /// Evaluation in VideoRFT and Video-R1: 32 frames of 256 vision tokens.
    VideorftEval,
    /// The defaults of qwen-vl-utils, 0.0.10 for Qwen2.5-VL and 0.0.14 for Qwen3-VL: 2 frames/s, 4 to 768 frames.
    Qwen,
    /// Video-R1's quick start: the frames `int(i * (total / 16))`, with the pixel limits of `Qwen`.
    #[serde(rename = "uniform-16")]
    Uniform16,
    /// VideoRFT's quick start: every `round(fps)`-th frame, with the pixel limits of `Qwen`.
    #[serde(rename = "stride-1fps")]
    Stride1Fps,
    /// The rules of the processor of Qwen3-VL: 2 frames/s, 4 to 768 frames, with the sizes of the model folder.
    Qwen3Processor,
}

/// How a profile selects frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SelectionRule {
    /// Frames are evenly spaced from the first to the last. The number of frames is `fps` times the video's seconds,
    /// kept within `min_frames` and `max_frames`.
    Rate {
        /// Frames per second of video.
        fps: f64,
        /// Minimum number of frames.
        min_frames: i64,
        /// Maximum number of frames.
        max_frames: i64,
    },
    /// A fixed number `n` of frames of the video's `total`: the indices `int(i * (total / n))` for i in 0..n.
    Uniform(i64),
    /// Every `round(fps)`-th frame, where `fps` is the video's frame rate: about one frame per second.
    Stride,
    /// As `Rate`, but the number of frames may be odd, and positions are computed in f64 (transformers).
    ProcessorRate {
        /// Frames per second of video.
        fps: f64,
        /// Minimum number of frames.
        min_frames: i64,
        /// Maximum number of frames.
        max_frames: i64,
    },
}

/// The pixel limits of a profile; each is an area, height × width in pixels. In the profile `qwen3-processor` the
/// limits of videos are volumes, frames × height × width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelLimits {
    /// Minimum area of a video frame in pixels.
    pub video_min: u64,
    /// Maximum area of a video frame in pixels.
    pub video_max: u64,
    /// Maximum sum of the areas of a video's frames. A pair of frames counts as one frame, because the two share a
    /// temporal patch.
    pub video_total: u64,
    /// Minimum area of an image in pixels.
    pub image_min: u64,
    /// Maximum area of an image in pixels.
    pub image_max: u64,
}

impl MediaProfile {
    /// All profiles, in the order in which help texts list them.
    pub const ALL: [Self; 7] = [
        Self::VideorftTrain,
        Self::VideoR1Train,
        Self::VideorftEval,
        Self::Qwen,
        Self::Uniform16,
        Self::Stride1Fps,
        Self::Qwen3Processor,
    ];

    /// Parses the name of a profile; the error lists all names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            Error::setting("profile", format!("unknown profile {name:?}"), format!("use one of {}", names.join(", ")))
        })
    }

    /// The profile's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::VideorftTrain => "videorft-train",
            Self::VideoR1Train => "video-r1-train",
            Self::VideorftEval => "videorft-eval",
            Self::Qwen => "qwen",
            Self::Uniform16 => "uniform-16",
            Self::Stride1Fps => "stride-1fps",
            Self::Qwen3Processor => "qwen3-processor",
        }
    }

    /// This profile for the models of a family.
    pub fn for_family(self, family: Family) -> MediaRules {
        MediaRules { profile: self, family }
    }

    /// The rule by which this profile selects frames.
    pub fn selection_rule(self) -> SelectionRule {
        let rate = |min_frames, max_frames| SelectionRule::Rate { fps: 2.0, min_frames, max_frames };
        match self {
            Self::VideorftTrain => rate(16, 16),
            Self::VideoR1Train => rate(4, 16),
            Self::VideorftEval => rate(32, 32),
            Self::Qwen => rate(4, 768),
            Self::Uniform16 => SelectionRule::Uniform(16),
            Self::Stride1Fps => SelectionRule::Stride,
            Self::Qwen3Processor => SelectionRule::ProcessorRate { fps: 2.0, min_frames: 4, max_frames: 768 },
        }
    }
}

/// A profile for the models of a family: what sets all limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaRules {
    /// The profile.
    pub profile: MediaProfile,
    /// The family of the model that sees the frames.
    pub family: Family,
}

impl MediaRules {
    /// The pixel limits of the profile.
    pub fn pixel_limits(self) -> PixelLimits {
        let token = self.family.token_pixels();
        // 0.9 × 128 000 tokens, MODEL_SEQ_LEN of qwen-vl-utils. Version 0.0.10 has 24 576 tokens.
        let total = if self.family == Family::Qwen3Vl { 115_200 } else { 24_576 };
        let recipe = |frame_tokens: u64| PixelLimits {
            video_min: frame_tokens * token,
            video_max: frame_tokens * token,
            video_total: 115_200 * token,
            image_min: 4 * token,
            image_max: 256 * token,
        };
        match self.profile {
            MediaProfile::VideorftTrain | MediaProfile::VideoR1Train => recipe(128),
            MediaProfile::VideorftEval => recipe(256),
            MediaProfile::Qwen | MediaProfile::Uniform16 | MediaProfile::Stride1Fps => PixelLimits {
                video_min: 128 * token,
                video_max: 768 * token,
                video_total: total * token,
                image_min: 4 * token,
                image_max: 16_384 * token,
            },
            // `size` of the published preprocessor_config.json and video_preprocessor_config.json.
            MediaProfile::Qwen3Processor => PixelLimits {
                video_min: 4 * token,
                video_max: 24_576 * token,
                video_total: 24_576 * token,
                image_min: 64 * token,
                image_max: 16_384 * token,
            },
        }
    }
}

impl std::fmt::Display for MediaProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Declares [`MediaOverrides`] and what is done with each of its fields.
macro_rules! media_overrides {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// Options of a command or message keys (in the spelling of qwen-vl-utils) that replace limits of the profile;
        /// `None` keeps the limit of the profile. The keys without an option limit one image or video.
        #[derive(Args, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct MediaOverrides {
            $($(#[$attribute])* pub $name: Option<$type>,)*
        }

        impl MediaOverrides {
            /// Takes each limit from `self`, or from `fallback` if `self` has `None`.
            fn or(self, fallback: Self) -> Self {
                Self { $($name: self.$name.or(fallback.$name),)* }
            }

            /// Combines the limits of `self` and `other`.
            ///
            /// # Errors
            /// `self` and `other` set the same limit to different values.
            pub fn union(self, other: Self) -> std::result::Result<Self, LimitConflict> {
                $(if let (Some(own), Some(other)) = (self.$name, other.$name) && own != other {
                    let (own, other) = (own.to_string(), other.to_string());
                    return Err(LimitConflict { key: stringify!($name), own, other });
                })*
                Ok(self.or(other))
            }
        }
    };
}

media_overrides! {
    /// Select N frames, evenly spaced; an even number, except with the profile uniform-16
    #[arg(long, value_name = "N")]
    nframes: i64,
    /// Select RATE frames per second of video
    #[arg(long, value_name = "RATE")]
    fps: f64,
    /// Minimum number of frames with --fps
    #[arg(long, value_name = "N")]
    min_frames: i64,
    /// Maximum number of frames with --fps
    #[arg(long, value_name = "N")]
    max_frames: i64,
    /// Minimum pixels (height x width) of an image or frame after resizing
    #[arg(long, value_name = "N")]
    min_pixels: u64,
    /// Maximum pixels (height x width) of an image or frame after resizing
    #[arg(long, value_name = "N")]
    max_pixels: u64,
    /// Maximum pixels of all frames of a video together
    #[arg(long, value_name = "N")]
    total_pixels: u64,
    /// Minimum pixels of an image, before --min-pixels
    #[arg(long, value_name = "N")]
    image_min_pixels: u64,
    /// Maximum pixels of an image, before --max-pixels
    #[arg(long, value_name = "N")]
    image_max_pixels: u64,
    /// Minimum pixels of a video frame, before --min-pixels
    #[arg(long, value_name = "N")]
    video_min_pixels: u64,
    /// Maximum pixels of a video frame; unlike --max-pixels, it may raise the limit of the profile
    #[arg(long, value_name = "N")]
    video_max_pixels: u64,
    /// Requested height in pixels; used only together with `resized_width`.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    resized_height: u64,
    /// Requested width in pixels; used only together with `resized_height`.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    resized_width: u64,
    /// Start of the selected part of the video in seconds.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    video_start: f64,
    /// End of the selected part of the video in seconds.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    video_end: f64,
    /// Rate of the frames of a list, in frames per second (Qwen3-VL).
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_fps: f64,
    /// Rate at which the frames of a list are counted for their times; default `sample_fps` (Qwen3-VL).
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_fps: f64,
    /// Whether images stay as they are stored although their EXIF data state an orientation.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_exif_orientation: bool,
}

/// A limit that two [`MediaOverrides`] set to different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitConflict {
    /// The name of the limit.
    pub key: &'static str,
    /// The value in the first [`MediaOverrides`].
    pub own: String,
    /// The value in the second [`MediaOverrides`].
    pub other: String,
}

impl MediaOverrides {
    /// Takes each limit from `self`, or from `fallback` if `self` has `None` (`self` holds flags, which override
    /// message keys). If `self` has `nframes` or `fps`, both are taken from `self`, because the two cannot be combined.
    pub fn or_fallback(self, fallback: Self) -> Self {
        match self.nframes.is_some() || self.fps.is_some() {
            true => self.or(Self { nframes: None, fps: None, ..fallback }),
            false => self.or(fallback),
        }
    }

    /// What happens to an image whose EXIF data state an orientation.
    pub fn exif_orientation(&self) -> ExifOrientation {
        if self.ignore_exif_orientation == Some(true) { ExifOrientation::Ignore } else { ExifOrientation::Apply }
    }

    /// Checks overrides that apply to every image and video of a command, before the first medium is read.
    ///
    /// qwen-vl-utils silently corrects some values: a rate of 0 or less selects the minimum number of frames, an odd
    /// number of frames is rounded to an even number, and a maximum below the minimum takes precedence over it. This
    /// check refuses such values, because the user would not notice the correction.
    /// [`crate::media::selection::select_frames`] corrects them as qwen-vl-utils does.
    ///
    /// # Errors
    /// A setting is invalid; the error names the first one.
    pub fn validate(&self, rules: MediaRules) -> Result<()> {
        self.validate_frame_counts(rules.profile)?;
        self.validate_pixels(rules)
    }

    /// Refuses the limits of one image or video that have no effect with the profile `qwen3-processor`.
    ///
    /// # Errors
    /// The error names the limit.
    pub fn refuse_limits_without_effect(&self, profile: MediaProfile) -> Result<()> {
        let processor = profile == MediaProfile::Qwen3Processor;
        let given = [
            ("total_pixels", self.total_pixels.is_some()),
            ("resized_height", self.resized_height.is_some()),
            ("resized_width", self.resized_width.is_some()),
        ];
        match given.iter().find(|(_, is_given)| processor && *is_given) {
            Some((name, _)) => {
                let what = format!("has no effect with the profile {profile}");
                Err(Error::setting(*name, what, "remove it, or use the profile qwen"))
            }
            None => Ok(()),
        }
    }

    /// Refuses pixel limits of one image or video that were made for Qwen2.5-VL, where the model is a Qwen3-VL: areas
    /// in vision tokens of 28 × 28 pixels.
    ///
    /// # Errors
    /// The error names the limit.
    pub fn refuse_limits_of_other_family(&self, family: Family) -> Result<()> {
        let (own, other) = (family.token_pixels(), Family::Qwen25Vl.token_pixels());
        let given =
            [("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels), ("total_pixels", self.total_pixels)];
        let of_other = |n: u64| family == Family::Qwen3Vl && n.is_multiple_of(other) && !n.is_multiple_of(own);
        match given.into_iter().find_map(|(name, limit)| Some((name, limit.filter(|n| of_other(*n))?))) {
            Some((name, n)) => {
                let tokens = n / other;
                let what = format!("is {n} ({tokens} x 28 x 28), a limit for Qwen2.5-VL, but the model is a Qwen3-VL");
                let help = format!("give {} ({tokens} x 32 x 32), or remove it", tokens * own);
                Err(Error::setting(name, what, help))
            }
            None => Ok(()),
        }
    }

    /// The number of frames that a video has at any rate, if these overrides have a rate and the profile's limits
    /// leave one number only; `None` if the rate decides.
    pub fn frames_at_any_rate(&self, profile: MediaProfile) -> Option<i64> {
        let SelectionRule::Rate { min_frames, max_frames, .. } = profile.selection_rule() else { return None };
        let (min, max) = (self.min_frames.unwrap_or(min_frames), self.max_frames.unwrap_or(max_frames));
        (self.fps.is_some() && min.saturating_add(min % 2) >= max - max % 2).then_some(max - max % 2)
    }

    fn validate_frame_counts(&self, profile: MediaProfile) -> Result<()> {
        let error = |name: &str, what: String, help: &str| Err(Error::setting(name, what, help));
        let rule = profile.selection_rule();
        let in_pairs = matches!(rule, SelectionRule::Rate { .. });
        let at_a_rate = in_pairs || matches!(rule, SelectionRule::ProcessorRate { .. });
        let given = [
            ("nframes", self.nframes.is_some(), rule != SelectionRule::Stride),
            ("fps", self.fps.is_some(), at_a_rate),
            ("min_frames", self.min_frames.is_some(), at_a_rate),
            ("max_frames", self.max_frames.is_some(), at_a_rate),
        ];
        if let Some((name, ..)) = given.iter().find(|(_, is_given, has_effect)| *is_given && !has_effect) {
            return error(
                name,
                format!("has no effect with the profile {profile}"),
                "remove it, or use the profile qwen",
            );
        }
        if self.nframes.is_some() && self.fps.is_some() {
            return error("nframes", "cannot be given together with fps".into(), "give only one of the two");
        }
        if let Some(fps) = self.fps.filter(|fps| !(fps.is_finite() && *fps > 0.0)) {
            return error("fps", format!("is {fps}, not a number of frames per second"), "give a number above 0");
        }
        if let Some(n) = self.nframes {
            if n < if at_a_rate { 2 } else { 1 } {
                let help = match (at_a_rate, in_pairs) {
                    (_, true) => "give an even number, 2 or more",
                    (true, false) => "give 2 or more",
                    (false, false) => "give 1 or more",
                };
                return error("nframes", format!("is {n}, which is too few frames for a video"), help);
            }
            if in_pairs && n % 2 != 0 {
                let what = format!("is {n}, an odd number, but the profile {profile} takes frames in pairs");
                return error("nframes", what, &format!("give {} or {}", n - 1, n.saturating_add(1)));
            }
        }
        if let Some(n) = self.min_frames.filter(|n| *n < 0) {
            return error("min_frames", format!("is {n}, a negative number of frames"), "give 0 or more");
        }
        if let Some(n) = self.max_frames.filter(|n| *n < 2) {
            return error("max_frames", format!("is {n}, but at least 2 frames of a video are used"), "give 2 or more");
        }
        let (Some(min), SelectionRule::Rate { max_frames, .. } | SelectionRule::ProcessorRate { max_frames, .. }) =
            (self.min_frames, rule)
        else {
            return Ok(());
        };
        let max = self.max_frames.unwrap_or(max_frames);
        // Where frames are taken in pairs, both limits are first rounded to even numbers: the minimum up, the maximum
        // down.
        let odd = |n: i64| if in_pairs { n % 2 } else { 0 };
        match (min.saturating_add(odd(min)) <= max - odd(max), self.max_frames) {
            (true, _) => Ok(()),
            (false, None) => {
                let what = format!("is {min}, but the profile {profile} takes at most {max} frames");
                error("min_frames", what, "lower it, or give max_frames too")
            }
            (false, Some(_)) if min <= max => {
                let what = format!("is {min}, and no even number of frames lies between it and max_frames {max}");
                error("min_frames", what, "lower it, or raise max_frames")
            }
            (false, Some(_)) => {
                let what = format!("is {min}, more than max_frames {max}");
                error("min_frames", what, "lower it, or raise max_frames")
            }
        }
    }

    /// The minimum and maximum area of a video frame in pixels, from the profile and the overrides. A maximum below
    /// 1.05 times the profile's minimum lowers the minimum to maximum / 1.05, because the area limit of a frame is at
    /// least 1.05 times the minimum in qwen-vl-utils.
    pub fn video_frame_limits(&self, rules: MediaRules) -> (u64, u64) {
        let limits = rules.pixel_limits();
        let max = self.video_max_pixels.unwrap_or(limits.video_max);
        let default_min = match self.video_max_pixels {
            Some(max) => limits.video_min.min((max as f64 / 1.05) as u64),
            None => limits.video_min,
        };
        (self.video_min_pixels.or(self.min_pixels).unwrap_or(default_min), max)
    }

    fn validate_pixels(&self, rules: MediaRules) -> Result<()> {
        self.refuse_limits_without_effect(rules.profile)?;
        let error = |name: &str, what: String, help: &str| Err(Error::setting(name, what, help));
        let (side, token) = (rules.family.token_side(), rules.family.token_pixels());
        for (name, limit) in [
            ("max_pixels", self.max_pixels),
            ("image_max_pixels", self.image_max_pixels),
            ("video_max_pixels", self.video_max_pixels),
            ("total_pixels", self.total_pixels),
        ] {
            if let Some(n) = limit.filter(|n| *n < token) {
                let what = format!("is {n}, fewer pixels than one vision token covers ({side} x {side} = {token})");
                return error(name, what, &format!("give {token} or more"));
            }
        }
        for (name, min, of_max, max) in [
            ("min_pixels", self.min_pixels, "max_pixels", self.max_pixels),
            ("image_min_pixels", self.image_min_pixels, "image_max_pixels", self.image_max_pixels),
            ("video_min_pixels", self.video_min_pixels, "video_max_pixels", self.video_max_pixels),
        ] {
            if let Some((min, max)) = min.zip(max).filter(|(min, max)| min > max) {
                let help = format!("lower it, or raise {of_max}");
                return error(name, format!("is {min}, more than {of_max} {max}"), &help);
            }
        }
        let min = self.video_frame_limits(rules).0;
        match self.total_pixels.filter(|total| *total < min) {
            Some(total) => {
                let what = format!("is {total}, less than the minimum of {min} pixels of a single frame");
                error("total_pixels", what, "raise it, or give a smaller min_pixels too")
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const QWEN25: Family = Family::Qwen25Vl;

    #[test]
    fn profile_names_round_trip() {
        for p in MediaProfile::ALL {
            assert_eq!(MediaProfile::parse(p.name()).unwrap(), p);
            assert_eq!(serde_json::to_value(p).unwrap(), p.name());
        }
        let err = MediaProfile::parse("nosuch").unwrap_err().to_string();
        assert!(err.contains("nosuch") && err.contains("stride-1fps"), "{err}");
    }

    #[test]
    fn pixel_limits_equal_published_numbers() {
        let all = |p: MediaProfile| {
            let l = p.for_family(QWEN25).pixel_limits();
            [l.video_min, l.video_max, l.video_total, l.image_min, l.image_max]
        };
        assert_eq!(all(MediaProfile::Qwen), [100_352, 602_112, 19_267_584, 3136, 12_845_056]);
        assert_eq!(all(MediaProfile::VideorftTrain), [100_352, 100_352, 90_316_800, 3136, 200_704]);
        assert_eq!(all(MediaProfile::VideorftEval), [200_704, 200_704, 90_316_800, 3136, 200_704]);
        assert_eq!(all(MediaProfile::VideoR1Train), all(MediaProfile::VideorftTrain));
        assert_eq!(all(MediaProfile::Stride1Fps), all(MediaProfile::Qwen));
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused_by_name() {
        use MediaProfile::{Qwen, Stride1Fps, Uniform16, VideorftTrain};
        let check = |profile: MediaProfile, settings: serde_json::Value| {
            let overrides: MediaOverrides = serde_json::from_value(settings).unwrap();
            overrides.validate(profile.for_family(QWEN25)).map_err(|e| e.to_string())
        };
        let refused = [
            (Qwen, json!({"fps": 0.0}), "fps: is 0, "),
            (Qwen, json!({"fps": -1.0}), "fps: is -1, "),
            (Qwen, json!({"fps": 2.0, "nframes": 4}), "nframes: cannot be given together with fps"),
            (Qwen, json!({"nframes": 1}), "nframes: is 1, "),
            (Qwen, json!({"nframes": -4}), "nframes: is -4, "),
            (Qwen, json!({"nframes": 7}), "nframes: is 7, an odd number, "),
            (Uniform16, json!({"nframes": 0}), "nframes: is 0, "),
            (Uniform16, json!({"fps": 1.0}), "fps: has no effect with the profile uniform-16"),
            (Stride1Fps, json!({"nframes": 4}), "nframes: has no effect with the profile stride-1fps"),
            (Qwen, json!({"min_frames": -1}), "min_frames: is -1, "),
            (Qwen, json!({"max_frames": 1}), "max_frames: is 1, "),
            (Qwen, json!({"min_frames": 8, "max_frames": 6}), "min_frames: is 8, more than max_frames 6"),
            (Qwen, json!({"min_frames": 5, "max_frames": 5}), "min_frames: is 5, and no even number"),
            (
                VideorftTrain,
                json!({"min_frames": 20}),
                "min_frames: is 20, but the profile videorft-train takes at most 16",
            ),
            (Qwen, json!({"max_pixels": 1}), "max_pixels: is 1, "),
            (Qwen, json!({"total_pixels": 783}), "total_pixels: is 783, "),
            (Qwen, json!({"total_pixels": 50_000}), "total_pixels: is 50000, less than the minimum of 100352"),
            (Qwen, json!({"min_pixels": 6272, "max_pixels": 3136}), "min_pixels: is 6272, more than max_pixels 3136"),
            (Qwen, json!({"video_max_pixels": 5}), "video_max_pixels: is 5, "),
            (
                Qwen,
                json!({"image_min_pixels": 6272, "image_max_pixels": 3136}),
                "image_min_pixels: is 6272, more than image_max_pixels 3136",
            ),
        ];
        for (profile, settings, start) in refused {
            let message = check(profile, settings.clone()).expect_err(&settings.to_string());
            assert!(message.starts_with(start) && message.contains("; "), "{settings}: {message}");
        }
        let nan = MediaOverrides { fps: Some(f64::NAN), ..Default::default() };
        assert!(nan.validate(Qwen.for_family(QWEN25)).unwrap_err().to_string().starts_with("fps: is NaN, "));
        for (profile, settings) in [
            (Qwen, json!({})),
            (Qwen, json!({"fps": 0.5, "min_frames": 3, "max_frames": 5})),
            (Uniform16, json!({"nframes": 7})),
            (VideorftTrain, json!({"max_frames": 8})),
            (Qwen, json!({"nframes": 2, "min_pixels": 3136, "max_pixels": 3136})),
            (Qwen, json!({"max_pixels": 784, "total_pixels": 3136, "min_pixels": 784})),
            (VideorftTrain, json!({"max_pixels": 401_408})),
            (VideorftTrain, json!({"video_max_pixels": 401_408, "image_max_pixels": 50_176})),
        ] {
            assert_eq!(check(profile, settings.clone()), Ok(()), "{settings}");
        }
    }

    #[test]
    fn a_rate_has_no_effect_if_the_limits_leave_one_number_of_frames() {
        use MediaProfile::{Qwen, Uniform16, VideorftTrain};
        let with = |settings: serde_json::Value| -> MediaOverrides { serde_json::from_value(settings).unwrap() };
        for (profile, settings, frames) in [
            (VideorftTrain, json!({"fps": 1.0}), Some(16)),
            (VideorftTrain, json!({}), None),
            (VideorftTrain, json!({"fps": 1.0, "min_frames": 4}), None),
            (Qwen, json!({"fps": 1.0}), None),
            (Qwen, json!({"fps": 1.0, "min_frames": 7, "max_frames": 9}), Some(8)),
            (Uniform16, json!({"fps": 1.0}), None),
        ] {
            assert_eq!(with(settings.clone()).frames_at_any_rate(profile), frames, "{settings}");
        }
    }

    #[test]
    fn nframes_flag_removes_fps_key() {
        let keys = MediaOverrides { fps: Some(4.0), min_frames: Some(6), ..Default::default() };
        let flags = MediaOverrides { nframes: Some(8), ..Default::default() };
        let got = flags.or_fallback(keys);
        assert_eq!((got.nframes, got.fps, got.min_frames), (Some(8), None, Some(6)));
        assert_eq!(MediaOverrides::default().or_fallback(keys), keys);
    }
}
