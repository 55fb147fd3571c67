//! The built-in tools, which show parts of the videos of the prompt: `crop_video`, `select_frames` and `zoom`.
//!
//! A tool replies with parts of a message, from which [`super::content`] loads the frames: a video part of
//! qwen-vl-utils, or a part of the type `video_frame`, which has a video, a time and, after `zoom`, a region.

use std::path::PathBuf;

use reel_input::media::profile::{MediaProfile, SelectionRule};
use serde_json::{Map, Value, json};

/// A built-in tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoTool {
    CropVideo,
    SelectFrames,
    Zoom,
}

/// The minimum number of frames of a cropped video: one frame pair.
const MIN_CROP_FRAMES: usize = 2;

impl VideoTool {
    pub const ALL: [Self; 3] = [Self::CropVideo, Self::SelectFrames, Self::Zoom];

    /// The name of the tool in calls and in `--tools`.
    pub fn name(self) -> &'static str {
        match self {
            Self::CropVideo => "crop_video",
            Self::SelectFrames => "select_frames",
            Self::Zoom => "zoom",
        }
    }

    /// The function that the prompt describes to the model.
    pub fn definition(self) -> Value {
        let number = |description: &str| json!({"type": "number", "description": description});
        let video = json!({"type": "integer", "description": "Index of the video, counted from 0. Default 0."});
        let numbers =
            |description: &str| json!({"type": "array", "items": {"type": "number"}, "description": description});
        let (description, fields, required) = match self {
            Self::CropVideo => (
                "Shows a part of the video with more frames.",
                json!({"start": number("Start in seconds."), "end": number("End in seconds."),
                    "fps": number("Frames per second. Default 2."), "video": video}),
                json!(["start", "end"]),
            ),
            Self::SelectFrames => (
                "Shows the frames of the video at the given times.",
                json!({"times": numbers("Times in seconds."), "video": video}),
                json!(["times"]),
            ),
            Self::Zoom => (
                "Shows a region of the frame at the given time in a higher resolution.",
                json!({"box": numbers("Left, top, right and bottom of the region, from 0 to 1000."),
                    "time": number("Time in seconds."), "video": video}),
                json!(["box", "time"]),
            ),
        };
        let parameters = json!({"type": "object", "properties": fields, "required": required});
        json!({"name": self.name(), "description": description, "parameters": parameters})
    }

    /// Returns the parts of the message with which the tool answers a call. `videos` are the files of the prompt's
    /// videos; at most `max_frames` frames may be shown. The error is the text that the model reads.
    pub fn run(
        self,
        arguments: &Map<String, Value>,
        videos: &[PathBuf],
        profile: MediaProfile,
        max_frames: usize,
    ) -> Result<Vec<Value>, String> {
        let known = self.definition();
        if let Some(name) = arguments.keys().find(|name| known["parameters"]["properties"].get(name).is_none()) {
            return Err(format!("{} has no argument {name}", self.name()));
        }
        let number = |name: &str, default: Option<f64>| match arguments.get(name).filter(|value| !value.is_null()) {
            None => default.ok_or_else(|| format!("the argument {name} is missing")),
            Some(value) => number_of(value).ok_or_else(|| format!("{name} is {value}, not a number")),
        };
        let numbers = |name: &str| {
            let list = arguments.get(name).and_then(Value::as_array);
            let list = list.and_then(|list| list.iter().map(number_of).collect::<Option<Vec<f64>>>());
            list.ok_or_else(|| format!("{name} is not a list of numbers"))
        };
        let index = number("video", Some(0.0))?;
        let video = (index >= 0.0).then(|| videos.get(index as usize)).flatten();
        let video = video.ok_or_else(|| format!("there is no video {index}; the prompt has {}", videos.len()))?;
        let path = video.to_string_lossy();
        let text = |text: String| json!({"type": "text", "text": text});
        match self {
            Self::CropVideo => {
                let (start, end) = (number("start", None)?, number("end", None)?);
                let rule_max = match profile.selection_rule() {
                    SelectionRule::Rate { max_frames, .. } | SelectionRule::ProcessorRate { max_frames, .. } => {
                        max_frames
                    }
                    SelectionRule::Uniform(_) | SelectionRule::Stride => i64::MAX,
                };
                let most = max_frames.min(usize::try_from(rule_max).unwrap_or(usize::MAX)) / 2 * 2;
                if most < MIN_CROP_FRAMES {
                    return Err(no_frames_left(max_frames));
                }
                let part = json!({"type": "video", "video": path, "video_start": start, "video_end": end,
                    "fps": number("fps", Some(2.0))?, "min_frames": MIN_CROP_FRAMES, "max_frames": most});
                Ok(vec![text(format!("The video from {start} s to {end} s:")), part])
            }
            Self::SelectFrames => {
                let times = numbers("times")?;
                if times.is_empty() || times.len() > max_frames {
                    return Err(match times.len() {
                        0 => "times is empty".to_string(),
                        n => format!("{n} frames are asked for; {}", no_frames_left(max_frames)),
                    });
                }
                let frame = |&time: &f64| {
                    [text(format!("<{time} seconds>")), json!({"type": "video_frame", "video": path, "time": time})]
                };
                Ok(times.iter().flat_map(frame).collect())
            }
            Self::Zoom => {
                let (time, region) = (number("time", None)?, numbers("box")?);
                if region.len() != 4 {
                    return Err(format!("box has {} numbers, not 4", region.len()));
                }
                if max_frames == 0 {
                    return Err(no_frames_left(max_frames));
                }
                let part = json!({"type": "video_frame", "video": path, "time": time, "box": region});
                Ok(vec![text(format!("The region {region:?} at {time} s:")), part])
            }
        }
    }
}

/// A number, also one that is written as a text.
fn number_of(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|number| number.is_finite())
}

/// What the model reads if a call asks for more frames than the completion may still show.
pub fn no_frames_left(left: usize) -> String {
    format!("tools may show {left} more frames in this answer")
}
