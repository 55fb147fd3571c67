//! The options of a multiple-choice question, and the letter of the correct one.

use reel_support::diagnostic::Diagnostic;
use serde_json::Value;

use super::layout::{AnswerForm, OptionMarks};

/// The letters that mark options: A to Z.
fn letters() -> impl Iterator<Item = char> {
    'A'..='Z'
}

/// The answer options of a multiple-choice question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerOptions {
    /// The options as the model sees them: `A. red`.
    pub shown: Vec<String>,
    /// The options without their letters: `red`.
    texts: Vec<String>,
}

impl AnswerOptions {
    /// Reads the value of a column: a list of texts, an object whose keys are the letters, a text that holds such a
    /// list or object as JSON, or a text with a line for each option. Letters before options (`A.`, `A:`, `A)` or
    /// `(A)`) are taken off if every option has the letter of its position.
    ///
    /// # Errors
    /// The value has another type, an option is not a text, there are more than 26 options, or a text in brackets or
    /// braces is not JSON.
    pub fn parse(value: &Value, marks: OptionMarks) -> Result<Self, String> {
        let listed = match value {
            Value::String(text) if is_list_or_object(text) => {
                let inner = serde_json::from_str(text)
                    .map_err(|e| format!("is a text that looks like a list, but is not JSON ({e})"))?;
                listed(&inner)?
            }
            Value::String(text) => {
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
            }
            value => listed(value)?,
        };
        if listed.len() > letters().count() {
            return Err(format!("has {} options; at most 26 are supported (A to Z)", listed.len()));
        }
        let marked =
            listed.iter().zip(letters()).all(|(text, letter)| mark(text).is_some_and(|(own, _)| own == letter));
        let texts: Vec<String> = match marked {
            true => listed.iter().filter_map(|text| Some(mark(text)?.1.to_string())).collect(),
            false => listed.clone(),
        };
        let shown = match marks {
            OptionMarks::AsIs => listed,
            OptionMarks::Letters => {
                texts.iter().zip(letters()).map(|(text, letter)| format!("{letter}. {text}")).collect()
            }
        };
        Ok(Self { shown, texts })
    }

    /// Returns the letter of the correct option, which `answer` names in the form `form`.
    ///
    /// # Errors
    /// There are no options, or `answer` names none of the options.
    pub fn letter_of(&self, answer: &str, form: AnswerForm) -> Result<char, String> {
        if self.texts.is_empty() {
            return Err("has no options".into());
        }
        let answer = answer.trim();
        let short: String = answer.chars().take(60).collect();
        let not_among = |what: &str| format!("`{short}` is {what} of any of the {} options", self.texts.len());
        let index = match form {
            AnswerForm::Index => answer.parse().ok().filter(|index| *index < self.texts.len()),
            AnswerForm::OptionText => self.index_of_text(answer),
            _ => {
                let (letter, rest) = match answer.chars().collect::<Vec<_>>()[..] {
                    [letter] => (letter, ""),
                    ['(', letter, ')'] => (letter, ""),
                    _ => mark(answer).ok_or_else(|| not_among("not the letter"))?,
                };
                let index = letters().position(|own| own == letter).filter(|index| *index < self.texts.len());
                if let Some(index) = index.filter(|_| !rest.is_empty())
                    && !equal(&self.texts[index], rest)
                {
                    return Err(format!("`{short}` differs from the text of option {letter}"));
                }
                index
            }
        };
        let what = match form {
            AnswerForm::Index => "not the number (from 0)",
            AnswerForm::OptionText => "not the text",
            _ => "not the letter",
        };
        index.and_then(|index| letters().nth(index)).ok_or_else(|| not_among(what))
    }

    /// Returns the index of the option with this text. If no option is exactly equal, case and a full stop at the end
    /// are ignored; exactly one option must then match.
    fn index_of_text(&self, answer: &str) -> Option<usize> {
        let exact = self.texts.iter().position(|text| text.trim() == answer);
        exact.or_else(|| {
            let mut near = (0..self.texts.len()).filter(|&i| equal(&self.texts[i], answer));
            near.next().filter(|_| near.next().is_none())
        })
    }
}

/// Returns the options in a list of texts, or in an object whose keys are the letters.
fn listed(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(list) => list.iter().map(text_of).collect(),
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(letter, _)| (letter.len(), letter.as_str()));
            let in_order = entries.iter().zip(letters()).all(|((key, _), letter)| key.trim() == letter.to_string());
            if !in_order {
                return Err("is an object whose keys are not A, B, C, …".into());
            }
            // A benchmark with up to five options may have empty texts under the keys of missing options.
            let used = entries.iter().rposition(|(_, text)| text.as_str() != Some("")).map_or(0, |last| last + 1);
            entries.iter().take(used).map(|(_, text)| text_of(text)).collect()
        }
        _ => Err("is not a list of options".into()),
    }
}

/// Whether a text is a list or an object, in JSON or in another notation such as Python's. Cells of CSV tables have
/// such texts.
fn is_list_or_object(text: &str) -> bool {
    let text = text.trim();
    [('[', ']'), ('{', '}')].iter().any(|&(open, close)| text.starts_with(open) && text.ends_with(close))
}

/// Returns the text of an option without its letter: `red` for `A. red`.
pub(super) fn text_without_letter(option: &str) -> &str {
    mark(option).map_or(option, |(_, text)| text)
}

/// Whether two texts are equal but for case, surrounding white space and a full stop at the end.
fn equal(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.trim().trim_end_matches('.').trim_end().to_lowercase();
    plain(a) == plain(b)
}

fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("has the option {other}, which is not a text")),
    }
}

/// Splits an option into its letter and its text: `(B) red`, `B. red`, `B: red` and `B) red` give B and `red`.
fn mark(text: &str) -> Option<(char, &str)> {
    let text = text.trim();
    let (inner, ends): (&str, &[char]) = match text.strip_prefix('(') {
        Some(inner) => (inner, &[')']),
        None => (text, &['.', ':', ')']),
    };
    let letter = inner.chars().next().filter(char::is_ascii_uppercase)?;
    Some((letter, inner[1..].strip_prefix(ends)?.trim()))
}

/// Makes a diagnostic about a column with options or an answer. Its location is the column.
pub fn option_error(column: &str, what: String) -> Diagnostic {
    Diagnostic::new(column, what, "correct the row, or leave such rows out with --skip-bad-rows")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn options(value: Value) -> AnswerOptions {
        AnswerOptions::parse(&value, OptionMarks::Letters).unwrap()
    }

    #[test]
    fn every_published_form_is_read() {
        let want = ["A. red", "B. blue"];
        for value in [
            json!(["red", "blue"]),
            json!(["A. red", "B. blue"]),
            json!(["(A) red", "(B) blue"]),
            json!(["A: red", "B) blue "]),
            json!({"B": "blue", "A": "red", "C": "", "D": ""}),
            json!("A. red\nB. blue\n"),
            json!(" [\"red\", \"blue\"]\n"),
            json!("{\"A\": \"red\", \"B\": \"blue\"}"),
        ] {
            assert_eq!(options(value.clone()).shown, want, "{value}");
        }
        assert_eq!(options(json!(["A. Smith", "A. Jones"])).shown, ["A. A. Smith", "B. A. Jones"]);
        assert_eq!(options(json!([1, 2.5])).shown, ["A. 1", "B. 2.5"]);
        let as_is = AnswerOptions::parse(&json!(["A.red", "B.blue"]), OptionMarks::AsIs).unwrap();
        assert_eq!((as_is.shown[0].as_str(), as_is.letter_of("B", AnswerForm::Letter)), ("A.red", Ok('B')));
        for bad in [json!("['red', 'blue']"), json!("[red\nblue]"), json!("[[1]]"), json!("{'A': 'x'}")] {
            assert!(AnswerOptions::parse(&bad, OptionMarks::Letters).is_err(), "{bad}");
        }
        for bad in [json!(7), json!([["a"]]), json!({"A": "x", "C": "y"}), json!({"1": "x"}), json!(vec!["x"; 27])] {
            assert!(AnswerOptions::parse(&bad, OptionMarks::Letters).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_names_one_option() {
        let options = options(json!(["Red.", "blue", "A"]));
        for (answer, form, want) in [
            ("B", AnswerForm::Letter, Some('B')),
            (" (B) ", AnswerForm::Letter, Some('B')),
            ("B. blue", AnswerForm::Letter, Some('B')),
            ("B. green", AnswerForm::Letter, None),
            ("D", AnswerForm::Letter, None),
            ("b", AnswerForm::Letter, None),
            ("blue", AnswerForm::Letter, None),
            ("2", AnswerForm::Index, Some('C')),
            ("3", AnswerForm::Index, None),
            ("-1", AnswerForm::Index, None),
            ("A", AnswerForm::OptionText, Some('C')),
            ("red", AnswerForm::OptionText, Some('A')),
            ("green", AnswerForm::OptionText, None),
        ] {
            assert_eq!(options.letter_of(answer, form).ok(), want, "{answer} as {form:?}");
        }
        assert!(AnswerOptions::default().letter_of("A", AnswerForm::Letter).is_err());
    }

    proptest! {
        /// Checks that the letter, index and text of each option lead back to the option, in every form in which
        /// options are published.
        #[test]
        fn each_option_is_the_answer_to_its_letter_number_and_text(
            texts in prop::collection::btree_set("[a-z]{1,6}( [a-z]{1,4})?", 1..6),
        ) {
            let texts: Vec<&String> = texts.iter().collect();
            let object: serde_json::Map<String, Value> =
                texts.iter().zip(letters()).map(|(text, letter)| (letter.to_string(), json!(text))).collect();
            let marked: Vec<String> = texts.iter().zip(letters()).map(|(t, l)| format!("({l}) {t}")).collect();
            let read = [options(json!(texts)), options(json!(object)), options(json!(marked))];
            prop_assert!(read[0] == read[1] && read[1] == read[2]);
            for (index, (text, letter)) in texts.iter().zip(letters()).enumerate() {
                prop_assert_eq!(read[0].letter_of(&letter.to_string(), AnswerForm::Letter), Ok(letter));
                prop_assert_eq!(read[0].letter_of(&index.to_string(), AnswerForm::Index), Ok(letter));
                prop_assert_eq!(read[0].letter_of(text, AnswerForm::OptionText), Ok(letter));
            }
        }
    }
}
