//! Finds the JSON value in the text of an answer, which models write with fences and explanations around it.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// A fenced block of Markdown, with its text as the first group.
#[expect(clippy::expect_used, reason = "the expression is constant, and each test compiles it")]
static FENCED_BLOCK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?s)```[A-Za-z0-9]*\s*(.*?)```").expect("a valid expression"));

/// Returns the object or list in the text of an answer: the whole text; else the first fenced block that is one; else
/// the last object in the text; else the whole text as a list with round instead of square brackets, as in
/// `[(2, 5), (8, 12)]`, where a comma may follow the last element.
///
/// NaN, infinity, numbers beyond the range of f64, comments and single quotes are not JSON. If a key occurs twice, the
/// last value counts.
pub fn json_in(text: &str) -> Option<Value> {
    let text = text.trim();
    container(text)
        .or_else(|| FENCED_BLOCK.captures_iter(text).find_map(|block| container(block[1].trim())))
        .or_else(|| last_object(text))
        .or_else(|| container(&with_square_brackets(text)?))
}

/// Parses a text that is one JSON object or list.
fn container(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().filter(|value: &Value| value.is_object() || value.is_array())
}

/// Returns the last JSON object that begins at a brace of the text and is not inside of another one.
fn last_object(text: &str) -> Option<Value> {
    let (mut last, mut rest) = (None, text);
    while let Some(begin) = rest.find('{') {
        let mut values = serde_json::Deserializer::from_str(&rest[begin..]).into_iter();
        let end = match values.next() {
            Some(Ok(value)) => {
                last = Some(value);
                values.byte_offset()
            }
            _ => 1,
        };
        rest = &rest[begin + end..];
    }
    last
}

/// Rewrites a list with round brackets, or with a comma after its last element, as JSON. Text in quotes is unchanged.
fn with_square_brackets(text: &str) -> Option<String> {
    if !text.starts_with(['[', '(']) {
        return None;
    }
    let (mut json, mut is_quoted, mut is_escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        let is_end = !is_quoted && matches!(c, ']' | ')');
        if is_end {
            let kept = json.trim_end().trim_end_matches(',').len();
            json.truncate(if json.trim_end().len() == kept + 1 { kept } else { json.len() });
        }
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = is_quoted && c == '\\' && !is_escaped;
        json.push(match c {
            '(' if !is_quoted => '[',
            ')' if !is_quoted => ']',
            c => c,
        });
    }
    Some(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_found_in_order_of_precedence() {
        for (text, want) in [
            (r#" {"a": 1} "#, json!({"a": 1})),
            ("[1, 2]", json!([1, 2])),
            ("```json\n[3]\n``` or {\"a\": 1}", json!([3])),
            ("```\nx\n```\n```\n{\"a\": 2}\n```", json!({"a": 2})),
            (r#"first {"a": 1}, then {"a": {"b": 2}}."#, json!({"a": {"b": 2}})),
            (r#"{"a": "}{"} and {no json}"#, json!({"a": "}{"})),
            (r#"{"a": 0, "a": 1}"#, json!({"a": 1})),
            ("[(2, 5), (8, 12),]", json!([[2, 5], [8, 12]])),
            ("(1, 2 , )", json!([1, 2])),
            (r#"[("(a", 1)]"#, json!([["(a", 1]])),
        ] {
            assert_eq!(json_in(text), Some(want), "{text}");
        }
        for text in [
            "",
            "1",
            "null",
            r#""text""#,
            r#"{"a": NaN}"#,
            r#"{"a": 1e999}"#,
            "{'a': 1}",
            r#"{"a": [1, 2"#,
            "[1,,]",
            "{\"a\": 1 /* one */}",
        ] {
            assert_eq!(json_in(text), None, "{text}");
        }
    }

    /// A text of nested or repeated beginnings must not take time that grows with the square of its length.
    #[test]
    fn long_hostile_texts_are_read_quickly() {
        for unit in ["{", "{\"a\":", "{\"a\":[{},", "[(", "```", "{\"", "{\"a\":{}} "] {
            json_in(&unit.repeat(20_000));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([\\[\\](){},:\"'`0-9a.\\\\ \\n-]|```|json|time){0,40}") {
            json_in(&text);
        }

        #[test]
        fn embedded_objects_are_found(before in "[^{}`\\[(]*", number in any::<i32>(), after in "[^{}`]*") {
            let text = format!("{before}{{\"n\": {number}}}{after}");
            prop_assert_eq!(json_in(&text), Some(json!({"n": number})));
        }
    }
}
