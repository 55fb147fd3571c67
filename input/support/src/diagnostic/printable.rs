//! Makes untrusted text safe to print. Model output, file names, rows and templates can contain control characters
//! that recolour a terminal, move its cursor, set its title or reorder the displayed text.

use std::borrow::Cow;

/// Replaces each control character except newline and tab by its escape in Rust's notation, such as `\u{1b}`. Also
/// replaces characters that change the direction of text, because they can display a name in another order than its
/// characters.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Replaces control characters that may stand unescaped in JSON (U+007F to U+009F, and those that change the
/// direction of text) by JSON's own escapes. Such characters occur only inside strings, so the value stays the same.
pub fn escape_controls_in_json(json: &str) -> Cow<'_, str> {
    use std::fmt::Write;
    if !json.contains(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        // JSON itself escapes all characters below U+0020 in strings. Between values only white space occurs.
        if c >= '\u{7f}' && is_unsafe(c) {
            // All these characters have at most four hexadecimal digits. Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

fn is_unsafe(c: char) -> bool {
    let changes_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    changes_direction || c.is_control() && !matches!(c, '\n' | '\t')
}

/// Joins the lines of `text` with single spaces. Messages of other crates may have several lines, but an error
/// message of `reel` has one line.
pub fn one_line(text: impl AsRef<str>) -> String {
    let lines = text.as_ref().split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_become_visible() {
        for (text, want) in [
            ("\u{1b}[31mred\u{7}", "\\u{1b}[31mred\\u{7}"),
            ("a\r\u{8}b\u{7f}\u{9b}2J", "a\\u{d}\\u{8}b\\u{7f}\\u{9b}2J"),
            ("name\u{202e}gnp.exe", "name\\u{202e}gnp.exe"),
            ("two\nlines\tand täb 你好 👍🏽", "two\nlines\tand täb 你好 👍🏽"),
        ] {
            assert_eq!(escape_controls(text), want);
        }
        assert_eq!(escape_controls_in_json("[\"\u{9b}\u{7f}\u{202e}ü\"]"), "[\"\\u009b\\u007f\\u202eü\"]");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text in any::<String>(), c in any::<char>(), at in 0u32..0x2100) {
            let text = format!("{text}{c}{}", char::from_u32(at).unwrap());
            let printed = escape_controls(&text);
            prop_assert!(!printed.contains(is_unsafe));
            prop_assert_eq!(escape_controls(&printed), &printed[..]);
        }
    }
}
