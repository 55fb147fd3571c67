//! Makes a chat request for each row of a data file: the row's messages in the format of OpenAI's API, with the frames
//! of its videos that a model of this program would see.

use std::sync::Arc;
use std::vec::IntoIter;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use reel_device::{RangeName, range};
use reel_input::Conversation;
use reel_input::config::Family;
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::media::strip::{encode_jpeg, encode_png};
use reel_input::media_loading::{LoadedMedia, load_media_with};
use reel_input::messages::{ContentPart, FRAME_TIMES_KEY, Message, MessageContent};
use reel_samples::conversations::RowConversations;
use reel_samples::feed::SampleSource;
use reel_samples::rows::PromptContent;
use reel_samples::sample::to_row_error;
use reel_support::client::{ChatRequest, image_part};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// How the frames of a video are written in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RequestVideoFormat {
    /// An `image_url` for each frame, as JPEG. Every server with vision reads it, but a model sees images, not a video.
    #[default]
    Images,
    /// One `video_url` with all frames, as JPEG: `data:video/jpeg;base64,FRAME,FRAME,…`, which vLLM and `reel serve`
    /// read. It has no times, so the server assumes a frame rate.
    Vllm,
    /// Qwen's `{"type": "video", "video": [FRAME, …], "fps": …}` with PNG frames, which `reel serve` reads: the same
    /// pixels and times as without a server. For Qwen3-VL the times are `frame_times`.
    Reel,
}

/// Makes the chat request of each row of a data file.
#[derive(Debug)]
pub struct ChatRequests {
    rows: Arc<RowConversations>,
    family: Family,
    video_form: RequestVideoFormat,
    max_tokens: u32,
    params: Map<String, Value>,
}

impl ChatRequests {
    /// Makes requests of rows for a server's model of `family`, with at most `max_tokens` tokens in an answer. `params`
    /// are fields of every request; each request also has the `seed` of its row.
    pub fn new(
        rows: Arc<RowConversations>,
        (family, video_form): (Family, RequestVideoFormat),
        max_tokens: u32,
        params: Map<String, Value>,
    ) -> Self {
        Self { rows, family, video_form, max_tokens, params }
    }

    /// The rows.
    pub fn rows(&self) -> &RowConversations {
        &self.rows
    }

    fn messages(&self, conversation: &Conversation, media: LoadedMedia, location: &str) -> Result<Vec<Value>> {
        let failed = |e: Error| to_row_error(location, e);
        let frame_pair = media.frames.processor.temporal_patch_size as f64;
        let times: Vec<(&'static str, Value)> = match self.family {
            Family::Qwen25Vl => {
                let rate = |&seconds: &f32| ("fps", json!(frame_pair / f64::from(seconds)));
                media.second_per_grid_ts.iter().map(rate).collect()
            }
            Family::Qwen3Vl => media.frames.video_times.iter().map(|times| (FRAME_TIMES_KEY, json!(times))).collect(),
        };
        let mut media = MediaInOrder {
            images: media.frames.images.into_iter(),
            videos: media.frames.videos.into_iter(),
            times: times.into_iter(),
            form: self.video_form,
        };
        conversation.messages.iter().map(|message| media.message(message).map_err(failed)).collect()
    }
}

impl SampleSource for ChatRequests {
    type Sample = ChatRequest;

    fn row_count(&self) -> usize {
        self.rows.data().len()
    }

    fn sample(&self, row: usize) -> Result<ChatRequest> {
        let location = self.rows.data().location(row);
        let PromptContent::Chat(messages) = self.rows.prompt_content(row)? else {
            let help = "write the prompt as a list of messages";
            return Err(Error::row(
                format!("{location}: prompt"),
                "is a plain text, but a chat server takes only messages",
                help,
            ));
        };
        let conversation = self.rows.parse_conversation(row, messages)?;
        // Frames are resized within the limits of the published processor. The server's model may have other limits.
        let has_media = conversation.media_parts().next().is_some();
        let _range = has_media.then(|| range(RangeName::Phase("media decoding")));
        let processor = ImageProcessorSettings::of_published(self.family);
        let media = load_media_with(processor, &conversation, self.rows.media_options())
            .map_err(|e| to_row_error(&location, e))?;
        let messages = self.messages(&conversation, media, &location)?;
        let mut params = self.params.clone();
        params.entry("seed").or_insert_with(|| json!(self.rows.seed(row)));
        Ok(ChatRequest { messages, max_tokens: self.max_tokens, params })
    }

    fn token_count(_: &ChatRequest) -> usize {
        0
    }

    fn location(&self, row: usize) -> (String, usize) {
        (self.rows.data().location(row), self.rows.data().line_number(row))
    }
}

/// The loaded images and videos of a conversation that are not in a message yet.
struct MediaInOrder {
    images: IntoIter<FrameBuf>,
    videos: IntoIter<FrameBuf>,
    /// The key and value that give the times of each video's frames: a rate, or the times.
    times: IntoIter<(&'static str, Value)>,
    form: RequestVideoFormat,
}

impl MediaInOrder {
    fn message(&mut self, message: &Message) -> Result<Value> {
        let content = match &message.content {
            MessageContent::Text(text) => json!(text),
            MessageContent::Parts(parts) => {
                let mut written = Vec::new();
                for part in parts {
                    match part {
                        ContentPart::Text(text) => written.push(json!({"type": "text", "text": text})),
                        ContentPart::Image(_) => {
                            if let Some(frame) = self.images.next() {
                                written.extend(self.image(&frame)?);
                            }
                        }
                        ContentPart::Video(_) => {
                            if let Some((frames, times)) = self.videos.next().zip(self.times.next()) {
                                written.extend(self.video(&frames, times)?);
                            }
                        }
                    }
                }
                Value::Array(written)
            }
        };
        let mut fields = Map::new();
        fields.insert("role".into(), json!(message.role));
        fields.insert("content".into(), content);
        fields.extend(message.others.clone());
        Ok(Value::Object(fields))
    }

    fn image(&self, frames: &FrameBuf) -> Result<Vec<Value>> {
        match self.form {
            RequestVideoFormat::Images | RequestVideoFormat::Vllm => jpeg_parts(frames),
            RequestVideoFormat::Reel => {
                let pngs = png_frames(frames)?;
                Ok(pngs.iter().map(|png| image_part("image/png", png)).collect())
            }
        }
    }

    fn video(&self, frames: &FrameBuf, (key, times): (&str, Value)) -> Result<Vec<Value>> {
        match self.form {
            RequestVideoFormat::Images => jpeg_parts(frames),
            RequestVideoFormat::Vllm => {
                let url = format!("data:video/jpeg;base64,{}", jpeg_frames(frames)?.join(","));
                Ok(vec![json!({"type": "video_url", "video_url": {"url": url}})])
            }
            RequestVideoFormat::Reel => {
                let uri = |png: String| format!("data:image/png;base64,{png}");
                let uris: Vec<String> = png_frames(frames)?.into_iter().map(uri).collect();
                Ok(vec![json!({"type": "video", "video": uris, key: times})])
            }
        }
    }
}

fn jpeg_parts(frames: &FrameBuf) -> Result<Vec<Value>> {
    Ok(jpeg_frames(frames)?.iter().map(|jpeg| image_part("image/jpeg", jpeg)).collect())
}

/// The frames as JPEG in base64.
fn jpeg_frames(frames: &FrameBuf) -> Result<Vec<String>> {
    let view = frames.view()?;
    view.iter().map(|frame| Ok(STANDARD.encode(encode_jpeg(frame, view.height_and_width())?))).collect()
}

/// The frames as PNG in base64.
fn png_frames(frames: &FrameBuf) -> Result<Vec<String>> {
    let view = frames.view()?;
    let (height, width) = view.height_and_width();
    view.iter().map(|frame| Ok(STANDARD.encode(encode_png(frame, height, width)?.bytes))).collect()
}
