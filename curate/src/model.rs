//! The models that a curation asks, as it sees them: a request goes in, an accepted answer comes out. The client of an
//! HTTP endpoint is one; tests have scripted ones.

use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

/// A request for a chat completion.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The messages.
    pub messages: Vec<Value>,
    /// The most tokens of the answer.
    pub max_tokens: u32,
    /// Sampling and format.
    pub params: Map<String, Value>,
}

/// An accepted answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatAnswer {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// The name of the model that answered.
    pub model: String,
    /// Tokens of the request.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// US dollars of all attempts.
    pub cost: f64,
    /// How often the request was sent.
    pub attempts: u32,
    /// Seconds from the first attempt on.
    pub seconds: f64,
}

/// Why there is no accepted answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Each attempt failed.
    Exhausted,
    /// The server rejects this request.
    Refused,
    /// The endpoint cannot be used at all.
    Unusable,
    /// The request could exceed the cap on cost.
    Budget,
    /// The process was asked to stop.
    Stopped,
}

/// A request without an accepted answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatFailure {
    /// What happened.
    pub kind: FailureKind,
    /// One line: the address, what is wrong, what to do.
    pub message: String,
    /// How often the request was sent.
    pub attempts: u32,
    /// US dollars of all attempts.
    pub cost: f64,
}

/// A model that is asked.
pub trait ChatModel: Sync {
    /// The name of the model in requests.
    fn name(&self) -> &str;

    /// The most that [`Self::ask`] can cost in US dollars, with all attempts.
    fn max_cost(&self, request: &ChatRequest) -> f64;

    /// Sends a request until `accept` takes the text of an answer.
    ///
    /// # Errors
    /// There is no accepted answer.
    fn ask(
        &self,
        request: &ChatRequest,
        stop: &AtomicBool,
        accept: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<(String, ChatAnswer), ChatFailure>;
}
