//! Rust source text as tokens: identifiers, `::`, and single characters. Comments, string literals and numbers are left
//! out.

/// A token and its line, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// An identifier, `::`, or one character.
    pub text: String,
    /// The line, counted from 1.
    pub line: usize,
}

/// Returns the tokens of a source file, without items under `#[cfg(test)]`.
pub fn tokens(source: &str) -> Vec<Token> {
    without_tests(all_tokens(source))
}

fn all_tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let rest = &chars[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => comment_length(rest),
            ['"', ..] => text_length(rest),
            ['\'', '\\', ..] => 3 + rest[3..].iter().position(|&c| c == '\'').unwrap_or(0) + 1,
            ['\'', _, '\'', ..] => 3,
            [c, ..] if c.is_alphanumeric() || *c == '_' => word(rest, line, &mut found),
            [':', ':', ..] => {
                found.push(Token { text: "::".into(), line });
                2
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    found.push(Token { text: c.to_string(), line });
                }
                1
            }
            [] => 1,
        };
        let end = (at + length).min(chars.len());
        line += chars[at..end].iter().filter(|&&c| c == '\n').count();
        at = end;
    }
    found
}

/// Returns the length of the identifier, number or raw string at the start of `rest`. Adds a token if it is an
/// identifier.
fn word(rest: &[char], line: usize, found: &mut Vec<Token>) -> usize {
    let length = rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len());
    let text: String = rest[..length].iter().collect();
    let hashes = rest[length..].iter().take_while(|&&c| c == '#').count();
    if ["r", "br", "cr"].contains(&text.as_str()) && rest.get(length + hashes) == Some(&'"') {
        let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        let from = length + hashes + 1;
        let close = rest[from..].windows(end.len()).position(|w| w == end);
        return close.map_or(rest.len(), |close| from + close + end.len());
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        found.push(Token { text, line });
    }
    length
}

fn comment_length(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn text_length(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Removes each item that an attribute `cfg(test)` or `cfg(all(test, …))` precedes.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let simple = ["#", "[", "cfg", "(", "test", ")", "]"];
        let combined = ["#", "[", "cfg", "(", "all", "(", "test", ","];
        let matches = |pattern: &[&str]| pattern.iter().enumerate().all(|(i, text)| is(at + i, text));
        if matches(&simple) || matches(&combined) {
            at = item_end(&tokens, at);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Returns the index after the item (with its attributes) that begins at `at`.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while tokens.get(at).is_some_and(|token| token.text == "#") {
        at = index_after_brackets(tokens, at + 1);
    }
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            ";" | "," => return at + 1,
            "{" => return index_after_brackets(tokens, at),
            "(" | "[" => at = index_after_brackets(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// Returns the index after the bracket group that opens at `at`.
pub fn index_after_brackets(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 1 => return i + 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    tokens.len()
}
