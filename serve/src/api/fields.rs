//! The fields of a request's body. Each endpoint takes out the fields that it handles; [`RequestFields::into_settings`]
//! reads the remaining fields, which are sampling fields. A field that reel does not support is refused; one that
//! neither OpenAI nor vLLM has is ignored.

use axum::body::Body;
use reel_input::chat::PromptEnd;
use reel_input::grammar_fields::GRAMMAR_FIELDS;
use reel_input::prompt_fields::PromptFields;
use reel_input::request::{ChatRequest, RequestSettings};
use reel_input::tools::ToolRequest;
use reel_support::diagnostic::Diagnostic;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::block_in_place;

use super::shared::ServerState;
use super::{ApiError, REQUEST_LOCATION, encoding_error, models, wrong_field};
use crate::http::{RequestBody, read_body};

/// Bodies above this size are parsed on a thread of their own.
const LARGE_BODY_BYTES: usize = 1 << 20;

/// Maximum number of values in a body, which take a hundred times the length of a body of short values in memory.
const MAX_VALUES: usize = 1 << 20;

/// An estimate of the memory of a value in a list or an object, in bytes: the value, its key and its place.
const VALUE_BYTES: usize = 100;

/// An estimate of the memory of an object beside that of its values, in bytes: spare places and the hash table.
const OBJECT_BYTES: usize = 500;

/// Maximum number of completions of one request, as in OpenAI's API.
pub(crate) const MAX_COMPLETIONS: usize = 128;

/// For two fields with alternative names (such as `max_tokens` and `max_completion_tokens`), the names that the
/// request used. Error messages repeat these names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GivenFieldNames {
    /// Name that the request used for the limit of new tokens.
    pub(crate) max_tokens: &'static str,
    /// Name that the request used for the grammar that constrains the answer.
    pub(crate) grammar: &'static str,
}

/// The fields of a request that its handler has not taken out yet.
#[derive(Debug)]
pub(crate) struct RequestFields {
    fields: Map<String, Value>,
    memory: Option<OwnedSemaphorePermit>,
    /// The name of the model in the request, or the name of the server's model if the request names none.
    model: String,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamFields {
    /// As server-sent events.
    pub(crate) stream: bool,
    /// The last chunk has the usage.
    pub(crate) include_usage: bool,
    /// Every chunk contains the usage so far.
    pub(crate) continuous_usage: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
    /// OpenAI pads chunks to hide the length of tokens. This server never pads chunks, so the field has no effect.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl RequestFields {
    /// Reads and parses a body, which must be a JSON object. A field that is null counts as absent.
    ///
    /// # Errors
    /// The body cannot be read or is not a JSON object, or its `model` is not a model of this server.
    pub(crate) async fn read(shared: &ServerState, body: Body) -> Result<Self, ApiError> {
        let mut fields = Self::of_object(shared, read_body(&shared.bodies, body).await?)?;
        let name = fields.take_field::<String>("model", "the name of a model")?;
        let model = name.unwrap_or_else(|| shared.model.name.clone());
        models::adapter_of(shared, &model)?;
        Ok(Self { model, ..fields })
    }

    /// Parses a body as [`RequestFields::read`] does, but does not check the field `model`, for requests in which
    /// this field has another meaning.
    ///
    /// # Errors
    /// The body is not a JSON object, or the bodies of other requests take the memory for its values.
    pub(crate) fn of_object(shared: &ServerState, mut body: RequestBody) -> Result<Self, ApiError> {
        let is_large = body.bytes.len() > LARGE_BODY_BYTES;
        let mut parse = || {
            let size = parsed_size(&body.bytes)?;
            body.reserve_values(body.bytes.len() + size, &shared.bodies)?;
            parse_object(&body.bytes)
        };
        // Parsing many MiB on an async thread would delay the answers to other requests.
        let parsed = if is_large { block_in_place(parse) } else { parse() };
        let fields = parsed?.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Self { fields, memory: body.memory, model: String::new() })
    }

    /// Takes out the name of the model.
    pub(crate) fn take_model(&mut self) -> String {
        std::mem::take(&mut self.model)
    }

    /// The fields that are not taken out yet, for a handler that translates them into those of a chat request.
    pub(crate) fn remaining_fields(&mut self) -> &mut Map<String, Value> {
        &mut self.fields
    }

    /// Takes out the permit that counts the memory of the fields. The caller drops the permit together with the fields.
    pub(crate) fn take_memory_permit(&mut self) -> Option<OwnedSemaphorePermit> {
        self.memory.take()
    }

    /// Takes out a field. `wanted` describes the expected value, for error messages.
    ///
    /// # Errors
    /// The field's value has the wrong type.
    pub(crate) fn take_field<T: DeserializeOwned>(&mut self, name: &str, wanted: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        T::deserialize(&value)
            .map(Some)
            .map_err(|_| wrong_field(name, &format!("is {value}"), &format!("give {wanted}")))
    }

    /// Takes out a field of any type.
    pub(crate) fn take_value(&mut self, name: &str) -> Option<Value> {
        // The removal changes the order of the other fields, which does not matter.
        self.fields.swap_remove(name)
    }

    /// Takes out `stream` and `stream_options`.
    pub(crate) fn take_stream(&mut self) -> Result<StreamFields, ApiError> {
        let stream = self.take_field("stream", "true or false")?.unwrap_or(false);
        let wanted = "{\"include_usage\": true or false, \"continuous_usage_stats\": true or false}";
        let options: Option<StreamOptions> = self.take_field("stream_options", wanted)?;
        if options.is_some() && !stream {
            return Err(wrong_field("stream_options", "has no meaning without `stream`", "remove it, or set stream"));
        }
        let options = options.unwrap_or_default();
        let include_usage = options.include_usage == Some(true);
        let continuous_usage = include_usage && options.continuous_usage_stats == Some(true);
        Ok(StreamFields { stream, include_usage, continuous_usage })
    }

    /// The names that the request uses for fields with alternative names.
    pub(crate) fn given_names(&self) -> GivenFieldNames {
        // If the request has both fields, `max_completion_tokens` is used.
        let limits = ["max_completion_tokens", "max_tokens"];
        let max_tokens = limits.into_iter().find(|name| self.fields.contains_key(*name)).unwrap_or("max_tokens");
        // A `response_format` of type `text` sets no grammar, so another field may set the grammar.
        let has_grammar = |name: &&str| self.fields.get(*name).is_some_and(|value| value["type"] != "text");
        let grammar = GRAMMAR_FIELDS.into_iter().find(has_grammar).unwrap_or("response_format");
        GivenFieldNames { max_tokens, grammar }
    }

    /// Takes out `add_generation_prompt` and `continue_final_message`, which say where the prompt ends. `None` means
    /// the default ([`PromptEnd::default_for_conversation`]).
    pub(crate) fn take_prompt_end(&mut self) -> Result<Option<PromptEnd>, ApiError> {
        let added = self.take_field::<bool>("add_generation_prompt", "true or false")?;
        let continued = self.take_field::<bool>("continue_final_message", "true or false")?;
        match (continued, added) {
            (Some(true), Some(true)) => {
                let what = "is true, but add_generation_prompt asks for a new message";
                Err(wrong_field("continue_final_message", what, "set only one of the two to true"))
            }
            (Some(true), _) => Ok(Some(PromptEnd::WithinLastMessage)),
            (Some(false), None) | (_, Some(true)) => Ok(Some(PromptEnd::NewMessage)),
            (_, Some(false)) => Ok(Some(PromptEnd::LastMessage)),
            (None, None) => Ok(None),
        }
    }

    /// Takes out `tools`, for an endpoint that only encodes the prompt.
    ///
    /// # Errors
    /// The tools are malformed.
    pub(crate) fn take_tools(&mut self) -> Result<Vec<Value>, ApiError> {
        let field = self.take_value("tools").map(|tools| ("tools".to_string(), tools));
        let request = ToolRequest::from_body(REQUEST_LOCATION, &field.into_iter().collect()).map_err(encoding_error)?;
        Ok(request.definitions)
    }

    /// Takes out the other fields that change the prompt of messages, for an endpoint that only encodes the prompt.
    ///
    /// # Errors
    /// A value of these fields is malformed.
    pub(crate) fn take_prompt_fields(&mut self) -> Result<PromptFields, ApiError> {
        let taken =
            PromptFields::FIELD_NAMES.into_iter().filter_map(|name| Some((name.to_string(), self.take_value(name)?)));
        PromptFields::from_body(REQUEST_LOCATION, &taken.collect()).map_err(encoding_error)
    }

    /// Takes out `include_reasoning`: whether the reasoning of an answer is a field of its own (true), is left out
    /// (false), or stays in its text (`None`).
    pub(crate) fn take_reasoning(&mut self) -> Result<Option<bool>, ApiError> {
        self.take_field("include_reasoning", "true or false")
    }

    /// Reads the remaining fields of a request without messages, which must all be sampling fields.
    ///
    /// # Errors
    /// A field is not supported, or its value has the wrong type or is out of range.
    pub(crate) fn into_settings(self) -> Result<RequestSettings, ApiError> {
        let of_chats = PromptFields::FIELD_NAMES.into_iter().chain(["tools", "include_reasoning"]);
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        let given = |name: &&str| self.fields.get(*name).is_some_and(|value| !is_empty(value));
        match of_chats.into_iter().find(given) {
            Some(name) => Err(wrong_field(name, "is not a field of this request", "use /v1/chat/completions")),
            None => Ok(self.into_chat_settings()?.0),
        }
    }

    /// Reads the remaining fields of a chat request, which must be sampling fields, fields about tools, or other fields
    /// that change the prompt. A field that reel does not support is refused, unless its value has no effect.
    ///
    /// # Errors
    /// A field is not supported, or its value has the wrong type or is out of range.
    pub(crate) fn into_chat_settings(mut self) -> Result<(RequestSettings, ToolRequest, PromptFields), ApiError> {
        if let Some(n) = self.fields.get("n")
            && n.as_u64().is_none_or(|n| !(1..=MAX_COMPLETIONS as u64).contains(&n))
        {
            return Err(wrong_field("n", &format!("is {n}"), &format!("give 1 to {MAX_COMPLETIONS}")));
        }
        // The parser expects a whole chat request. The messages are already taken out, so an empty list replaces
        // them.
        if self.fields.insert("messages".into(), Value::Array(Vec::new())).is_some() {
            return Err(wrong_field("messages", "is not a field of this request", "remove it"));
        }
        let request = ChatRequest::parse(REQUEST_LOCATION, Value::Object(self.fields).to_string().as_bytes());
        let ChatRequest { settings, tools, prompt, .. } = request.map_err(encoding_error)?;
        Ok((settings, tools, prompt))
    }

    /// Refuses the request if any field is left.
    pub(crate) fn refuse_remaining_fields(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => Err(wrong_field(name, "is not a field of this request", "remove it")),
        }
    }
}

fn wrong_body(what: &str, help: &str) -> ApiError {
    ApiError::bad_request(Diagnostic::new(REQUEST_LOCATION, what, help).to_string(), None)
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| wrong_body(&format!("is not a JSON object ({e})"), "correct its JSON"))
}

/// About the memory that the values of a JSON text take beside their texts, in bytes.
///
/// # Errors
/// There are more than [`MAX_VALUES`] values.
fn parsed_size(json: &[u8]) -> Result<usize, ApiError> {
    let (values, objects) = value_and_object_counts(json);
    match values > MAX_VALUES {
        false => Ok(values * VALUE_BYTES + objects * OBJECT_BYTES),
        true => Err(wrong_body(
            &format!("has more than {MAX_VALUES} JSON values"),
            "send fewer messages or tokens at a time",
        )),
    }
}

/// Upper bound of the number of values in a JSON text, and the number of objects. A value in a list or an object follows
/// a comma or an opening bracket.
fn value_and_object_counts(json: &[u8]) -> (usize, usize) {
    let (mut values, mut objects, mut bytes) = (0, 0, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b',' | b'[' => values += 1,
            b'{' => (values, objects) = (values + 1, objects + 1),
            b'"' => {
                // Skips a string. The character after a backslash never ends the string.
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
    (values, objects)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> RequestFields {
        let Value::Object(fields) = value else { panic!("{value}") };
        RequestFields { fields, memory: None, model: String::new() }
    }

    #[test]
    fn the_number_of_completions_has_one_limit() {
        for n in [json!(0), json!(129), json!(-1), json!(1u64 << 63), json!(1.5), json!("2")] {
            let e = fields(json!({"n": n})).into_settings().unwrap_err();
            assert_eq!(e.message(), format!("request: n: is {n}; give 1 to 128"));
        }
        assert_eq!(fields(json!({"n": 128})).into_settings().unwrap().n, Some(128));
    }

    #[test]
    fn errors_use_the_names_that_the_request_gives() {
        for (value, max_tokens, grammar) in [
            (json!({}), "max_tokens", "response_format"),
            (json!({"max_tokens": 1, "guided_regex": "a"}), "max_tokens", "guided_regex"),
            (
                json!({"max_tokens": 1, "max_completion_tokens": 2, "structured_outputs": {"regex": "a"}}),
                "max_completion_tokens",
                "structured_outputs",
            ),
            (json!({"response_format": {"type": "text"}, "guided_json": {}}), "max_tokens", "guided_json"),
            (json!({"response_format": {"type": "json_object"}}), "max_tokens", "response_format"),
        ] {
            let names = fields(value.clone()).given_names();
            assert_eq!((names.max_tokens, names.grammar), (max_tokens, grammar), "{value}");
        }
    }

    #[test]
    fn a_request_says_where_its_prompt_ends() {
        for (value, wanted) in [
            (json!({}), None),
            (json!({"add_generation_prompt": true}), Some(PromptEnd::NewMessage)),
            (json!({"add_generation_prompt": false}), Some(PromptEnd::LastMessage)),
            (json!({"continue_final_message": false}), Some(PromptEnd::NewMessage)),
            (json!({"continue_final_message": true}), Some(PromptEnd::WithinLastMessage)),
            (json!({"continue_final_message": false, "add_generation_prompt": false}), Some(PromptEnd::LastMessage)),
            (
                json!({"continue_final_message": true, "add_generation_prompt": false}),
                Some(PromptEnd::WithinLastMessage),
            ),
        ] {
            let mut fields = fields(value.clone());
            assert_eq!(fields.take_prompt_end().unwrap(), wanted, "{value}");
            assert!(fields.fields.is_empty());
        }
        let both = json!({"continue_final_message": true, "add_generation_prompt": true});
        let e = fields(both).take_prompt_end().unwrap_err();
        assert!(e.message().starts_with("request: continue_final_message: is true, but add_"), "{e:?}");
    }

    #[test]
    fn fields_of_messages_are_refused_without_messages() {
        for (name, value) in [
            ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
            ("mm_processor_kwargs", json!({"fps": 1})),
            ("media_io_kwargs", json!({})),
            ("chat_template_kwargs", json!({"x": 1})),
            ("include_reasoning", json!(true)),
        ] {
            let e = fields(json!({name: value})).into_settings().unwrap_err();
            assert!(e.message().starts_with(&format!("request: {name}: is not a field of this request; ")), "{e:?}");
        }
        assert!(fields(json!({"tools": []})).into_settings().is_ok());
    }

    #[test]
    fn fields_of_any_length_that_no_server_knows_are_ignored() {
        let name = "x".repeat(3_000_000);
        assert!(fields(json!({name.as_str(): 1})).into_settings().is_ok());
        let e = fields(json!({"echo": name})).into_settings().unwrap_err().to_json();
        assert!(e.to_string().len() < 10_000, "{e}");
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        assert_eq!(value_and_object_counts(br#"{"a": [1, 2, [3]], "b": "[,\\\"{,"}"#), (6, 1));
        assert_eq!(value_and_object_counts(br#"{"a": "\\", "b": [1, {}]}"#), (5, 2));
        assert_eq!(value_and_object_counts(b"\"[[[["), (0, 0));
        assert_eq!(value_and_object_counts(b"\"[\\"), (0, 0));
    }
}
