//! Reads chat messages in the formats of OpenAI and Qwen, checks them, and converts both formats to a
//! [`Conversation`].
//!
//! `image_url` and `video_url` become `image` and `video`, as do `url` and `path`, the keys of Transformers. Relative
//! paths are resolved against the folder of the messages file (or `--media-root`). The keys of qwen-vl-utils (`fps`,
//! `max_pixels`, …) become [`MediaOverrides`]. Other keys of a message are kept for the chat template.
//! [`crate::prompt_fields`] reads the fields of a request that apply to all messages.

mod media_source;
pub(crate) mod part_keys;
mod row_keys;
mod tool_messages;

use std::path::Path;

use crate::error::{Error, Result};
use crate::media::profile::MediaOverrides;
use reel_support::diagnostic::input;
use serde_json::{Map, Value, json};

use self::part_keys::{IMAGE_SOURCES, VIDEO_SOURCES, media_value_and_overrides, read_frame_times};
use self::row_keys::refuse_media_keys;
use self::tool_messages::read_tool_calls;

pub use self::media_source::{MediaSource, image_data_uri, media_type_of_base64};
pub use self::part_keys::{FRAME_TIMES_KEY, IMAGE_KEYS, VIDEO_KEYS};
pub(crate) use self::tool_messages::{insert_text_arguments, is_function_name, mark_text_arguments};

/// A list of chat messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The path of the messages file, which error messages name.
    pub location: String,
    /// The messages in order; at least one.
    pub messages: Vec<Message>,
    /// The tools that the model may call, as JSON for the chat template.
    pub tools: Vec<Value>,
    /// Further variables of the chat template, by name.
    pub template_variables: Map<String, Value>,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the chat template supports.
    pub role: String,
    /// The text of the message, or its parts.
    pub content: MessageContent,
    /// All other keys of the message, unchanged except for the arguments of tool calls, which are objects, or texts
    /// that are not JSON.
    pub others: Map<String, Value>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum MessageContent {
    /// Plain text.
    Text(String),
    /// Texts, images and videos in order.
    Parts(Vec<ContentPart>),
}

/// One part of the content of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum ContentPart {
    /// A text.
    Text(String),
    /// An image.
    Image(ImagePart),
    /// A video.
    Video(VideoPart),
}

/// An image and how it is resized.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePart {
    /// The file, address or data URI of the image.
    pub source: MediaSource,
    /// The limits that the keys of this content part set, such as `max_pixels`.
    pub overrides: MediaOverrides,
    /// The location for error messages: indices of the message and of this part.
    pub location: String,
}

/// A video, and how it is sampled and resized.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoPart {
    /// The video file, the folder of its frames, or the images that are its frames.
    pub source: VideoSource,
    /// The limits that the keys of this content part set, such as `fps` or `max_pixels`.
    pub overrides: MediaOverrides,
    /// The times of the listed frames in seconds (`frame_times`), for the prompt of Qwen3-VL; `None` if they follow
    /// from a rate.
    pub frame_times: Option<Vec<f64>>,
    /// The location for error messages: indices of the message and of this part.
    pub location: String,
}

impl VideoPart {
    /// The maximum number of frames that the request sets for this video (`num_frames` of `media_io_kwargs`).
    /// `prompt_fields.rs` stores this setting as a frame rate of 0 with `min_frames` = `max_frames`.
    pub(crate) fn max_frame_count(&self) -> Option<i64> {
        let limits = &self.overrides;
        limits.max_frames.filter(|_| limits.fps == Some(0.0) && limits.min_frames == limits.max_frames)
    }

    /// Whether the video is a list of frames, or a folder of them.
    pub(crate) fn is_frame_list(&self) -> bool {
        match &self.source {
            VideoSource::Frames(_) => true,
            VideoSource::File(MediaSource::Path(path)) => path.is_dir(),
            VideoSource::File(_) => false,
        }
    }

    /// Checks the settings of a video that is a list of `frames` frames: all frames of a list are used, so no setting
    /// may ask for another number or a part of them.
    ///
    /// # Errors
    /// A setting asks for another number of frames, or for a part of the video.
    pub fn check_frame_count(&self, frames: usize) -> Result<()> {
        let (limits, count) = (&self.overrides, frames as i64);
        let at_most = self.max_frame_count();
        let least = limits.min_frames.filter(|_| at_most.is_none());
        let largest = if at_most.is_some() { "num_frames" } else { "max_frames" };
        let asked = [
            // Frames are used in pairs, so `nframes` may also be the next even number.
            ("nframes", limits.nframes.filter(|&n| n != count && n != count + count % 2).map(|n| n.to_string())),
            (largest, limits.max_frames.filter(|&n| n < count).map(|n| format!("at most {n}"))),
            ("min_frames", least.filter(|&n| n > count).map(|n| format!("at least {n}"))),
            ("video_start", limits.video_start.map(|at| format!("those from {at} s on"))),
            ("video_end", limits.video_end.map(|at| format!("those up to {at} s"))),
        ];
        match asked.into_iter().find_map(|(key, asked)| Some((key, asked?))) {
            None => Ok(()),
            Some((key, asked)) => {
                let what = format!("is a list of {frames} frames, all of which are used, but {key} asks for {asked}");
                Err(Error::input(&self.location, what, format!("list only the frames to use, and remove {key}")))
            }
        }
    }
}

/// The source of a video: a file, a folder of frames, or a list of images that are its frames.
#[derive(Debug, Clone, PartialEq)]
pub enum VideoSource {
    /// A video file, or a folder of images that are the frames ([`crate::frame_folder`]).
    File(MediaSource),
    /// A list of at least one image: the frames of the video.
    Frames(Vec<MediaSource>),
}

const SHAPE: &str = "give a list of messages, each {\"role\": …, \"content\": text or list of parts}";
/// The types of content parts that are texts. The last two types are from OpenAI's Responses API.
pub const TEXT_PART_TYPES: [&str; 3] = ["text", "input_text", "output_text"];

const PART: &str = "give parts like {\"type\": \"text\", \"text\": …}, {\"type\": \"image\", \"image\": path}, {\"type\": \"video\", \"video\": path}";

impl Conversation {
    /// Reads a messages file. Relative paths in it are resolved against `media_root`, or against the folder of the
    /// file.
    pub fn open(path: &Path, media_root: Option<&Path>) -> Result<Self> {
        let text = input::read_text(path, input::MAX_MESSAGES_BYTES).map_err(|e| Error::cannot_read(path, e))?;
        let location = path.display().to_string();
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::input(&location, format!("is not JSON ({e})"), "correct the JSON at that position"))?;
        let own = path.parent().unwrap_or(Path::new(""));
        Self::from_json(&location, &value, media_root.unwrap_or(own))
    }

    /// Reads messages from JSON. `location` names their source in error messages. Relative paths are resolved against
    /// `root`.
    pub fn from_json(location: &str, value: &Value, root: &Path) -> Result<Self> {
        let Some(list) = value.as_array() else {
            return Err(Error::input(location, "is not a list of messages", SHAPE));
        };
        if list.is_empty() {
            return Err(Error::input(location, "has no messages", SHAPE));
        }
        let messages = list
            .iter()
            .enumerate()
            .map(|(i, message)| read_message(&format!("{location}: message {i}"), message, root));
        Ok(Self {
            location: location.to_string(),
            messages: messages.collect::<Result<_>>()?,
            tools: Vec::new(),
            template_variables: Map::new(),
        })
    }

    /// A conversation of one user message with images, videos and a text, as `--video V --prompt TEXT` gives it.
    pub fn from_user_message(parts: Vec<ContentPart>, text: &str) -> Self {
        let parts = parts.into_iter().chain([ContentPart::Text(text.to_string())]).collect();
        let message = Message { role: "user".to_string(), content: MessageContent::Parts(parts), others: Map::new() };
        Self {
            location: "--prompt".to_string(),
            messages: vec![message],
            tools: Vec::new(),
            template_variables: Map::new(),
        }
    }

    /// Whether the last message is from the assistant. If so, no generation prompt is added.
    pub fn ends_with_assistant(&self) -> bool {
        self.messages.last().is_some_and(|message| message.role == "assistant")
    }

    /// All images and videos, in order.
    pub fn media_parts(&self) -> impl Iterator<Item = &ContentPart> {
        self.messages.iter().flat_map(Message::content_parts).filter(|part| !matches!(part, ContentPart::Text(_)))
    }

    /// The location of the first message, or part of a message, whose text contains `words`.
    pub fn location_of_text(&self, words: &str) -> Option<String> {
        self.messages.iter().enumerate().find_map(|(i, message)| {
            let location = format!("{}: message {i}", self.location);
            if matches!(&message.content, MessageContent::Text(text) if text.contains(words)) {
                return Some(location);
            }
            let is_found = |part: &ContentPart| matches!(part, ContentPart::Text(text) if text.contains(words));
            let index = message.content_parts().iter().position(is_found)?;
            Some(format!("{location}, part {index}"))
        })
    }

    /// The messages as JSON for the chat template.
    pub fn to_template_value(&self) -> Value {
        self.messages.iter().map(Message::to_template_value).collect()
    }
}

impl Message {
    /// The message's content parts; empty if its content is plain text.
    pub fn content_parts(&self) -> &[ContentPart] {
        match &self.content {
            MessageContent::Text(_) => &[],
            MessageContent::Parts(parts) => parts,
        }
    }

    fn to_template_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("role".to_string(), json!(self.role));
        let content = match &self.content {
            MessageContent::Text(text) => json!(text),
            MessageContent::Parts(parts) => parts.iter().map(ContentPart::to_template_value).collect(),
        };
        map.insert("content".to_string(), content);
        map.extend(self.others.clone());
        Value::Object(map)
    }
}

impl ContentPart {
    fn to_template_value(&self) -> Value {
        match self {
            ContentPart::Text(text) => json!({"type": "text", "text": text}),
            ContentPart::Image(image) => json!({"type": "image", "image": image.source.path_or_address()}),
            ContentPart::Video(video) => match &video.source {
                VideoSource::File(source) => json!({"type": "video", "video": source.path_or_address()}),
                VideoSource::Frames(frames) => {
                    json!({"type": "video", "video": frames.iter().map(MediaSource::path_or_address).collect::<Vec<_>>()})
                }
            },
        }
    }
}

fn read_message(location: &str, message: &Value, root: &Path) -> Result<Message> {
    let Some(map) = message.as_object() else {
        return Err(Error::input(location, "is not an object", SHAPE));
    };
    let Some(role) = map.get("role").and_then(Value::as_str) else {
        return Err(Error::input(location, "has no `role`", SHAPE));
    };
    refuse_media_keys(location, map)?;
    let content = match map.get("content") {
        // As in OpenAI's API, a message of the assistant may have no text: it has tool calls, a refusal, or only
        // reasoning.
        None | Some(Value::Null) if role == "assistant" => MessageContent::Text(String::new()),
        Some(Value::String(text)) => MessageContent::Text(text.clone()),
        Some(Value::Array(parts)) => {
            let parts =
                parts.iter().enumerate().map(|(i, part)| read_part(&format!("{location}, part {i}"), part, root));
            MessageContent::Parts(parts.collect::<Result<_>>()?)
        }
        Some(_) => {
            return Err(Error::input(location, "has a `content` that is neither a text nor a list of parts", SHAPE));
        }
        None => return Err(Error::input(location, "has no `content`", SHAPE)),
    };
    let others = map.iter().filter(|(key, _)| *key != "role" && *key != "content").map(|(k, v)| (k.clone(), v.clone()));
    let others = read_tool_calls(location, role, others.collect())?;
    Ok(Message { role: role.to_string(), content, others })
}

#[derive(Clone, Copy)]
pub(crate) enum PartKind {
    Text,
    Image,
    Video,
}

fn read_part(location: &str, part: &Value, root: &Path) -> Result<ContentPart> {
    let Some(map) = part.as_object() else {
        return Err(Error::input(location, "is not an object", PART));
    };
    match part_kind(location, map)? {
        PartKind::Text => match map.get("text") {
            Some(Value::String(text)) => Ok(ContentPart::Text(text.clone())),
            _ => Err(Error::input(location, "is a text part without a `text`", PART)),
        },
        PartKind::Image => {
            let (address, limits) = media_value_and_overrides(location, map, IMAGE_SOURCES)?;
            let source = match address {
                Some(Value::String(text)) if !text.is_empty() => MediaSource::parse(text, root),
                Some(_) => {
                    return Err(Error::input(location, "has an `image` that is not a path or address", PART));
                }
                None => return Err(Error::input(location, "is an image part without an `image`", PART)),
            };
            Ok(ContentPart::Image(ImagePart { source, overrides: limits, location: location.to_string() }))
        }
        PartKind::Video => {
            let (address, limits) = media_value_and_overrides(location, map, VIDEO_SOURCES)?;
            let source = video_source(location, address, root)?;
            let frame_times = read_frame_times(location, map)?;
            let location = location.to_string();
            Ok(ContentPart::Video(VideoPart { source, overrides: limits, frame_times, location }))
        }
    }
}

/// The kind of a content part: its `type` or, if it has none, the kind that its keys imply. A key whose value is null
/// counts as absent, because data in table formats has a null for each missing key.
///
/// # Errors
/// The type is unknown, or the part also has an image or video of another kind. (Qwen's chat template and qwen-vl-utils
/// use the keys and ignore a `type` of `text`; here a text part with an image is refused, because the text or the image
/// would be lost.)
pub(crate) fn part_kind(location: &str, map: &Map<String, Value>) -> Result<PartKind> {
    let has = |key: &&str| map.get(*key).is_some_and(|value| !value.is_null());
    let (image, video) = (["image", "image_url"].into_iter().find(has), ["video", "video_url"].into_iter().find(has));
    let kind = match map.get("type").and_then(Value::as_str) {
        Some(kind) if TEXT_PART_TYPES.contains(&kind) => PartKind::Text,
        Some("image" | "image_url" | "input_image") => PartKind::Image,
        Some("video" | "video_url") => PartKind::Video,
        Some(other) => {
            let what = format!("has the type `{other}`, which this model does not support");
            return Err(Error::input(location, what, PART));
        }
        None if image.is_some() => PartKind::Image,
        None if video.is_some() => PartKind::Video,
        None if has(&"text") => PartKind::Text,
        None => return Err(Error::input(location, "has no `type`", PART)),
    };
    let (name, unused) = match kind {
        PartKind::Text => ("a text part", image.or(video)),
        // A part without an image or video of its kind is refused later, when the file is read.
        PartKind::Image => ("an image part", video.filter(|_| IMAGE_SOURCES.iter().any(has))),
        PartKind::Video => ("a video part", image.filter(|_| VIDEO_SOURCES.iter().any(has))),
    };
    match unused {
        Some(key) => {
            let what = format!("is {name} that also has the key `{key}`");
            Err(Error::input(location, what, "give each text, image and video a part of its own"))
        }
        None => Ok(kind),
    }
}

fn video_source(location: &str, address: Option<&Value>, root: &Path) -> Result<VideoSource> {
    match address {
        Some(Value::String(text)) if !text.is_empty() => Ok(match frames_of_uri(text) {
            Some(frames) => VideoSource::Frames(frames),
            None => VideoSource::File(MediaSource::parse(text, root)),
        }),
        Some(Value::Array(frames)) if !frames.is_empty() => {
            let frame = |value: &Value| match value.as_str() {
                Some(text) if !text.is_empty() => Ok(MediaSource::parse(text, root)),
                _ => Err(Error::input(location, "has a list of frames in which an entry is not a path", PART)),
            };
            Ok(VideoSource::Frames(frames.iter().map(frame).collect::<Result<_>>()?))
        }
        Some(Value::Array(_)) => Err(Error::input(location, "has an empty list of frames", "give at least one image")),
        Some(_) => {
            Err(Error::input(location, "has a `video` that is not a path, an address or a list of images", PART))
        }
        None => Err(Error::input(location, "is a video part without a `video`", PART)),
    }
}

/// Splits `data:video/jpeg;base64,FRAME,FRAME,…`, vLLM's form of a list of JPEG images, into one URI per frame. `None`
/// for another address.
fn frames_of_uri(text: &str) -> Option<Vec<MediaSource>> {
    let (head, frames) = text.split_once(',')?;
    let head = head.to_ascii_lowercase();
    let kind = head.strip_prefix("data:video/jpeg")?.strip_suffix(";base64")?;
    let is_list = kind.is_empty() || kind.starts_with(';');
    let frame = |frame: &str| MediaSource::Data(format!("data:image/jpeg;base64,{frame}"));
    is_list.then(|| frames.split(',').map(frame).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Conversation> {
        Conversation::from_json("m.json", &value, Path::new("root"))
    }

    #[test]
    fn openai_and_qwen_messages_parse_to_the_same_conversation() {
        let qwen = json!([{"role": "user", "content": [
            {"type": "image", "image": "a.png", "min_pixels": 3136}, {"type": "video", "video": "file:///v.mp4", "fps": 1.5},
            {"type": "video", "video": ["x.png", "https://h/y.png"]}, {"type": "text", "text": "?"},
            {"type": "text", "text": "?"}]}]);
        let openai = json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}, "min_pixels": 3136.0},
            {"video_url": {"url": "file:///v.mp4"}, "fps": 1.5, "nframes": null},
            {"type": "video_url", "video_url": ["x.png", "https://h/y.png"]},
            {"type": "text", "text": "?", "image": null, "video": null}, {"text": "?"}]}]);
        let (qwen, openai) = (read(qwen).unwrap(), read(openai).unwrap());
        assert_eq!(qwen, openai);
        assert_eq!(
            qwen.to_template_value(),
            json!([{"role": "user", "content": [
            {"type": "image", "image": "root/a.png"}, {"type": "video", "video": "/v.mp4"},
            {"type": "video", "video": ["root/x.png", "https://h/y.png"]}, {"type": "text", "text": "?"},
            {"type": "text", "text": "?"}]}])
        );
        let parts: Vec<&ContentPart> = qwen.media_parts().collect();
        assert_eq!(parts.len(), 3);
        let ContentPart::Image(image) = parts[0] else { panic!("expected an image as the first part") };
        assert_eq!((image.overrides.min_pixels, image.overrides.fps), (Some(3136), None));
        let ContentPart::Video(video) = parts[1] else { panic!("expected a video as the second part") };
        assert_eq!(video.overrides, MediaOverrides { fps: Some(1.5), ..MediaOverrides::default() });
    }

    #[test]
    fn frames_in_one_uri_are_a_list_of_images() {
        let sources = |url: &str, keys: Value| {
            let mut address = json!({"url": url});
            keys.as_object().unwrap().iter().for_each(|(key, value)| address[key] = value.clone());
            let messages = json!([{"role": "user", "content": [{"type": "video_url", "video_url": address}]}]);
            let read = read(messages).unwrap();
            let ContentPart::Video(video) = read.media_parts().next().unwrap() else { panic!("no video") };
            (video.source.clone(), video.overrides)
        };
        let frame = |text: &str| MediaSource::Data(format!("data:image/jpeg;base64,{text}"));
        for head in ["data:video/jpeg;base64", "DATA:Video/JPEG;charset=x;base64"] {
            let (source, limits) = sources(&format!("{head},/9j/,iVBO,"), json!({"fps": 3, "nframes": null}));
            assert_eq!(source, VideoSource::Frames(vec![frame("/9j/"), frame("iVBO"), frame("")]));
            assert_eq!(limits, MediaOverrides { fps: Some(3.0), ..MediaOverrides::default() });
        }
        for whole in ["data:video/mp4;base64,AA,BB", "data:video/jpeg,AA,BB", "data:video/jpegx;base64,AA"] {
            assert_eq!(sources(whole, json!({})).0, VideoSource::File(MediaSource::Data(whole.to_string())));
        }
    }

    #[test]
    fn other_keys_are_passed_to_the_template() {
        let turns = json!([{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": ""}]);
        let read = read(turns.clone()).unwrap();
        assert_eq!(read.to_template_value(), turns);
        assert!(read.ends_with_assistant());
    }

    #[test]
    fn messages_of_the_assistant_may_have_no_text() {
        let with_text = |content: Value, others: &Value| {
            let mut message = json!({"role": "assistant"});
            others.as_object().unwrap().iter().for_each(|(key, value)| message[key] = value.clone());
            if content != "absent" {
                message["content"] = content;
            }
            read(json!([{"role": "user", "content": "a"}, message])).unwrap()
        };
        for others in [json!({}), json!({"reasoning": "why", "reasoning_content": "why"}), json!({"refusal": "no"})] {
            let empty = with_text(json!(""), &others);
            assert_eq!([with_text(Value::Null, &others), with_text(json!("absent"), &others)], [empty.clone(), empty]);
        }
    }

    #[test]
    fn errors_name_message_part_and_key() {
        let user = |part: Value| json!([{"role": "user", "content": [part]}]);
        for (value, expected) in [
            (json!({"role": "user"}), "m.json: is not a list"),
            (json!([]), "m.json: has no messages"),
            (json!(["hi"]), "m.json: message 0: is not an object"),
            (json!([{"content": "x"}]), "message 0: has no `role`"),
            (json!([{"role": "user"}]), "message 0: has no `content`"),
            (json!([{"role": "user", "content": null}]), "message 0: has a `content`"),
            (json!([{"role": "user", "content": 3}]), "message 0: has a `content`"),
            (user(json!("x")), "message 0, part 0: is not an object"),
            (user(json!({})), "part 0: has no `type`"),
            (user(json!({"type": "audio", "audio": "a.wav"})), "part 0: has the type `audio`"),
            (user(json!({"type": "text"})), "part 0: is a text part without"),
            (user(json!({"type": "text", "text": 4})), "part 0: is a text part without"),
            (
                user(json!({"type": "text", "text": "a", "image": "x.png"})),
                "part 0: is a text part that also has the key `image`; give each",
            ),
            (user(json!({"type": "text", "text": "a", "video_url": {"url": "v"}})), "has the key `video_url`"),
            (
                user(json!({"type": "video", "video": "v", "image": "x"})),
                "is a video part that also has the key `image`",
            ),
            (user(json!({"image": "x", "video": "v"})), "is an image part that also has the key `video`"),
            (user(json!({"type": "image", "video": "v"})), "part 0: is an image part without"),
            (user(json!({"type": "image"})), "part 0: is an image part without"),
            (user(json!({"type": "image", "image": 3})), "part 0: has an `image`"),
            (user(json!({"type": "image", "image": ""})), "part 0: has an `image`"),
            (
                user(json!({"type": "image_url", "image_url": {"href": "x"}})),
                "part 0: image_url: href: is an unknown key",
            ),
            (user(json!({"type": "image_url", "image_url": {}})), "part 0: has an `image`"),
            (
                user(json!({"type": "image_url", "image_url": {"url": "x", "fps": 2}})),
                "image_url: fps: is an unknown key",
            ),
            (user(json!({"type": "image_url", "image_url": {"url": "x", "detail": "max"}})), "detail: is \"max\""),
            (
                user(json!({"type": "video_url", "video_url": {"url": "x", "fps": 2}, "fps": 1})),
                "part 0: video_url: fps: is 2 here, but 1 in the part itself; give it in one place",
            ),
            (user(json!({"type": "image", "image": "x", "image_url": "y"})), "has both `image` and `image_url`"),
            (user(json!({"type": "video"})), "part 0: is a video part without"),
            (user(json!({"type": "video", "video": []})), "part 0: has an empty list"),
            (user(json!({"type": "video", "video": ["a.png", 3]})), "part 0: has a list of frames"),
            (user(json!({"type": "video", "video": {"a": 1}})), "part 0: video: a: is an unknown key"),
            (user(json!({"type": "video", "video": 3})), "part 0: has a `video`"),
            (user(json!({"type": "video", "video": "v", "fps": "two"})), "part 0: fps: is not a number"),
            (user(json!({"type": "video", "video": "v", "nframes": 2.5})), "part 0: nframes: is 2.5"),
            (user(json!({"type": "image", "image": "v", "min_pixels": -4})), "part 0: min_pixels: is -4"),
        ] {
            let error = read(value.clone()).expect_err(&value.to_string()).to_string();
            assert!(
                error.starts_with("m.json: ") && error.contains(expected) && !error.contains('\n'),
                "{value}: {error}"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.json");
        std::fs::write(&path, "[{").unwrap();
        assert!(Conversation::open(&path, None).unwrap_err().to_string().contains("is not JSON"));
        assert!(
            Conversation::open(&folder.path().join("none"), None).unwrap_err().to_string().contains("no such file")
        );
    }
}
