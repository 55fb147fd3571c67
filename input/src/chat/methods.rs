//! Methods of Python's strings and lists that chat templates call and that `minijinja_contrib::pycompat` lacks or
//! defines differently.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::python::positional_or_named;

/// The maximum width to which a template can pad a text, in characters. A template could otherwise fill the memory in
/// one step.
const MAX_WIDTH: usize = 1 << 20;

/// Calls a method of a string, list or dict.
pub(super) fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => string_method(text, method, args)?,
        None if value.kind() == ValueKind::Seq && method == "index" => Some(list_index(value, args)?),
        None => None,
    };
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
        "find" | "rfind" => Value::from(find(text, method, args)?.map_or(-1, |at| at as i64)),
        "index" | "rindex" => match find(text, method, args)? {
            Some(at) => Value::from(at),
            None => return Err(invalid(format!("{method}: the text does not have this substring"))),
        },
        "partition" | "rpartition" => partition(text, args, method == "rpartition")?,
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let missing = padding(text, width)?;
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            Value::from(pad(text, width, fill.unwrap_or(' '), method)?)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "swapcase" => {
            let () = from_args(args)?;
            Value::from(swap_case(text))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "istitle" => {
            let () = from_args(args)?;
            Value::from(is_title(text))
        }
        _ => return Ok(None),
    }))
}

/// Python's `list.index(item, start, stop)`.
fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item, start, stop): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let (start, stop) = bounds(list.len().unwrap_or(0), start, stop);
    for (i, value) in list.try_iter()?.checked().enumerate().take(stop).skip(start) {
        if value? == item {
            return Ok(Value::from(i));
        }
    }
    Err(invalid("index: the list does not have this item".to_string()))
}

/// The start and stop index of Python's slice `[start:stop]` of `len` items. The start may exceed `len`. If the stop is
/// below the start, the slice is empty.
fn bounds(len: usize, start: Option<i64>, stop: Option<i64>) -> (usize, usize) {
    let index = |i: i64| if i < 0 { (len as i64).saturating_add(i).max(0) as usize } else { i as usize };
    (start.map_or(0, index), stop.map_or(len, index).min(len))
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

/// The index, in characters, of the first or last occurrence of a substring between two indices.
fn find(text: &str, method: &str, args: &[Value]) -> Result<Option<usize>, Error> {
    let (what, start, stop): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (start, stop) = bounds(text.chars().count(), start, stop);
    if start > stop {
        return Ok(None);
    }
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let window = &text[byte(start)..byte(stop)];
    let found = if method.starts_with('r') { window.rfind(what) } else { window.find(what) };
    Ok(found.map(|at| start + window[..at].chars().count()))
}

/// Python's `str.partition` and `str.rpartition`: the text before the separator, the separator, and the text after
/// the separator.
fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("partition: the separator must not be empty".to_string()));
    }
    let parts = match (from_right, text.rsplit_once(separator), text.split_once(separator)) {
        (true, Some((before, after)), _) | (false, _, Some((before, after))) => [before, separator, after],
        (true, ..) => ["", "", text],
        (false, ..) => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// The number of characters to add to a text so that it has `width` characters.
fn padding(text: &str, width: i64) -> Result<usize, Error> {
    match usize::try_from(width) {
        Ok(width) if width > MAX_WIDTH => {
            Err(invalid(format!("a text cannot be padded to {width} characters, above the limit of {MAX_WIDTH}")))
        }
        width => Ok(width.unwrap_or(0).saturating_sub(text.chars().count())),
    }
}

/// Python's `str.ljust`, `str.rjust` or `str.center`.
pub(super) fn pad(text: &str, width: i64, fill: char, method: &str) -> Result<String, Error> {
    let missing = padding(text, width)?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // If the number of padding characters is odd, CPython puts the extra one on the left only for an odd width.
        _ => missing / 2 + (missing & width as usize & 1),
    };
    let fill = |count: usize| std::iter::repeat_n(fill, count);
    Ok(fill(left).chain(text.chars()).chain(fill(missing - left)).collect())
}

fn swap_case(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() { swapped.extend(c.to_lowercase()) } else { swapped.extend(c.to_uppercase()) }
    }
    swapped
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

/// Whether a text has letters, every letter at the start of a word is upper case, and every other letter is not.
fn is_title(text: &str) -> bool {
    let (mut is_in_word, mut has_letters) = (false, false);
    for c in text.chars() {
        let is_letter = c.is_uppercase() || c.is_lowercase();
        if is_letter && c.is_uppercase() == is_in_word {
            return false;
        }
        is_in_word = is_letter;
        has_letters |= is_letter;
    }
    has_letters
}
