//! The HTTP client: sends one request and reads its answer, with or without TLS. Connections are reused.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::loadgen::answer::{AnswerReader, MeasuredAnswer, error_message};
use crate::loadgen::error::{FailureKind, RequestFailure};

/// Maximum number of bytes that are read from an answer without streaming.
const MAX_PLAIN_BYTES: usize = 1 << 20;
/// Maximum time to wait for the end of a response body after the last event of its answer. A connection can be reused
/// only after this end.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The address of a server, such as `http://127.0.0.1:8000`. The address may end with a path, to which `/v1` is
/// appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl(String);

impl FromStr for ServerUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let help = "give an address such as http://127.0.0.1:8000";
        let wrong = |what: &str| Error::usage("--url", format!("{text:?} {what}"), help);
        let uri: Uri = text.parse().map_err(|e| wrong(&format!("is not an address ({e})")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("does not begin with http:// or https://"));
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let Some(authority) = authority else { return Err(wrong("names no host")) };
        if authority.as_str().contains('@') {
            return Err(wrong("has a user name, but this client sends no user name"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query"));
        }
        let base = text.split('#').next().unwrap_or_default().trim_end_matches('/');
        Ok(Self(base.strip_suffix("/v1").unwrap_or(base).to_string()))
    }
}

impl ServerUrl {
    /// The address of a path below `/v1`.
    pub(crate) fn v1_url(&self, path: &str) -> String {
        format!("{self}/v1/{path}")
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn cannot_start(cause: impl fmt::Display) -> Error {
    Error::failed("", format!("cannot start the HTTP client: {cause}"), "check the limits of this user (ulimit -a)")
}

/// Sends HTTP requests. Clones of the client share their connections.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl HttpClient {
    /// # Errors
    /// The API key has characters that a header cannot have, or TLS cannot be set up.
    pub(crate) fn new(api_key: Option<&str>, timeout: Duration) -> Result<Self> {
        let authorization = api_key.map(|key| HeaderValue::from_str(&format!("Bearer {key}"))).transpose();
        let authorization = authorization.map_err(|_| {
            let what = "has a key with characters that an HTTP header cannot have";
            Error::usage("--api-key-file", what, "check the file")
        })?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(cannot_start)?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { http: legacy::Client::builder(TokioExecutor::new()).build(connector), authorization, timeout })
    }

    /// The JSON at this address.
    pub(crate) async fn get_json(&self, address: &str) -> Result<Value, RequestFailure> {
        self.within_time(async {
            let response = self.send(Method::GET, address, Bytes::new()).await?;
            let body = start_of_body(response).await?;
            serde_json::from_str(&body).map_err(|_| {
                RequestFailure::new(FailureKind::Malformed, format!("the answer is not JSON: {}", body.trim()))
            })
        })
        .await
    }

    /// Posts a request and reads its streamed answer. The answer's times start before the connection is made, so they
    /// include connecting.
    pub(crate) async fn stream_answer(&self, address: &str, body: Bytes) -> Result<MeasuredAnswer, RequestFailure> {
        let begun = Instant::now();
        let answer = async {
            let response = self.send(Method::POST, address, body).await?;
            let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
                let message = format!("the answer has the content type {kind:?} and begins with ");
                let body = start_of_body(response).await?;
                return Err(RequestFailure::new(FailureKind::NotAStream, message + body.trim()));
            }
            let mut body = response.into_body();
            let mut reader = AnswerReader::default();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| interrupted(&e))?;
                let Some(bytes) = frame.data_ref() else { continue };
                if reader.push(bytes, begun.elapsed().as_secs_f64())? {
                    break;
                }
            }
            Ok((reader.finish()?, body))
        };
        let (answer, mut body) = self.within_time(answer).await?;
        let _ = tokio::time::timeout(DRAIN_TIME, async { while let Some(Ok(_)) = body.frame().await {} }).await;
        Ok(answer)
    }

    async fn within_time<T>(&self, work: impl Future<Output = Result<T, RequestFailure>>) -> Result<T, RequestFailure> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f64();
            Err(RequestFailure::new(FailureKind::Timeout, format!("no complete answer after {seconds} s")))
        })
    }

    /// Sends a request; returns the answer if its status is a success.
    async fn send(&self, method: Method, address: &str, body: Bytes) -> Result<Response<Incoming>, RequestFailure> {
        let mut request = Request::builder().method(method).uri(address).header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request =
            request.body(Full::new(body)).map_err(|e| RequestFailure::new(FailureKind::Connect, e.to_string()))?;
        let response = self.http.request(request).await.map_err(|e| match e.is_connect() {
            true => RequestFailure::new(FailureKind::Connect, format!("cannot connect: {}", innermost_cause(&e))),
            false => interrupted(&e),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // An unreadable body counts as empty, so that the failure has the HTTP status in any case.
        let body = start_of_body(response).await.unwrap_or_default();
        let message = serde_json::from_str(&body).map_or_else(|_| body, |error| error_message(&error));
        let reason = status.canonical_reason().unwrap_or("no known status");
        Err(RequestFailure::new(FailureKind::Status(status.as_u16()), format!("{reason}: {}", message.trim())))
    }
}

/// The first MiB of a body as text.
async fn start_of_body(response: Response<Incoming>) -> Result<String, RequestFailure> {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| interrupted(&e))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if bytes.len() > MAX_PLAIN_BYTES {
            bytes.truncate(MAX_PLAIN_BYTES);
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn interrupted(e: &dyn std::error::Error) -> RequestFailure {
    RequestFailure::new(FailureKind::Closed, format!("the connection ended: {}", innermost_cause(e)))
}

/// The text of an error's innermost cause. The outer errors only name the part of the library that failed.
fn innermost_cause(e: &dyn std::error::Error) -> String {
    let mut cause = e;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_v1_are_the_same() {
        for text in ["http://host:80", "http://host:80/", "http://host:80/v1", "http://host:80/v1/"] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().v1_url("models"), "http://host:80/v1/models", "{text}");
        }
        let behind_proxy: ServerUrl = "https://host/llm/v1".parse().unwrap();
        assert_eq!(behind_proxy.v1_url("models"), "https://host/llm/v1/models");
        let v6: ServerUrl = "http://[::1]:8000".parse().unwrap();
        assert_eq!(v6.v1_url("models"), "http://[::1]:8000/v1/models");
    }

    #[test]
    fn other_addresses_are_refused_in_one_line() {
        for (text, words) in [
            ("", "is not an address"),
            ("127.0.0.1:8000", "does not begin with http"),
            ("host/path", "is not an address"),
            ("ftp://host", "does not begin with http"),
            ("http://", "is not an address"),
            ("http://me:secret@host", "has a user name"),
            ("http://host?x=1", "has a query"),
            ("http://ho st", "is not an address"),
        ] {
            let message = text.parse::<ServerUrl>().unwrap_err().to_string();
            assert!(message.starts_with("--url: ") && message.contains(words), "{text}: {message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn a_key_with_a_line_break_is_refused() {
        let e = HttpClient::new(Some("a\nb"), Duration::from_secs(1)).unwrap_err();
        assert!(e.to_string().starts_with("--api-key-file: has a key"), "{e}");
    }
}
