//! Whose rules are followed where a reference's code and its paper differ. `docs/parity.md` lists them all.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Whose rules are followed where a reference's code and its paper differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// The papers' rules: true frame rates, labels on the assistant's words.
    #[default]
    Paper,
    /// VideoRFT's code.
    Videorft,
    /// Video-R1's code: its system message, and options after the question.
    #[value(name = "video-r1")]
    #[serde(rename = "video-r1")]
    VideoR1,
}

impl Recipe {
    /// The share of the shuffled answers' mean accuracy that a group must reach for the temporal reward; VideoRFT has no such
    /// reward. Video-R1's paper compares the two means, its code takes 0.8 of the second.
    pub fn temporal_min_ratio(self) -> Option<f32> {
        match self {
            Self::Paper => Some(1.0),
            Self::Videorft => None,
            Self::VideoR1 => Some(0.8),
        }
    }

    /// Whether SigLIP sees the negative of the frames, `(256 - v) % 256`. VideoRFT's code hands frames of floats from 0 to 255 to
    /// torchvision's ToPILImage, which multiplies by 255 and wraps; its pictures are whole.
    pub fn semantic_negative(self, video: bool) -> bool {
        self == Self::Videorft && video
    }
}
