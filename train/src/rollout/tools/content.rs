//! The answers of tools: their record, their text, and the images and videos that they show.

use std::ops::Range;
use std::path::Path;

use reel_input::encode::{ModelFolder, PromptOrigin, encode_prompt, load_media};
use reel_input::media_loading::{LoadedMedia, load_video_frame};
use reel_input::messages::image_data_uri;
use reel_input::{Conversation, MediaOptions, ModelInput};
use reel_support::diagnostic::input;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The part of a completion that tools have written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolTurn {
    /// The range of the completion's tokens that the model did not sample.
    pub tokens: Range<usize>,
    /// The calls to which these tokens are the answer.
    pub calls: Vec<AnsweredCall>,
}

/// A tool call and its answer, as a step's record has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnsweredCall {
    /// The name of the tool; empty if the call could not be read.
    pub name: String,
    /// The arguments of the call.
    pub arguments: Value,
    /// The parts of the answer: texts, images, videos, and frames of videos. They are enough to load the same frames
    /// again.
    pub content: Vec<Value>,
    /// Whether the answer tells the model what went wrong.
    pub is_error: bool,
    /// The number of frames and images that the answer shows.
    pub frames: usize,
    /// The times of these frames in seconds, if they are frames of videos.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<f64>,
}

/// The content of a tool's answer, loaded.
#[derive(Debug)]
pub struct LoadedAnswer {
    /// The text of the answer in a prompt, with one pad token for each image and video.
    pub text: String,
    /// Its images and videos.
    pub media: LoadedMedia,
    /// The number of frames and images.
    pub frames: usize,
    /// The times of the frames of videos.
    pub times: Vec<f64>,
}

/// The largest image file of a tool, in bytes.
const MAX_IMAGE_BYTES: u64 = 64 << 20;

/// Loads the content of an answer.
///
/// # Errors
/// A part has an unknown type or lacks a key; an image or video cannot be loaded.
pub fn load_answer(content: &[Value], model: &ModelFolder, options: &MediaOptions) -> Result<LoadedAnswer> {
    let empty = || LoadedMedia::empty(model.preprocessor, options.video_marks);
    let mut loaded = LoadedAnswer { text: String::new(), media: empty(), frames: 0, times: Vec::new() };
    for part in content {
        match part["type"].as_str() {
            Some("text") => loaded.text += &without_special_tokens(part["text"].as_str().unwrap_or_default()),
            Some("video_frame") => {
                let time = part["time"].as_f64().unwrap_or(f64::NAN);
                let region = part["box"].as_array().map(|sides| {
                    let side = |i: usize| sides.get(i).and_then(Value::as_f64).unwrap_or(f64::NAN);
                    [side(0), side(1), side(2), side(3)]
                });
                let path = Path::new(part["video"].as_str().unwrap_or_default());
                let mut frame = empty();
                let image = load_video_frame(path, time, region, options, &model.preprocessor)?;
                frame.image_grid_thw.push(frame.frames.grid_thw(&image)?);
                frame.frames.images.push(image);
                loaded.add(frame, IMAGE);
                loaded.times.push(time);
            }
            Some(kind @ ("image" | "video")) => {
                let message = json!([{"role": "user", "content": [part]}]);
                let conversation = Conversation::from_json("the answer", &message, Path::new(""))?;
                let media = load_media(model, &conversation, options)?;
                loaded.times.extend(media.frames.video_times.iter().flatten());
                loaded.add(media, if kind == "image" { IMAGE } else { VIDEO });
            }
            _ => {
                let what = format!("has a part of the type {}", part["type"]);
                return Err(Error::input("the answer", what, "give parts of the types text, image and video"));
            }
        }
    }
    Ok(loaded)
}

const IMAGE: &str = "<|vision_start|><|image_pad|><|vision_end|>";
const VIDEO: &str = "<|vision_start|><|video_pad|><|vision_end|>";

impl LoadedAnswer {
    fn add(&mut self, media: LoadedMedia, text: &str) {
        let videos = media.frames.videos.iter().map(|video| video.frames);
        self.frames += media.frames.images.len() + videos.sum::<usize>();
        self.media.append(media);
        self.text += text;
    }
}

/// A text in which nothing is read as a special token, such as the end of the turn.
fn without_special_tokens(text: &str) -> String {
    text.replace("<|", "< |")
}

/// Reads the reply of a user's tool: a text, a list of parts, an object with `content` or `error`, or any other JSON,
/// which the model reads as text. Image files become part of the answer, so that its record is complete. The error is
/// the text that the model reads.
pub fn content_of_reply(reply: Value) -> Result<Vec<Value>, String> {
    let text = |text: String| json!({"type": "text", "text": text});
    match reply {
        Value::String(words) => Ok(vec![text(words)]),
        Value::Array(parts) => parts.into_iter().map(part_of_reply).collect(),
        Value::Object(mut fields) => match (fields.remove("error"), fields.remove("content")) {
            (Some(Value::String(error)), _) => Err(error),
            (Some(error), _) => Err(error.to_string()),
            (None, Some(content)) => content_of_reply(content),
            (None, None) => Ok(vec![text(Value::Object(fields).to_string())]),
        },
        other => Ok(vec![text(other.to_string())]),
    }
}

fn part_of_reply(part: Value) -> Result<Value, String> {
    let Value::Object(mut fields) = part else {
        let text = part.as_str().map_or_else(|| part.to_string(), String::from);
        return Ok(json!({"type": "text", "text": text}));
    };
    let path = fields.get("image").and_then(Value::as_str);
    let is_address = |path: &&str| ["data:", "http:", "https:"].iter().any(|scheme| path.starts_with(scheme));
    if let Some(path) = path.filter(|path| !is_address(path)) {
        let path = Path::new(path.strip_prefix("file://").unwrap_or(path));
        let bytes = input::read_file(path, MAX_IMAGE_BYTES).map_err(|e| format!("{}: {e}", path.display()))?;
        fields.insert("image".into(), image_data_uri(&bytes).into());
    }
    Ok(Value::Object(fields))
}

/// Encodes the turn in which tools answer, in the form of Qwen's chat templates, up to the beginning of the model's next
/// turn. `ends_turn` says whether the model has ended its turn itself. `begun_thought` is the text with which the
/// template begins the model's turn, if any.
///
/// # Errors
/// The tokenizer fails; a video's frames have no times.
pub fn encode_tool_turn(
    model: &ModelFolder,
    answers: Vec<LoadedAnswer>,
    ends_turn: bool,
    begun_thought: &str,
) -> Result<ModelInput> {
    let mut media = LoadedMedia::empty(model.preprocessor, None);
    let mut texts = Vec::with_capacity(answers.len());
    for answer in answers {
        texts.push(format!("<tool_response>\n{}\n</tool_response>", answer.text));
        media.video_marks = answer.media.video_marks;
        media.append(answer.media);
    }
    let (end, texts) = (if ends_turn { "" } else { "<|im_end|>" }, texts.join("\n"));
    let text = format!("{end}\n<|im_start|>user\n{texts}<|im_end|>\n<|im_start|>assistant\n{begun_thought}");
    encode_prompt(model, &text, media, PromptOrigin::Text("the answer of a tool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_become_parts_of_a_message() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let image = json!({"type": "image", "image": "data:image/png;base64,AAAA"});
        for (reply, content) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", image, 3]), vec![text("a"), image.clone(), text("3")]),
            (json!({"content": [image]}), vec![image.clone()]),
            (json!({"n": 3}), vec![text("{\"n\":3}")]),
            (json!(null), vec![text("null")]),
        ] {
            assert_eq!(content_of_reply(reply).unwrap(), content);
        }
        assert_eq!(content_of_reply(json!({"error": "no"})).unwrap_err(), "no");
        assert!(
            content_of_reply(json!([{"type": "image", "image": "nosuch.png"}])).unwrap_err().contains("nosuch.png")
        );
    }

    #[test]
    fn image_files_become_part_of_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, b"\x89PNG\r\n\x1a\nrest of the file, longer than a few bytes").unwrap();
        let content = content_of_reply(json!([{"type": "image", "image": path}])).unwrap();
        assert!(content[0]["image"].as_str().unwrap().starts_with("data:image/png;base64,iVBORw0KGg"));
    }
}
