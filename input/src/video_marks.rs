//! The prompt of a video in Qwen3-VL: each frame pair has vision marks of its own, after the time of its frames.
//!
//! ```text
//! chat template   …<|vision_start|><|video_pad|><|vision_end|>How many?…
//! inner           …<0.3 seconds><|vision_start|><|video_pad|><|vision_end|><1.3 seconds><|vision_start|>…How many?…
//! outer           …<|vision_start|><0.3 seconds><|vision_start|><|video_pad|><|vision_end|>…<|vision_end|>How many?…
//! ```
//! The inner form is that of transformers 4.57, with which the models were published, and of vLLM. transformers 5
//! keeps the marks of the chat template around the video. A time is the mean of the times of the two frames, with one
//! decimal as Python writes it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// The form of a video's prompt in Qwen3-VL (`--video-marks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum VideoMarks {
    /// The frame pairs replace the marks of the chat template (transformers 4.57).
    #[default]
    Inner,
    /// The frame pairs stand between the marks of the chat template (transformers 5).
    Outer,
}

impl VideoMarks {
    /// The name of the form on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inner => "inner",
            Self::Outer => "outer",
        }
    }
}

/// Text tokens of a frame pair from 10 s on: `<`, two digits, the point and one more, ` seconds`, `>`, and the two marks.
/// Before, there is one less.
pub const TEXT_TOKENS_PER_FRAME_PAIR: usize = 9;

/// The token that stands for a vision token of a video.
pub const VIDEO_PAD: &str = "<|video_pad|>";
const START: &str = "<|vision_start|>";
const END: &str = "<|vision_end|>";

/// Writes one pad token with its marks and time for each frame pair, in place of the pad token of each video. `times`
/// has the times of the frame pairs of each video in seconds, in the order of the pad tokens.
pub fn write_times(text: &str, times: &[Vec<f64>], marks: VideoMarks) -> String {
    let mut out = String::with_capacity(text.len() + 64 * times.iter().map(Vec::len).sum::<usize>());
    let mut rest = text;
    for video in times {
        let Some((before, after)) = rest.split_once(VIDEO_PAD) else { break };
        let (before, after) = match (marks, before.strip_suffix(START), after.strip_prefix(END)) {
            (VideoMarks::Inner, Some(before), Some(after)) => (before, after),
            _ => (before, after),
        };
        out.push_str(before);
        for time in video {
            // Writing to a string does not fail.
            let _ = write!(out, "<{time:.1} seconds>{START}{VIDEO_PAD}{END}");
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/qwen3vl/tables.json");
        let tables: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut checked = 0;
        for row in tables["times"].as_array().unwrap() {
            let fps = row["fps"].as_f64().unwrap();
            let frames: Vec<f64> =
                row["frame_indices"].as_array().unwrap().iter().map(|i| i.as_f64().unwrap()).collect();
            let pair = |pair: &[f64]| (pair[0] / fps + pair[pair.len() - 1] / fps) / 2.0;
            let times: Vec<f64> = frames.chunks(2).map(pair).collect();
            let want: Vec<String> = serde_json::from_value(row["expect"].clone()).unwrap();
            let want: String =
                want.iter().map(|time| format!("<{time} seconds>{START}{VIDEO_PAD}{END}")).collect::<Vec<_>>().concat();
            let template = format!("a{START}{VIDEO_PAD}{END}b");
            assert_eq!(
                write_times(&template, std::slice::from_ref(&times), VideoMarks::Inner),
                format!("a{want}b"),
                "{row}"
            );
            let outer = format!("a{START}{want}{END}b");
            assert_eq!(write_times(&template, &[times], VideoMarks::Outer), outer, "{row}");
            checked += 1;
        }
        assert_eq!(checked, 16);
    }

    #[test]
    fn each_video_has_its_own_times() {
        let text = format!("{START}{VIDEO_PAD}{END}then {VIDEO_PAD}.");
        let written = write_times(&text, &[vec![0.25], vec![0.75, 2.0]], VideoMarks::Inner);
        let pair = |time: &str| format!("<{time} seconds>{START}{VIDEO_PAD}{END}");
        assert_eq!(written, format!("{}then {}{}.", pair("0.2"), pair("0.8"), pair("2.0")));
    }
}
