//! The recipe: which rules apply where the papers and the code of VideoRFT, Video-R1 and OneThinker differ.
//! `docs/parity.md` lists all rules.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Which rules apply where the papers and the code of VideoRFT, Video-R1 and OneThinker differ (`--parity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// The rules of the papers: true frame rates, loss on the assistant's tokens only.
    #[default]
    Paper,
    /// The rules of VideoRFT's code.
    Videorft,
    /// The rules of Video-R1's code: another system message, and options after the question.
    #[value(name = "video-r1")]
    #[serde(rename = "video-r1")]
    VideoR1,
    /// The rules of the papers, and OneThinker's for multiple choice, numerical and regression answers.
    #[value(name = "one-thinker")]
    #[serde(rename = "one-thinker")]
    OneThinker,
}

impl Recipe {
    /// The minimum ratio of the mean accuracy with ordered frames to that with shuffled frames for the temporal
    /// reward. `None`: VideoRFT's code has no temporal reward. The paper of Video-R1 compares the two means (ratio
    /// 1); its code compares the first with 0.8 times the second (ratio 0.8).
    pub fn temporal_min_ratio(self) -> Option<f32> {
        match self {
            Self::Paper | Self::OneThinker => Some(1.0),
            Self::Videorft => None,
            Self::VideoR1 => Some(0.8),
        }
    }

    /// Whether the rules that concern no answer are those of the papers.
    pub fn follows_papers(self) -> bool {
        matches!(self, Self::Paper | Self::OneThinker)
    }

    /// Whether SigLIP gets inverted frames, with pixel values `(256 - v) % 256`. VideoRFT's code passes video frames as
    /// floats from 0 to 255 to torchvision's ToPILImage, which multiplies by 255 and wraps around. Images are not
    /// affected.
    pub fn uses_negative_frames(self, is_video: bool) -> bool {
        self == Self::Videorft && is_video
    }
}
