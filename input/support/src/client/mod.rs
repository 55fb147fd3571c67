//! A client for servers with OpenAI's chat API (`POST /chat/completions`). [`ChatClient::chat`] sends one request,
//! blocks until the answer arrives, and returns it. To keep N requests in flight, call it from N threads.
//!
//! ```text
//! until the request is answered, or max_attempts attempts have failed:
//!     wait for the rate limits, and for a pause that the server asked for (Retry-After)      pace
//!     reserve the largest cost that the attempt can have; without it, fail                   budget
//!     POST; on 408, 409, 425, 429, 5xx, a time-out, a broken connection or a reply that is
//!         not an answer: wait with exponential back-off and jitter                           retry
//!     charge what the attempt has cost: the tokens that the reply states
//! ```
//!
//! If the outcome of an attempt is unknown (time-out, broken connection, reply without token counts), the whole
//! reserved amount is charged, because the server may have charged for the attempt.

mod budget;
mod chat;
mod options;
mod pace;
mod reply;
mod request;
mod retry;
#[cfg(test)]
mod tests;
mod url;

pub use budget::Budget;
pub use chat::{ChatAnswer, ChatClient, ChatFailure, FailureKind};
pub use options::{ClientOptions, Prices};
pub use request::{ChatRequest, image_part, max_template_tokens};
pub use url::check_http_url;
