//! Reads the conversation of a row from the fields of each layout.

use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};

use super::json_text::refuse_parts_as_text;
use super::messages::{CHAT_HELP, history_messages, message, parse_chat, plain_messages, sharegpt_messages, text_of};
use super::unread::{refuse_unread_chat_columns, refuse_unread_columns};
use super::{DataRow, PromptContent};
use crate::media_columns;

/// The layout of a row: which fields hold its conversation. Each layout is recognised by one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConversationLayout {
    /// Chat rows: the field `messages`.
    Messages,
    /// ShareGPT rows: the field `conversations`.
    Conversations,
    /// TRL rows: `prompt`, with or without a `completion`.
    Prompt,
    /// ms-swift rows: `query`, `response`, `history`.
    Query,
    /// Alpaca rows: `instruction`, `input`, `output`, `history`.
    Instruction,
    /// The fields of VideoRFT and Video-R1, or EasyR1's `problem` beside an `answer`.
    Problem,
}

impl ConversationLayout {
    /// All layouts, in order of precedence. A row with the fields of two layouts has the layout that comes first
    /// here.
    const ALL: [Self; 6] =
        [Self::Messages, Self::Conversations, Self::Prompt, Self::Query, Self::Instruction, Self::Problem];

    /// The field by which this layout is recognised.
    pub fn field(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Conversations => "conversations",
            Self::Prompt => "prompt",
            Self::Query => "query",
            Self::Instruction => "instruction",
            Self::Problem => "problem",
        }
    }

    /// Returns the layout of a row; `None` if no layout's field is present. A null field counts as absent, because a
    /// table of rows in several layouts has null in the fields of the other layouts.
    pub fn detect(fields: &Map<String, Value>) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| is_given(fields, layout.field()))
    }
}

fn is_given(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !value.is_null())
}

impl DataRow {
    /// Reads a row with a layout other than [`ConversationLayout::Prompt`] and [`ConversationLayout::Problem`]. Its
    /// fields hold the complete chat.
    pub(super) fn from_chat(layout: ConversationLayout, mut fields: Map<String, Value>) -> Result<Self, Diagnostic> {
        let field = layout.field();
        let value = fields.shift_remove(field).unwrap_or_default();
        let messages = match layout {
            ConversationLayout::Conversations => sharegpt_messages(value)?,
            ConversationLayout::Query => query_messages(&value, &mut fields)?,
            ConversationLayout::Instruction => instruction_messages(&value, &mut fields)?,
            ConversationLayout::Messages | ConversationLayout::Prompt | ConversationLayout::Problem => {
                parse_chat(field, value)?
            }
        };
        Self::whole_chat(field, messages, 0, fields)
    }

    /// Reads a row with a `prompt`, which is a list of messages or a text, and optionally a `completion` of the same
    /// kind.
    pub(super) fn from_prompt(mut fields: Map<String, Value>) -> Result<Self, Diagnostic> {
        let content = PromptContent::parse(fields.shift_remove("prompt").unwrap_or_default())?;
        let completion = fields.shift_remove("completion").filter(|value| !matches!(value.as_str(), Some("")));
        match (content, completion.unwrap_or_default()) {
            (PromptContent::Chat(messages), Value::Null) => Self::chat_prompt("prompt", messages, fields),
            (PromptContent::Text(text), Value::Null) => {
                refuse_unread_columns("prompt", &plain_messages(&text, None), &fields)?;
                refuse_system_column(&fields, "is not read when `prompt` is plain text")?;
                media_columns::refuse_media_with_text_prompt("prompt", &text, &fields)?;
                Ok(Self::Prompt { content: PromptContent::Text(text), columns: fields })
            }
            (PromptContent::Text(prompt), Value::String(completion)) => {
                refuse_unread_columns("prompt", &plain_messages(&prompt, Some(&completion)), &fields)?;
                refuse_system_column(&fields, "is not read when `prompt` is plain text")?;
                media_columns::refuse_media_with_text_prompt("prompt", &format!("{prompt}{completion}"), &fields)?;
                Ok(Self::Completion { prompt, completion })
            }
            (PromptContent::Chat(prompt), completion @ Value::Array(_)) => {
                let given = prompt.len();
                let messages = prompt.into_iter().chain(parse_chat("completion", completion)?).collect();
                Self::whole_chat("prompt", messages, given, fields)
            }
            (PromptContent::Chat(_), _) => {
                Err(Diagnostic::new("completion", "is not a list of messages, although `prompt` is one", CHAT_HELP))
            }
            (PromptContent::Text(_), _) => Err(Diagnostic::new(
                "completion",
                "is not text, although `prompt` is",
                "write both as messages or as texts",
            )),
        }
    }

    /// Reads a row of EasyR1, whose `problem` is the prompt; the other columns are for the rewards.
    pub(super) fn from_easyr1(fields: Map<String, Value>) -> Result<Self, Diagnostic> {
        let problem = crate::rewards::string_field(&fields, "problem")?;
        Self::chat_prompt("problem", vec![message("user", &problem)], fields)
    }

    fn chat_prompt(field: &str, messages: Vec<Value>, columns: Map<String, Value>) -> Result<Self, Diagnostic> {
        refuse_parts_as_text(field, &messages)?;
        refuse_unread_columns(field, &messages, &columns)?;
        let messages = with_system_column(messages, &columns)?;
        let content = PromptContent::Chat(media_columns::insert_media(field, messages, &columns)?);
        Ok(Self::Prompt { content, columns })
    }

    /// Makes a row of all messages of a chat. Answers among the first `given` messages do not count in the loss.
    fn whole_chat(
        field: &str,
        messages: Vec<Value>,
        given: usize,
        columns: Map<String, Value>,
    ) -> Result<Self, Diagnostic> {
        refuse_parts_as_text(field, &messages)?;
        refuse_unread_chat_columns(field, &messages, &columns)?;
        let learned = learned_answers(field, &messages, given)?;
        let messages = with_system_column(messages, &columns)?;
        let messages = media_columns::insert_media(field, messages, &columns)?;
        let is_sharegpt = field == ConversationLayout::Conversations.field();
        Ok(Self::Chat { messages, learned, is_sharegpt, columns })
    }
}

/// The prompt and the reward columns of a row as VLM-R1 reads it (`grpo_jsonl.py`): the answer becomes the `solution`,
/// in `<answer>` tags whether it has them or not, and the text of the question the `problem`.
pub(super) fn vlm_r1_problem(
    messages: &[Value],
    columns: &Map<String, Value>,
) -> Result<(PromptContent, Map<String, Value>), Diagnostic> {
    let fault = |name: &str, what: &str, help: &str| Err(Diagnostic::new(name, what, help));
    let (answer, prompt) = messages.split_last().unwrap_or((&Value::Null, &[]));
    let text = answer["content"].as_str().unwrap_or_default().replace("<answer>", "").replace("</answer>", "");
    let solution = json!(format!("<answer> {} </answer>", text.trim()));
    let is_other = |own: &Value| own.as_str().is_none_or(|own| own != text.trim() && *own != solution);
    if columns.get("solution").is_some_and(|own| !own.is_null() && is_other(own)) {
        let what = "differs from the answer in `conversations`, which is the solution for rewards";
        return fault("solution", what, "keep one of the two");
    }
    let is_default = |method: &Value| method.is_null() || method == "default";
    if let Some(method) = columns.get("accu_reward_method").filter(|method| !is_default(method)) {
        let what = format!("is {method}, a rule of VLM-R1 that reel does not have");
        return fault("accu_reward_method", &what, "write the kind of answer into a column `problem_type`");
    }
    let mut columns = columns.clone();
    columns.insert("solution".into(), solution);
    columns.entry("problem").or_insert_with(|| text_of(&prompt[prompt.len() - 1]).into());
    Ok((PromptContent::Chat(prompt.to_vec()), columns))
}

/// For each assistant message, returns whether it is learned. A message is not learned if it is among the first `given`
/// messages, or if its `loss` (ms-swift) or `weight` (OpenAI) is false or 0.
fn learned_answers(field: &str, messages: &[Value], given: usize) -> Result<Vec<bool>, Diagnostic> {
    let answers = messages.iter().enumerate().filter(|(_, message)| message["role"] == "assistant");
    let learned = answers.map(|(i, message)| {
        let mut learned = i >= given;
        for key in ["loss", "weight"] {
            learned &= match message.get(key) {
                None | Some(Value::Null) => true,
                Some(value) => match (value.as_bool(), value.as_f64()) {
                    (Some(is_learned), _) => is_learned,
                    (None, Some(number)) if number == 0.0 || number == 1.0 => number == 1.0,
                    _ => {
                        let what = "is neither true nor false, and neither 0 nor 1";
                        return Err(Diagnostic::new(format!("{field}[{i}].{key}"), what, "write true or false"));
                    }
                },
            };
        }
        Ok(learned)
    });
    learned.collect()
}

/// Puts the text of the column `system`, which LLaMA-Factory and ms-swift write, before the messages of a row.
fn with_system_column(messages: Vec<Value>, fields: &Map<String, Value>) -> Result<Vec<Value>, Diagnostic> {
    let fault = |what: &str, help: &str| Err(Diagnostic::new("system", what, help));
    let text = match fields.get("system") {
        None | Some(Value::Null) => return Ok(messages),
        Some(Value::String(text)) if text.is_empty() => return Ok(messages),
        Some(Value::String(text)) => text,
        Some(_) => return fault("is not a string", "write the value as a JSON string"),
    };
    match messages.first().filter(|first| first["role"] == "system") {
        Some(own) if own["content"] == text.as_str() => Ok(messages),
        Some(_) => fault("differs from the system message of the chat", "keep one of the two"),
        None => Ok([message("system", text)].into_iter().chain(messages).collect()),
    }
}

/// Refuses a column `system` in a row that cannot have a separate system message; `what` says why.
pub(super) fn refuse_system_column(fields: &Map<String, Value>, what: &str) -> Result<(), Diagnostic> {
    match with_system_column(Vec::new(), fields)?.is_empty() {
        true => Ok(()),
        false => Err(Diagnostic::new("system", what, "give the row as chat `messages`, or remove the column")),
    }
}

/// Makes messages of ms-swift's `query`, `response` and `history`. Removes `response` and `history` from `fields`.
fn query_messages(query: &Value, fields: &mut Map<String, Value>) -> Result<Vec<Value>, Diagnostic> {
    let Some(query) = query.as_str().filter(|text| !text.is_empty()) else {
        return Err(Diagnostic::new("query", "is empty or not a string", "write the question as a JSON string"));
    };
    dialogue(query, "response", fields)
}

/// Makes messages of Alpaca's `instruction`, `input`, `output` and `history`. Removes `input`, `output` and `history`
/// from `fields`.
fn instruction_messages(instruction: &Value, fields: &mut Map<String, Value>) -> Result<Vec<Value>, Diagnostic> {
    let texts = [Some(instruction.clone()), fields.shift_remove("input")];
    let mut question = Vec::new();
    for (name, value) in ["instruction", "input"].into_iter().zip(texts) {
        match value {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => question.push(text),
            Some(_) => return Err(Diagnostic::new(name, "is not a string", "write the value as a JSON string")),
        }
    }
    if question.is_empty() {
        return Err(Diagnostic::new("instruction", "is empty", "write the question as a JSON string"));
    }
    dialogue(&question.join("\n"), "output", fields)
}

/// Makes a dialogue of three parts: the earlier questions and answers in the column `history`, the question, and the
/// answer in the column named `answer`. Removes these two columns from `fields`. Without an answer, the messages end
/// with the question.
fn dialogue(question: &str, answer: &str, fields: &mut Map<String, Value>) -> Result<Vec<Value>, Diagnostic> {
    let mut messages = history_messages(&fields.shift_remove("history").unwrap_or_default())?;
    messages.push(message("user", question));
    match fields.shift_remove(answer) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => messages.push(message("assistant", &text)),
        Some(_) => return Err(Diagnostic::new(answer, "is not a string", "write the answer as a JSON string")),
    }
    Ok(messages)
}
