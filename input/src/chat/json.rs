//! The filter `tojson` of chat templates, which transformers defines as Python's `json.dumps`.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;

use super::python::positional_or_named;
use crate::python_json::PythonJsonFormatter;

/// The widest indentation of one level, in bytes. Each line of a deeply nested value has this many bytes for each of
/// its levels.
const MAX_INDENT: usize = 64;

/// `json.dumps(value, ensure_ascii=False, indent=None)`, with the defaults that transformers gives `tojson`.
pub(super) fn tojson_filter(
    value: Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = positional_or_named(indent, &options, "indent")?.map(indent_text).transpose()?;
    let ensure_ascii =
        positional_or_named(ensure_ascii, &options, "ensure_ascii")?.is_some_and(|value| value.is_true());
    options.assert_all_used()?;
    let style = PythonJsonFormatter::new(indent, ensure_ascii);
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, style);
    value.serialize(&mut serializer).map_err(|e| refused(e.to_string()))?;
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
