//! Fields of a benchmark's row whose values are made of several columns, or of lists and objects.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::Diagnostic;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::task::{AnswerForm, RowRules, Template, column, text_of_scalar};

/// Names the columns that a rule reads, for error messages: the rule `answer` with the template `{ground_truth}`
/// gives `ground_truth`. A rule without columns gives its own name.
pub(crate) fn source(rule: &str, template: &Option<Template>) -> String {
    let columns: Vec<&str> = template.iter().flat_map(Template::columns).collect();
    if columns.is_empty() { rule.to_string() } else { columns.join(", ") }
}

/// Fills in the first template whose columns the row has. Templates with a column that is missing, null or empty are
/// skipped.
pub(crate) fn first_text(
    texts: &Option<Vec<Template>>,
    columns: &Map<String, Value>,
) -> Result<Option<String>, Diagnostic> {
    let has_columns = |text: &&Template| {
        text.columns().all(|name| column(columns, name).is_some_and(|value| !value.is_null() && *value != ""))
    };
    texts.iter().flatten().find(has_columns).map_or(Ok(None), |text| text.fill(columns))
}

/// Returns the first file of the rule `subtitles` that exists.
pub(crate) fn subtitle_file(
    rules: &RowRules,
    columns: &Map<String, Value>,
    media_root: &Path,
) -> Result<Option<PathBuf>, Diagnostic> {
    for template in rules.subtitles.iter().flatten() {
        let path = template.fill(columns)?.map(|path| media_root.join(path));
        if let Some(path) = path.filter(|path| path.is_file()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Returns the categories of a row: all that `categories` gives, else the one that `category` gives. No category occurs
/// twice.
pub(crate) fn categories(rules: &RowRules, columns: &Map<String, Value>) -> Result<Vec<String>, Diagnostic> {
    let mut all: Vec<String> = Vec::new();
    for template in rules.categories.iter().flatten() {
        match template.column_value(columns) {
            Some(Value::Array(list)) => all.extend(list.iter().filter_map(text_of_scalar)),
            _ => all.extend(template.fill(columns)?),
        }
    }
    if rules.categories.is_none() {
        all.extend(first_text(&rules.category, columns)?);
    }
    let mut seen = BTreeSet::new();
    all.retain(|category| seen.insert(category.clone()));
    Ok(all)
}

/// Returns the columns that the rule `scored` copies into predictions; columns that the row lacks are left out.
pub(crate) fn scored(rules: &RowRules, columns: &Map<String, Value>) -> Map<String, Value> {
    let named = rules.scored.iter().flatten();
    named.filter_map(|(name, of)| Some((name.clone(), column(columns, of)?.clone()))).collect()
}

/// Reads the truth of a grounding problem: `{"time": [START, END]}` in seconds (a list of such pairs if there are
/// several segments), or `{"boxes": {"TIMESTAMP": [X1, Y1, X2, Y2]}}`.
pub(crate) fn grounding_answer(
    columns: &Map<String, Value>,
    rules: &RowRules,
    form: AnswerForm,
) -> Result<String, Diagnostic> {
    let name = source("answer", &rules.answer);
    let wrong =
        |what: &str| Diagnostic::new(&name, what, "correct the row, or leave such rows out with --skip-bad-rows");
    let template = rules.answer.as_ref().ok_or_else(|| wrong("is missing"))?;
    let value = match template.column_value(columns) {
        Some(value @ (Value::Array(_) | Value::Object(_))) => value.clone(),
        _ => {
            let text = template.fill(columns)?.ok_or_else(|| wrong("is missing or empty"))?;
            serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?
        }
    };
    let truth = match form {
        AnswerForm::Boxes => json!({"boxes": boxes(&value).ok_or_else(|| wrong("is not a list of boxes"))?}),
        _ => {
            let pairs = segments(&value).ok_or_else(|| wrong("is not a start and an end in seconds"))?;
            match &pairs[..] {
                [pair] => json!({"time": pair}),
                pairs => json!({"time": pairs}),
            }
        }
    };
    Ok(truth.to_string())
}

/// Reads `[START, END]` or a list of such pairs; `None` if there is none, or if an end is before its start.
pub(crate) fn segments(value: &Value) -> Option<Vec<[f64; 2]>> {
    let pairs: Vec<[f64; 2]> = match <[f64; 2]>::deserialize(value) {
        Ok(pair) => vec![pair],
        Err(_) => Deserialize::deserialize(value).ok()?,
    };
    let is_segment = |pair: &[f64; 2]| pair.iter().all(|second| second.is_finite()) && pair[0] <= pair[1];
    Some(pairs).filter(|pairs| !pairs.is_empty() && pairs.iter().all(is_segment))
}

fn boxes(value: &Value) -> Option<Map<String, Value>> {
    let side = |entry: &Value, name: &str| entry.get(name).filter(|side| side.is_number()).cloned();
    let corner = |entry: &Value| ["xmin", "ymin", "xmax", "ymax"].iter().map(|name| side(entry, name)).collect();
    let entry = |entry: &Value| {
        let sides: Option<Vec<Value>> = corner(entry);
        Some((text_of_scalar(entry.get("timestamp")?)?, Value::Array(sides?)))
    };
    value.as_array()?.iter().map(entry).collect::<Option<_>>().filter(|boxes: &Map<_, _>| !boxes.is_empty())
}
