//! The options of a client: the server, and the limits of requests.

use std::sync::Arc;
use std::time::Duration;

use crate::client::Budget;

/// Prices of tokens in US dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prices {
    /// Price of a million tokens of prompts.
    pub input_per_million: f64,
    /// Price of a million tokens of answers.
    pub output_per_million: f64,
}

impl Prices {
    /// The cost in dollars of a request with these numbers of tokens.
    pub fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        (prompt_tokens as f64 * self.input_per_million + completion_tokens as f64 * self.output_per_million) * 1e-6
    }
}

/// The server of a [`ChatClient`](crate::client::ChatClient) and the limits of its requests.
#[derive(Clone)]
pub struct ClientOptions {
    /// The base URL of the API, for example `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The key that is sent as `Authorization: Bearer KEY`.
    pub api_key: Option<String>,
    /// The name of the model; `None` asks for the first model that the server lists (`GET /models`).
    pub model: Option<String>,
    /// Maximum duration of one attempt, from the connection to the end of the reply.
    pub timeout: Duration,
    /// Maximum number of attempts per request; at least 1.
    pub max_attempts: u32,
    /// The wait before the second attempt. The wait doubles with each further attempt, up to a minute, and is
    /// shortened by a random share of up to a half.
    pub first_wait: Duration,
    /// Maximum number of attempts per minute.
    pub requests_per_minute: Option<f64>,
    /// Maximum number of tokens, of prompts and answers, per minute.
    pub tokens_per_minute: Option<f64>,
    /// The prices of tokens, from which costs are computed.
    pub prices: Prices,
    /// The cap on the cost. Several clients may share it.
    pub budget: Arc<Budget>,
    /// Upper bound of the tokens that the server counts for one image. The reserved cost of a request depends on this
    /// bound.
    pub image_tokens: u32,
    /// Whether to print a line on stderr when the server asks to wait for two seconds or more (`Retry-After`).
    pub prints_waits: bool,
}

impl ClientOptions {
    /// Returns the options for a server at `url` with the defaults: 10 minutes per attempt, 5 attempts, 1 second
    /// before the second attempt, no rate limits, no prices, no cap, 1500 tokens per image, and no printed line about
    /// waits.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            api_key: None,
            model: None,
            timeout: Duration::from_secs(600),
            max_attempts: 5,
            first_wait: Duration::from_secs(1),
            requests_per_minute: None,
            tokens_per_minute: None,
            prices: Prices::default(),
            budget: Arc::new(Budget::new(None)),
            image_tokens: 1500,
            prints_waits: false,
        }
    }
}

/// The debug text omits the API key, which is secret.
impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions")
            .field("url", &self.url)
            .field("model", &self.model)
            .field("timeout", &self.timeout)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}
