//! The settings of a run: what is sent to which server, how often and for how long.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::loadgen::client::ServerUrl;
use crate::loadgen::media::MediaFile;

/// Which of OpenAI's APIs is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAiApi {
    /// `POST /v1/chat/completions`: the prompt is the text of one user message.
    Chat,
    /// `POST /v1/completions`: the prompt is a plain text.
    Completions,
}

impl OpenAiApi {
    /// The path below `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completions => "completions",
        }
    }

    /// The name that `vllm bench serve` has for this API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "openai-chat",
            Self::Completions => "openai",
        }
    }
}

/// How many requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestAmount {
    /// This number of requests.
    Requests(usize),
    /// As many requests as can be sent in this time. Requests that are in flight at its end are awaited.
    Time(Duration),
}

/// What is sent to which server.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// The server.
    pub url: ServerUrl,
    /// The model's name in requests; `None`: the first model that the server lists.
    pub model: Option<String>,
    /// The key of `Authorization: Bearer KEY`.
    pub api_key: Option<String>,
    /// The API.
    pub endpoint: OpenAiApi,
    /// How many requests are sent: a number, or as many as a time allows.
    pub amount: RequestAmount,
    /// Mean number of requests per second; `None` sends each request as soon as [`LoadSettings::max_concurrency`]
    /// permits.
    pub request_rate: Option<f64>,
    /// Shape of the gamma distribution of the times between requests. 1: a Poisson process. Below 1: bursts. Above 1:
    /// more regular.
    pub burstiness: f64,
    /// Maximum number of requests that are being answered at the same time.
    pub max_concurrency: Option<usize>,
    /// Number of random words of a prompt after the shared prefix. The words are common English words, most of which
    /// are one token.
    pub prompt_tokens: usize,
    /// Number of words at the start of a prompt that are the same in all prompts.
    pub shared_prefix_tokens: usize,
    /// Maximum number of tokens of an answer.
    pub output_tokens: usize,
    /// Whether the server is asked to generate beyond end tokens (`"ignore_eos": true`).
    pub ignore_eos: bool,
    /// Images and videos before the text of each prompt.
    pub media: Vec<MediaFile>,
    /// Additional JSON fields of each request.
    pub extra_body: Map<String, Value>,
    /// Seed of the random words and of the arrival times.
    pub seed: u64,
    /// Number of requests that are answered before the measurement begins; each must succeed.
    pub warmup: usize,
    /// Maximum time from sending a request to the end of its answer.
    pub timeout: Duration,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Settings of a small run.
    pub(crate) fn settings() -> LoadSettings {
        LoadSettings {
            url: "http://127.0.0.1:8000".parse().unwrap(),
            model: None,
            api_key: None,
            endpoint: OpenAiApi::Chat,
            amount: RequestAmount::Requests(4),
            request_rate: None,
            burstiness: 1.0,
            max_concurrency: None,
            prompt_tokens: 8,
            shared_prefix_tokens: 0,
            output_tokens: 4,
            ignore_eos: false,
            media: Vec::new(),
            extra_body: Map::new(),
            seed: 0,
            warmup: 0,
            timeout: Duration::from_secs(5),
        }
    }
}
