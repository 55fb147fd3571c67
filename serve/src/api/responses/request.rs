//! Translates a request of the Responses API into a chat request.
//!
//! ```text
//! instructions, input                   messages (`input.rs`)
//! tools, tool_choice                    the same, with the keys of a function in `function`
//! text.format, text.verbosity           response_format, verbosity
//! reasoning.effort                      reasoning_effort
//! max_output_tokens                     max_completion_tokens
//! include, top_logprobs                 logprobs, top_logprobs
//! ```
//! All other fields are those of a chat request, and the chat endpoint judges them. A field that only the Responses API
//! has is refused, unless its value asks for what happens anyway.

use serde_json::{Map, Value, json};

use super::input::messages_of_input;
use crate::api::{ApiError, REQUEST_LOCATION, wrong_field};

type Result<T> = std::result::Result<T, ApiError>;

/// A chat request that was made from a request of the Responses API.
#[derive(Debug)]
pub(super) struct ChatTranslation {
    /// The messages.
    pub(super) messages: Vec<Value>,
    /// For each message, the field or the item that it was made from.
    pub(super) locations: Vec<String>,
    /// The fields that the answer repeats.
    pub(super) repeated: Value,
}

/// Fields that are refused, and what to do instead. The first ones need stored texts or OpenAI's servers; the others
/// are fields of chat requests.
const REFUSED: [(&str, &str); 20] = [
    ("previous_response_id", "this server stores no responses: send the whole conversation in `input`"),
    ("conversation", "this server stores no conversations: send the whole conversation in `input`"),
    ("prompt", "this server stores no prompts: send the texts in `instructions` and `input`"),
    ("previous_response", "send the whole conversation in `input`"),
    ("previous_input_messages", "send the whole conversation in `input`"),
    ("context_management", "remove it, and shorten the conversation in `input`"),
    ("truncation", "remove it, and shorten `input` if it is too long: this server leaves out nothing"),
    ("background", "remove it, and wait for the answer or stream it"),
    ("moderation", "remove it"),
    ("access_programs", "remove it"),
    ("image", "remove it; the key max_pixels of an image limits its size"),
    ("messages", "give the conversation in `input`"),
    ("max_tokens", "give max_output_tokens"),
    ("max_completion_tokens", "give max_output_tokens"),
    ("response_format", "give text.format"),
    ("logprobs", "give \"include\": [\"message.output_text.logprobs\"]"),
    ("reasoning_effort", "give reasoning.effort"),
    ("verbosity", "give text.verbosity"),
    ("prompt_logprobs", "remove it, or use /v1/chat/completions"),
    ("n", "send a request for each answer, or use /v1/chat/completions"),
];

/// What `include` may list. Only the first one changes an answer of this server: the others belong to calls of built-in
/// tools, to stored inputs, and to reasoning that only OpenAI's servers can read.
const INCLUDABLE: [&str; 8] = [
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

/// Names in messages about a chat request, and what they are called here.
const NAMES: [(&str, &str); 8] = [
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
    ("tool_call_id", "call_id"),
    (" in its `json_schema`", ""),
    ("\"json_schema\": {\"name\": ..., \"schema\": ...}", "\"name\": ..., \"schema\": ..."),
];

/// Replaces the fields of a request by those of a chat request. The messages are not among `fields`, but in the result.
///
/// # Errors
/// A field, an item or a tool is not supported or has the wrong form.
pub(super) fn into_chat_request(fields: &mut Map<String, Value>) -> Result<ChatTranslation> {
    refuse_fields(fields)?;
    let mut take = |name: &str| fields.swap_remove(name);
    // These fields change nothing here: the answer has no calls of built-in tools, and prompts are always cached.
    let max_tool_calls = take("max_tool_calls");
    drop(["background_options", "prompt_cache_retention", "prompt_cache_options"].map(&mut take));
    let (instructions, input) = (take("instructions"), take("input"));
    let (tools, choice, max_output_tokens) = (take("tools"), take("tool_choice"), take("max_output_tokens"));
    let (reasoning, include) = (keys_of("reasoning", take("reasoning"), &["effort"])?, read_include(take("include"))?);
    let mut text = keys_of("text", take("text"), &["format", "verbosity"])?;

    let given = |name: &str| fields.get(name).cloned();
    let repeated = json!({
        "instructions": instructions, "max_output_tokens": max_output_tokens, "max_tool_calls": max_tool_calls,
        "metadata": given("metadata").unwrap_or(json!({})), "user": given("user"),
        "tools": tools.clone().unwrap_or(json!([])), "tool_choice": choice.clone().unwrap_or(json!("auto")),
        "parallel_tool_calls": given("parallel_tool_calls").unwrap_or(json!(true)),
        "reasoning": {"effort": reasoning.get("effort"), "summary": null},
        "text": {"format": text.get("format").unwrap_or(&json!({"type": "text"})), "verbosity": text.get("verbosity")},
        "top_logprobs": given("top_logprobs").unwrap_or(json!(0)), "truncation": "disabled", "service_tier": "default",
        "background": false, "store": false, "previous_response_id": null,
    });

    let mut give =
        |name: &str, value: Option<Value>| value.into_iter().for_each(|v| drop(fields.insert(name.into(), v)));
    give("max_completion_tokens", max_output_tokens);
    give("reasoning_effort", reasoning.get("effort").cloned());
    give("verbosity", text.swap_remove("verbosity"));
    give("response_format", text.swap_remove("format").map(response_format));
    let has_top = repeated["top_logprobs"].as_u64().is_some_and(|number| number > 0);
    give("logprobs", (include.iter().any(|name| name == INCLUDABLE[0]) || has_top).then_some(json!(true)));
    let (tools, choice) = chat_tools(tools, choice)?;
    give("tools", tools);
    give("tool_choice", choice);

    let (messages, locations) = messages_of_input(instructions, input)?;
    Ok(ChatTranslation { messages, locations, repeated })
}

/// Refuses fields that this server does not support, unless their value asks for what happens anyway. Takes out those
/// that it accepts.
fn refuse_fields(fields: &mut Map<String, Value>) -> Result<()> {
    for (name, usual) in [("n", json!(1)), ("background", json!(false)), ("truncation", json!("disabled"))] {
        if fields.get(name) == Some(&usual) {
            fields.swap_remove(name);
        }
    }
    if let Some((name, help)) = REFUSED.into_iter().find(|(name, _)| fields.contains_key(*name)) {
        return Err(wrong_field(name, "is not supported", help));
    }
    match fields.get("metadata") {
        Some(value) if !value.is_object() => Err(wrong_field("metadata", &format!("is {value}"), "give an object")),
        _ => Ok(()),
    }
}

/// The keys of an object that are not null.
///
/// # Errors
/// The value is not an object, or has a key that is not `known`.
fn keys_of(name: &str, value: Option<Value>, known: &[&str]) -> Result<Map<String, Value>> {
    let help = format!("give an object with {}", known.join(" and "));
    let object = match value {
        None => Map::new(),
        Some(Value::Object(object)) => object.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        Some(other) => return Err(wrong_field(name, &format!("is {other}"), &help)),
    };
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(wrong_field(&format!("{name}.{key}"), "is not supported", "remove it")),
        None => Ok(object),
    }
}

/// The field `include`.
fn read_include(value: Option<Value>) -> Result<Vec<String>> {
    let list = value.unwrap_or(json!([]));
    let known = |item: &Value| item.as_str().filter(|name| INCLUDABLE.contains(name)).map(String::from);
    let names = list.as_array().and_then(|list| list.iter().map(known).collect());
    names.ok_or_else(|| {
        wrong_field("include", &format!("is {list}"), &format!("list some of {}", INCLUDABLE.join(", ")))
    })
}

/// The chat field `response_format` for the value of `text.format`: the keys of a schema stand in `json_schema`.
fn response_format(format: Value) -> Value {
    match format {
        Value::Object(mut keys) if keys.get("type") == Some(&json!("json_schema")) => {
            keys.swap_remove("type");
            json!({"type": "json_schema", "json_schema": keys})
        }
        other => other,
    }
}

/// The chat fields `tools` and `tool_choice`. A choice of `allowed_tools` leaves out the other tools.
fn chat_tools(tools: Option<Value>, choice: Option<Value>) -> Result<(Option<Value>, Option<Value>)> {
    let mut tools = match tools {
        Some(Value::Array(list)) => Some(list.into_iter().enumerate().map(chat_tool).collect::<Result<Vec<Value>>>()?),
        None => None,
        Some(other) => return Err(wrong_field("tools", &format!("is {other}"), "give a list of functions")),
    };
    let wrong_choice = |choice: &Value| {
        let help = "give \"none\", \"auto\", \"required\", {\"type\": \"function\", \"name\": ...}, or {\"type\": \
            \"allowed_tools\", \"mode\": ..., \"tools\": [...]} with functions of `tools`";
        wrong_field("tool_choice", &format!("is {choice}"), help)
    };
    let choice = match choice {
        Some(choice @ Value::Object(_)) => match (choice["type"].as_str(), choice["tools"].as_array()) {
            (Some("function"), _) if choice["name"].is_string() => {
                Some(json!({"type": "function", "function": {"name": choice["name"]}}))
            }
            (Some("allowed_tools"), Some(allowed)) => {
                let is_allowed = |tool: &Value| allowed.iter().any(|one| one["name"] == tool["function"]["name"]);
                let list = tools.get_or_insert_default();
                list.retain(is_allowed);
                if list.is_empty() || list.len() < allowed.len() {
                    return Err(wrong_choice(&choice));
                }
                Some(choice["mode"].clone())
            }
            _ => return Err(wrong_choice(&choice)),
        },
        choice => choice,
    };
    Ok((tools.map(Value::from), choice))
}

/// A function in the form of a chat request.
fn chat_tool((i, tool): (usize, Value)) -> Result<Value> {
    let location = format!("tools[{i}]");
    let Value::Object(mut keys) = tool else {
        return Err(wrong_field(&location, &format!("is {tool}"), "give {\"type\": \"function\", \"name\": ...}"));
    };
    let kind = keys.swap_remove("type").unwrap_or_default();
    if kind != "function" {
        let what = format!("has the type {kind}, but this server has no tools of its own");
        return Err(wrong_field(&location, &what, "give functions: {\"type\": \"function\", \"name\": ...}"));
    }
    let names = ["name", "description", "parameters", "strict"];
    let function: Map<String, Value> =
        names.into_iter().filter_map(|name| Some((name.into(), keys.swap_remove(name)?))).collect();
    match keys.into_iter().find(|(_, value)| !value.is_null() && *value != false) {
        Some((key, _)) => Err(wrong_field(&format!("{location}.{key}"), "is not supported", "remove it")),
        None => Ok(json!({"type": "function", "function": function})),
    }
}

/// An error about the chat request, with the names of the request that it was made from. `locations` are those of the
/// messages.
pub(super) fn with_names_of_responses(e: ApiError, locations: &[String]) -> ApiError {
    let prefix = format!("{REQUEST_LOCATION}: ");
    let (start, rest) = e.message.strip_prefix(&prefix).map_or(("", &*e.message), |rest| (&*prefix, rest));
    let location_of_message = |rest: &str| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let location = locations.get(rest[..digits].parse::<usize>().ok()?)?;
        Some(format!("{location}{}", &rest[digits..]))
    };
    let renamed = match (rest.strip_prefix("messages"), rest.strip_prefix("message ").and_then(location_of_message)) {
        (Some(rest), _) => format!("input{rest}"),
        (None, Some(renamed)) => renamed,
        (None, None) => rest.to_string(),
    };
    let here = |text: String| {
        let text = if text.starts_with("tools[") { text.replacen("].function", "]", 1) } else { text };
        NAMES.into_iter().fold(text, |text, (name, here)| text.replace(name, here))
    };
    let param = e.param.map(|name| if name == "messages" { "input".into() } else { here(name) });
    ApiError { message: format!("{start}{}", here(renamed)), param, ..e }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(mut request: Value) -> Result<(Value, Value)> {
        let fields = request.as_object_mut().unwrap();
        fields.insert("input".into(), json!("x"));
        let chat = into_chat_request(fields)?;
        assert_eq!(chat.messages.last(), Some(&json!({"role": "user", "content": "x"})));
        Ok((request, chat.repeated))
    }

    #[test]
    fn fields_become_those_of_a_chat_request() {
        let schema = json!({"type": "integer"});
        let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
        let chat_format = json!({"name": "n", "strict": true, "schema": schema});
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true});
        let mut tool = function.clone();
        (tool["type"], tool["defer_loading"], tool["output_schema"]) = (json!("function"), json!(false), Value::Null);
        let mut other = tool.clone();
        other["name"] = json!("g");
        let chat_tool = json!({"type": "function", "function": function});
        let named = json!({"type": "function", "name": "f"});
        let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [named]});
        for (request, chat) in [
            (
                json!({"max_output_tokens": 3, "temperature": 1, "seed": 2}),
                json!({"max_completion_tokens": 3, "temperature": 1, "seed": 2}),
            ),
            (
                json!({"text": {"format": format, "verbosity": "low"}}),
                json!({"response_format": {"type": "json_schema", "json_schema": chat_format}, "verbosity": "low"}),
            ),
            (json!({"text": {"format": {"type": "json_object"}}}), json!({"response_format": {"type": "json_object"}})),
            (json!({"text": {"verbosity": null}, "reasoning": {"effort": "low"}}), json!({"reasoning_effort": "low"})),
            (json!({"include": ["message.output_text.logprobs"]}), json!({"logprobs": true})),
            (json!({"include": ["reasoning.encrypted_content"], "top_logprobs": 0}), json!({"top_logprobs": 0})),
            (json!({"top_logprobs": 2}), json!({"top_logprobs": 2, "logprobs": true})),
            (json!({"tools": [tool], "tool_choice": "auto"}), json!({"tools": [chat_tool], "tool_choice": "auto"})),
            (
                json!({"tools": [tool], "tool_choice": named}),
                json!({"tools": [chat_tool], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
            ),
            (
                json!({"tools": [other, tool], "tool_choice": allowed}),
                json!({"tools": [chat_tool], "tool_choice": "required"}),
            ),
            (json!({"n": 1, "background": false, "truncation": "disabled", "max_tool_calls": 2}), json!({})),
        ] {
            let (translated, _) = translate(request.clone()).unwrap_or_else(|e| panic!("{request}: {e:?}"));
            assert_eq!(translated, chat, "{request}");
        }
    }

    #[test]
    fn the_answer_repeats_the_request() {
        let tool = json!({"type": "function", "name": "f"});
        let request = json!({"instructions": "i", "tools": [tool], "metadata": {"a": "b"}, "store": true,
            "text": {"format": {"type": "json_object"}}, "max_output_tokens": 3});
        let (_, repeated) = translate(request).unwrap();
        for (name, value) in [
            ("instructions", json!("i")),
            ("tools", json!([tool])),
            ("metadata", json!({"a": "b"})),
            ("store", json!(false)),
            ("max_output_tokens", json!(3)),
            ("tool_choice", json!("auto")),
            ("parallel_tool_calls", json!(true)),
            ("previous_response_id", Value::Null),
            ("text", json!({"format": {"type": "json_object"}, "verbosity": null})),
        ] {
            assert_eq!(repeated[name], value, "{name}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let named = json!({"type": "function", "name": "g"});
        for (request, param, words) in [
            (
                json!({"previous_response_id": "resp_1"}),
                "previous_response_id",
                "send the whole conversation in `input`",
            ),
            (json!({"truncation": "auto"}), "truncation", "shorten `input`"),
            (json!({"background": true}), "background", "is not supported"),
            (json!({"max_tokens": 3}), "max_tokens", "give max_output_tokens"),
            (json!({"n": 2}), "n", "is not supported"),
            (json!({"metadata": 3}), "metadata", "is 3"),
            (json!({"include": ["all"]}), "include", "list some of message.output_text.logprobs, "),
            (json!({"reasoning": {"summary": "auto"}}), "reasoning.summary", "is not supported"),
            (json!({"text": []}), "text", "give an object with format and verbosity"),
            (json!({"tools": {}}), "tools", "give a list of functions"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0]", "has the type \"web_search\", but"),
            (json!({"tools": [{"name": "f"}]}), "tools[0]", "has the type null, but"),
            (
                json!({"tools": [{"type": "function", "name": "f", "defer_loading": true}]}),
                "tools[0].defer_loading",
                "is not",
            ),
            (json!({"tool_choice": {"type": "web_search"}}), "tool_choice", "is {\"type\":\"web_search\"}; give"),
            (
                json!({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [named]}}),
                "tool_choice",
                "functions of `tools`",
            ),
        ] {
            let e = translate(request.clone()).expect_err(&request.to_string());
            assert_eq!(e.param.as_deref(), Some(param), "{e:?}");
            assert!(e.message.starts_with(&format!("request: {param}: ")) && e.message.contains(words), "{e:?}");
        }
    }

    #[test]
    fn errors_about_the_chat_request_name_the_fields_of_the_request() {
        let locations = ["instructions".to_string(), "input[0]".into(), "input[3]".into()];
        for (message, param, wanted, wanted_param) in [
            ("request: messages: have 3 images", "messages", "request: input: have 3 images", "input"),
            ("messages: name a file", "messages", "input: name a file", "input"),
            ("request: message 2, part 1: is text", "messages", "request: input[3], part 1: is text", "input"),
            ("request: message 0: is messages", "messages", "request: instructions: is messages", "input"),
            ("request: message 7: is", "messages", "request: message 7: is", "input"),
            (
                "request: tools[1].function.name: is",
                "tools[1].function.name",
                "request: tools[1].name: is",
                "tools[1].name",
            ),
            ("request: response_format: is", "response_format", "request: text.format: is", "text.format"),
            (
                "request: response_format: has; give {\"json_schema\": {\"name\": ..., \"schema\": ...}}",
                "response_format",
                "request: text.format: has; give {\"name\": ..., \"schema\": ...}",
                "text.format",
            ),
            ("lower max_completion_tokens to 3", "messages", "lower max_output_tokens to 3", "input"),
        ] {
            let e = with_names_of_responses(ApiError::bad_request(message, Some(param.into())), &locations);
            assert_eq!((&*e.message, e.param.as_deref()), (wanted, Some(wanted_param)));
        }
    }
}
