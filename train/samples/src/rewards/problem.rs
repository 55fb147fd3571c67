//! A problem as accuracy rules see it: its kind, the truth, and what its row says about the video and the answer.

use clap::ValueEnum;
use reel_support::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rewards::{ProblemType, Recipe};

/// How segments of time are compared (`--temporal-iou`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemporalIou {
    /// Intersection over union of both sets of segments
    #[default]
    Plain,
    /// Intersection over union of one segment, times (1 - |distance of the starts| / duration) and
    /// (1 - |distance of the ends| / duration) (Time-R1)
    #[value(name = "time-r1")]
    #[serde(rename = "time-r1")]
    TimeR1,
}

/// Which rules score answers, where there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerRules {
    /// The recipe whose rules apply (`--parity`).
    pub recipe: Recipe,
    /// How segments of time are compared (`--temporal-iou`).
    pub temporal_iou: TemporalIou,
}

/// Fields of a row, other than texts, on which the accuracy of answers depends.
#[derive(Clone, Debug, PartialEq)]
pub struct ProblemFields {
    /// Whether the row's `data_type` is `video`; `None` if it is neither `video` nor `image`.
    pub is_video: Option<bool>,
    /// The length of the video in seconds, above 0 (`duration`).
    pub duration: Option<f64>,
    /// Factors of x and y from the answer's coordinates to those of the truth (`answer_space`, `width`, `height`).
    pub answer_scale: [f64; 2],
    /// The options of a multiple-choice question (`options`).
    pub options: Vec<String>,
}

impl Default for ProblemFields {
    fn default() -> Self {
        Self { is_video: None, duration: None, answer_scale: [1.0; 2], options: Vec::new() }
    }
}

impl ProblemFields {
    /// Reads the fields of a row of the kind `kind`. A field that the kind and `rules` do not need is not checked. A
    /// field that is `null` counts as absent.
    ///
    /// # Errors
    /// `answer_space` is unknown, or `0-1000` without a positive `width` and `height`; `rules` compare times with the
    /// `duration`, which is missing or not above 0.
    pub fn from_row(
        row: &Map<String, Value>,
        kind: Option<ProblemType>,
        rules: AnswerRules,
    ) -> Result<Self, Diagnostic> {
        let get = |name: &str| row.get(name).filter(|value| !value.is_null());
        let positive = |name: &str, why: &str| {
            let number = get(name).and_then(Value::as_f64).filter(|x| *x > 0.0 && x.is_finite());
            number.ok_or_else(|| {
                let what = match get(name) {
                    None => format!("is missing, but {why} needs it"),
                    Some(other) => format!("is {other}, but {why} needs a number above 0"),
                };
                Diagnostic::new(name, what, "give a number above 0")
            })
        };
        let needs_duration = kind == Some(ProblemType::TemporalGrounding) && rules.temporal_iou == TemporalIou::TimeR1;
        let duration = needs_duration.then(|| positive("duration", "--temporal-iou time-r1")).transpose()?;
        let has_boxes = kind.is_some_and(ProblemType::has_boxes);
        let answer_scale = match get("answer_space").filter(|_| has_boxes) {
            None => [1.0; 2],
            Some(space) if space == "pixel" => [1.0; 2],
            Some(space) if space == "0-1000" => {
                let size = |name| positive(name, "answer_space 0-1000");
                [size("width")? / 1000.0, size("height")? / 1000.0]
            }
            Some(space) => {
                let what = format!("is {space}, which is unknown");
                return Err(Diagnostic::new("answer_space", what, "use \"pixel\" or \"0-1000\""));
            }
        };
        let is_video = match get("data_type").and_then(Value::as_str) {
            Some("video") => Some(true),
            Some("image") => Some(false),
            _ => None,
        };
        let options = get("options").and_then(Value::as_array).into_iter().flatten();
        let options = options.filter_map(|option| Some(option.as_str()?.to_string())).collect();
        Ok(Self { is_video, duration, answer_scale, options })
    }
}
