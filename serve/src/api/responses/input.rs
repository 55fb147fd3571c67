//! Translates the input of the Responses API into chat messages.
//!
//! ```text
//! instructions                           {"role": "system", "content": …}
//! a text                                 {"role": "user", "content": …}
//! {"role": …, "content": …}              the same; the role `developer` becomes `system`
//! {"type": "function_call", …}           a tool call in a message of the assistant
//! {"type": "function_call_output", …}    {"role": "tool", "tool_call_id": …, "content": …}
//! {"type": "reasoning", …}               the reasoning of the assistant's next message
//! ```
//! An answer of several items becomes one message, as the chat endpoint gives it: calls in succession belong to one
//! message, and so does a text before or after them.

use serde_json::{Map, Value, json};

use crate::api::ApiError;
use crate::api::wrong_field;

/// The chat messages of a request, and for each message the field or the item that it was made from.
///
/// # Errors
/// A field or an item has the wrong form, or an item is of a kind that this server does not support.
pub(super) fn messages_of_input(
    instructions: Option<Value>,
    input: Option<Value>,
) -> Result<(Vec<Value>, Vec<String>), ApiError> {
    let mut messages = Messages::default();
    match instructions {
        None => {}
        Some(text @ Value::String(_)) => messages.push("instructions", "system", text),
        Some(other) => return Err(wrong_field("instructions", &format!("is {other}"), "give a text")),
    }
    match input {
        Some(text @ Value::String(_)) => messages.push("input", "user", text),
        Some(Value::Array(items)) => {
            for (i, item) in items.into_iter().enumerate() {
                messages.push_item(&format!("input[{i}]"), item)?;
            }
        }
        Some(other) => return Err(wrong_field("input", &format!("is {other}"), "give a text, or a list of items")),
        None => return Err(wrong_field("input", "is missing", "give a text, or a list of items")),
    }
    Ok(messages.list.into_iter().map(Message::into_chat_message).unzip())
}

/// A chat message.
#[derive(Debug, Default)]
struct Message {
    /// The field or the item that it was made from.
    location: String,
    role: Value,
    content: Value,
    tool_calls: Vec<Value>,
    /// The other keys.
    others: Map<String, Value>,
}

impl Message {
    fn into_chat_message(self) -> (Value, String) {
        let mut message = json!({"role": self.role, "content": self.content});
        if !self.tool_calls.is_empty() {
            message["tool_calls"] = self.tool_calls.into();
        }
        self.others.into_iter().for_each(|(key, value)| message[key] = value);
        (message, self.location)
    }
}

#[derive(Debug, Default)]
struct Messages {
    list: Vec<Message>,
    /// Reasoning that belongs to the next message of the assistant.
    reasoning: String,
}

impl Messages {
    fn push(&mut self, location: &str, role: &str, content: Value) {
        self.list.push(Message { location: location.into(), role: role.into(), content, ..Message::default() });
    }

    fn push_item(&mut self, location: &str, item: Value) -> Result<(), ApiError> {
        let Value::Object(mut keys) = item else {
            return Err(wrong_field(location, &format!("is {item}"), "give an object with `role` or `type`"));
        };
        let has_role = keys.contains_key("role");
        let mut take = |key: &str| keys.swap_remove(key).unwrap_or_default();
        let kind = take("type");
        match kind.as_str().or(has_role.then_some("message")).unwrap_or("item_reference") {
            "message" => {
                // These keys describe the item and change nothing.
                drop(["id", "status", "phase"].map(&mut take));
                let (role, content) = (take("role"), take("content"));
                let role = if role == "developer" { json!("system") } else { role };
                let mut message = match role == "assistant" {
                    true => self.pop_answer(location, |last| !last.tool_calls.is_empty()),
                    false => Message { location: location.into(), role, ..Message::default() },
                };
                message.content = joined(message.content, content);
                message.others.extend(keys);
                self.list.push(message);
            }
            "function_call" => {
                let function = json!({"name": take("name"), "arguments": take("arguments")});
                let mut message = self.pop_answer(location, |_| true);
                message.tool_calls.push(json!({"id": take("call_id"), "type": "function", "function": function}));
                self.list.push(message);
            }
            "function_call_output" => {
                self.push(location, "tool", take("output"));
                let id = Map::from_iter([("tool_call_id".to_string(), take("call_id"))]);
                self.list.last_mut().into_iter().for_each(|message| message.others = id.clone());
            }
            "reasoning" => {
                let parts = [take("content"), take("summary")];
                let texts = |parts: &Value| -> String {
                    parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect()
                };
                // A summary stands for reasoning that is not given.
                self.reasoning += &parts.iter().map(texts).find(|text| !text.is_empty()).unwrap_or_default();
            }
            "item_reference" => {
                let help = "send the whole item, as some clients do if `store` is false";
                return Err(wrong_field(location, "refers to a stored item, but this server stores none", help));
            }
            kind => {
                let what = format!("has the type `{kind}`, which this server does not support");
                let help = "give items of the types message, function_call, function_call_output and reasoning";
                return Err(wrong_field(location, &what, help));
            }
        }
        Ok(())
    }

    /// Takes out the last message if it is from the assistant and `continues` is true of it. Otherwise returns a new
    /// message of the assistant, with the reasoning before it.
    fn pop_answer(&mut self, location: &str, continues: impl Fn(&Message) -> bool) -> Message {
        let last = self.list.pop_if(|last| last.role == "assistant" && continues(last));
        let mut message = last.unwrap_or_else(|| Message {
            location: location.into(),
            role: "assistant".into(),
            ..Message::default()
        });
        let reasoning = std::mem::take(&mut self.reasoning);
        if !reasoning.is_empty() {
            message.others.insert("reasoning_content".into(), reasoning.into());
        }
        message
    }
}

/// The content of two items that become one message: each is null, a text, or a list of parts.
fn joined(first: Value, second: Value) -> Value {
    if first.is_null() || second.is_null() {
        return if first.is_null() { second } else { first };
    }
    let parts = |content: Value| match content {
        Value::Array(parts) => parts,
        text => vec![json!({"type": "text", "text": text})],
    };
    [parts(first), parts(second)].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(input: Value) -> (Value, Vec<String>) {
        let (messages, locations) =
            messages_of_input(None, Some(input.clone())).unwrap_or_else(|e| panic!("{input}: {e:?}"));
        (messages.into(), locations)
    }

    fn call(id: &str) -> Value {
        json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}"})
    }

    fn chat_call(id: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}})
    }

    fn output(id: &str) -> Value {
        json!({"type": "function_call_output", "call_id": id, "output": "x"})
    }

    #[test]
    fn texts_and_messages_are_messages() {
        let given = messages_of_input(Some(json!("Be brief.")), Some(json!("Hi"))).unwrap();
        let wanted = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
        assert_eq!((Value::from(given.0), given.1), (wanted, vec!["instructions".into(), "input".to_string()]));
        let parts = json!([{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "a.png"}]);
        let (given, locations) = messages(json!([
            {"role": "developer", "content": "d"}, {"type": "message", "role": "user", "content": parts, "name": "n"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": "final_answer",
                "content": [{"type": "output_text", "text": "y", "annotations": []}]},
            {"role": "assistant", "content": "z"},
        ]));
        assert_eq!(
            given,
            json!([
                {"role": "system", "content": "d"}, {"role": "user", "content": parts, "name": "n"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "y", "annotations": []}]},
                {"role": "assistant", "content": "z"},
            ])
        );
        assert_eq!(locations, ["input[0]", "input[1]", "input[2]", "input[3]"]);
    }

    #[test]
    fn the_items_of_an_answer_are_one_message() {
        let text = |text: &str| json!({"type": "message", "role": "assistant", "content": text});
        let reasoning = json!({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}],
            "content": [{"type": "reasoning_text", "text": "r"}]});
        let (given, locations) = messages(json!([
            {"role": "user", "content": "q"}, reasoning, text("a"), call("1"), call("2"), text("b"), output("2"),
            output("1"), call("3"), output("3"), {"role": "user", "content": "q"},
        ]));
        let tool = |id: &str| json!({"role": "tool", "content": "x", "tool_call_id": id});
        let both = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(
            given,
            json!([
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": both, "tool_calls": [chat_call("1"), chat_call("2")],
                    "reasoning_content": "r"},
                tool("2"), tool("1"),
                {"role": "assistant", "content": null, "tool_calls": [chat_call("3")]},
                tool("3"), {"role": "user", "content": "q"},
            ])
        );
        let wanted = ["input[0]", "input[2]", "input[6]", "input[7]", "input[8]", "input[9]", "input[10]"];
        assert_eq!(locations, wanted);
    }

    #[test]
    fn items_that_need_a_store_or_other_tools_are_refused_by_name() {
        for (input, words) in [
            (json!([{"type": "item_reference", "id": "msg_1"}]), "request: input[0]: refers to a stored item, but"),
            (json!([call("1"), {"id": "fc_1"}]), "request: input[1]: refers to a stored item, but"),
            (json!([{"type": "web_search_call"}]), "request: input[0]: has the type `web_search_call`, which"),
            (json!([3]), "request: input[0]: is 3; give an object"),
            (json!(3), "request: input: is 3; give a text, or"),
        ] {
            let e = messages_of_input(None, Some(input.clone())).expect_err(&input.to_string());
            assert!(e.message().starts_with(words), "{input}: {e:?}");
        }
        assert!(messages_of_input(None, None).unwrap_err().message().starts_with("request: input: is missing; "));
        let e = messages_of_input(Some(json!([])), Some(json!("x"))).unwrap_err();
        assert!(e.message().starts_with("request: instructions: is []; "), "{e:?}");
    }
}
