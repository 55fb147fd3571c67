//! Texts with placeholders for columns of a row: `data/{video.id}.mp4`.

use std::fmt;

use reel_support::diagnostic::Diagnostic;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A text in which `{column}` stands for a column of a row, and `{column.field}` for a field of the object in that
/// column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl Template {
    /// Parses a template. Every brace must belong to a placeholder; there is no escape for braces.
    ///
    /// # Errors
    /// A brace is not closed, or a placeholder is empty.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let inner = rest[open..].strip_prefix('{').and_then(|inner| Some((inner, inner.find('}')?)));
            let Some((inner, close)) = inner.filter(|(inner, close)| *close > 0 && !inner[..*close].contains('{'))
            else {
                return Err(format!("`{text}` has a brace that belongs to no {{column}}"));
            };
            parts.push(Part::Text(rest[..open].to_string()));
            parts.push(Part::Column(inner[..close].to_string()));
            rest = &inner[close + 1..];
        }
        parts.push(Part::Text(rest.to_string()));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self { parts })
    }

    /// Fills the template with the values of a row. Returns `None` if the template is a single placeholder and its
    /// column is absent, null, or an empty text.
    ///
    /// # Errors
    /// A column is a list or an object; a column beside other text is absent or null. The error names the column.
    pub fn fill(&self, row: &Map<String, Value>) -> Result<Option<String>, Diagnostic> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(piece) => text.push_str(piece),
                Part::Column(name) => match column(row, name) {
                    None | Some(Value::Null) if self.parts.len() == 1 => return Ok(None),
                    None | Some(Value::Null) => {
                        return Err(Diagnostic::new(name, "is missing", "add the column, or remove the row"));
                    }
                    Some(Value::String(value)) => text.push_str(value),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => text.push_str(&value.to_string()),
                    Some(_) => {
                        return Err(Diagnostic::new(name, "is a list or an object", "write a text or a number"));
                    }
                },
            }
        }
        Ok((!text.is_empty()).then_some(text))
    }

    /// Returns the value of the column, if the template is a single placeholder.
    pub fn column_value<'r>(&self, row: &'r Map<String, Value>) -> Option<&'r Value> {
        match &self.parts[..] {
            [Part::Column(name)] => column(row, name),
            _ => None,
        }
    }

    /// Returns the names of the columns that the template reads.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(&name[..]),
            Part::Text(_) => None,
        })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Column(name) => write!(f, "{{{name}}}"),
        })
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The value of the column `name`. If there is no such column and the name has dots, `a.b` is the field `b` of the
/// object in column `a`.
pub fn column<'r>(row: &'r Map<String, Value>, name: &str) -> Option<&'r Value> {
    if let Some(value) = row.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    column(row.get(first)?.as_object()?, rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fill(template: &str, row: Value) -> Result<Option<String>, Diagnostic> {
        Template::parse(template).unwrap().fill(row.as_object().unwrap())
    }

    #[test]
    fn placeholders_are_replaced_by_columns() {
        let row = json!({"id": 7, "video": {"id": "a b"}, "x.y": "dotted", "none": null, "empty": ""});
        assert_eq!(fill("d/{video.id}-{id}.mp4", row.clone()).unwrap().as_deref(), Some("d/a b-7.mp4"));
        assert_eq!(fill("{x.y}", row.clone()).unwrap().as_deref(), Some("dotted"));
        assert_eq!(fill("constant", row.clone()).unwrap().as_deref(), Some("constant"));
        for absent in ["{none}", "{gone}", "{empty}", "{id.deeper}"] {
            assert_eq!(fill(absent, row.clone()).unwrap(), None, "{absent}");
        }
        assert_eq!(fill("a{gone}", row.clone()).unwrap_err().location, "gone");
        assert_eq!(fill("{video}", row).unwrap_err().location, "video");
    }

    #[test]
    fn braces_without_a_column_are_refused() {
        for text in ["{", "}", "a}", "{}", "{a", "{a{b}", "{a}}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_text_prints_as_it_was(text in "([a-z/ ]{0,4}\\{[a-z.]{1,5}\\}){0,3}[a-z ]{0,4}") {
            prop_assert_eq!(Template::parse(&text).unwrap().to_string(), text);
        }
    }
}
