//! The line of a row in a predictions file: the columns of the row, then the output of the model.

use reel_engine::FinishReason;
use reel_support::client::ChatAnswer;
use reel_support::diagnostic::escape_controls_in_json;
use reel_train::rollout::tools::content::AnsweredCall;
use serde_json::{Map, Value, json};

/// A finished completion.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The index of the completion among those of its row.
    pub(super) index: usize,
    /// The text that is scored: the completion or, with tools, the last turn of the model.
    pub(super) text: String,
    pub(super) finish_reason: FinishReason,
    /// Number of tokens, with those of tools.
    pub(super) tokens: usize,
    /// The calls of tools, in order; `None` in a run without tools.
    pub(super) tool_calls: Option<Vec<AnsweredCall>>,
}

/// What was generated for a row.
#[derive(Clone, Debug)]
pub(super) struct RowResult<'a> {
    /// The completions, in the order of their seeds.
    pub(super) answers: &'a [Answer],
    pub(super) prompt_tokens: usize,
    /// The seed of the first completion.
    pub(super) seed: u64,
}

/// Returns the line of a row: `columns`, then `output`, the text of the first completion, and in a run with tools
/// `tool_calls`. With several completions, `outputs` has all texts, and the other values that differ between completions
/// are lists.
pub(super) fn prediction_line(mut columns: Map<String, Value>, result: &RowResult) -> Vec<u8> {
    let each = |value: &dyn Fn(&Answer) -> Value| match result.answers {
        [answer] => value(answer),
        answers => answers.iter().map(value).collect(),
    };
    columns.insert("output".into(), json!(result.answers.first().map(|answer| &answer.text)));
    if result.answers.len() != 1 {
        columns.insert("outputs".into(), each(&|answer| json!(answer.text)));
    }
    if result.answers.iter().any(|answer| answer.tool_calls.is_some()) {
        columns.insert("tool_calls".into(), each(&|answer| json!(answer.tool_calls)));
    }
    columns.insert(
        "generation".into(),
        json!({
            "finish_reason": each(&|answer| json!(answer.finish_reason.openai_name())),
            "prompt_tokens": result.prompt_tokens, "completion_tokens": each(&|answer| json!(answer.tokens)),
            "seed": result.seed,
        }),
    );
    json_line(columns)
}

/// Returns the line of a row that a server has answered: `columns`, then `output`. Reasoning that the server returns in
/// a field of its own is put before the answer in `<think>` tags. The line does not depend on the number of attempts or
/// the time.
pub(super) fn answer_line(mut columns: Map<String, Value>, answer: &ChatAnswer, seed: u64) -> Vec<u8> {
    let output = match &answer.reasoning {
        Some(reasoning) => format!("<think>{reasoning}</think>\n{}", answer.text),
        None => answer.text.clone(),
    };
    columns.insert("output".into(), json!(output));
    columns.insert(
        "generation".into(),
        json!({
            "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens, "seed": seed, "model": answer.model,
        }),
    );
    json_line(columns)
}

/// Returns the line of a row for which nothing can be generated. `output` is empty and is scored as a wrong answer.
pub(super) fn error_line(mut columns: Map<String, Value>, error: &str) -> Vec<u8> {
    columns.insert("output".into(), json!(""));
    columns.insert("error".into(), json!(error));
    json_line(columns)
}

/// The bytes of a line, with its line break.
pub(super) fn json_line(columns: Map<String, Value>) -> Vec<u8> {
    let mut line = escape_controls_in_json(&Value::Object(columns).to_string()).into_owned().into_bytes();
    line.push(b'\n');
    line
}
