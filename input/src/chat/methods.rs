//! Methods of Python's strings that chat templates call and that `minijinja_contrib::pycompat` lacks or defines
//! differently.

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::python::positional_or_named;

/// Calls a method of a string, list or dict.
pub(super) fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = value.as_str().map(|text| string_method(text, method, args)).transpose()?.flatten();
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Calls a method of a string. Returns `None` for a method that `pycompat` provides.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        _ => return Ok(None),
    }))
}

/// Whether a character is white space as Python's `str.isspace` defines it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.split` and `str.rsplit`. Without a separator, the text is split at runs of white space.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, limit, options): (Option<Value>, Option<Value>, Kwargs) = from_args(args)?;
    let separator = positional_or_named(separator, &options, "sep")?;
    let limit = positional_or_named(limit, &options, "maxsplit")?.map(i64::try_from).transpose()?;
    options.assert_all_used()?;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let most = limit.saturating_add(1);
            match separator.as_str() {
                None | Some("") => return Err(invalid("split: the separator must be a text that is not empty".into())),
                Some(separator) if from_right => text.rsplitn(most, separator).collect(),
                Some(separator) => text.splitn(most, separator).collect(),
            }
        }
        None if from_right => split_at_spaces(text, limit, str::trim_end_matches, |rest| {
            let end = rest.char_indices().rfind(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
            (&rest[end..], &rest[..end])
        }),
        None => split_at_spaces(text, limit, str::trim_start_matches, |rest| {
            let end = rest.find(is_space).unwrap_or(rest.len());
            (&rest[..end], &rest[end..])
        }),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits a text at white space, from one end. `trim` removes white space at this end; `take` returns the first word
/// from this end and the rest of the text. After `limit` words, the rest of the text is the last part.
fn split_at_spaces<'a>(
    text: &'a str,
    limit: usize,
    trim: impl Fn(&'a str, fn(char) -> bool) -> &'a str,
    take: impl Fn(&'a str) -> (&'a str, &'a str),
) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut rest = trim(text, is_space);
    while !rest.is_empty() {
        let (word, after) = if parts.len() == limit { (rest, "") } else { take(rest) };
        parts.push(word);
        rest = trim(after, is_space);
    }
    parts
}

/// Python's `str.title`: a letter is upper case if no letter precedes it. The Jinja filter `title` differs: its words
/// begin after white space, `-` or an opening bracket.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut is_in_word = false;
    for c in text.chars() {
        if is_in_word {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(c.to_uppercase())
        }
        is_in_word = c.is_lowercase() || c.is_uppercase();
    }
    titled
}
