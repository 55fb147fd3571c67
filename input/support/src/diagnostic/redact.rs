//! Removes possible secrets from the URLs in a text: user name and password, query and fragment (tokens, signatures).

/// The text that replaces a removed query or fragment.
const REMOVED: &str = "?…";

/// Tells whether a character ends a URL in a text.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\')
}

/// Removes user information, query and fragment from each URL in `text`: `https://user:key@host/a?token=b` becomes
/// `https://host/a?…`. Everything else stays, including `file:` URLs, which are paths. Takes time linear in the
/// text's length, even if the path of a URL contains many other URLs.
pub fn redact_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut marks = UrlMarks { end: 0, query: 0, last_at: None };
    // The index of the first byte of `text` that was not read yet.
    let mut next = 0;
    while let Some(found) = text[next..].find("://").map(|found| next + found) {
        let scheme = scheme_at_end(&text[next..found]);
        let mut start = found + "://".len();
        out.push_str(&text[next..start]);
        next = start;
        if scheme.is_empty() || scheme.eq_ignore_ascii_case("file") {
            continue;
        }
        marks.move_to(text, start);
        while let Some(user) = user_len(&text[start..marks.end], marks.last_at.and_then(|at| at.checked_sub(start))) {
            start += user;
        }
        let query = marks.query_from(text, start);
        // The path of a URL can contain another URL, as in the URLs of some proxies. The loop then continues at the
        // inner URL.
        let inner = text[start..query]
            .find("://")
            .map(|at| start + at - scheme_at_end(&text[start..start + at]).len())
            .filter(|at| !text[*at..].starts_with("://"));
        if let Some(inner) = inner {
            out.push_str(&text[start..inner]);
            next = inner;
            continue;
        }
        out.push_str(&text[start..query]);
        out.push_str(if query < marks.end { REMOVED } else { "" });
        next = marks.end;
    }
    out.push_str(&text[next..]);
    out
}

/// Positions of special characters in a URL, which the URLs in its path share. Each is searched for once per outer
/// URL.
struct UrlMarks {
    /// The position of the end of the URL.
    end: usize,
    /// The position of the `?` or `#` that the last search found in the URL. If the search found none, this is `end`.
    query: usize,
    /// The position of the last `@` before the end of the URL.
    last_at: Option<usize>,
}

impl UrlMarks {
    /// Moves to the URL that begins (after its scheme) at `start`, and finds its special characters. Keeps the known
    /// positions if this URL lies in the path of the previous URL.
    fn move_to(&mut self, text: &str, start: usize) {
        if self.end == 0 || start > self.end {
            let end = text[start..].find(ends_url).map_or(text.len(), |end| start + end);
            let last_at = text[start..end].rfind('@').map(|at| start + at);
            *self = Self { end, query: next_query(text, start, end), last_at };
        }
    }

    /// Returns the position of the first `?` or `#` from `start` on, or the end of the URL.
    fn query_from(&mut self, text: &str, start: usize) -> usize {
        if self.query < start {
            self.query = next_query(text, start, self.end);
        }
        self.query
    }
}

/// Finds the first `?` or `#` in `text[start..end]`. Returns its position in `text`; returns `end` if there is none.
fn next_query(text: &str, start: usize, end: usize) -> usize {
    text[start..end].find(['?', '#']).map_or(end, |query| start + query)
}

/// Returns the scheme at the end of `text`, such as `https`; empty if `text` does not end with a scheme.
fn scheme_at_end(text: &str) -> &str {
    let is_scheme = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    &text[text.len() - text.bytes().rev().take_while(is_scheme).count()..]
}

/// Returns the length of the user information at the start of a URL without its scheme, `@` included. `last_at` is
/// the position of the last `@` in the URL.
fn user_len(url: &str, last_at: Option<usize>) -> Option<usize> {
    // The authority ends at the first of these characters (RFC 3986).
    let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
    match authority.rfind('@') {
        Some(at) => Some(at + 1),
        // A password may contain an unescaped `/`, `?` or `#` by mistake: `user:pa/ss@host`.
        None if has_password(authority) => last_at.map(|at| at + 1),
        None => None,
    }
}

/// Tells whether the text after the host's colon is not a port number. It is then treated as a password:
/// `user:password`.
fn has_password(authority: &str) -> bool {
    let host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
    host.split_once(':').is_some_and(|(_, port)| !port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        for (text, want) in [
            ("https://user:key@host:8000/a/b?token=c#d", "https://host:8000/a/b?…"),
            ("http://key@host", "http://host"),
            ("s3://bucket/key?X-Amz-Signature=1", "s3://bucket/key?…"),
            ("see http://a/b?c, or 'https://d:e@f/g' and \"x\"", "see http://a/b?… or 'https://f/g' and \"x\""),
            ("http://u:p/w@host/x", "http://host/x"),
            ("http://host/@handle/x", "http://host/@handle/x"),
            ("http://[::1]:8000/x?y", "http://[::1]:8000/x?…"),
            ("http://host/a#access_token=x", "http://host/a?…"),
            ("wss://u@h/p", "wss://h/p"),
            ("file:///a?b@c", "file:///a?b@c"),
            ("give http://HOST:PORT/PATH", "give http://HOST:PORT/PATH"),
            ("a://b://c:d@e", "a://b://e"),
            ("http://proxy/https://u:p@h/x?key", "http://proxy/https://h/x?…"),
            ("http://h/://x?key", "http://h/://x?…"),
            ("what? a: b@c // ://u:p@h", "what? a: b@c // ://u:p@h"),
            ("", ""),
        ] {
            assert_eq!(redact_urls(text), want, "{text}");
        }
    }

    /// If the redaction took quadratic time, this test would take many minutes.
    #[test]
    fn many_urls_in_one_are_redacted() {
        let many = |part: &str| part.repeat(200_000);
        for (text, want) in [
            (many("a://b:c/"), many("a://b:c/")),
            (many("a://b@c/"), many("a://c/")),
            (many("a://b/") + "?key", many("a://b/") + REMOVED),
            (many("a://b?key/"), format!("a://b{REMOVED}")),
            (many("a://"), many("a://")),
            (many("://"), many("://")),
        ] {
            assert!(redact_urls(&text) == want, "{}…", &text[..20]);
        }
    }

    proptest! {
        /// The password and the query are removed wherever the URL stands in a text. Redaction is idempotent.
        #[test]
        fn no_secret_survives(
            before in "[ a-z\"']{0,9}", scheme in "http|https|ftp", user in "[a-z]{0,4}", after in "( [a-z ]{0,9})?",
        ) {
            let text = format!("{before} {scheme}://{user}:SECRET@host/path?key=SECRET#SECRET{after}");
            let redacted = redact_urls(&text);
            prop_assert!(!redacted.contains("SECRET"), "{}", redacted);
            prop_assert_eq!(&redacted, &format!("{before} {scheme}://host/path?…{after}"));
            prop_assert_eq!(redact_urls(&redacted), redacted);
        }

        #[test]
        fn any_text_is_accepted(text in "\\PC{0,60}") {
            let once = redact_urls(&text);
            prop_assert_eq!(redact_urls(&once), once);
        }
    }
}
