//! The model families: models with the same parts, which differ in sizes only.

use serde::{Deserialize, Serialize};

/// A model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
pub enum Family {
    /// Qwen2.5-VL, `qwen2_5_vl`.
    #[default]
    #[serde(rename = "qwen2_5_vl")]
    #[value(name = "qwen2.5")]
    Qwen25Vl,
    /// Qwen3-VL with dense layers, `qwen3_vl`.
    #[serde(rename = "qwen3_vl")]
    #[value(name = "qwen3")]
    Qwen3Vl,
}

impl Family {
    /// The name of the family for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen25Vl => "Qwen2.5-VL",
            Self::Qwen3Vl => "Qwen3-VL",
        }
    }

    /// The side in pixels of the square that a vision token covers: patch side × merge size.
    pub const fn token_side(self) -> usize {
        match self {
            Self::Qwen25Vl => 14 * 2,
            Self::Qwen3Vl => 16 * 2,
        }
    }

    /// The pixels of a frame that a vision token covers.
    pub const fn token_pixels(self) -> u64 {
        (self.token_side() * self.token_side()) as u64
    }
}
