//! Reads conversations that a row holds as JSON text. CSV files, data frames and the Parquet files of many tools have
//! no type for values of varying shape, so their writers store `json.dumps(messages)`, either of the whole list or of
//! each message.

use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

use super::messages::CHAT_HELP;

/// Parses the JSON texts in a conversation's columns and replaces them by their values. A text in `prompt` or
/// `completion` is treated as JSON only if it is a list of messages; a text in a media column or in `tools` only if it
/// is a list.
///
/// # Errors
/// A column that must be a list is, or contains, a text that is not JSON.
pub(super) fn parse_json_texts(fields: &mut Map<String, Value>) -> Result<(), Diagnostic> {
    for name in ["messages", "conversations", "history"] {
        let Some(value) = fields.get_mut(name) else { continue };
        if let Value::String(text) = value {
            let list = serde_json::from_str(text).ok().filter(|list: &Value| list.is_array() || list.is_null());
            *value =
                list.ok_or_else(|| Diagnostic::new(name, "is neither a list nor the JSON text of a list", CHAT_HELP))?;
        }
        read_items(name, value)?;
    }
    for name in ["prompt", "completion"] {
        let Some(value) = fields.get_mut(name) else { continue };
        if let Some(messages) = value.as_str().and_then(list_of).filter(|list| is_chat(list)) {
            *value = Value::Array(messages);
        }
        read_items(name, value)?;
    }
    for name in ["images", "image", "videos", "video", "tools"] {
        let Some(value) = fields.get_mut(name) else { continue };
        if let Some(list) = value.as_str().and_then(list_of) {
            *value = Value::Array(list);
        }
    }
    Ok(())
}

/// Parses the items of the list `value` that are JSON texts, and replaces each by the message in the text.
fn read_items(name: &str, value: &mut Value) -> Result<(), Diagnostic> {
    let Value::Array(items) = value else { return Ok(()) };
    for (i, item) in items.iter_mut().enumerate() {
        if let Value::String(text) = item {
            let read = serde_json::from_str(text).ok().filter(|read: &Value| read.is_object() || read.is_array());
            let error =
                || Diagnostic::new(format!("{name}[{i}]"), "is text, and not the JSON text of a message", CHAT_HELP);
            *item = read.ok_or_else(error)?;
        }
    }
    Ok(())
}

/// Parses a text as a JSON list; `None` if it is not one.
fn list_of(text: &str) -> Option<Vec<Value>> {
    if !text.trim_start().starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

fn is_chat(list: &[Value]) -> bool {
    let is_message = |value: &Value| value.get("role").is_some_and(Value::is_string) && value.get("content").is_some();
    !list.is_empty() && list.iter().all(is_message)
}

/// Refuses a message whose content is the JSON text of a list of parts. Otherwise training would learn the JSON text,
/// and the images and videos of its parts would be lost.
pub(super) fn refuse_parts_as_text(field: &str, messages: &[Value]) -> Result<(), Diagnostic> {
    let is_part = |part: &Value| match part.get("type").and_then(Value::as_str) {
        Some("text") => part.get("text").is_some_and(Value::is_string),
        Some(kind) => ["image", "image_url", "input_image", "video", "video_url"].contains(&kind),
        None => false,
    };
    let is_parts = |text: &str| list_of(text).is_some_and(|list| !list.is_empty() && list.iter().all(is_part));
    let text = |message: &Value| message.get("content").and_then(Value::as_str).is_some_and(is_parts);
    match messages.iter().position(text) {
        Some(i) => Err(Diagnostic::new(
            format!("{field}[{i}].content"),
            "is a string that contains the JSON of a list of parts, instead of the list itself",
            "write the list itself; in Parquet and Arrow, give the column the type JSON",
        )),
        None => Ok(()),
    }
}
