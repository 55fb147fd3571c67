//! Profiles: which frames a film gives and how large they may be, as the reference recipes set them, and the keys of a
//! message part (or flags) that override them.

use serde::{Deserialize, Serialize};

use crate::{MediaError, Result};

/// A named set of frame and pixel limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediaProfile {
    /// VideoRFT's training: 16 frames, small pictures.
    VideorftTrain,
    /// Video-R1's training: 4 to 16 frames at 2 frames a second, the same pictures.
    VideoR1Train,
    /// Evaluation in both recipes: 32 frames.
    VideorftEval,
    /// The defaults of qwen-vl-utils 0.0.10: 2 frames a second, 4 to 768 frames.
    Qwen,
    /// Video-R1's quick start: 16 frames by `int(i * (total / 16))`, `Qwen`'s pixels.
    #[serde(rename = "uniform-16")]
    Uniform16,
    /// VideoRFT's quick start: one frame a second by stride, `Qwen`'s pixels.
    #[serde(rename = "stride-1fps")]
    Stride1Fps,
}

/// How a profile picks frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SelectionRule {
    /// A rate kept within bounds, spread from the first frame to the last.
    Rate {
        /// Frames a second of film.
        fps: f64,
        /// Least number of frames.
        min_frames: i64,
        /// Largest number of frames.
        max_frames: i64,
    },
    /// This many frames at `int(i * (total / n))`.
    Uniform(i64),
    /// Every `round(fps)`-th frame.
    Stride,
}

/// The pixel limits of a profile. All count pixels (height times width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelLimits {
    /// Least pixels of a film's frame.
    pub video_min: u64,
    /// Most pixels of a film's frame.
    pub video_max: u64,
    /// Most pixels of all frames of a film together (halved frames: two frames make one step in time).
    pub video_total: u64,
    /// Least pixels of a picture.
    pub image_min: u64,
    /// Most pixels of a picture.
    pub image_max: u64,
}

const SQUARE: u64 = 28 * 28;

impl MediaProfile {
    /// All profiles, in the order in which help texts list them.
    pub const ALL: [Self; 6] =
        [Self::VideorftTrain, Self::VideoR1Train, Self::VideorftEval, Self::Qwen, Self::Uniform16, Self::Stride1Fps];

    /// The profile of this name; the error lists the names that exist.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            MediaError::setting(
                "profile",
                format!("there is no profile {name:?}"),
                format!("use one of {}", names.join(", ")),
            )
        })
    }

    /// The name on the command line.
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

    /// Which frames it takes.
    pub fn rule(self) -> SelectionRule {
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

    /// How large its frames and pictures may be.
    pub fn pixels(self) -> PixelLimits {
        let recipe = |side: u64| PixelLimits {
            video_min: side * SQUARE,
            video_max: side * SQUARE,
            video_total: 115_200 * SQUARE,
            image_min: 4 * SQUARE,
            image_max: 256 * SQUARE,
        };
        match self {
            Self::VideorftTrain | Self::VideoR1Train => recipe(128),
            Self::VideorftEval => recipe(256),
            Self::Qwen | Self::Uniform16 | Self::Stride1Fps => PixelLimits {
                video_min: 128 * SQUARE,
                video_max: 768 * SQUARE,
                video_total: 24_576 * SQUARE,
                image_min: 4 * SQUARE,
                image_max: 16_384 * SQUARE,
            },
        }
    }
}

impl std::fmt::Display for MediaProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Part keys (the spelling of qwen-vl-utils) or flags that replace a profile's limits; `None` leaves the profile's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MediaOverrides {
    /// How many frames; not together with `fps`.
    pub nframes: Option<i64>,
    /// Frames a second of film; not together with `nframes`.
    pub fps: Option<f64>,
    /// Least number of frames at a rate.
    pub min_frames: Option<i64>,
    /// Largest number of frames at a rate.
    pub max_frames: Option<i64>,
    /// Least pixels of a frame or picture.
    pub min_pixels: Option<u64>,
    /// Most pixels of a frame or picture; can only lower a film's budget.
    pub max_pixels: Option<u64>,
    /// Most pixels of a film.
    pub total_pixels: Option<u64>,
    /// A wanted height, with `resized_width`.
    pub resized_height: Option<u64>,
    /// A wanted width, with `resized_height`.
    pub resized_width: Option<u64>,
    /// Where in the film to begin, in seconds.
    pub video_start: Option<f64>,
    /// Where in the film to end, in seconds.
    pub video_end: Option<f64>,
}

impl MediaOverrides {
    /// These settings over `weaker` ones (flags over part keys). `nframes` here also silences a weaker `fps`, and the
    /// other way round, because the two exclude each other.
    pub fn over(self, weaker: Self) -> Self {
        let count_given = self.nframes.is_some() || self.fps.is_some();
        Self {
            nframes: if count_given { self.nframes } else { weaker.nframes },
            fps: if count_given { self.fps } else { weaker.fps },
            min_frames: self.min_frames.or(weaker.min_frames),
            max_frames: self.max_frames.or(weaker.max_frames),
            min_pixels: self.min_pixels.or(weaker.min_pixels),
            max_pixels: self.max_pixels.or(weaker.max_pixels),
            total_pixels: self.total_pixels.or(weaker.total_pixels),
            resized_height: self.resized_height.or(weaker.resized_height),
            resized_width: self.resized_width.or(weaker.resized_width),
            video_start: self.video_start.or(weaker.video_start),
            video_end: self.video_end.or(weaker.video_end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_profiles() {
        for p in MediaProfile::ALL {
            assert_eq!(MediaProfile::parse(p.name()).unwrap(), p);
            assert_eq!(serde_json::to_value(p).unwrap(), p.name());
        }
        let err = MediaProfile::parse("nosuch").unwrap_err().to_string();
        assert!(err.contains("nosuch") && err.contains("stride-1fps"), "{err}");
    }

    #[test]
    fn pixel_limits_are_the_published_numbers() {
        let all = |p: MediaProfile| {
            let l = p.pixels();
            [l.video_min, l.video_max, l.video_total, l.image_min, l.image_max]
        };
        assert_eq!(all(MediaProfile::Qwen), [100_352, 602_112, 19_267_584, 3136, 12_845_056]);
        assert_eq!(all(MediaProfile::VideorftTrain), [100_352, 100_352, 90_316_800, 3136, 200_704]);
        assert_eq!(all(MediaProfile::VideorftEval), [200_704, 200_704, 90_316_800, 3136, 200_704]);
        assert_eq!(MediaProfile::VideoR1Train.pixels(), MediaProfile::VideorftTrain.pixels());
        assert_eq!(MediaProfile::Stride1Fps.pixels(), MediaProfile::Qwen.pixels());
    }

    #[test]
    fn a_flag_for_the_count_silences_the_other_key() {
        let keys = MediaOverrides { fps: Some(4.0), min_frames: Some(6), ..Default::default() };
        let flags = MediaOverrides { nframes: Some(8), ..Default::default() };
        let got = flags.over(keys);
        assert_eq!((got.nframes, got.fps, got.min_frames), (Some(8), None, Some(6)));
        assert_eq!(MediaOverrides::default().over(keys), keys);
    }
}
