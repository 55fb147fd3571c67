//! Profiles: the presets of frame and pixel limits that the reference recipes use. Flags, or keys of a message's
//! video or image part, override single limits. [`crate::selection`] and [`crate::resize`] apply them.

use serde::{Deserialize, Serialize};

use crate::{MediaError, Result};

/// A named preset of frame and pixel limits (`--profile`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaProfile {
    /// VideoRFT's training: 16 frames of 128 × 28 × 28 pixels.
    VideorftTrain,
    /// Video-R1's training: 4 to 16 frames at 2 frames/s, of 128 × 28 × 28 pixels.
    VideoR1Train,
    /// Evaluation in VideoRFT and Video-R1: 32 frames of 256 × 28 × 28 pixels.
    VideorftEval,
    /// The defaults of qwen-vl-utils 0.0.10: 2 frames/s, 4 to 768 frames.
    Qwen,
    /// Video-R1's quick start: the frames `int(i * (total / 16))`, with the pixel limits of `Qwen`.
    #[serde(rename = "uniform-16")]
    Uniform16,
    /// VideoRFT's quick start: every `round(fps)`-th frame, with the pixel limits of `Qwen`.
    #[serde(rename = "stride-1fps")]
    Stride1Fps,
}

/// How a profile selects frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SelectionRule {
    /// Frames are evenly spaced from the first to the last. Their number is `fps` times the video's seconds, kept
    /// within `min_frames` and `max_frames`.
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
}

/// The pixel limits of a profile; each is an area, height × width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelLimits {
    /// Minimum area of a video frame.
    pub video_min: u64,
    /// Maximum area of a video frame.
    pub video_max: u64,
    /// Maximum sum of the areas of a video's frames. Each pair of frames counts as one frame, because it shares a
    /// temporal patch.
    pub video_total: u64,
    /// Minimum area of an image.
    pub image_min: u64,
    /// Maximum area of an image.
    pub image_max: u64,
}

/// Pixels of one vision token: 2 × 2 patches of 14 × 14 pixels.
const TOKEN_PIXELS: u64 = 28 * 28;

impl MediaProfile {
    /// All profiles, in the order of help texts.
    pub const ALL: [Self; 6] =
        [Self::VideorftTrain, Self::VideoR1Train, Self::VideorftEval, Self::Qwen, Self::Uniform16, Self::Stride1Fps];

    /// Parses the name of a profile; the error lists all names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            MediaError::setting_error(
                "profile",
                format!("unknown profile {name:?}"),
                format!("use one of {}", names.join(", ")),
            )
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
        }
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
        }
    }

    /// The pixel limits of this profile.
    pub fn pixel_limits(self) -> PixelLimits {
        let recipe = |frame_tokens: u64| PixelLimits {
            video_min: frame_tokens * TOKEN_PIXELS,
            video_max: frame_tokens * TOKEN_PIXELS,
            video_total: 115_200 * TOKEN_PIXELS,
            image_min: 4 * TOKEN_PIXELS,
            image_max: 256 * TOKEN_PIXELS,
        };
        match self {
            Self::VideorftTrain | Self::VideoR1Train => recipe(128),
            Self::VideorftEval => recipe(256),
            Self::Qwen | Self::Uniform16 | Self::Stride1Fps => PixelLimits {
                video_min: 128 * TOKEN_PIXELS,
                video_max: 768 * TOKEN_PIXELS,
                video_total: 24_576 * TOKEN_PIXELS,
                image_min: 4 * TOKEN_PIXELS,
                image_max: 16_384 * TOKEN_PIXELS,
            },
        }
    }
}

impl std::fmt::Display for MediaProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Flags or message keys (in the spelling of qwen-vl-utils) that replace limits of the profile; `None` keeps the
/// profile's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MediaOverrides {
    /// Number of frames; cannot be combined with `fps`.
    pub nframes: Option<i64>,
    /// Frames per second of video; cannot be combined with `nframes`.
    pub fps: Option<f64>,
    /// Minimum number of frames, if frames are selected by a rate (`fps`).
    pub min_frames: Option<i64>,
    /// Maximum number of frames, if frames are selected by a rate (`fps`).
    pub max_frames: Option<i64>,
    /// Minimum area of a frame or image in pixels.
    pub min_pixels: Option<u64>,
    /// Maximum area of a frame or image in pixels; for a video it can only lower the profile's limit.
    pub max_pixels: Option<u64>,
    /// Maximum area of all frames of a video together in pixels.
    pub total_pixels: Option<u64>,
    /// Requested height in pixels; used only together with `resized_width`.
    pub resized_height: Option<u64>,
    /// Requested width in pixels; used only together with `resized_height`.
    pub resized_width: Option<u64>,
    /// Start of the selected part of the video in seconds.
    pub video_start: Option<f64>,
    /// End of the selected part of the video in seconds.
    pub video_end: Option<f64>,
}

impl MediaOverrides {
    /// Takes each limit from `self`, or from `fallback` where `self` has `None` (`self` holds flags, which win over
    /// message keys). If `self` has `nframes` or `fps`, both are taken from `self`, because the two cannot be
    /// combined.
    pub fn or_fallback(self, fallback: Self) -> Self {
        let count_given = self.nframes.is_some() || self.fps.is_some();
        Self {
            nframes: if count_given { self.nframes } else { fallback.nframes },
            fps: if count_given { self.fps } else { fallback.fps },
            min_frames: self.min_frames.or(fallback.min_frames),
            max_frames: self.max_frames.or(fallback.max_frames),
            min_pixels: self.min_pixels.or(fallback.min_pixels),
            max_pixels: self.max_pixels.or(fallback.max_pixels),
            total_pixels: self.total_pixels.or(fallback.total_pixels),
            resized_height: self.resized_height.or(fallback.resized_height),
            resized_width: self.resized_width.or(fallback.resized_width),
            video_start: self.video_start.or(fallback.video_start),
            video_end: self.video_end.or(fallback.video_end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let l = p.pixel_limits();
            [l.video_min, l.video_max, l.video_total, l.image_min, l.image_max]
        };
        assert_eq!(all(MediaProfile::Qwen), [100_352, 602_112, 19_267_584, 3136, 12_845_056]);
        assert_eq!(all(MediaProfile::VideorftTrain), [100_352, 100_352, 90_316_800, 3136, 200_704]);
        assert_eq!(all(MediaProfile::VideorftEval), [200_704, 200_704, 90_316_800, 3136, 200_704]);
        assert_eq!(MediaProfile::VideoR1Train.pixel_limits(), MediaProfile::VideorftTrain.pixel_limits());
        assert_eq!(MediaProfile::Stride1Fps.pixel_limits(), MediaProfile::Qwen.pixel_limits());
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
