//! Checks that nothing in the messages of a row is lost: each key of a message or of a part that has a value must be
//! read by this program or by the chat template; other keys are refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use super::Conversation;
use super::part_keys::{UnknownTextKeys, refuse_unknown_part_keys};
use crate::error::{Error, Result};

/// Keys under which other programs store the images, videos and sounds of a message, beside its `content`.
const MEDIA_KEYS: [&str; 14] = [
    "image",
    "images",
    "image_url",
    "image_urls",
    "image_path",
    "image_paths",
    "video",
    "videos",
    "video_url",
    "video_urls",
    "video_path",
    "video_paths",
    "audio",
    "audios",
];

/// The keys of a message that this program reads, and `id` and `name`, which only identify a message or its author.
/// `loss` and `weight` choose the answers that `reel sft` learns.
const READ_KEYS: [&str; 6] = ["tool_calls", "tool_call_id", "loss", "weight", "id", "name"];

/// Keys of content parts. Chat templates read these keys from the parts of a message, not from the message itself.
const PART_KEYS: [&str; 3] = ["type", "text", "url"];

/// Whether a value is null or empty. Table formats store such a value for each key that a row lacks.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Refuses a message with images, videos or sounds beside its `content`, because only parts of the content are read.
pub(super) fn refuse_media_keys(location: &str, message: &Map<String, Value>) -> Result<()> {
    match message.iter().find(|(key, value)| MEDIA_KEYS.contains(&key.as_str()) && !is_empty(value)) {
        None => Ok(()),
        Some((key, _)) if key.starts_with("audio") => {
            let location = format!("{location}: {key}");
            Err(Error::input(location, "is audio, which is not supported", "remove the key"))
        }
        Some((key, _)) => {
            let kind = if key.starts_with("image") { "image" } else { "video" };
            let help = format!("give a list as `content`, with the part {{\"type\": \"{kind}\", \"{kind}\": path}}");
            Err(Error::input(format!("{location}: {key}"), "is not read beside `content`", help))
        }
    }
}

/// Whether a chat template reads the key `key` of a message, as `message.key`, `message['key']` or `'key' in message`.
fn reads_key(template: &str, key: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let is_key =
        |at: usize| template[..at].ends_with(['.', '\'', '"']) && !template[at + key.len()..].starts_with(is_name);
    !PART_KEYS.contains(&key) && template.match_indices(key).any(|(at, _)| is_key(at))
}

impl Conversation {
    /// Reads the messages of a row of a data file as [`Conversation::from_json`] does, and refuses each key of a
    /// message or a part that nothing reads. `template` is the text of the chat template that renders the messages;
    /// without it, only the keys of parts are checked.
    ///
    /// # Errors
    /// A message is malformed, has a key with a value that neither this program nor the template reads, or calls a tool
    /// with arguments that are not JSON.
    pub fn from_row(location: &str, messages: &Value, root: &Path, template: Option<&str>) -> Result<Self> {
        let conversation = Self::from_json(location, messages, root)?;
        refuse_unknown_part_keys(location, messages, UnknownTextKeys::Refused)?;
        conversation.refuse_text_arguments()?;
        let Some(template) = template else { return Ok(conversation) };
        for (i, message) in conversation.messages.iter().enumerate() {
            let is_read = |key: &str| READ_KEYS.contains(&key) || reads_key(template, key);
            if let Some((key, _)) = message.others.iter().find(|(key, value)| !is_empty(value) && !is_read(key)) {
                return Err(Error::input(
                    format!("{location}: message {i}: {key}"),
                    "is a key that neither reel nor the chat template reads",
                    "write what the model should see or learn into `content`, and remove the key",
                ));
            }
        }
        Ok(conversation)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::chat::CHAT_TEMPLATE;

    fn read(messages: Value) -> Result<Conversation> {
        Conversation::from_row("d.jsonl:1", &messages, Path::new("root"), Some(CHAT_TEMPLATE))
    }

    #[test]
    fn keys_that_nothing_reads_are_named() {
        let user = |key: &str, value: Value| json!([{"role": "user", "content": "What?", key: value}, {"role": "assistant", "content": "Red."}]);
        for key in MEDIA_KEYS {
            let e = read(user(key, json!(["a"]))).unwrap_err().to_string();
            assert!(e.starts_with(&format!("d.jsonl:1: message 0: {key}: is ")), "{e}");
        }
        for key in ["reasoning_content", "thinking", "train", "loss_scale", "text", "timestamp"] {
            let e = read(user(key, json!(false))).unwrap_err().to_string();
            assert!(e.starts_with(&format!("d.jsonl:1: message 0: {key}: is a key that neither")), "{e}");
            for none in [json!(null), json!(""), json!([]), json!({})] {
                assert!(read(user(key, none)).is_ok(), "{key}");
            }
        }
        for key in ["loss", "weight", "name", "id"] {
            assert!(read(user(key, json!(1))).is_ok(), "{key}");
        }
        let reasoning = user("reasoning_content", json!("think"));
        let template = "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}";
        assert!(Conversation::from_row("d", &reasoning, Path::new(""), Some(template)).is_ok());
        assert!(Conversation::from_row("d", &reasoning, Path::new(""), None).is_ok());
    }

    #[test]
    fn misspelt_keys_of_parts_are_named() {
        for (part, key) in [
            (json!({"type": "image", "image": "a.png", "max_pixel": 3136}), "max_pixel"),
            (json!({"type": "video", "video": "v.mp4", "fpz": 3}), "fpz"),
            (json!({"type": "text", "text": "?", "max_pixels": 3136}), "max_pixels"),
        ] {
            let e = read(json!([{"role": "user", "content": [part]}])).unwrap_err().to_string();
            assert!(e.starts_with(&format!("d.jsonl:1: message 0, part 0: {key}: is an unknown key; ")), "{e}");
        }
        let part = json!({"type": "image", "image": "a.png", "max_pixel": null, "text": null, "max_pixels": 3136});
        assert!(read(json!([{"role": "user", "content": [part]}])).is_ok());
    }

    proptest! {
        /// A key of a message that has a value is read by this program or by the template, or the error names it.
        #[test]
        fn each_key_of_a_message_is_read_or_named(key in "[a-z_]{1,12}", value in "[a-z]{1,4}") {
            prop_assume!(!["role", "content"].contains(&key.as_str()));
            match read(json!([{"role": "user", "content": "?", &key: value}])) {
                Ok(_) => prop_assert!(READ_KEYS.contains(&key.as_str()) || reads_key(CHAT_TEMPLATE, &key), "{key}"),
                Err(e) => prop_assert!(e.to_string().contains(&format!(": {key}: ")), "{e}"),
            }
        }

        /// A key of an image part that has a value is one of those that this program reads, or the error names it.
        #[test]
        fn each_key_of_a_part_is_read_or_named(key in "[a-z_]{1,12}", value in 28u32..9999) {
            prop_assume!(!["type", "image"].contains(&key.as_str()));
            let read = read(json!([{"role": "user", "content": [{"type": "image", "image": "a.png", &key: value}]}]));
            match read.map_err(|e| e.to_string()) {
                Ok(_) => prop_assert!(["min_pixels", "max_pixels", "uuid", "detail"].contains(&key.as_str()), "{key}"),
                Err(e) => prop_assert!(e.contains(&key), "{e}"),
            }
        }
    }
}
