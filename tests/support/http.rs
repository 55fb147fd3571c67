//! Reads HTTP requests, for the servers that are part of tests.

use std::io::{BufRead, Result};

use serde_json::Value;

/// A parsed HTTP request.
pub struct HttpRequest {
    /// The request line and the headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// Returns true if the request has this method and this path.
    pub fn has_method_and_path(&self, method: &str, path: &str) -> bool {
        self.head.starts_with(&format!("{method} {path} "))
    }

    /// Returns the body, parsed as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// Reads the next request of a connection; returns `None` if the client has closed it.
pub fn read_request(reader: &mut impl BufRead) -> Result<Option<HttpRequest>> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().expect("a length");
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(HttpRequest { head, body }))
}
