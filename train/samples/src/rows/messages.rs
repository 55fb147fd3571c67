//! Chat messages: makes them of the values of a row's columns, and reads their texts.

use reel_support::diagnostic::Diagnostic;
use serde_json::{Value, json};

pub(super) const CHAT_HELP: &str = "give a list of {\"role\", \"content\"} messages";

const PAIRS: &str = "give a list of pairs, each a question and its answer";

/// Checks that `value` is a list of messages with roles and contents. The parts of a content are checked later, when
/// the chat template is applied.
pub(super) fn parse_chat(field: &str, value: Value) -> Result<Vec<Value>, Diagnostic> {
    let Value::Array(messages) = value else { return Err(Diagnostic::new(field, "is not a list", CHAT_HELP)) };
    if messages.is_empty() {
        return Err(Diagnostic::new(field, "is empty", CHAT_HELP));
    }
    for (i, message) in messages.iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        if !message.get("role").is_some_and(Value::is_string) {
            return Err(Diagnostic::new(at("role"), "is missing or not text", CHAT_HELP));
        }
        let has_calls = message["role"] == "assistant"
            && message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
        let is_readable = match message.get("content") {
            // A message with tool calls may have no text, as in OpenAI's files for fine-tuning.
            None | Some(Value::Null) => has_calls,
            Some(content) => content.is_string() || content.is_array(),
        };
        if !is_readable {
            return Err(Diagnostic::new(at("content"), "is missing, or neither text nor a list of parts", CHAT_HELP));
        }
    }
    Ok(messages)
}

pub(super) fn message(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

/// Converts the turns of a ShareGPT row to chat messages. Other keys of a turn become keys of its message.
pub(super) fn sharegpt_messages(turns: Value) -> Result<Vec<Value>, Diagnostic> {
    const TURNS: &str = "give a list of {\"from\": human, gpt or system, \"value\": text} messages";
    let Value::Array(turns) = turns else { return Err(Diagnostic::new("conversations", "is not a list", TURNS)) };
    if turns.is_empty() {
        return Err(Diagnostic::new("conversations", "is empty", TURNS));
    }
    let turns = turns.into_iter().enumerate().map(|(i, turn)| {
        let at = |key: &str| format!("conversations[{i}].{key}");
        let text = |key: &str| turn.get(key).and_then(Value::as_str);
        let from = text("from").or(text("role"));
        let Some(from) = from else { return Err(Diagnostic::new(at("from"), "is missing or not text", TURNS)) };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bot" => "assistant",
            "system" => "system",
            other => {
                let what = format!("is `{other}`, which is not supported");
                return Err(Diagnostic::new(at("from"), what, TURNS));
            }
        };
        // VLM-R1's rows have numbers as answers.
        let value = match turn.get("value").or(turn.get("content")) {
            Some(Value::Number(number)) if role == "assistant" => Some(json!(number.to_string())),
            value => value.filter(|value| value.is_string() || value.is_array()).cloned(),
        };
        let Some(value) = value else { return Err(Diagnostic::new(at("value"), "is missing or not text", TURNS)) };
        let mut message = json!({"role": role, "content": value});
        for (key, value) in turn.as_object().into_iter().flatten() {
            if !["from", "role", "value", "content"].contains(&key.as_str()) {
                message[key] = value.clone();
            }
        }
        Ok(message)
    });
    turns.collect()
}

/// Makes messages of a column `history`: a list of pairs, each a question and its answer.
pub(super) fn history_messages(history: &Value) -> Result<Vec<Value>, Diagnostic> {
    let pairs = match history {
        Value::Null => return Ok(Vec::new()),
        Value::Array(pairs) => pairs,
        _ => return Err(Diagnostic::new("history", "is not a list", PAIRS)),
    };
    let mut messages = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                messages.extend([message("user", question), message("assistant", answer)]);
            }
            _ => return Err(Diagnostic::new(format!("history[{i}]"), "is not a list of two texts", PAIRS)),
        }
    }
    Ok(messages)
}

/// The messages of a row of plain texts. They are compared with the row's other columns.
pub(super) fn plain_messages(prompt: &str, completion: Option<&str>) -> Vec<Value> {
    let answer = completion.map(|text| message("assistant", text));
    [message("user", prompt)].into_iter().chain(answer).collect()
}

pub(super) fn ends_with_answer(messages: &[Value]) -> bool {
    messages.last().is_some_and(|message| message["role"] == "assistant")
}

/// Whether a chat is one question and its answer as text, after system messages if there are any.
pub(super) fn is_question_with_answer(messages: &[Value]) -> bool {
    let mut rest = messages.iter().skip_while(|message| message["role"] == "system");
    let (Some(question), Some(answer), None) = (rest.next(), rest.next(), rest.next()) else { return false };
    question["role"] == "user" && answer["role"] == "assistant" && answer["content"].is_string()
}

/// The text of a message without media marks.
pub(super) fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => without_marks(text),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            without_marks(&texts.concat())
        }
        _ => String::new(),
    }
}

pub(super) fn without_marks(text: &str) -> String {
    text.replace("<image>", "").replace("<video>", "").trim().to_string()
}
