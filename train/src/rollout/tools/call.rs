//! Finds the tool calls in the text of a turn: JSON objects between tags.

use serde_json::{Map, Value};

/// A tool call that the model has written.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// The name of the tool; empty if the call has none.
    pub name: String,
    /// The arguments by name, or what is wrong with the call, as the model reads it.
    pub arguments: Result<Map<String, Value>, String>,
}

/// Returns the calls in the text of a turn, in order. A call that has no end tag ends with the text.
///
/// Example: `Let me look.<tool_call>{"name": "zoom", "arguments": {"time": 2}}</tool_call>` has one call of `zoom`.
pub fn calls_in(text: &str, [begin, end]: [&str; 2]) -> Vec<ToolCall> {
    let after_tags = text.split(begin).skip(1);
    after_tags.map(|rest| read_call(rest.split_once(end).map_or(rest, |(call, _)| call).trim())).collect()
}

fn read_call(text: &str) -> ToolCall {
    let wrong = |name: &str, what: String| ToolCall { name: name.to_string(), arguments: Err(what) };
    let call: Value = match serde_json::from_str(text) {
        Ok(call) => call,
        Err(e) => return wrong("", format!("the call is not JSON: {e}")),
    };
    let Some(name) = call.get("name").and_then(Value::as_str) else {
        return wrong("", "the call is not an object with a name and arguments".into());
    };
    // Some templates write the arguments as a text with their JSON.
    let arguments = match call.get("arguments") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments.clone()),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| format!("the arguments are not JSON: {e}")),
        Some(_) => Err("the arguments are not an object".to_string()),
    };
    ToolCall { name: name.to_string(), arguments }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TAGS: [&str; 2] = ["<tool_call>", "</tool_call>"];

    #[test]
    fn calls_are_read_in_order_and_faults_are_told() {
        let text = r#"<think>a</think><tool_call>
{"name": "f", "arguments": {"x": [1, 2]}}
</tool_call> and <tool_call>{"name": "g", "arguments": "{\"y\": 1}"}</tool_call><tool_call>{"name": "h"}"#;
        let calls = calls_in(text, TAGS);
        let names: Vec<&str> = calls.iter().map(|call| &*call.name).collect();
        assert_eq!(names, ["f", "g", "h"]);
        let arguments: Vec<Value> = calls.into_iter().map(|call| Value::Object(call.arguments.unwrap())).collect();
        assert_eq!(arguments, [json!({"x": [1, 2]}), json!({"y": 1}), json!({})]);
        for (call, told) in [
            ("{", "the call is not JSON: EOF"),
            (r#"{"name": "f", "arguments": {"box": [NaN, 1]}}"#, "the call is not JSON: "),
            (r#"{"name": "f", "arguments": {"t": 1e999}}"#, "the call is not JSON: number out of range"),
            ("[1]", "the call is not an object with a name"),
            (r#"{"name": "f", "arguments": [1]}"#, "the arguments are not an object"),
            (r#"{"name": "f", "arguments": "x"}"#, "the arguments are not JSON"),
        ] {
            let [ToolCall { arguments: Err(what), .. }] =
                &calls_in(&format!("<tool_call>{call}</tool_call>"), TAGS)[..]
            else {
                panic!("{call}")
            };
            assert!(what.starts_with(told), "{call}: {what}");
        }
    }

    proptest! {
        /// Any text has as many calls as begin tags.
        #[test]
        fn any_text_is_read(text in "([{}\\[\\]\":a1, ]|<tool_call>|</tool_call>|<t>|</t>){0,12}") {
            prop_assert_eq!(calls_in(&text, TAGS).len(), text.matches(TAGS[0]).count());
            prop_assert_eq!(calls_in(&text, ["<t>", "</t>"]).len(), text.matches("<t>").count());
        }
    }
}
