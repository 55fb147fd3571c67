//! The fields of a request's body. What no endpoint takes out is a sampling field, and is checked and refused in one
//! place, [`Fields::into_settings`].

use reel_diagnostic::Diagnostic;
use reel_model::input::request::{ChatRequest, RequestSettings};
use reel_model::input::tools::ToolRequest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::block_in_place;

use super::{ApiError, LOCATION, models, wrong_request};
use crate::http::RequestBody;
use crate::server::Shared;

/// Bodies above this size are parsed on a thread of their own.
const LARGE_BODY_BYTES: usize = 1 << 20;

/// Maximum number of values in a body. A value takes up to 200 bytes of memory, so a body of short ones would take a
/// hundred times its length.
const MAX_VALUES: usize = 1 << 20;

/// The fields that are not taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    fields: Map<String, Value>,
    memory: Option<OwnedSemaphorePermit>,
    /// The name of the model that the request names; that of the server's own model if it names none.
    model: String,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamFields {
    /// As server-sent events.
    pub(crate) stream: bool,
    /// The last chunk has the usage.
    pub(crate) include_usage: bool,
    /// Every chunk has the usage so far.
    pub(crate) continuous_usage: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
    /// OpenAI pads chunks to hide the length of tokens; here they are never padded.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Fields {
    /// Parses a body, which must be a JSON object. A field that is null counts as absent.
    ///
    /// # Errors
    /// The body is no JSON object; its `model` is not one of this server.
    pub(crate) fn parse(shared: &Shared, body: RequestBody) -> Result<Self, ApiError> {
        let mut fields = Self::of_object(body)?;
        let name = fields.take::<String>("model", "the name of a model")?;
        let model = name.unwrap_or_else(|| shared.model.name.clone());
        models::adapter_of(shared, &model)?;
        Ok(Self { model, ..fields })
    }

    /// Parses a body as [`Fields::parse`] does, whose field `model` is not the name of a model.
    ///
    /// # Errors
    /// The body is no JSON object.
    pub(crate) fn of_object(body: RequestBody) -> Result<Self, ApiError> {
        let parse = || parse_object(&body.bytes);
        // Parsing many MiB must not hold back the answers to others.
        let parsed = if body.bytes.len() > LARGE_BODY_BYTES { block_in_place(parse) } else { parse() };
        let fields = parsed?.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Self { fields, memory: body.memory, model: String::new() })
    }

    /// Takes out the name of the model.
    pub(crate) fn take_model(&mut self) -> String {
        std::mem::take(&mut self.model)
    }

    /// Takes out what counts the memory of the fields, which the caller drops together with them.
    pub(crate) fn take_memory(&mut self) -> Option<OwnedSemaphorePermit> {
        self.memory.take()
    }

    /// Takes out a field. `wanted` says what its value should be.
    ///
    /// # Errors
    /// Its value has the wrong type.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str, wanted: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take_any(name) else { return Ok(None) };
        T::deserialize(&value)
            .map(Some)
            .map_err(|_| wrong_field(name, &format!("is {value}"), &format!("give {wanted}")))
    }

    /// Takes out a field of any type.
    pub(crate) fn take_any(&mut self, name: &str) -> Option<Value> {
        // The order of the other fields has no meaning.
        self.fields.swap_remove(name)
    }

    /// Takes out `stream` and `stream_options`.
    pub(crate) fn take_stream(&mut self) -> Result<StreamFields, ApiError> {
        let stream = self.take("stream", "true or false")?.unwrap_or(false);
        let wanted = "{\"include_usage\": true or false, \"continuous_usage_stats\": true or false}";
        let options: Option<StreamOptions> = self.take("stream_options", wanted)?;
        if options.is_some() && !stream {
            return Err(wrong_field("stream_options", "has no meaning without `stream`", "remove it, or set stream"));
        }
        let options = options.unwrap_or_default();
        let include_usage = options.include_usage == Some(true);
        let continuous_usage = include_usage && options.continuous_usage_stats == Some(true);
        Ok(StreamFields { stream, include_usage, continuous_usage })
    }

    /// Takes out `tools`, for an endpoint that only encodes them.
    ///
    /// # Errors
    /// They are wrong.
    pub(crate) fn take_tools(&mut self) -> Result<Vec<Value>, ApiError> {
        let field = self.take_any("tools").map(|tools| ("tools".to_string(), tools));
        let request = ToolRequest::from_body(LOCATION, &field.into_iter().collect()).map_err(wrong_request)?;
        Ok(request.definitions)
    }

    /// Reads the sampling fields of a request without tools, which must be all that is left.
    ///
    /// # Errors
    /// As [`Fields::into_chat_settings`].
    pub(crate) fn into_settings(self) -> Result<RequestSettings, ApiError> {
        let (settings, tools) = self.into_chat_settings()?;
        match tools.definitions.is_empty() {
            true => Ok(settings),
            false => Err(wrong_field("tools", "is not a field of this request", "use /v1/chat/completions")),
        }
    }

    /// Reads the sampling fields and those of tools, which must be all that is left. A field that reel does not support
    /// is refused, unless its value has no effect.
    ///
    /// # Errors
    /// A field is unknown or not supported, or its value has the wrong type or is out of range.
    pub(crate) fn into_chat_settings(mut self) -> Result<(RequestSettings, ToolRequest), ApiError> {
        // The model's parser reads a whole chat request, whose messages are taken out already.
        if self.fields.insert("messages".into(), Value::Array(Vec::new())).is_some() {
            return Err(wrong_field("messages", "is not a field of this request", "remove it"));
        }
        let request = ChatRequest::parse(LOCATION, Value::Object(self.fields).to_string().as_bytes());
        let ChatRequest { settings, tools, .. } = request.map_err(wrong_request)?;
        Ok((settings, tools))
    }

    /// Refuses every field that is left.
    pub(crate) fn refuse_others(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => Err(wrong_field(name, "is not a field of this request", "remove it")),
        }
    }
}

/// Parses a JSON object of at most [`MAX_VALUES`] values.
fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let wrong =
        |what: String, help: &str| ApiError::bad_request(Diagnostic::new(LOCATION, what, help).to_string(), None);
    if value_count(bytes) > MAX_VALUES {
        return Err(wrong(
            format!("has more than {MAX_VALUES} JSON values"),
            "send fewer messages or tokens at a time",
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| wrong(format!("is not a JSON object ({e})"), "correct its JSON"))
}

/// The number of values in a JSON text, counted by what comes before them: a comma or an opening bracket.
fn value_count(json: &[u8]) -> usize {
    let (mut count, mut bytes) = (0, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b',' | b'[' | b'{' => count += 1,
            b'"' => {
                // Skips a string; a backslash is followed by a character that does not end it.
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    count
}

/// The error of a field.
pub(crate) fn wrong_field(name: &str, what: &str, help: &str) -> ApiError {
    let diagnostic = Diagnostic::new(format!("{LOCATION}: {name}"), what, help);
    ApiError::bad_request(diagnostic.to_string(), Some(name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        assert_eq!(value_count(br#"{"a": [1, 2, [3]], "b": "[,\\\"{,"}"#), 6);
        assert_eq!(value_count(br#"{"a": "\\", "b": [1]}"#), 3);
        assert_eq!(value_count(b"\"[[[["), 0);
        assert_eq!(value_count(b"\"[\\"), 0);
    }
}
