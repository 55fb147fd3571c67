//! The fields of a chat request that change its prompt, beside the messages and the tools: `chat_template_kwargs`, and
//! what vLLM's clients send for all images and videos of a request.
//!
//! ```text
//! "mm_processor_kwargs": {"fps": 1, "max_pixels": 200704}   each video: fps 1; each image and video: max_pixels 200704
//! "media_io_kwargs": {"video": {"num_frames": 16}}          each video: 16 evenly spaced frames, or all if it has fewer
//! ```
//! The values become limits of each image and video, as if its message part had the keys of qwen-vl-utils. A value that
//! contradicts the part's value or the other field's value is refused, and so are unknown keys.

use std::path::Path;

use crate::error::{Error, Result};
use crate::media::profile::{LimitConflict, MediaOverrides};
use serde_json::{Map, Value};

use crate::messages::part_keys::{UnknownTextKeys, VIDEO_KEYS, read_media_overrides, refuse_unknown_part_keys};
use crate::messages::{ContentPart, Conversation, MessageContent, VideoPart, VideoSource};

const PROCESSOR: &str = "mm_processor_kwargs";
const MEDIA_IO: &str = "media_io_kwargs";
const TEMPLATE: &str = "chat_template_kwargs";
const ONE_PLACE: &str = "give it in one place";

/// The fields of a request that change its prompt, beside the messages and the tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptFields {
    /// The settings from the fields `mm_processor_kwargs` and `media_io_kwargs`.
    media: MediaFields,
    /// `chat_template_kwargs`: further variables of the chat template.
    template_variables: Map<String, Value>,
}

/// The settings of a request for all of its images and videos.
#[derive(Clone, Debug, Default, PartialEq)]
struct MediaFields {
    /// The limits of each image and video.
    limits: MediaOverrides,
    /// The frame rate of each video, in order, if `fps` is a list, as qwen-vl-utils returns it.
    rates: Option<Vec<f64>>,
    /// `do_sample_frames`: true if frames of a video are selected, false if all frames are used.
    selects_frames: Option<bool>,
    /// The number of frames to read from each video: the key `num_frames` of `media_io_kwargs`.
    num_frames: Option<NumFrames>,
    /// Whether `media_io_kwargs` has the key `fps`.
    reads_at_a_rate: bool,
}

/// The number of frames of a video to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumFrames {
    /// At most this number of frames.
    AtMost(i64),
    /// All frames that `fps` selects. vLLM writes this as -1.
    All,
}

fn wrong(location: &str, path: &str, what: impl Into<String>, help: impl Into<String>) -> Error {
    Error::input(format!("{location}: {path}"), what, help)
}

impl PromptFields {
    /// The names of the fields that [`PromptFields::from_body`] reads.
    pub const FIELD_NAMES: [&'static str; 3] = [PROCESSOR, MEDIA_IO, TEMPLATE];

    /// Reads the fields of a request. A field or a key that is null counts as absent. `location` names the request in
    /// errors.
    ///
    /// # Errors
    /// A field has the wrong form or an unknown key, or two values contradict each other.
    pub fn from_body(location: &str, body: &Map<String, Value>) -> Result<Self> {
        let field = |name: &'static str| match body.get(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(without_nulls(map)),
            Some(other) => Err(wrong(location, name, format!("is {other}"), "give an object, or remove it")),
        };
        Ok(Self {
            media: MediaFields::read(location, &field(PROCESSOR)?, &field(MEDIA_IO)?)?,
            template_variables: template_variables(location, field(TEMPLATE)?)?,
        })
    }
}

impl Conversation {
    /// Reads the messages of a request, with the tools that the model may call and the fields that apply to all
    /// messages. `location` names the request in errors; relative paths are resolved against `root`.
    ///
    /// # Errors
    /// A message is malformed, a message part has an unknown key, or a field contradicts a part.
    pub fn from_request(
        location: &str,
        messages: &Value,
        root: &Path,
        tools: Vec<Value>,
        fields: PromptFields,
    ) -> Result<Self> {
        let mut conversation = Self::from_json(location, messages, root)?.with_tools(tools);
        refuse_unknown_part_keys(location, messages, UnknownTextKeys::Accepted)?;
        fields.media.apply(&mut conversation)?;
        Ok(Self { template_variables: fields.template_variables, ..conversation })
    }
}

fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Checks the variables of the chat template that a request sets. [`crate::chat`] later refuses variables that the
/// template does not use.
fn template_variables(location: &str, variables: Map<String, Value>) -> Result<Map<String, Value>> {
    const FIELDS: [&str; 4] = ["messages", "tools", "add_generation_prompt", "continue_final_message"];
    const OTHERS: [&str; 3] = ["documents", "chat_template", "tokenize"];
    for name in variables.keys() {
        let path = format!("{TEMPLATE}.{name}");
        if FIELDS.contains(&name.as_str()) {
            let help = format!("give the field `{name}` of the request instead");
            return Err(wrong(location, &path, "is set by the request itself", help));
        }
        if OTHERS.contains(&name.as_str()) {
            return Err(wrong(location, &path, "is not a variable that a request can set", "remove it"));
        }
    }
    Ok(variables)
}

impl MediaFields {
    fn read(location: &str, processor: &Map<String, Value>, media_io: &Map<String, Value>) -> Result<Self> {
        let mut fields = Self::default();
        fields.read_processor(location, processor)?;
        fields.read_media_io(location, media_io)?;
        Ok(fields)
    }

    /// Reads `mm_processor_kwargs`: the arguments of transformers' processor, and the keys of qwen-vl-utils.
    fn read_processor(&mut self, location: &str, map: &Map<String, Value>) -> Result<()> {
        let path = |key: &str| format!("{PROCESSOR}.{key}");
        let mut limits = Map::new();
        for (key, value) in map {
            match key.as_str() {
                "fps" if value.is_array() => {
                    let rate = |value: &Value| value.as_f64().filter(|fps| *fps > 0.0);
                    let rates = value.as_array().into_iter().flatten().map(rate).collect::<Option<Vec<f64>>>();
                    let help = "give a number above 0, or one for each video";
                    let wrong_rates = || wrong(location, &path(key), format!("is {value}"), help);
                    self.rates = Some(rates.filter(|rates| !rates.is_empty()).ok_or_else(wrong_rates)?);
                }
                "do_sample_frames" => {
                    let is_bool = || wrong(location, &path(key), format!("is {value}"), "give true or false");
                    self.selects_frames = Some(value.as_bool().ok_or_else(is_bool)?);
                }
                "num_frames" => put(&mut limits, location, &path(key), "nframes", value)?,
                "size" => {
                    let Some(size) = value.as_object() else {
                        let help = "give {\"shortest_edge\": fewest pixels, \"longest_edge\": most pixels}";
                        return Err(wrong(location, &path(key), format!("is {value}"), help));
                    };
                    for (edge, value) in size {
                        let limit = match edge.as_str() {
                            "shortest_edge" => "min_pixels",
                            "longest_edge" => "max_pixels",
                            _ => return Err(not_read(location, &path(&format!("size.{edge}")))),
                        };
                        put(&mut limits, location, &path(&format!("size.{edge}")), limit, value)?;
                    }
                }
                // These keys turn on steps that the image processor always does.
                "do_resize" | "do_rescale" | "do_normalize" | "do_convert_rgb" if *value == Value::Bool(true) => {}
                key if VIDEO_KEYS.contains(&key) => put(&mut limits, location, &path(key), key, value)?,
                _ => return Err(not_read(location, &path(key))),
            }
        }
        self.limits = read_media_overrides(&format!("{location}: {PROCESSOR}"), &limits)?;
        refuse_wrong_rate(location, &path("fps"), self.limits.fps)
    }

    /// Reads `media_io_kwargs`, vLLM's settings for reading media, by kind (`image`, `video`).
    fn read_media_io(&mut self, location: &str, map: &Map<String, Value>) -> Result<()> {
        for (kind, settings) in map {
            let path = |key: &str| format!("{MEDIA_IO}.{kind}.{key}");
            let Some(settings) = settings.as_object() else {
                return Err(wrong(location, &format!("{MEDIA_IO}.{kind}"), format!("is {settings}"), "give an object"));
            };
            let settings = without_nulls(settings);
            for (key, value) in &settings {
                match (kind.as_str(), key.as_str()) {
                    ("video", "num_frames") => {
                        self.num_frames = Some(match value.as_i64() {
                            Some(-1) => NumFrames::All,
                            Some(n) if n > 0 => NumFrames::AtMost(n),
                            _ => {
                                let help = "give a number of frames, or -1";
                                return Err(wrong(location, &path(key), format!("is {value}"), help));
                            }
                        });
                    }
                    ("video", "fps") => {
                        let limits = read_media_overrides(&format!("{location}: {MEDIA_IO}.video"), &settings)?;
                        refuse_wrong_rate(location, &path(key), limits.fps)?;
                        let rate = MediaOverrides { fps: limits.fps, ..MediaOverrides::default() };
                        let differs = |e: LimitConflict| {
                            let what = format!("is {} here, but {} in {PROCESSOR}", e.other, e.own);
                            wrong(location, &path(key), what, ONE_PLACE)
                        };
                        self.limits = self.limits.union(rate).map_err(differs)?;
                        self.reads_at_a_rate = true;
                    }
                    // Images are always converted to RGB.
                    ("image", "image_mode") if value == "RGB" => {}
                    _ => return Err(not_read(location, &path(key))),
                }
            }
        }
        Ok(())
    }

    /// Adds the limits of the request to each image and video of a conversation.
    fn apply(&self, conversation: &mut Conversation) -> Result<()> {
        let location = conversation.location.clone();
        let is_video = |part: &&ContentPart| matches!(part, ContentPart::Video(_));
        let videos = conversation.media_parts().filter(is_video).count();
        if let Some(rates) = self.rates.as_ref().filter(|rates| rates.len() != videos) {
            let what = format!("has {} numbers for {videos} video(s)", rates.len());
            return Err(wrong(&location, &format!("{PROCESSOR}.fps"), what, "give one for each video"));
        }
        let mut rates = self.rates.iter().flatten();
        for message in &mut conversation.messages {
            let MessageContent::Parts(parts) = &mut message.content else { continue };
            for part in parts {
                match part {
                    ContentPart::Text(_) => {}
                    ContentPart::Image(image) => {
                        let MediaOverrides { min_pixels, max_pixels, resized_height, resized_width, .. } = self.limits;
                        let none = MediaOverrides::default();
                        let limits = MediaOverrides { min_pixels, max_pixels, resized_height, resized_width, ..none };
                        image.overrides = both(&image.location, image.overrides, limits)?;
                    }
                    ContentPart::Video(video) => self.apply_to_video(video, rates.next().copied())?,
                }
            }
        }
        Ok(())
    }

    fn apply_to_video(&self, video: &mut VideoPart, rate: Option<f64>) -> Result<()> {
        let location = &video.location;
        let none = MediaOverrides::default();
        let mut limits = both(location, video.overrides, self.limits)?;
        limits = both(location, limits, MediaOverrides { fps: rate, ..none })?;
        match &video.source {
            VideoSource::Frames(frames) => self.check_list(location, frames.len())?,
            VideoSource::File(_) => {
                self.check_file(location, &limits)?;
                if let Some(NumFrames::AtMost(n)) = self.num_frames {
                    let asked = match limits.nframes {
                        // A rate of 0 selects `min_frames` frames, as in qwen-vl-utils.
                        None => {
                            let (fps, min_frames) = limits.fps.is_none().then_some((0.0, n)).unzip();
                            MediaOverrides { fps, min_frames, max_frames: Some(n), ..none }
                        }
                        Some(_) => MediaOverrides { nframes: Some(n), ..none },
                    };
                    limits = both(location, limits, asked)?;
                }
            }
        }
        video.overrides = limits;
        match &video.source {
            VideoSource::Frames(frames) => video.check_frame_count(frames.len()),
            VideoSource::File(_) => Ok(()),
        }
    }

    /// Checks the request's settings for a video that is a list of frames: all frames of a list are used.
    fn check_list(&self, location: &str, frames: usize) -> Result<()> {
        if self.selects_frames == Some(true) {
            let what = format!("is a list of frames, all of which are used, but {PROCESSOR} has do_sample_frames true");
            return Err(Error::input(location, what, "set it to false, or send a video file"));
        }
        match self.num_frames {
            Some(NumFrames::AtMost(n)) if n < frames as i64 => {
                let what = format!("is a list of {frames} frames, all of which are used, but the request asks for {n}");
                Err(Error::input(location, what, "send that many frames"))
            }
            Some(NumFrames::AtMost(_) | NumFrames::All) | None => Ok(()),
        }
    }

    /// Checks that the limits and the request determine which frames of a video file are read.
    fn check_file(&self, location: &str, limits: &MediaOverrides) -> Result<()> {
        if limits.nframes.is_some() && limits.fps.is_some() {
            let what = "cannot be given together with fps";
            return Err(wrong(location, "nframes", what, "give only one of the two"));
        }
        if self.selects_frames == Some(false) && self.num_frames.is_none() && !self.reads_at_a_rate {
            let what = format!(
                "is a video file, but {PROCESSOR} has do_sample_frames false, so it is not clear which frames to read"
            );
            let help = format!("send the video's frames as images, or set num_frames or fps in {MEDIA_IO}.video");
            return Err(Error::input(location, what, help));
        }
        if self.num_frames == Some(NumFrames::All) && limits.fps.is_none() && self.selects_frames != Some(true) {
            let what = "asks for every frame of the video (num_frames -1)";
            return Err(wrong(location, MEDIA_IO, what, "give fps too, or a number of frames"));
        }
        if self.num_frames == Some(NumFrames::AtMost(1)) {
            let what = "asks for 1 frame (num_frames), but the frames of a video file are used in pairs";
            return Err(wrong(location, MEDIA_IO, what, "ask for 2 frames or more, or send the frame as an image"));
        }
        Ok(())
    }
}

/// Sets the limit `limit` to the value of the key at `path`. Refuses the value if another key has set the limit to a
/// different value.
fn put(limits: &mut Map<String, Value>, location: &str, path: &str, limit: &str, value: &Value) -> Result<()> {
    match limits.get(limit).filter(|other| other.as_f64() != value.as_f64()) {
        Some(other) => {
            let what = format!("is {value}, but another key sets the same limit to {other}");
            Err(wrong(location, path, what, ONE_PLACE))
        }
        None => {
            limits.insert(limit.to_string(), value.clone());
            Ok(())
        }
    }
}

/// Combines the limits of a part with the limits of the request; refuses contradictions.
fn both(location: &str, own: MediaOverrides, request: MediaOverrides) -> Result<MediaOverrides> {
    own.union(request).map_err(|e| {
        let what = format!("is {} here, but {} for all media of the request ({PROCESSOR}, {MEDIA_IO})", e.own, e.other);
        wrong(location, e.key, what, ONE_PLACE)
    })
}

fn not_read(location: &str, path: &str) -> Error {
    let help = format!(
        "remove it; {PROCESSOR} may have {}, num_frames, size and do_sample_frames; \
         {MEDIA_IO}.video may have num_frames and fps",
        VIDEO_KEYS.join(", ")
    );
    wrong(location, path, "is not a supported setting, or its value is not supported", help)
}

fn refuse_wrong_rate(location: &str, path: &str, fps: Option<f64>) -> Result<()> {
    match fps.filter(|fps| *fps <= 0.0) {
        Some(fps) => Err(wrong(location, path, format!("is {fps}"), "give a number above 0")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILE: &str = "v.mp4";

    /// The limits of each image and video in a request with these fields and one user message with these parts.
    fn limits(fields: Value, parts: Value) -> std::result::Result<Vec<MediaOverrides>, String> {
        let messages = json!([{"role": "user", "content": parts}]);
        let read = PromptFields::from_body("r", fields.as_object().unwrap())
            .and_then(|fields| Conversation::from_request("r", &messages, Path::new(""), Vec::new(), fields));
        let of = |part: &ContentPart| match part {
            ContentPart::Text(_) => panic!("a text is no medium"),
            ContentPart::Image(image) => image.overrides,
            ContentPart::Video(video) => video.overrides,
        };
        read.map(|read| read.media_parts().map(of).collect()).map_err(|e| e.to_string())
    }

    fn video(keys: Value) -> Value {
        let mut part = json!({"type": "video_url", "video_url": {"url": FILE}});
        keys.as_object().unwrap().iter().for_each(|(key, value)| part[key] = value.clone());
        part
    }

    fn overrides(keys: Value) -> MediaOverrides {
        serde_json::from_value(keys).unwrap()
    }

    #[test]
    fn fields_for_all_media_become_limits_of_each() {
        let image = json!({"type": "image", "image": "a.png"});
        let list = json!({"type": "video", "video": ["a.png", "b.png", "c.png", "d.png"]});
        let parts = |video: Value| json!([image, video, {"type": "text", "text": "?"}]);
        let (none, file) = (json!({}), || video(json!({})));
        for (fields, part, of_image, of_video) in [
            (json!({}), file(), none.clone(), none.clone()),
            (json!({PROCESSOR: null, MEDIA_IO: {"video": {"fps": null}}}), file(), none.clone(), none.clone()),
            (
                json!({PROCESSOR: {"fps": 1, "min_pixels": 3136, "max_pixels": 50176, "do_sample_frames": true}}),
                file(),
                json!({"min_pixels": 3136, "max_pixels": 50176}),
                json!({"fps": 1.0, "min_pixels": 3136, "max_pixels": 50176}),
            ),
            (
                json!({PROCESSOR: {"size": {"shortest_edge": 3136, "longest_edge": 50176}, "do_resize": true}}),
                file(),
                json!({"min_pixels": 3136, "max_pixels": 50176}),
                json!({"min_pixels": 3136, "max_pixels": 50176}),
            ),
            (json!({PROCESSOR: {"num_frames": 8}}), file(), none.clone(), json!({"nframes": 8})),
            (json!({PROCESSOR: {"fps": [0.5]}}), file(), none.clone(), json!({"fps": 0.5})),
            (
                json!({PROCESSOR: {"fps": [0.5], "do_sample_frames": false}}),
                list.clone(),
                none.clone(),
                json!({"fps": 0.5}),
            ),
            (
                json!({MEDIA_IO: {"video": {"fps": 3}, "image": {"image_mode": "RGB"}}}),
                file(),
                none.clone(),
                json!({"fps": 3.0}),
            ),
            (
                json!({MEDIA_IO: {"video": {"num_frames": 16}}}),
                file(),
                none.clone(),
                json!({"fps": 0.0, "min_frames": 16, "max_frames": 16}),
            ),
            (
                json!({MEDIA_IO: {"video": {"num_frames": 16}}, PROCESSOR: {"fps": 1, "do_sample_frames": false}}),
                file(),
                none.clone(),
                json!({"fps": 1.0, "max_frames": 16}),
            ),
            (json!({MEDIA_IO: {"video": {"num_frames": -1, "fps": 2}}}), file(), none.clone(), json!({"fps": 2.0})),
            (json!({MEDIA_IO: {"video": {"num_frames": 16}}}), list.clone(), none.clone(), none.clone()),
            (
                json!({MEDIA_IO: {"video": {"num_frames": 16}}}),
                json!({"type": "video", "video": ["a.png", "b.png", "c.png", "d.png"], "nframes": 4}),
                none.clone(),
                json!({"nframes": 4}),
            ),
            // A value that is given in three places is accepted if all three are equal.
            (
                json!({PROCESSOR: {"fps": 2}, MEDIA_IO: {"video": {"fps": 2.0}}}),
                video(json!({"fps": 2})),
                none.clone(),
                json!({"fps": 2.0}),
            ),
        ] {
            let wanted = vec![overrides(of_image), overrides(of_video)];
            assert_eq!(limits(fields.clone(), parts(part)), Ok(wanted), "{fields}");
        }
        // Without media, the fields are checked and have no effect.
        assert_eq!(
            limits(json!({PROCESSOR: {"fps": 1}}), json!([{"type": "input_text", "text": "?"}])),
            Ok(Vec::new())
        );
    }

    #[test]
    fn contradictions_and_keys_that_are_not_read_are_refused_in_one_line() {
        let list = || json!({"type": "video", "video": ["a.png", "b.png"]});
        let file = || video(json!({}));
        for (fields, part, words) in [
            (
                json!({PROCESSOR: {"fps": 1}}),
                video(json!({"fps": 2})),
                "r: message 0, part 0: fps: is 2 here, but 1 for all media",
            ),
            (
                json!({PROCESSOR: {"fps": 1}}),
                video(json!({"nframes": 8})),
                "r: message 0, part 0: nframes: cannot be given",
            ),
            (
                json!({PROCESSOR: {"fps": 1}, MEDIA_IO: {"video": {"fps": 2}}}),
                file(),
                "r: media_io_kwargs.video.fps: is 2 here, but 1 in",
            ),
            (
                json!({PROCESSOR: {"max_pixels": 784, "size": {"longest_edge": 1000}}}),
                file(),
                "r: mm_processor_kwargs.size.longest_edge: is",
            ),
            (
                json!({PROCESSOR: {"num_frames": 8}, MEDIA_IO: {"video": {"num_frames": 4}}}),
                file(),
                "part 0: nframes: is 8 here, but 4",
            ),
            (
                json!({MEDIA_IO: {"video": {"num_frames": 4}}}),
                video(json!({"max_frames": 8})),
                "part 0: max_frames: is 8 here, but 4",
            ),
            (json!({PROCESSOR: {"fps": [1, 2]}}), file(), "r: mm_processor_kwargs.fps: has 2 numbers for 1 video(s)"),
            (json!({PROCESSOR: {"fps": []}}), file(), "r: mm_processor_kwargs.fps: is []"),
            (json!({PROCESSOR: {"fps": 0}}), file(), "r: mm_processor_kwargs.fps: is 0"),
            (json!({PROCESSOR: {"fps": "two"}}), file(), "r: mm_processor_kwargs: fps: is not a number"),
            (json!({PROCESSOR: {"fpss": 1}}), file(), "r: mm_processor_kwargs.fpss: is not a supported setting"),
            (json!({PROCESSOR: {"do_resize": false}}), file(), "r: mm_processor_kwargs.do_resize: is not"),
            (json!({PROCESSOR: {"size": {"height": 8}}}), file(), "r: mm_processor_kwargs.size.height: is not"),
            (json!({PROCESSOR: {"do_sample_frames": 1}}), file(), "r: mm_processor_kwargs.do_sample_frames: is 1"),
            (
                json!({PROCESSOR: {"do_sample_frames": true}}),
                list(),
                "part 0: is a list of frames, all of which are used",
            ),
            (json!({PROCESSOR: {"do_sample_frames": false}}), file(), "part 0: is a video file, but"),
            (json!({MEDIA_IO: {"video": {"num_frames": 1}}}), list(), "part 0: is a list of 2 frames"),
            (json!({PROCESSOR: {"num_frames": 4}}), list(), "part 0: is a list of 2 frames"),
            (json!({MEDIA_IO: {"video": {"num_frames": 0}}}), file(), "r: media_io_kwargs.video.num_frames: is 0"),
            (json!({MEDIA_IO: {"video": {"num_frames": -1}}}), file(), "part 0: media_io_kwargs: asks for every frame"),
            (json!({MEDIA_IO: {"video": {"num_frames": 1}}}), file(), "part 0: media_io_kwargs: asks for 1 frame"),
            (json!({MEDIA_IO: {"video": {"backend": "x"}}}), file(), "r: media_io_kwargs.video.backend: is not"),
            (json!({MEDIA_IO: {"audio": {"rate": 1}}}), file(), "r: media_io_kwargs.audio.rate: is not"),
            (json!({MEDIA_IO: {"video": 3}}), file(), "r: media_io_kwargs.video: is 3"),
            (json!({MEDIA_IO: [1]}), file(), "r: media_io_kwargs: is [1]"),
            (json!({TEMPLATE: {"tools": []}}), file(), "r: chat_template_kwargs.tools: is set by the request itself"),
            (json!({TEMPLATE: {"tokenize": false}}), file(), "r: chat_template_kwargs.tokenize: is not a variable"),
            // Unknown keys in content parts are refused.
            (json!({}), video(json!({"max_pixel": 784})), "r: message 0, part 0: max_pixel: is an unknown key"),
            (
                json!({}),
                json!({"type": "image", "image": "a.png", "fps": 2}),
                "r: message 0, part 0: fps: is an unknown key",
            ),
        ] {
            let error = limits(fields.clone(), json!([part])).expect_err(&fields.to_string());
            assert!(error.contains(words) && error.contains("; ") && !error.contains('\n'), "{fields}: {error}");
        }
    }
}
