//! Removes what may be secret from the URLs in a text: user name and password, query and fragment (tokens, signatures).

/// What stands for a removed query and fragment.
const REMOVED: &str = "?…";

/// Characters that end a URL in a text.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>' | '\\')
}

/// Removes user information, query and fragment from each URL in `text`: `https://user:key@host/a?token=b` becomes
/// `https://host/a?…`. Everything else stays, also `file:` URLs, which are paths.
pub fn redact_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = rest.find("://") {
        let scheme = scheme_at_end(&rest[..found]);
        let (before, after) = rest.split_at(found + "://".len());
        out.push_str(before);
        rest = after;
        if scheme.is_empty() || scheme.eq_ignore_ascii_case("file") {
            continue;
        }
        let end = rest.find(ends_url).unwrap_or(rest.len());
        let mut url = &rest[..end];
        while let Some(user) = user_len(url) {
            url = &url[user..];
        }
        let query = url.find(['?', '#']).unwrap_or(url.len());
        // A URL can have another one in its path (a proxy's do). Then the loop continues there.
        let inner = url[..query]
            .find("://")
            .map(|at| at - scheme_at_end(&url[..at]).len())
            .filter(|at| !url[*at..].starts_with("://"));
        if let Some(inner) = inner {
            out.push_str(&url[..inner]);
            rest = &rest[end - url.len() + inner..];
            continue;
        }
        out.push_str(&url[..query]);
        out.push_str(if query < url.len() { REMOVED } else { "" });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The scheme with which `text` ends, such as `https`; empty if `text` does not end with a scheme.
fn scheme_at_end(text: &str) -> &str {
    let is_scheme = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    &text[text.len() - text.bytes().rev().take_while(is_scheme).count()..]
}

/// Length of the user information at the start of a URL without its scheme, `@` included.
fn user_len(url: &str) -> Option<usize> {
    // The authority ends at the first of these characters (RFC 3986).
    let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
    match authority.rfind('@') {
        Some(at) => Some(at + 1),
        // A password may contain one of these characters unescaped, by mistake: `user:pa/ss@host`.
        None if has_password(authority) => url.rfind('@').map(|at| at + 1),
        None => None,
    }
}

/// Whether `host:text` has a text that is no port number.
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

    proptest! {
        /// Neither password nor query survives, wherever the URL stands in a text; redaction is idempotent.
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
