//! The error object of all endpoints, and the errors that several endpoints return.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use reel_support::diagnostic::Diagnostic;
use reel_support::error::{Error, Kind, MediaFailure};
use serde_json::json;

/// The location in error messages about the body of a request.
pub(crate) const REQUEST_LOCATION: &str = "request";

/// An error in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) code: &'static str,
}

impl ApiError {
    /// The request is wrong; `param` names the field.
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), param, code: "invalid_request" }
    }

    /// The body cannot be read: it is too large, or the client has not sent all of it.
    pub(crate) fn unreadable_body(status: StatusCode, message: String) -> Self {
        Self { status, ..Self::bad_request(message, None) }
    }

    /// The prompt, which is in the field `param`, and the answer do not fit into `positions` tokens. `what` continues
    /// the sentence: how many they have, and what to do. Clients find this error by the words of OpenAI's and vLLM's
    /// message, and read the number in it.
    pub(crate) fn prompt_too_long(positions: usize, what: &str, param: &str) -> Self {
        let message = format!("This model's maximum context length is {positions} tokens{what}");
        Self { code: "context_length_exceeded", ..Self::bad_request(message, Some(param.into())) }
    }

    /// The server takes no further requests now.
    pub(crate) fn service_unavailable(message: &str) -> Self {
        let (status, message) = (StatusCode::SERVICE_UNAVAILABLE, message.into());
        Self { status, message, param: None, code: "unavailable" }
    }

    /// Other requests take all that this server has for requests. Clients wait and send the request again.
    pub(crate) fn too_many_requests(message: &str) -> Self {
        let (status, message) = (StatusCode::TOO_MANY_REQUESTS, message.into());
        Self { status, message, param: None, code: "rate_limit_exceeded" }
    }

    /// The request carries no valid key.
    pub(crate) fn unauthorized() -> Self {
        let message = "this server needs an API key; send it as `Authorization: Bearer KEY`".into();
        Self { status: StatusCode::UNAUTHORIZED, message, param: None, code: "invalid_api_key" }
    }

    /// The client may not send this request, even with a valid key.
    pub(crate) fn forbidden(message: String) -> Self {
        Self { status: StatusCode::FORBIDDEN, message, param: None, code: "forbidden" }
    }

    /// The request cannot be answered while another one runs.
    pub(crate) fn conflict(message: &str) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.into(), param: None, code: "conflict" }
    }

    pub(crate) fn not_found(message: String, param: Option<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message, param, code: "not_found" }
    }

    /// The request names a model that the server does not have.
    pub(crate) fn model_not_found(message: String) -> Self {
        Self { code: "model_not_found", ..Self::not_found(message, Some("model".into())) }
    }

    /// The server failed.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        let (status, message) = (StatusCode::INTERNAL_SERVER_ERROR, message.into());
        Self { status, message, param: None, code: "internal_error" }
    }

    /// The error of the engine about a request. `prompt_field` is the request field with the prompt.
    pub(crate) fn of_request(e: &Error, prompt_field: &str) -> Self {
        match e.kind {
            Kind::TooLong { room } => Self::prompt_too_long(room, &format!(" here. {e}"), prompt_field),
            _ => Self::of_engine(e),
        }
    }

    /// The error of the engine as an answer to the client.
    pub(crate) fn of_engine(e: &Error) -> Self {
        match e.kind {
            Kind::Request => {
                let fields = ["logit_bias", "prompt_logprobs"];
                let location = &e.diagnostic.location;
                let param = fields.contains(&location.as_str()).then(|| location.clone());
                Self::bad_request(e.to_string(), param)
            }
            Kind::DeadlineExceeded => {
                Self { status: StatusCode::GATEWAY_TIMEOUT, code: "timeout", ..Self::internal(e.to_string()) }
            }
            _ => Self::internal(e.to_string()),
        }
    }

    /// What is wrong, and what to do.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Replaces a text in the message, such as the name of a folder that clients should not learn.
    pub(crate) fn replace_in_message(self, text: &str, shown: &str) -> Self {
        Self { message: self.message.replace(text, shown), ..self }
    }

    /// The error object.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        // Field names come from the client, so a long name is cut and escaped in the same way as the message.
        let param = self.param.as_ref().map(|name| Diagnostic::new("", name, "").to_string());
        json!({"error": {"message": self.message, "type": kind, "param": param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let header = match self.status {
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, "Bearer")),
            // Seconds.
            StatusCode::TOO_MANY_REQUESTS => Some((RETRY_AFTER, "1")),
            _ => None,
        };
        response.headers_mut().extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }
}

/// The answer to a path that does not exist.
pub(crate) async fn unknown_path(uri: Uri) -> ApiError {
    let diagnostic = Diagnostic::new(uri.path(), "there is no such path", "/docs lists the paths of this server");
    ApiError::not_found(diagnostic.to_string(), None)
}

/// The answer to a request with a method that the path does not accept.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let what = format!("does not take {method}");
    let message = Diagnostic::new(uri.path(), what, "/docs lists the methods of each path").to_string();
    ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "method_not_allowed",
        ..ApiError::bad_request(message, None)
    }
}

/// The error of a request that cannot be encoded. If the worker process that decodes the media fails, the request may
/// be correct: it may succeed later.
pub(crate) fn encoding_error(e: Error) -> ApiError {
    match e.kind {
        Kind::Media(MediaFailure::Worker) => {
            // The cause is written to the server's stderr. The client gets only a general message.
            reel_support::diagnostic::note!("error: {e}");
            return ApiError::service_unavailable(
                "this server cannot run the process that decodes media now; try again later",
            );
        }
        // A decoder that crashes is also reported as killed by a signal. The message names the file, because the file
        // may be the cause.
        Kind::Media(MediaFailure::Killed) => {
            let Diagnostic { location, what, .. } = e.diagnostic;
            let help = "try again later; if it fails again, the file may be damaged";
            return ApiError::service_unavailable(&Diagnostic::new(location, what, help).to_string());
        }
        _ => {}
    }
    let diagnostic = e.diagnostic;
    ApiError::bad_request(diagnostic.to_string(), field_of(&diagnostic.location))
}

/// The request field in an error's location: `tools[0]` in the location `request: tools[0]: name`.
fn field_of(location: &str) -> Option<String> {
    let path = location.strip_prefix(REQUEST_LOCATION)?.strip_prefix(": ")?;
    path.split(": ").next().map(String::from)
}

/// The error of messages that cannot be encoded. `param` is `messages`, or the name of another field of the request
/// that is wrong; the location in the text says which message is wrong.
pub(crate) fn messages_error(e: Error) -> ApiError {
    if matches!(e.kind, Kind::Media(MediaFailure::Worker | MediaFailure::Killed)) {
        return encoding_error(e);
    }
    let mut diagnostic = e.diagnostic;
    if diagnostic.location == REQUEST_LOCATION {
        diagnostic.location = format!("{REQUEST_LOCATION}: messages");
    }
    let of_messages = |field: String| if field.starts_with("message") { "messages".into() } else { field };
    ApiError::bad_request(diagnostic.to_string(), field_of(&diagnostic.location).map(of_messages))
}

/// The error of the request field `name`.
pub(crate) fn wrong_field(name: &str, what: &str, help: &str) -> ApiError {
    let diagnostic = Diagnostic::new(format!("{REQUEST_LOCATION}: {name}"), what, help);
    ApiError::bad_request(diagnostic.to_string(), Some(name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_decoding_process_are_retryable() {
        let diagnostic = || Diagnostic::new("a.mp4", "failed", "the file may be damaged: leave it out, or convert it");
        for (failure, status, words) in [
            (MediaFailure::Worker, 503, "try again later"),
            (MediaFailure::Killed, 503, "a.mp4: failed; try again later"),
            (MediaFailure::File, 400, "a.mp4: failed; the file may be damaged"),
            (MediaFailure::Timeout, 400, "a.mp4: failed"),
            (MediaFailure::Memory, 400, "a.mp4: failed"),
        ] {
            let error = messages_error(Kind::Media(failure).error(diagnostic()));
            assert!(error.status.as_u16() == status && error.message.contains(words), "{error:?}");
        }
    }
}
