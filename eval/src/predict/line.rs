//! The line of a row in a predictions file: the columns of the row, then the output of the model.

use reel_engine::Completion;
use reel_support::client::ChatAnswer;
use reel_support::diagnostic::escape_controls_in_json;
use serde_json::{Map, Value, json};

/// What was generated for a row.
#[derive(Clone, Debug)]
pub(super) struct RowResult<'a> {
    /// The completions, in the order of their seeds.
    pub(super) completions: &'a [Completion],
    /// The text of each completion.
    pub(super) texts: Vec<String>,
    pub(super) prompt_tokens: usize,
    /// The seed of the first completion.
    pub(super) seed: u64,
}

/// Returns the line of a row: `columns`, then `output`, the text of the first completion. With several completions,
/// `outputs` has all texts, and the values of `generation` that differ between completions are lists.
pub(super) fn prediction_line(mut columns: Map<String, Value>, result: &RowResult) -> Vec<u8> {
    let reasons: Vec<&str> = result.completions.iter().map(|c| c.finish_reason.openai_name()).collect();
    let lengths: Vec<usize> = result.completions.iter().map(|c| c.ids.len()).collect();
    columns.insert("output".into(), json!(result.texts.first()));
    let (reasons, lengths) = match (&reasons[..], &lengths[..]) {
        ([reason], [length]) => (json!(reason), json!(length)),
        _ => {
            columns.insert("outputs".into(), json!(result.texts));
            (json!(reasons), json!(lengths))
        }
    };
    columns.insert(
        "generation".into(),
        json!({
            "finish_reason": reasons, "prompt_tokens": result.prompt_tokens, "completion_tokens": lengths,
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
