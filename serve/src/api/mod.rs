//! The endpoints of the HTTP API.

pub(crate) mod adapters;
pub(crate) mod admin;
pub(crate) mod allowed_hosts;
mod answer;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod document;
mod encode;
mod error;
mod events;
pub(crate) mod fields;
mod grammars;
pub(crate) mod health;
pub(crate) mod media_turns;
pub(crate) mod models;
mod named_adapters;
pub(crate) mod page;
pub(crate) mod preview;
pub(crate) mod profile;
mod prompt_log_probs;
mod queue;
mod reasoning;
pub(crate) mod responses;
pub(crate) mod shared;
mod stream;
pub(crate) mod tokenize;
mod tool_calls;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use error::{
    ApiError, REQUEST_LOCATION, encoding_error, messages_error, method_not_allowed, unknown_path, wrong_field,
};

/// Seconds since the start of 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
