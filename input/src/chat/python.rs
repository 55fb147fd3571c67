//! Additions to minijinja that chat templates written for Python's Jinja2 need: functions, filters, and Python's way of
//! printing.
//!
//! These differences from Python remain, because minijinja has no hook for them: the operator `~` and the filter `join`
//! write a float as Rust does (`1e20` as `100000000000000000000.0`), and `'%s' % x` is an error.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

use crate::python_json::python_float_repr;

/// Adds the functions, filters and the formatter of Python's Jinja2 to a template environment.
pub(super) fn install_python_functions(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("string", to_text);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("replace", replace);
    environment.set_formatter(print);
}

/// Replaces the line ends `\r\n` and `\r` by `\n`, as Jinja2 does in the source of a template.
pub(super) fn normalize_newlines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// The value of an argument that a template may give by position or by name.
pub(super) fn positional_or_named(
    by_position: Option<Value>,
    options: &Kwargs,
    name: &'static str,
) -> Result<Option<Value>, Error> {
    match by_position {
        Some(value) => Ok(Some(value)),
        None => options.get(name),
    }
}

/// Replaces `{% generation %}` with `{% if true %}`. In transformers, this block marks an answer for training and
/// prints nothing.
pub(super) fn without_generation_marks(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let end = start + length + 2;
        let tag = &rest[start..end];
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        result.push_str(&rest[..start]);
        match word {
            "generation" => result.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => result.push_str(&tag.replace("endgeneration", "endif")),
            _ => result.push_str(tag),
        }
        rest = &rest[end..];
    }
    result + rest
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(&with_microseconds(&format))).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not support the format `{format}`"))
    })?;
    Ok(text)
}

/// Replaces `%f`, which is the microseconds in Python and the nanoseconds in chrono.
fn with_microseconds(format: &str) -> String {
    let mut converted = String::with_capacity(format.len() + 1);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        converted.push(c);
        if c == '%' {
            match chars.next() {
                Some('f') => converted.push_str("6f"),
                next => converted.extend(next),
            }
        }
    }
    converted
}

/// The length of a value; 0 for an undefined value.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// Converts a number or a text to an integer; `default` if the text is not a number.
fn int(
    state: &State,
    value: Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = positional_or_named(default, &options, "default")?.unwrap_or(Value::from(0));
    minijinja::filters::int(state, &without_outer_spaces(value), Some(default), base, options)
}

/// Converts a number or a text to a float; `default` if the text is not a number.
fn float(state: &State, value: Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = positional_or_named(default, &options, "default")?.unwrap_or(Value::from(0.0));
    minijinja::filters::float(state, &without_outer_spaces(value), Some(default), options)
}

fn without_outer_spaces(value: Value) -> Value {
    match value.as_str() {
        Some(text) => Value::from(text.trim()),
        None => value,
    }
}

/// Python's `str(value)`.
fn to_text(value: Value) -> Value {
    if value.kind() == ValueKind::String { value } else { Value::from(text_of(&value)) }
}

/// Python's `str(value)`.
fn text_of(value: &Value) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_str(&mut text, value);
    text
}

/// Escapes the special characters of HTML, as the Python package markupsafe does.
fn escape(value: Value) -> Value {
    if value.is_safe() {
        return value;
    }
    let text = text_of(&value).replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// Replaces the first `count` occurrences of a text, or all of them.
fn replace(value: Value, old: Value, new: Value, count: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let count = positional_or_named(count, &options, "count")?.map(i64::try_from).transpose()?;
    options.assert_all_used()?;
    let [text, old, new] = [value, old, new].map(|value| text_of(&value));
    Ok(match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(&old, &new, count),
        None => text.replace(&old, &new),
    })
}

/// Whether a value is a macro. minijinja hides the type and gives macros the kind of a dict.
fn is_macro(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Macro"))
}

/// Prints a value as Python does.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match state.auto_escape() {
        AutoEscape::None => Ok(write_str(out, value)?),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Writes Python's `str(value)`.
fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => write_repr(out, value),
        _ => write!(out, "{value}"),
    }
}

/// Writes Python's `repr(value)`.
fn write_repr(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&python_float_repr(number)),
            Err(_) => write!(out, "{value:?}"),
        },
        ValueKind::Seq => {
            let [open, close] = if value.is_tuple() { ["(", ")"] } else { ["[", "]"] };
            out.write_str(open)?;
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if i == 0 { "" } else { ", " })?;
                write_repr(out, &item)?;
            }
            out.write_str(if value.is_tuple() && value.len() == Some(1) { "," } else { "" })?;
            out.write_str(close)
        }
        ValueKind::Map if !is_macro(value) => {
            out.write_str("{")?;
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if i == 0 { "" } else { ", " })?;
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default())?;
            }
            out.write_str("}")
        }
        ValueKind::Undefined => out.write_str("Undefined"),
        _ => write!(out, "{value:?}"),
    }
}
