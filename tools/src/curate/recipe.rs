//! The two recipes for making chains of thought, and their stages.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How chains of thought are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CurationRecipe {
    /// VideoRFT: a vision model describes the video, a reasoning model that does not see it writes the chain, a
    /// vision-language model revises the chain against the video.
    #[default]
    Videorft,
    /// Video-R1: one vision-language model answers the question with a chain.
    VideoR1,
}

/// A stage of a curation, in which a model answers requests. The answers are in `OUT/NAME.jsonl` and
/// `OUT/NAME.parquet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Describes each video once, as JSON.
    Caption,
    /// Writes a chain of thought from the description and the question.
    Reason,
    /// Revises the chain against the video.
    Revise,
    /// Answers the question with a chain of thought (Video-R1).
    Answer,
}

impl CurationRecipe {
    /// The stages, in their order.
    pub fn stages(self) -> &'static [StageName] {
        match self {
            Self::Videorft => &[StageName::Caption, StageName::Reason, StageName::Revise],
            Self::VideoR1 => &[StageName::Answer],
        }
    }
}

impl StageName {
    /// All stages of both recipes.
    pub const ALL: [Self; 4] = [Self::Caption, Self::Reason, Self::Revise, Self::Answer];

    /// The stage's name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Reason => "reason",
            Self::Revise => "revise",
            Self::Answer => "answer",
        }
    }

    /// The stage of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }

    /// The option that names the stage's model.
    pub fn model_option(self) -> &'static str {
        match self {
            Self::Caption => "--caption",
            Self::Reason => "--reason",
            Self::Revise => "--revise",
            Self::Answer => "--model",
        }
    }
}

impl std::fmt::Display for StageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
