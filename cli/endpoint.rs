//! Options of the commands that send requests to servers with OpenAI's chat API.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use reel_input::config::Family;
use reel_support::client::{Budget, ChatClient, ChatFailure, ClientOptions, FailureKind, Prices};
use serde_json::{Map, Value};

use crate::fail::usage_error;

/// The environment variable with the API key if `--api-key-env` is not given.
const DEFAULT_KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// Maximum number of concurrent requests. Each request needs a thread.
const MAX_CONCURRENCY: usize = 1024;

/// How requests are sent to a server.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options for servers")]
pub struct EndpointRequestFlags {
    /// Environment variable with the API key [default: OPENAI_API_KEY, if it is set]
    #[arg(long, value_name = "VAR")]
    api_key_env: Option<String>,
    /// Maximum number of requests in flight
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: usize,
    /// Time limit of one attempt of a request, in seconds
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    timeout: f64,
    /// Maximum number of attempts of a request
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: u32,
    /// Wait before the second attempt, in seconds; the wait doubles with each further attempt, up to a minute. A
    /// server's Retry-After takes precedence
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    first_wait: f64,
    /// Maximum number of attempts per minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<f64>,
    /// Maximum number of tokens per minute, of prompts and answers together
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<f64>,
    /// Most US dollars that this command may spend, at the prices of --price
    #[arg(long, value_name = "USD")]
    max_cost: Option<f64>,
    /// Price of the model in US dollars per million tokens of requests and of answers
    #[arg(long, value_name = "IN,OUT")]
    price: Option<PricesArgument>,
    /// Most tokens that the server counts for an image. The cost that --max-cost reserves depends on it
    #[arg(long, value_name = "N", default_value_t = 1500)]
    image_tokens: u32,
    /// A field of every request, as NAME=JSON; null leaves a field out. May be repeated
    #[arg(long, value_name = "NAME=JSON", value_parser = parse_request_field)]
    request_field: Vec<(String, Value)>,
}

/// Prices `IN,OUT`: US dollars per million tokens of requests and of answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PricesArgument(pub Prices);

impl FromStr for PricesArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|price: &f64| price.is_finite() && *price >= 0.0);
        let parsed = text.split_once(',').and_then(|(input, output)| Some((number(input)?, number(output)?)));
        let (input_per_million, output_per_million) =
            parsed.ok_or("give IN,OUT in dollars per million tokens, such as 0.15,0.6")?;
        Ok(Self(Prices { input_per_million, output_per_million }))
    }
}

/// Parses `NAME=JSON`. A value that is not JSON is a string.
fn parse_request_field(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_string()));
            Ok((name.to_string(), value))
        }
        _ => Err("is not NAME=JSON".to_string()),
    }
}

impl EndpointRequestFlags {
    /// Maximum number of requests in flight.
    pub fn concurrency(&self) -> Result<usize> {
        match self.concurrency {
            0 => Err(usage_error("--concurrency", "is 0", "give 1 or more")),
            n if n > MAX_CONCURRENCY => {
                Err(usage_error("--concurrency", format!("is {n}"), format!("give 1 to {MAX_CONCURRENCY}")))
            }
            n => Ok(n),
        }
    }

    /// The fields of `--request-field`.
    pub fn request_fields(&self) -> Map<String, Value> {
        self.request_field.iter().cloned().collect()
    }

    /// Whether `--price` is given.
    pub fn has_prices(&self) -> bool {
        self.price.is_some()
    }

    /// Creates a client for the model `model` of the server at `url`; `option` is the option that names the server.
    /// Unless `quiet`, the client prints how long the server asks it to wait.
    pub fn client(&self, option: &str, url: &str, model: Option<&str>, quiet: bool) -> Result<ChatClient> {
        let options = ClientOptions {
            api_key: self.api_key()?,
            model: model.map(String::from),
            timeout: seconds("--timeout", self.timeout, false)?,
            max_attempts: self.max_attempts,
            first_wait: seconds("--first-wait", self.first_wait, true)?,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            prices: self.prices()?,
            budget: Arc::new(Budget::new(self.max_cost)),
            image_tokens: self.image_tokens,
            prints_waits: !quiet,
            ..ClientOptions::new(url)
        };
        reel_support::client::check_http_url(url).map_err(|(what, help)| usage_error(option, what, help))?;
        ChatClient::new(options).map_err(|failure| endpoint_error(&failure))
    }

    fn prices(&self) -> Result<Prices> {
        match self.max_cost {
            Some(cap) if !cap.is_finite() || cap <= 0.0 => {
                Err(usage_error("--max-cost", format!("is {cap}"), "give dollars above 0"))
            }
            Some(_) if !self.has_prices() => {
                Err(usage_error("--max-cost", "needs the prices of tokens", "give --price IN,OUT"))
            }
            _ => Ok(self.price.map(|price| price.0).unwrap_or_default()),
        }
    }

    fn api_key(&self) -> Result<Option<String>> {
        let name = self.api_key_env.as_deref().unwrap_or(DEFAULT_KEY_VARIABLE);
        match std::env::var(name) {
            Ok(key) if !key.is_empty() => Ok(Some(key)),
            _ if self.api_key_env.is_none() => Ok(None),
            _ => {
                let what = format!("names the environment variable {name}, which is not set");
                Err(usage_error("--api-key-env", what, "set that variable to the key, or leave the option out"))
            }
        }
    }
}

fn seconds(option: &str, value: f64, may_be_zero: bool) -> Result<Duration> {
    let duration = Duration::try_from_secs_f64(value).ok().filter(|duration| may_be_zero || !duration.is_zero());
    duration.ok_or_else(|| usage_error(option, format!("is {value}"), "give seconds"))
}

/// Returns the name of the model that the server will use to answer.
pub fn model_name(client: &ChatClient) -> Result<String> {
    client.model(&AtomicBool::new(false)).map_err(|failure| endpoint_error(&failure))
}

/// What a server's list of models tells about a model.
#[derive(Clone, Copy, Debug)]
pub struct ServedModel {
    /// The family, by which frames are resized. `reel serve` states it; the family of another server's model follows
    /// from the name, which contains `qwen3-vl` or counts as Qwen2.5-VL.
    pub family: Family,
    /// Whether the server reads `top_k` and `repetition_penalty`, and takes them from the model's
    /// generation_config.json if a request has none.
    pub has_own_sampling: bool,
}

impl ServedModel {
    /// Asks the server about the model `name`.
    pub fn ask(client: &ChatClient, name: &str) -> Self {
        let mut entry = client.model_entry(name, &AtomicBool::new(false));
        let is_qwen3 = name.to_ascii_lowercase().contains("qwen3-vl");
        let of_name = if is_qwen3 { Family::Qwen3Vl } else { Family::Qwen25Vl };
        let has_own_sampling = ["reel", "vllm", "sglang"].iter().any(|server| entry["owned_by"] == *server);
        Self { family: serde_json::from_value(entry["model_type"].take()).unwrap_or(of_name), has_own_sampling }
    }
}

fn endpoint_error(failure: &ChatFailure) -> anyhow::Error {
    debug_assert_ne!(failure.kind, FailureKind::Stopped);
    anyhow::Error::msg(failure.message.clone())
}
