//! Makes text of files and kernels safe to print: control characters can recolour a terminal, move its cursor or
//! reorder the displayed text.

use std::fmt::Write;

/// Replaces each control character except newline and tab, and each character that changes the direction of text, by
/// its escape in Rust's notation, such as `\u{1b}`.
pub fn escape_controls(text: &str) -> String {
    escaped(text, |out, c| out.extend(c.escape_unicode()))
}

/// Replaces such characters in JSON by JSON's own escapes. They occur only inside strings, so the value stays the same.
pub fn escape_controls_in_json(json: &str) -> String {
    escaped(json, |out, c| {
        // All these characters have at most four hexadecimal digits. Writing to a string cannot fail.
        let _ = write!(out, "\\u{:04x}", u32::from(c));
    })
}

/// Escapes text for HTML content and attributes.
pub fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape_controls(text).chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

fn escaped(text: &str, escape: impl Fn(&mut String, char)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { escape(&mut out, c) } else { out.push(c) }
    }
    out
}

fn is_unsafe(c: char) -> bool {
    let changes_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    changes_direction || c.is_control() && !matches!(c, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(escape_controls("\u{1b}[31mred\u{202e}\n\tä"), "\\u{1b}[31mred\\u{202e}\n\tä");
        assert_eq!(escape_controls_in_json("[\"\u{9b}\u{7f}ü\"]"), "[\"\\u009b\\u007fü\"]");
        assert_eq!(escape_html("<a b='c'>\u{7}&\""), "&lt;a b=&#39;c&#39;&gt;\\u{7}&amp;&quot;");
    }
}
