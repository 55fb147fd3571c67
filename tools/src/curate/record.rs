//! One line of a stage's table: a model's answer about one video or question, with the prompt, the model's name and
//! the cost.

use serde::{Deserialize, Serialize};

/// The version of the fields of [`StageRecord`]. A table of another version is refused.
pub const RECORD_FORMAT: u32 = 1;

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordStatus {
    /// The line was written before a request was sent; `cost` is the maximum cost of the request. A later line with
    /// the same key has the outcome. If there is no later line, the process was killed, and the next run sends the
    /// request again.
    Asked,
    /// The model answered, and the answer has the form that the stage needs.
    Ok,
    /// The model gave no usable answer. A resumed run sends the request again.
    Failed,
}

/// A line of a stage's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// The version of these fields.
    pub format: u32,
    /// SHA-256 of what the request is about: the video in the stage `caption`; the video, the question and its
    /// options in all other stages.
    pub key: String,
    /// Location (`FILE:LINE`) of the first row of the list that the request is about.
    pub location: String,
    /// The state of the request.
    pub status: RecordStatus,
    /// Why the request failed.
    pub reason: Option<String>,
    /// The accepted answer: a description as JSON text, or `<think>…</think><answer>…</answer>`.
    pub output: Option<String>,
    /// Name, version and fingerprint of the prompt with its sampling settings, such as `reason-1-0123456789abcdef`.
    pub prompt: String,
    /// The name of the model that was asked.
    pub model: String,
    /// Number of prompt tokens of the request with the accepted answer.
    pub prompt_tokens: u64,
    /// Number of tokens of the accepted answer.
    pub completion_tokens: u64,
    /// How often the request was sent.
    pub attempts: u32,
    /// US dollars for all attempts.
    pub cost: f64,
    /// Seconds from the start of the first attempt to the end of the last attempt.
    pub seconds: f64,
    /// When the line was written, in seconds since 1970.
    pub unix_time: u64,
    /// The version of reel that wrote the line.
    pub reel: String,
}

/// The present time in seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
