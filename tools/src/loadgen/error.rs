//! Failures of single requests, which a run counts.

use std::fmt;

use reel_support::diagnostic::{escape_controls, one_line};

use crate::error::Error;

/// The kinds of failed requests. A report counts the failures of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The connection to the server failed, with or without TLS.
    Connect,
    /// No complete answer within the time limit.
    Timeout,
    /// The server answered with this HTTP status.
    Status(u16),
    /// The connection ended before the answer was complete.
    Closed,
    /// The body of the answer is not a stream of events.
    NotAStream,
    /// An event of the stream is not in the format of OpenAI's API.
    Malformed,
    /// The stream has an error object.
    ErrorEvent,
    /// The stream ended without any part of an answer.
    Empty,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Closed => f.write_str("closed"),
            Self::NotAStream => f.write_str("not a stream"),
            Self::Malformed => f.write_str("malformed"),
            Self::ErrorEvent => f.write_str("error event"),
            Self::Empty => f.write_str("empty"),
        }
    }
}

/// The reason why a request has no complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFailure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// What happened, in one line without control characters. Text of the server is cut after 300 characters.
    pub message: String,
}

/// Maximum number of characters of a failure's message.
const MAX_MESSAGE_CHARS: usize = 300;

impl RequestFailure {
    pub(crate) fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        let message = escape_controls(&one_line(message)).into_owned();
        let cut = message.char_indices().nth(MAX_MESSAGE_CHARS).map(|(at, _)| format!("{}…", &message[..at]));
        Self { kind, message: cut.unwrap_or(message) }
    }

    /// The error of a run whose first request failed; this request must succeed.
    pub(crate) fn of_first_request(self, address: &str) -> Error {
        Error::failed(address, self.to_string(), self.help())
    }

    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self.kind {
            FailureKind::Status(400 | 422) if self.message.contains("ignore_eos") => {
                "this server does not know ignore_eos: leave out --ignore-eos"
            }
            FailureKind::Connect => "start the server, or give its address with --url",
            FailureKind::Timeout => "check the server, or raise --timeout",
            FailureKind::Status(401 | 403) => "give the server's key with --api-key-file",
            FailureKind::Status(404 | 405) => "check --url, --endpoint and --model",
            FailureKind::Status(400 | 413 | 422) => "correct the option that the server refuses",
            FailureKind::Status(429 | 503) => "the server is too busy: try again later",
            FailureKind::Status(_) | FailureKind::Closed | FailureKind::ErrorEvent => "look at the server's log",
            FailureKind::NotAStream | FailureKind::Malformed | FailureKind::Empty => {
                "check that the server has OpenAI's API with streaming"
            }
        }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.kind)
    }
}
