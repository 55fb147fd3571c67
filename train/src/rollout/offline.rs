//! Offline answers: completions that a row of the data carries, which take the place of the last sampled completions of
//! its group (mixed-policy training of EasyVideoR1, whose column is `offline_output`).
//!
//! The first step on a set of rollouts computes the log-probabilities of all its completions under the current weights.
//! They are the old log-probabilities of later steps, for offline answers, too: the first ratio is 1.

use reel_input::{ModelFolder, TokenId};
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value};

use crate::error::Result;

/// The column with the texts.
const COLUMN: &str = "offline_output";

/// The texts of a row's offline answers: `offline_output` is a text or a list of texts. An empty text and null are
/// none, and so is any value if `has_offline_trajectory` is false.
///
/// # Errors
/// The column has another form.
pub fn offline_texts(columns: &Map<String, Value>) -> Result<Vec<&str>, Diagnostic> {
    let wrong =
        || Diagnostic::new(COLUMN, "is neither a text nor a list of texts", "write each answer as a JSON string");
    let texts = match columns.get(COLUMN).filter(|_| columns.get("has_offline_trajectory") != Some(&Value::Bool(false)))
    {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![&text[..]],
        Some(Value::Array(list)) => list.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?,
        Some(_) => return Err(wrong()),
    };
    Ok(texts.into_iter().filter(|text| !text.trim().is_empty()).collect())
}

/// Returns the tokens of a row's offline answers. Each ends with the end-of-turn token `end`. The thought that the
/// prompt has begun is left out of them. `limits` are the number of completions of a group and the maximum tokens of
/// one.
///
/// # Errors
/// The row has as many answers as a group has completions, or more; an answer is too long, or has tokens that stand for
/// media.
pub fn offline_completions(
    columns: &Map<String, Value>,
    model: &ModelFolder,
    prompt: &[TokenId],
    end: Option<TokenId>,
    limits: (usize, usize),
) -> Result<Vec<Vec<TokenId>>, Diagnostic> {
    let (texts, (group, max)) = (offline_texts(columns)?, limits);
    if texts.len() >= group {
        let what = format!("has {} answers, but a group has --num-generations {group} completions", texts.len());
        return Err(Diagnostic::new(COLUMN, what, "give fewer answers, or raise --num-generations"));
    }
    let pads = [model.config.tokens.image, model.config.tokens.video];
    let completion = |text: &str| {
        let own = text.strip_prefix(model.begun_thought(prompt)).unwrap_or(text);
        let mut ids = model.tokenizer.encode(own).map_err(|e| e.diagnostic)?;
        ids.extend(end.filter(|end| ids.last() != Some(end)));
        if ids.len() > max {
            let what = format!("has an answer of {} tokens, more than --max-completion-length {max}", ids.len());
            return Err(Diagnostic::new(COLUMN, what, "shorten it, or raise --max-completion-length"));
        }
        if ids.iter().any(|id| pads.contains(id)) {
            let what = "has pad tokens of an image or video";
            return Err(Diagnostic::new(COLUMN, what, "remove them from the answer"));
        }
        Ok(ids)
    };
    texts.into_iter().map(completion).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_read_from_the_column() {
        for (row, want) in [
            (json!({}), Ok(vec![])),
            (json!({"offline_output": null}), Ok(vec![])),
            (json!({"offline_output": " "}), Ok(vec![])),
            (json!({"offline_output": "a", "has_offline_trajectory": false}), Ok(vec![])),
            (json!({"offline_output": "a", "has_offline_trajectory": true}), Ok(vec!["a"])),
            (json!({"offline_output": ["a", "", "b"]}), Ok(vec!["a", "b"])),
            (json!({"offline_output": 3}), Err(COLUMN)),
            (json!({"offline_output": ["a", 3]}), Err(COLUMN)),
        ] {
            let got = offline_texts(row.as_object().unwrap()).map_err(|d| d.location);
            assert_eq!(got, want.map_err(String::from), "{row}");
        }
    }
}
