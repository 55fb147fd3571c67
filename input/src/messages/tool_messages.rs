//! Tool calls and their results in chat messages. An assistant's message has `tool_calls`, whose arguments are an
//! object or, as in OpenAI's API, a text with its JSON. A message of the role `tool` has the result of one call.
//!
//! A client sends an answer back as it came, so arguments may also be a text that is not JSON: the model wrote it, or
//! did not complete it. The prompt then has the text unchanged, where a template would write it as a JSON string.

use serde_json::{Map, Value, json};

use super::{ContentPart, Conversation, Message, MessageContent};
use crate::error::{Error, Result};
use crate::python_json::python_json;

/// Maximum length of a function's name, as in OpenAI's API.
const MAX_NAME_CHARS: usize = 64;

const CALL: &str = "give {\"id\": ..., \"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": an object as \
    JSON}}";

/// Reads the tool calls in `keys`, a message's keys other than `role` and `content`. Converts the arguments of calls to
/// JSON objects, which chat templates expect. Arguments that are not JSON stay texts.
///
/// # Errors
/// A call has the wrong form; the message has the old field `function_call`, which `tool_calls` has replaced.
pub(crate) fn read_tool_calls(location: &str, role: &str, mut keys: Map<String, Value>) -> Result<Map<String, Value>> {
    if keys.get("function_call").is_some_and(|call| !call.is_null()) {
        let location = format!("{location}: function_call");
        return Err(Error::input(location, "is not supported", "give the call in `tool_calls`"));
    }
    match keys.get_mut("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) if role == "assistant" || calls.is_empty() => {
            for (i, call) in calls.iter_mut().enumerate() {
                read_call(&format!("{location}, tool call {i}"), call)?;
            }
        }
        Some(Value::Array(_)) => {
            let what = format!("has tool_calls, but its role is {role}");
            return Err(Error::input(location, what, "give them in a message of the assistant"));
        }
        Some(_) => {
            return Err(Error::input(format!("{location}: tool_calls"), "is not a list", CALL));
        }
    }
    Ok(keys)
}

/// The object with the name and the arguments of a call: its key `function`, or the call itself; templates accept both.
fn function_mut(call: &mut Value) -> &mut Value {
    if call.get("function").is_some() { &mut call["function"] } else { call }
}

/// Checks one call. If its arguments are a text with a JSON object, they are replaced by this object.
fn read_call(location: &str, call: &mut Value) -> Result<()> {
    let wrong = |what: String| Err(Error::input(location, what, CALL));
    if !call.is_object() {
        return wrong("is not an object".into());
    }
    if call.get("type").is_some_and(|kind| kind != "function") {
        return wrong(format!("has the type {}", call["type"]));
    }
    let function = function_mut(call);
    match function.get("name") {
        Some(Value::String(name)) if is_function_name(name) => {}
        Some(name) => return wrong(format!("has the function name {name}")),
        None => return wrong("has no function name".into()),
    }
    let arguments = match function.get("arguments") {
        Some(Value::Object(_)) => return Ok(()),
        // A call without arguments gets an empty object.
        None | Some(Value::Null) => Map::new(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(arguments) => arguments,
            Err(_) => return Ok(()),
        },
        Some(_) => return wrong("has arguments that are neither an object nor a text".into()),
    };
    function["arguments"] = Value::Object(arguments);
    Ok(())
}

/// The text that Qwen2.5's template writes for a call after the text of a message. `call` was checked by [`read_call`].
fn call_text(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let arguments = match &function["arguments"] {
        Value::String(text) => text.clone(),
        arguments => python_json(arguments),
    };
    format!("\n<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>", function["name"])
}

/// The beginning of the mark that stands for a text in `arguments` while a template is rendered; its index and `]`
/// follow.
const MARK: &str = "[reel-arguments-";

/// Replaces the arguments that are texts by marks, in messages as JSON for a chat template. Returns the texts.
pub(crate) fn mark_text_arguments(messages: &mut Value) -> Vec<String> {
    let mut texts = Vec::new();
    let calls = |message| Value::get_mut(message, "tool_calls").and_then(Value::as_array_mut);
    for call in messages.as_array_mut().into_iter().flatten().filter_map(calls).flatten() {
        if let Some(Value::String(text)) = function_mut(call).get_mut("arguments") {
            let mark = format!("{MARK}{}]", texts.len());
            texts.push(std::mem::replace(text, mark));
        }
    }
    texts
}

/// Replaces the marks in a rendered prompt by the texts that they stand for. A template may have written a mark as a
/// JSON string; its quotes are removed.
pub(crate) fn insert_text_arguments(prompt: String, texts: &[String]) -> String {
    if texts.is_empty() {
        return prompt;
    }
    let mut parts = prompt.split(MARK);
    let mut inserted = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let text_of = |index: &str| texts.get(index.parse::<usize>().ok()?);
        let Some((text, rest)) = part.split_once(']').and_then(|(index, rest)| Some((text_of(index)?, rest))) else {
            inserted += MARK;
            inserted += part;
            continue;
        };
        let unquoted = rest.strip_prefix('"').filter(|_| inserted.ends_with('"'));
        if unquoted.is_some() {
            inserted.pop();
        }
        inserted += text;
        inserted += unquoted.unwrap_or(rest);
    }
    inserted
}

impl Message {
    /// The tool calls of the message.
    fn tool_calls(&self) -> &[Value] {
        self.others.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl Conversation {
    /// The conversation with tools that the model may call, as JSON.
    pub fn with_tools(self, tools: Vec<Value>) -> Self {
        Self { tools, ..self }
    }

    /// Refuses a call whose arguments are not JSON. A row of training data must not teach such a call.
    ///
    /// # Errors
    /// The arguments of a call are not a JSON object.
    pub(super) fn refuse_text_arguments(&self) -> Result<()> {
        for (i, message) in self.messages.iter().enumerate() {
            for (j, call) in message.tool_calls().iter().enumerate() {
                if call.get("function").unwrap_or(call)["arguments"].is_string() {
                    let location = format!("{}: message {i}, tool call {j}", self.location);
                    return Err(Error::input(location, "has arguments that are not a JSON object", CALL));
                }
            }
        }
        Ok(())
    }

    /// Whether a message has calls.
    pub(crate) fn has_tool_calls(&self) -> bool {
        self.messages.iter().any(|message| !message.tool_calls().is_empty())
    }

    /// The conversation with the tool calls of each message appended to its content, as the model writes them. This is
    /// for a chat template that does not render tool calls.
    pub(crate) fn with_calls_as_text(&self) -> Self {
        let mut conversation = self.clone();
        for message in &mut conversation.messages {
            let calls: String = message.tool_calls().iter().map(call_text).collect();
            if calls.is_empty() {
                continue;
            }
            match &mut message.content {
                MessageContent::Text(text) if text.is_empty() => *text = calls.trim_start().to_string(),
                MessageContent::Text(text) => text.push_str(&calls),
                MessageContent::Parts(parts) => parts.push(ContentPart::Text(calls)),
            }
        }
        conversation
    }

    /// Checks, as OpenAI's API does, that each call has an id and each result belongs to a call of the last message of
    /// the assistant.
    ///
    /// # Errors
    /// A call has no id, or two calls have the same id; a result has no `tool_call_id`, or an id that no earlier call
    /// has.
    pub fn check_tool_results(&self) -> Result<()> {
        let mut open: Vec<&str> = Vec::new();
        for (i, message) in self.messages.iter().enumerate() {
            let wrong =
                |what: String, help: &str| Err(Error::input(format!("{}: message {i}", self.location), what, help));
            if message.role != "tool" {
                open.clear();
                for (j, call) in message.tool_calls().iter().enumerate() {
                    match call.get("id").and_then(Value::as_str) {
                        Some(id) if !open.contains(&id) => open.push(id),
                        Some(id) => return wrong(format!("has a second tool call with the id {id:?}"), CALL),
                        None => return wrong(format!("has the tool call {j} without an `id`"), CALL),
                    }
                }
                continue;
            }
            let help = "give the id of a call in the assistant's message before it";
            match message.others.get("tool_call_id") {
                Some(Value::String(id)) if open.contains(&id.as_str()) => {}
                Some(Value::String(id)) => {
                    return wrong(format!("has the tool_call_id {id:?}, but no tool call before it has this id"), help);
                }
                Some(Value::Null) | None => {
                    return wrong("is the result of a tool call, but has no `tool_call_id`".into(), help);
                }
                Some(id) => return wrong(format!("has the tool_call_id {id}"), help),
            }
        }
        Ok(())
    }

    /// The messages as JSON for a chat template that supports only text content. Each image is replaced by the text
    /// `image`, each video by the text `video`.
    pub(crate) fn to_text_template_value(&self, image: &str, video: &str) -> Value {
        let with_text = |message: &Message| {
            let part = |part: &ContentPart| match part {
                ContentPart::Text(text) => text.clone(),
                ContentPart::Image(_) => image.to_string(),
                ContentPart::Video(_) => video.to_string(),
            };
            let text = match &message.content {
                MessageContent::Text(text) => text.clone(),
                MessageContent::Parts(parts) => parts.iter().map(part).collect(),
            };
            let mut map = Map::from_iter([("role".to_string(), json!(message.role)), ("content".into(), json!(text))]);
            map.extend(message.others.clone());
            Value::Object(map)
        };
        self.messages.iter().map(with_text).collect()
    }
}

/// Whether `name` is allowed as the name of a function.
pub(crate) fn is_function_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(messages: Value) -> Result<Conversation> {
        Conversation::from_json("m.json", &messages, Path::new(""))
    }

    fn call(id: &str, arguments: Value) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
    }

    fn assistant(calls: Value) -> Value {
        json!([{"role": "assistant", "content": null, "tool_calls": calls}])
    }

    #[test]
    fn arguments_become_objects_and_null_contents_empty() {
        for (arguments, expected) in [
            (json!("{\"b\": 1, \"a\": [\"é\"]}"), json!({"b": 1, "a": ["é"]})),
            (json!({"b": 1}), json!({"b": 1})),
            (json!(""), json!({})),
            (Value::Null, json!({})),
        ] {
            let conversation = read(assistant(json!([call("1", arguments)]))).unwrap();
            let wanted = json!([{"role": "assistant", "content": "", "tool_calls": [call("1", expected)]}]);
            assert_eq!(conversation.to_template_value(), wanted);
        }
        // Calls in the form of transformers' examples, and messages without calls.
        let bare = read(assistant(json!([{"name": "f", "arguments": "{\"a\": 1}"}]))).unwrap();
        assert_eq!(bare.to_template_value()[0]["tool_calls"], json!([{"name": "f", "arguments": {"a": 1}}]));
    }

    #[test]
    fn calls_can_stand_in_the_content() {
        let calls = json!([call("1", json!({"b": 1, "a": ["é"]})), {"name": "g"}]);
        let first = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [\"é\"]}}\n</tool_call>";
        let both = format!("{first}\n<tool_call>\n{{\"name\": \"g\", \"arguments\": {{}}}}\n</tool_call>");
        for (content, wanted) in [
            (Value::Null, json!(both)),
            (json!("x"), json!(format!("x\n{both}"))),
            (
                json!([{"type": "text", "text": "x"}]),
                json!([{"type": "text", "text": "x"}, {"type": "text", "text": format!("\n{both}")}]),
            ),
        ] {
            let messages = json!([{"role": "assistant", "content": content, "tool_calls": calls}]);
            let written = read(messages).unwrap().with_calls_as_text().to_template_value();
            assert_eq!(written[0]["content"], wanted);
        }
        let plain = read(json!([{"role": "assistant", "content": "x", "tool_calls": []}])).unwrap();
        assert_eq!(plain.with_calls_as_text(), plain);
    }

    /// Arguments that the model did not complete come back as the text that they are.
    #[test]
    fn arguments_that_are_not_json_stay_texts() {
        let cut = ["{\"q\": \"a\\n\"b", "[1]", "é]", "[reel-arguments-0]"];
        let calls: Vec<Value> = cut.iter().map(|text| call("1", json!(text))).collect();
        let conversation = read(assistant(json!(calls))).unwrap();
        let written = conversation.with_calls_as_text().to_template_value()[0]["content"].as_str().unwrap().to_string();
        let wanted = cut.map(|text| format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {text}}}\n</tool_call>"));
        assert_eq!(written, wanted.join("\n"));
        let mut messages = conversation.to_template_value();
        let texts = mark_text_arguments(&mut messages);
        assert_eq!(texts, cut);
        let written = |i: usize| messages[0]["tool_calls"][i]["function"]["arguments"].to_string();
        let prompt = format!("a {} {MARK}9] {MARK}] {} [reel-arguments-3] {}z", written(0), written(1), written(2));
        let wanted = format!("a {} {MARK}9] {MARK}] {} {} {}z", cut[0], cut[1], cut[3], cut[2]);
        assert_eq!(insert_text_arguments(prompt, &texts), wanted);
        let row = assistant(json!([call("1", json!("{\"a\": "))]));
        let e = Conversation::from_row("d.jsonl:1", &row, Path::new(""), None).unwrap_err().to_string();
        assert!(e.starts_with("d.jsonl:1: message 0, tool call 0: has arguments that are not a JSON object; "), "{e}");
    }

    #[test]
    fn parts_become_text() {
        let parts = json!([{"type": "image", "image": "a.png"}, {"type": "text", "text": "and "},
            {"type": "video", "video": "v.mp4"}, {"type": "text", "text": "?"}]);
        let conversation = read(json!([{"role": "user", "content": parts, "name": "x"}])).unwrap();
        let wanted = json!([{"role": "user", "content": "<i>and <v>?", "name": "x"}]);
        assert_eq!(conversation.to_text_template_value("<i>", "<v>"), wanted);
    }

    #[test]
    fn wrong_calls_are_refused_by_name() {
        let with = |call: Value| assistant(json!([call]));
        for (messages, expected) in [
            (json!([{"role": "assistant", "content": "", "tool_calls": "x"}]), "message 0: tool_calls: is not a list"),
            (with(json!(3)), "message 0, tool call 0: is not an object"),
            (with(json!({"type": "custom"})), "has the type \"custom\""),
            (with(json!({"type": "function", "function": 3})), "has no function name"),
            (with(json!({"function": {"name": "a b"}})), "has the function name \"a b\""),
            (with(call("1", json!(3))), "has arguments that are neither"),
            (
                json!([{"role": "user", "content": "x", "tool_calls": [call("1", json!({}))]}]),
                "has tool_calls, but its role is user",
            ),
            (json!([{"role": "assistant", "content": "", "function_call": {"name": "f"}}]), "function_call: is not"),
            (json!([{"role": "user", "content": null}]), "message 0: has a `content`"),
        ] {
            let error = read(messages.clone()).expect_err(&messages.to_string()).to_string();
            assert!(error.starts_with("m.json: message 0") && error.contains(expected), "{messages}: {error}");
        }
    }

    #[test]
    fn results_belong_to_calls() {
        let calls =
            json!({"role": "assistant", "content": null, "tool_calls": [call("1", json!({})), call("2", json!({}))]});
        let result = |id: Value| json!({"role": "tool", "content": "x", "tool_call_id": id});
        let user = json!({"role": "user", "content": "x"});
        let check = |messages: Value| read(messages).unwrap().check_tool_results().map_err(|e| e.to_string());
        let good = json!([user, calls, result(json!("2")), result(json!("1")), calls, result(json!("1")), user]);
        assert_eq!(check(good), Ok(()));
        for (messages, expected) in [
            (json!([user, result(json!("1"))]), "message 1: has the tool_call_id \"1\", but no tool call"),
            (json!([calls, user, result(json!("1"))]), "message 2: has the tool_call_id \"1\", but no tool call"),
            (json!([calls, result(json!("3"))]), "message 1: has the tool_call_id \"3\", but no tool call"),
            (json!([calls, result(json!(1))]), "message 1: has the tool_call_id 1"),
            (json!([calls, result(Value::Null)]), "message 1: is the result of a tool call, but has no"),
            (assistant(json!([call("1", json!({})), call("1", json!({}))])), "message 0: has a second tool call"),
            (assistant(json!([{"function": {"name": "f"}}])), "message 0: has the tool call 0 without an `id`"),
        ] {
            let error = check(messages.clone()).expect_err(&messages.to_string());
            assert!(error.starts_with(&format!("m.json: {expected}")), "{messages}: {error}");
        }
    }
}
