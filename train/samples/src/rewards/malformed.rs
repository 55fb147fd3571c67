//! Why an answer cannot be read. Such an answer scores 0, and metrics count the reasons.

use serde::{Deserialize, Serialize};

/// The reason for which an answer has no value that could be compared with the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// No text in `<answer>` tags.
    NoAnswer,
    /// No segment of time.
    NoTime,
    /// A segment ends before it starts.
    ReversedTime,
    /// Several segments where the rule compares one.
    SeveralTimes,
    /// No box, or several.
    NoBox,
    /// No boxes by frame.
    NoFrames,
    /// Not three positive and three negative points.
    NoPoints,
    /// Neither yes nor no.
    NoBoolean,
    /// No single option.
    NoOption,
    /// Not a number.
    NoNumber,
}

impl Malformed {
    /// The name in metrics (`malformed/NAME`) and in the output of `reel reward`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::NoTime => "no_time",
            Self::ReversedTime => "reversed_time",
            Self::SeveralTimes => "several_times",
            Self::NoBox => "no_box",
            Self::NoFrames => "no_frames",
            Self::NoPoints => "no_points",
            Self::NoBoolean => "no_boolean",
            Self::NoOption => "no_option",
            Self::NoNumber => "no_number",
        }
    }
}
