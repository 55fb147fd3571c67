//! The filter `tojson` of chat templates, which transformers defines as Python's `json.dumps`.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::python::positional_or_named;
use crate::python_json::PythonJsonFormatter;

/// The widest indentation of one level, in bytes. Each line of a deeply nested value has this many bytes for each of
/// its levels.
const MAX_INDENT: usize = 64;

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, with the defaults that
/// transformers gives `tojson`.
pub(super) fn tojson_filter(
    value: Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = positional_or_named(indent, &options, "indent")?.map(indent_text).transpose()?;
    let separators = positional_or_named(separators, &options, "separators")?.map(separator_texts).transpose()?;
    let [item_separator, key_separator] = separators.unwrap_or_else(|| {
        let item_separator = if indent.is_some() { "," } else { ", " };
        [item_separator.to_string(), ": ".to_string()]
    });
    let ensure_ascii = is_set(positional_or_named(ensure_ascii, &options, "ensure_ascii")?);
    let sort_keys = is_set(positional_or_named(None, &options, "sort_keys")?);
    options.assert_all_used()?;
    let style = PythonJsonFormatter::new(item_separator, key_separator, indent, ensure_ascii);
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, style);
    let written = if sort_keys { Sorted(&value).serialize(&mut serializer) } else { value.serialize(&mut serializer) };
    written.map_err(|e| refused(e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

/// The indentation of one level: `indent` spaces if `indent` is a number, otherwise the text `indent`.
fn indent_text(indent: Value) -> Result<String, Error> {
    let text = match indent.as_str() {
        Some(text) => text.to_string(),
        None => match i64::try_from(indent.clone()) {
            Ok(width) => " ".repeat(width.clamp(0, MAX_INDENT as i64 + 1) as usize),
            Err(_) => return Err(refused(format!("indent is {indent}, expected a whole number or a text"))),
        },
    };
    match text.len() > MAX_INDENT {
        true => Err(refused(format!("indent is {indent}, expected at most {MAX_INDENT} spaces"))),
        false => Ok(text),
    }
}

/// The two separators of JSON: between items, and between a key and its value.
fn separator_texts(separators: Value) -> Result<[String; 2], Error> {
    let texts = match separators.try_iter() {
        Ok(values) => values.map(|value| value.as_str().map(str::to_string)).collect::<Option<Vec<String>>>(),
        Err(_) => None,
    };
    texts
        .and_then(|texts| <[String; 2]>::try_from(texts).ok())
        .ok_or_else(|| refused(format!("separators is {separators}, expected two texts")))
}

/// Serializes a value with the keys of each object in ascending order.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = || {
            let values = self.0.try_iter().map_err(S::Error::custom)?;
            values.checked().collect::<Result<Vec<Value>, Error>>().map_err(S::Error::custom)
        };
        match self.0.kind() {
            ValueKind::Map => {
                let mut keys = items()?;
                keys.sort();
                let mut map = serializer.serialize_map(Some(keys.len()))?;
                for key in &keys {
                    let value = self.0.get_item(key).map_err(S::Error::custom)?;
                    map.serialize_entry(key, &Sorted(&value))?;
                }
                map.end()
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = items()?;
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for value in &items {
                    list.serialize_element(&Sorted(value))?;
                }
                list.end()
            }
            _ => self.0.serialize(serializer),
        }
    }
}
