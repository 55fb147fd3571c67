//! Checks URLs that a user gives.

use ureq::http::Uri;

/// Checks that a text is a URL to which requests can be sent: `http` or `https`, a host, and optionally a port from 1
/// to 65535.
///
/// # Errors
/// The text is not such a URL. The error says what is wrong and what to give instead. It quotes the text without its
/// user name, password and query.
pub fn check_http_url(url: &str) -> Result<(), (String, &'static str)> {
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    let Some(parsed) = url.parse::<Uri>().ok().filter(is_http) else {
        // `redact_urls` does not recognise a URL without its scheme, so its password and query are removed here.
        let shown = url.rsplit('@').next().unwrap_or_default();
        let shown = shown.split(['?', '#']).next().unwrap_or_default();
        return Err((format!("`{}` is not an HTTP URL", shorten(shown)), "give http://HOST:PORT/PATH"));
    };
    match invalid_port(&parsed) {
        None => Ok(()),
        Some(port) => {
            let what = format!("has the port {}, which is not a port number", shorten(port));
            Err((what, "give a port from 1 to 65535"))
        }
    }
}

/// Returns the text after the host's colon if it is not a valid port, a number from 1 to 65535.
fn invalid_port(uri: &Uri) -> Option<&str> {
    let authority = uri.authority()?.as_str();
    // The colons of an IPv6 address are inside brackets, and the colon of a password is before an `@`. None of them
    // begins a port.
    let host_end = authority.rfind([']', '@']).map_or(0, |at| at + 1);
    let (_, port) = authority[host_end..].split_once(':')?;
    if port.parse::<u16>().is_ok_and(|number| number > 0) { None } else { Some(port) }
}

/// Returns at most the first 200 characters of a text.
fn shorten(text: &str) -> String {
    let start: String = text.chars().take(200).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_secrets_are_not_quoted() {
        for url in ["http://127.0.0.1:8000/v1", "https://example.org", "http://u:p@[::1]:80/v1?k=1"] {
            assert_eq!(check_http_url(url), Ok(()), "{url}");
        }
        for (url, part) in [
            ("127.0.0.1:8000", "not an HTTP URL"),
            ("ftp://example.org", "not an HTTP URL"),
            ("", "not an HTTP URL"),
            ("http://host:70000/", "port 70000"),
            ("http://host:0/", "port 0"),
        ] {
            assert!(check_http_url(url).unwrap_err().0.contains(part), "{url}");
        }
        let (what, _) = check_http_url("user:secret@host/x?key=hidden").unwrap_err();
        assert!(!what.contains("secret") && !what.contains("hidden"), "{what}");
    }
}
