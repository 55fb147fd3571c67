//! Limits on the text of a chat template, checked before the template is parsed. The parser and the compiler recurse
//! once for each level of nesting, so an untrusted template could nest until the stack overflows.

/// The maximum length of a template in bytes. The largest published templates have about 20 KB.
const MAX_BYTES: usize = 256 << 10;

/// The maximum length of a tag in bytes, without its quoted strings. A tag with N operators is parsed to an expression
/// of depth N.
const MAX_TAG_BYTES: usize = 4 << 10;

/// The maximum nesting of brackets in a tag (`MAX_DEPTH`) and of blocks such as `if`, `for` and `macro` (`MAX_BLOCKS`).
/// Each `elif` counts as a level, because the parser recurses for it too.
const MAX_DEPTH: usize = 64;
const MAX_BLOCKS: usize = 200;

/// Checks a template's length and nesting. The error says what is wrong with the template.
pub(super) fn check_template_text(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("is {} bytes long, above the limit of {MAX_BYTES}", text.len()));
    }
    // Lines are counted from the previous tag on, not from the start, so the time is linear in the template's length.
    let (mut line, mut counted) = (1, 0);
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#")) {
        let tag = &rest[start + 2..];
        let at = text.len() - tag.len();
        line += text[counted..at].matches('\n').count();
        counted = at;
        if rest[start..].starts_with("{#") {
            let Some(end) = tag.find("#}") else { break };
            rest = &tag[end + 2..];
            continue;
        }
        let (end, depth) = tag_end(tag).map_err(|what| format!("{what} (line {line})"))?;
        if depth > MAX_DEPTH {
            return Err(format!("nests brackets {depth} deep, above the limit of {MAX_DEPTH} (line {line})"));
        }
        if rest[start..].starts_with("{%") {
            count_block(&tag[..end], &mut blocks);
            let levels: usize = blocks.iter().sum();
            if levels > MAX_BLOCKS {
                return Err(format!("nests blocks {levels} deep, above the limit of {MAX_BLOCKS} (line {line})"));
            }
        }
        rest = &tag[end..];
    }
    Ok(())
}

/// Finds the end of the tag at the start of `tag` (after its opening bracket). Returns the number of bytes before the
/// closing bracket and the tag's deepest nesting of brackets.
fn tag_end(tag: &str) -> Result<(usize, usize), String> {
    let bytes = tag.as_bytes();
    let (mut depth, mut deepest, mut counted, mut at) = (0usize, 0, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'}' | b'%' if depth == 0 && bytes.get(at + 1) == Some(&b'}') => break,
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        counted += 1;
        if counted > MAX_TAG_BYTES {
            return Err(format!("has a tag of more than {MAX_TAG_BYTES} bytes outside of strings"));
        }
    }
    // If the tag has no end, the parser reports it. The end is moved to the next character boundary.
    let end = at.min(tag.len());
    Ok(((end..=tag.len()).find(|&end| tag.is_char_boundary(end)).unwrap_or(tag.len()), deepest))
}

/// Counts a block tag. `blocks` has the number of nesting levels of each open block: an opening tag adds an entry, a
/// closing tag removes one.
fn count_block(tag: &str, blocks: &mut Vec<usize>) {
    let word: String =
        tag.trim_start_matches(['-', '+']).trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
    match word.as_str() {
        "if" | "for" | "macro" | "call" | "filter" | "with" | "block" | "autoescape" | "raw" | "generation" => {
            blocks.push(1);
        }
        // A `set` without `=` is a block that ends with `endset`.
        "set" if !tag.contains('=') => blocks.push(1),
        "elif" => {
            if let Some(levels) = blocks.last_mut() {
                *levels += 1;
            }
        }
        word if word.starts_with("end") => drop(blocks.pop()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_deep_templates_are_refused() {
        for (text, expected) in [
            ("x".repeat(MAX_BYTES + 1), "is 262145 bytes long"),
            (
                format!("\n{{{{ {}1{} }}}}", "[".repeat(65), "]".repeat(65)),
                "nests brackets 65 deep, above the limit of 64 (line 2)",
            ),
            (format!("{{{{ 1{} }}}}", "+1".repeat(3000)), "has a tag of more than 4096 bytes"),
            (format!("{{% set x = {}1 %}}", "not ".repeat(1500)), "has a tag of more than 4096 bytes"),
            (format!("{{{{ x{} }}}}", "|f".repeat(3000)), "has a tag of more than 4096 bytes"),
            ("{% if 1 %}".repeat(201), "nests blocks 201 deep"),
            (format!("{{% if 1 %}}{}", "{% elif 1 %}".repeat(201)), "nests blocks 201 deep"),
            ("{%- set x %}".repeat(300), "nests blocks 201 deep"),
        ] {
            let error = check_template_text(&text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn ordinary_templates_are_accepted() {
        for text in [
            include_str!("chat_template.jinja").to_string(),
            format!("{{{{ '{}' }}}}", "long text ".repeat(2000)),
            format!("{{# {} #}}x", "[".repeat(500)),
            "{% if a %}{% elif b %}{% else %}{% endif %}".repeat(500),
            "{% for x in y %}{{ {'a': [x]} }}{% endfor %}".repeat(500),
            "{{ \"a\\\"}}\" }}{{ '}}' ~ \"%}\" }}".repeat(100),
            "{{ 'unclosed".to_string(),
            "{% set x = 1".to_string(),
            "{{ '\\".to_string(),
            "{{ '\\é".to_string(),
            // If the check took time quadratic in the template's length, this template would take seconds.
            "{{ 1 }}\n".repeat(30_000),
        ] {
            assert_eq!(check_template_text(&text), Ok(()), "{}", &text[..text.len().min(50)]);
        }
    }
}
