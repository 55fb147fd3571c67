//! Parses what a messages file may hold: a JSON list of chat messages, or the whole body of an OpenAI chat request with
//! its sampling fields.

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Maximum number of completions of one request.
pub const MAX_COMPLETIONS: usize = 4096;

/// The content of a messages file.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The file's path, or `stdin`, for error messages.
    pub location: String,
    /// The list of messages, not yet checked.
    pub messages: Value,
    /// The sampling fields of a request body; all absent if the file is a list.
    pub settings: RequestSettings,
}

/// The fields of an OpenAI or vLLM chat request that decide how its answers are sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestSettings {
    /// The sampling temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling: the total probability of the most likely tokens that are sampled from.
    pub top_p: Option<f32>,
    /// The number of most likely tokens that are sampled from; 0 means all tokens.
    pub top_k: Option<u32>,
    /// Lowers the logits of tokens that have already occurred; 1 means no penalty.
    pub repetition_penalty: Option<f32>,
    /// Maximum number of tokens to generate: the field `max_completion_tokens`, else `max_tokens`.
    pub max_new_tokens: Option<usize>,
    /// Number of completions.
    pub n: Option<usize>,
    /// The random seed.
    pub seed: Option<u64>,
    /// Strings that end a completion.
    pub stop: Vec<String>,
}

impl ChatRequest {
    /// Parses the bytes of a messages file. `location` names it in error messages.
    ///
    /// # Errors
    /// The bytes are not JSON, or the JSON is neither a list nor a request; a field of the request is unknown or has
    /// the wrong type.
    pub fn parse(location: &str, bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| {
            ModelError::messages(location, format!("is not JSON ({e})"), "correct the JSON at that position")
        })?;
        let location = location.to_string();
        let Value::Object(mut body) = value else {
            return Ok(Self { location, messages: value, settings: RequestSettings::default() });
        };
        let Some(messages) = body.remove("messages") else {
            let help = "give a JSON list of messages, or a request {\"messages\": [...]}";
            let what = "is neither a list of messages nor a request that has `messages`";
            return Err(ModelError::messages(location, what, help));
        };
        let settings = RequestSettings::from_body(&location, &body)?;
        Ok(Self { location, messages, settings })
    }
}

impl RequestSettings {
    /// Reads the fields of a request body other than `messages`. A field that is null counts as absent.
    ///
    /// # Errors
    /// A field is unknown to reel or not supported, or its value has the wrong type or is out of range.
    fn from_body(location: &str, body: &Map<String, Value>) -> Result<Self> {
        let mut settings = Self::default();
        for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
            let wrong = |wanted: &str| {
                ModelError::messages(format!("{location}: {name}"), format!("is {value}"), format!("give {wanted}"))
            };
            let real = |range: &str, is_in_range: fn(f32) -> bool| {
                let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && is_in_range(*x));
                number.ok_or_else(|| wrong(range))
            };
            let whole = || value.as_u64().ok_or_else(|| wrong("a whole number that is not negative"));
            let count = || whole().and_then(|n| usize::try_from(n).map_err(|_| wrong("a smaller number")));
            match name.as_str() {
                "temperature" => settings.temperature = Some(real("a number that is 0 or more", |x| x >= 0.0)?),
                "top_p" => settings.top_p = Some(real("a number above 0, up to 1", |x| x > 0.0 && x <= 1.0)?),
                // vLLM's -1 stands for all tokens, as 0 does.
                "top_k" if value.as_i64() == Some(-1) => settings.top_k = Some(0),
                "top_k" => {
                    settings.top_k =
                        Some(whole().and_then(|k| u32::try_from(k).map_err(|_| wrong("a smaller number")))?);
                }
                "repetition_penalty" => settings.repetition_penalty = Some(real("a number above 0", |x| x > 0.0)?),
                // max_completion_tokens replaces the older name max_tokens.
                "max_completion_tokens" => settings.max_new_tokens = Some(count()?),
                "max_tokens" if body.get("max_completion_tokens").is_some_and(|other| !other.is_null()) => {}
                "max_tokens" => settings.max_new_tokens = Some(count()?),
                "n" => {
                    let n = count()?;
                    let is_possible = (1..=MAX_COMPLETIONS).contains(&n);
                    settings.n =
                        Some(is_possible.then_some(n).ok_or_else(|| wrong(&format!("1 to {MAX_COMPLETIONS}")))?);
                }
                "seed" => settings.seed = Some(whole()?),
                "stop" => {
                    settings.stop =
                        stop_strings(value).ok_or_else(|| wrong("a text or a list of texts, none of them empty"))?
                }
                // These fields do not change the answer. The field `model` is ignored: --model names the model.
                "model" | "stream" | "stream_options" | "user" | "metadata" | "store" | "service_tier" => {}
                _ if has_no_effect(name, value) => {}
                _ => {
                    let what = "is a field of the request that reel does not support";
                    return Err(ModelError::messages(format!("{location}: {name}"), what, "remove it"));
                }
            }
        }
        Ok(settings)
    }
}

fn stop_strings(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(String::from);
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        value => Some(vec![text(value)?]),
    }
}

/// Returns true if the field has its default value, so that it does not change the answer.
fn has_no_effect(name: &str, value: &Value) -> bool {
    match name {
        "presence_penalty" | "frequency_penalty" | "min_p" | "min_tokens" => value.as_f64() == Some(0.0),
        "logprobs" | "echo" | "ignore_eos" => *value == Value::Bool(false),
        "tools" | "functions" | "stop_token_ids" => value.as_array().is_some_and(Vec::is_empty),
        "logit_bias" => value.as_object().is_some_and(Map::is_empty),
        "tool_choice" => value == "none" || value == "auto",
        "response_format" => value["type"] == "text",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<ChatRequest> {
        ChatRequest::parse("body.json", text.as_bytes())
    }

    #[test]
    fn a_request_body_gives_messages_and_sampling_fields() {
        let body = json!({
            "model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "temperature": 0.5, "top_p": 0.9, "top_k": -1,
            "max_tokens": 7, "max_completion_tokens": 5, "n": 2, "stop": "END", "seed": 3, "stream": true, "tools": [],
            "presence_penalty": 0, "logprobs": null,
        });
        let request = read(&body.to_string()).unwrap();
        assert_eq!(request.messages, body["messages"]);
        let wanted = RequestSettings {
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(0),
            repetition_penalty: None,
            max_new_tokens: Some(5),
            n: Some(2),
            seed: Some(3),
            stop: vec!["END".into()],
        };
        assert_eq!(request.settings, wanted);
        let list = read("[{\"role\": \"user\", \"content\": \"x\"}]").unwrap();
        assert_eq!((list.settings, &list.messages), (RequestSettings::default(), &body["messages"]));
    }

    #[test]
    fn unknown_and_wrong_fields_are_refused_by_name() {
        for (field, value) in [
            ("tools", json!([{"type": "function"}])),
            ("presence_penalty", json!(0.5)),
            ("temprature", json!(1)),
            ("temperature", json!("hot")),
            ("n", json!(-1)),
            ("n", json!(0)),
            ("n", json!(100_000_000)),
            ("temperature", json!(-0.5)),
            ("temperature", json!(1e300)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("repetition_penalty", json!(0)),
            ("stop", json!("")),
            ("stop", json!(["a", ""])),
            ("stop", json!([1])),
            ("logprobs", json!(true)),
            ("response_format", json!({"type": "json_object"})),
        ] {
            let mut body = json!({"messages": []});
            body[field] = value;
            let e = read(&body.to_string()).unwrap_err().to_string();
            assert!(e.contains(&format!("body.json: {field}: ")) && e.contains("; "), "{e}");
        }
        assert!(read("{\"role\": \"user\"}").unwrap_err().to_string().contains("neither a list"));
        assert!(read("[{").unwrap_err().to_string().contains("is not JSON"));
    }
}
