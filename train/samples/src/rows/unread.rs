//! Refuses a row with a conversation, or a part of one, in columns that reel does not read: a second conversation,
//! tools beside a prompt, variables of the chat template, or ms-swift's bounding boxes. Otherwise these columns would be
//! ignored silently.

use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

use super::messages::{ends_with_answer, history_messages, sharegpt_messages, text_of, without_marks};

/// Columns with a question, a prompt or a whole conversation. A text in them may repeat a part of a message.
const QUESTIONS: [&str; 5] = ["conversations", "prompt", "query", "instruction", "history"];

/// Columns with an answer. A text in them may repeat a whole message.
const ANSWERS: [&str; 3] = ["completion", "response", "output"];

/// The answer columns that a row whose messages end with a question may have: rewards may compare completions with
/// them.
const REWARD_ANSWERS: [&str; 2] = ["response", "output"];

/// Refuses a row with a column that belongs to a conversation and is not read. `messages` is the conversation of the
/// row, from the column `field`.
pub(super) fn refuse_unread_columns(
    field: &str,
    messages: &[Value],
    columns: &Map<String, Value>,
) -> Result<(), Diagnostic> {
    refuse_tools(columns)?;
    refuse_unread_chat_columns(field, messages, columns)
}

/// Refuses what [`refuse_unread_columns`] refuses, in a row with a whole chat, which may have `tools`.
pub(super) fn refuse_unread_chat_columns(
    field: &str,
    messages: &[Value],
    columns: &Map<String, Value>,
) -> Result<(), Diagnostic> {
    refuse_second_chat(field, messages, columns)?;
    refuse_template_variables(columns)?;
    refuse_objects(messages, columns)
}

/// Refuses a row for supervised fine-tuning whose chat ends with a question, and which has an answer in another
/// column: training would not learn this answer.
pub(super) fn refuse_unlearned_answer(messages: &[Value], columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    if ends_with_answer(messages) {
        return Ok(());
    }
    match REWARD_ANSWERS.into_iter().find(|name| is_answer_of_row(name, columns) && is_given(columns, name)) {
        Some(name) => Err(Diagnostic::new(
            name,
            "is not learned, because the messages of the row end with a question",
            "write the answer as the last message, or remove the column",
        )),
        None => Ok(()),
    }
}

/// Whether a column has a value that is neither null nor empty.
fn is_given(columns: &Map<String, Value>, name: &str) -> bool {
    match columns.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(_) => true,
    }
}

/// Whether the column `name` is an answer of the row itself. The column `output` is a model's prediction if the row
/// also has the column `generation`.
fn is_answer_of_row(name: &str, columns: &Map<String, Value>) -> bool {
    name != "output" || !is_given(columns, "generation")
}

/// Refuses a row with a second conversation in a column other than `field`. The column is accepted if it repeats
/// messages of the first conversation, because rows often keep the text from which their messages were made.
fn refuse_second_chat(field: &str, messages: &[Value], columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    let has_answer = ends_with_answer(messages);
    let is_compared = |name: &str| {
        let may_be_for_rewards = REWARD_ANSWERS.contains(&name) && !has_answer;
        name != field && is_given(columns, name) && !may_be_for_rewards && is_answer_of_row(name, columns)
    };
    let differs = |name: &&str| is_compared(name) && !repeats(name, &columns[*name], messages);
    match QUESTIONS.into_iter().chain(ANSWERS).find(differs) {
        Some(name) => {
            let what = format!("is given together with `{field}`, but is a different conversation");
            Err(Diagnostic::new(name, what, "keep one of the two"))
        }
        None => Ok(()),
    }
}

/// Whether the value of the column `name` repeats a part of the conversation `messages`.
fn repeats(name: &str, value: &Value, messages: &[Value]) -> bool {
    let list = match value {
        Value::String(text) => {
            let text = without_marks(text);
            let has = |message: &Value| {
                let content = text_of(message);
                if QUESTIONS.contains(&name) { content.contains(&text) } else { content == text }
            };
            return messages.iter().any(has);
        }
        Value::Number(number) => return messages.iter().any(|message| text_of(message) == number.to_string()),
        Value::Array(_) if name == "history" => history_messages(value),
        Value::Array(_) if name == "conversations" => sharegpt_messages(value.clone()),
        Value::Array(list) => Ok(list.clone()),
        _ => return false,
    };
    let is_same = |a: &Value, b: &Value| a["role"] == b["role"] && text_of(a) == text_of(b);
    let Ok(list) = list else { return false };
    messages.windows(list.len()).any(|part| part.iter().zip(&list).all(|(a, b)| is_same(a, b)))
}

/// The column `tools`, if it describes any: the functions that the messages of the row call.
pub(super) fn tools_column(columns: &Map<String, Value>) -> Option<&Value> {
    columns.get("tools").filter(|_| is_object_or_list(columns, "tools"))
}

/// Refuses descriptions of tools in a row that completions are sampled for: the run has tools of its own, or none.
pub(super) fn refuse_tools(columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    match tools_column(columns) {
        None => Ok(()),
        Some(_) => Err(Diagnostic::new(
            "tools",
            "is read only in whole chats that `reel sft` learns",
            "remove the column; `reel grpo` is told by --tools which tools the model may call",
        )),
    }
}

/// Refuses a row with variables of the chat template, which TRL reads from this column.
fn refuse_template_variables(columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    match is_object_or_list(columns, "chat_template_kwargs") {
        false => Ok(()),
        true => Err(Diagnostic::new(
            "chat_template_kwargs",
            "is not read: all rows are rendered with the same variables of the chat template",
            "remove the column",
        )),
    }
}

/// Whether a column has a value that is neither empty nor the JSON text of an empty list or object.
fn is_object_or_list(columns: &Map<String, Value>, name: &str) -> bool {
    let is_empty_text = |text: &str| ["[]", "{}", "null"].contains(&text.trim());
    is_given(columns, name) && !columns[name].as_str().is_some_and(is_empty_text)
}

/// Refuses a row whose texts have ms-swift's marks for bounding boxes and names. The column `objects` with their
/// values is not read, so the model would learn the marks themselves.
fn refuse_objects(messages: &[Value], columns: &Map<String, Value>) -> Result<(), Diagnostic> {
    let has = |mark: &&str| messages.iter().any(|message| text_of(message).contains(mark));
    match ["<bbox>", "<ref-object>"].into_iter().find(has).filter(|_| is_given(columns, "objects")) {
        Some(mark) => {
            let what = format!("is not read by reel, so the mark {mark} would stay in the text");
            Err(Diagnostic::new("objects", what, "write the boxes and names into the text"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::rewards::Recipe;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::messages::message;
    use super::super::{DataRow, SupervisedRow};
    use super::*;

    fn user(text: &str) -> Value {
        message("user", text)
    }

    fn answer(text: &str) -> Value {
        message("assistant", text)
    }

    /// Columns that are part of a conversation in some layout, each with a value that no other column has.
    fn unread_columns() -> impl Strategy<Value = (&'static str, Value)> {
        prop::sample::select(vec![
            ("conversations", json!([{"from": "human", "value": "other"}])),
            ("prompt", json!("other")),
            ("completion", json!("other")),
            ("query", json!("other")),
            ("instruction", json!("other")),
            ("response", json!("other")),
            ("output", json!("other")),
            ("history", json!([["other", "one"]])),
            ("tools", json!([{"name": "other"}])),
            ("chat_template_kwargs", json!({"a": 1})),
            ("objects", json!({"bbox": [[1, 2, 3, 4]]})),
            ("images", json!(["other.png"])),
            ("audios", json!(["other.wav"])),
            ("system", json!("other")),
        ])
    }

    proptest! {
        /// In every layout, a column that belongs to a conversation is used for training, or the error names it.
        #[test]
        fn columns_of_a_conversation_are_used_or_named(
            layout in prop::sample::select(vec![
                json!({"messages": [user("<bbox>?"), answer("!")]}),
                json!({"conversations": [{"from": "human", "value": "<bbox>?"}, {"from": "gpt", "value": "!"}]}),
                json!({"prompt": [user("<bbox>?")], "completion": [answer("!")]}),
                json!({"prompt": "<bbox>?", "completion": "!"}),
                json!({"query": "<bbox>?", "response": "!"}),
                json!({"instruction": "<bbox>?", "output": "!"}),
                json!({"problem": "<bbox>?", "data_type": "text", "problem_type": "OCR", "process": "p", "solution": "!"}),
                json!({"prompt": [user("<bbox>?")], "solution": "7"}),
                json!({"prompt": "<bbox>?", "solution": "7"}),
                json!({"problem": "<bbox>?", "answer": "7"}),
            ]),
            (name, value) in unread_columns(),
        ) {
            let mut given = layout.clone();
            prop_assume!(given.get(name).is_none());
            given[name] = value;
            let parsed = DataRow::parse(given.clone());
            let shown = match &parsed {
                // The error of a prompt that is plain text names the column that the row may not have.
                Err(e) => format!("{} {}", e.location, e.what),
                Ok(DataRow::Prompt { columns, .. }) if ["response", "output"].contains(&name) => columns[name].to_string(),
                Ok(row) => match row.to_supervised_row(Recipe::Paper) {
                    Ok(SupervisedRow::Chat { messages, tools, .. }) => Value::from(messages).to_string() + &tools.to_string(),
                    Ok(SupervisedRow::Text { prompt, completion }) => prompt + &completion,
                    Err(_) => row.prompt_and_columns(Recipe::Paper).unwrap().0.into_json().to_string(),
                },
            };
            prop_assert!(shown.contains(name) || shown.contains("other"), "{given}: {shown}");
        }
    }
}
