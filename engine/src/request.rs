//! The engine's input and output: requests, completions and token events.

use std::sync::Arc;
use std::time::Instant;

use reel_input::encode::ModelFolder;
pub use reel_input::request::MAX_TOP_LOG_PROBS;
use reel_input::request::RequestSettings;
use reel_input::{ModelInput, TokenId};
use reel_runtime::ops::SamplingParams;

use crate::adapters::AdapterId;
use crate::error::{Error, Result};
use crate::grammar::Grammar;
use crate::prompt_log_probs::PromptTokenLogProbs;
use crate::sampler::{resolve_sampling, validate_sampling};
use crate::stop::StopCondition;

/// Why a prompt and its answer exceed the model's number of positions (`max_position_embeddings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLongReason {
    /// The prompt takes all positions, so none is left for an answer.
    Prompt,
    /// The request asks for more new tokens than there are positions after the prompt.
    NewTokens {
        /// The number of positions after the prompt.
        left: usize,
    },
}

/// Returns the maximum number of new tokens after a prompt: `asked` or, without it, `default_tokens`, but at most the
/// number of positions after the prompt. A model is not trained beyond its number of positions, so its text beyond
/// them would be useless.
///
/// # Errors
/// The prompt leaves no position, or fewer positions than `asked`.
pub fn new_tokens_within_positions(
    positions: usize,
    prompt_tokens: usize,
    asked: Option<usize>,
    default_tokens: usize,
) -> std::result::Result<usize, TooLongReason> {
    match (positions.saturating_sub(prompt_tokens), asked) {
        (0, _) => Err(TooLongReason::Prompt),
        (left, Some(asked)) if asked > left => Err(TooLongReason::NewTokens { left }),
        (left, asked) => Ok(asked.unwrap_or(default_tokens).min(left)),
    }
}

/// A prompt with its sampling parameters and limits.
#[derive(Debug)]
pub struct GenerationRequest {
    /// The prompt, with its media. The engine reads it until all completions of the request are finished.
    pub prompt: Arc<ModelInput>,
    /// How tokens are sampled.
    pub sampling: SamplingParams,
    /// Numbers that are added to the logits of tokens, at most [`MAX_BIASED_TOKENS`]; an id that occurs twice gets the
    /// last number.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Maximum number of tokens of a completion.
    pub max_new_tokens: usize,
    /// Ids that end a completion. The id that ends a completion becomes its last token.
    pub eos_token_ids: Vec<TokenId>,
    /// Minimum number of tokens of a completion: before this number is reached, `eos_token_ids` are never sampled.
    pub min_new_tokens: usize,
    /// One stop condition per completion: the length of this vector is the number of completions of the prompt.
    /// Completion i samples with the seed of the sampling parameters plus i.
    pub stop_conditions: Vec<StopCondition>,
    /// If set, each token comes with its log-probability under softmax(logits), and with this many of the most likely
    /// tokens, at most [`MAX_TOP_LOG_PROBS`].
    pub top_log_probs: Option<usize>,
    /// If set, the completions come with the log-probabilities of the prompt's tokens, each with this many of the
    /// most likely tokens, at most [`MAX_TOP_LOG_PROBS`]. The whole prompt is then computed, even if a part of it is
    /// in the prefix cache.
    pub prompt_log_probs: Option<usize>,
    /// The grammar that each completion must follow.
    pub grammar: Option<Grammar>,
    /// The LoRA adapter, which must be loaded in the batch; `None` selects the base model.
    pub adapter: Option<AdapterId>,
    /// Requests with a lower number start earlier and are preempted later. Among equal numbers, the order of arrival
    /// counts.
    pub priority: i32,
    /// The time limit. A request that is not finished by this time fails with
    /// [`Kind::DeadlineExceeded`](crate::error::Kind::DeadlineExceeded).
    pub deadline: Option<Instant>,
}

/// Maximum number of tokens in [`GenerationRequest::logit_bias`].
pub const MAX_BIASED_TOKENS: usize = 1024;

impl GenerationRequest {
    /// Creates a request for one greedy completion of one token, without end tokens and stop strings.
    pub fn new(prompt: impl Into<Arc<ModelInput>>) -> GenerationRequest {
        GenerationRequest {
            prompt: prompt.into(),
            sampling: SamplingParams::default(),
            logit_bias: Vec::new(),
            max_new_tokens: 1,
            eos_token_ids: Vec::new(),
            min_new_tokens: 0,
            stop_conditions: vec![StopCondition::none()],
            top_log_probs: None,
            prompt_log_probs: None,
            grammar: None,
            adapter: None,
            priority: 0,
            deadline: None,
        }
    }

    /// Creates a request with the settings of an OpenAI request. Settings that are not given come from the model's
    /// generation_config.json. If the settings have no maximum number of tokens, `max_new_tokens` is used.
    pub fn from_settings(
        prompt: impl Into<Arc<ModelInput>>,
        settings: &RequestSettings,
        model: &ModelFolder,
        max_new_tokens: usize,
    ) -> GenerationRequest {
        let eos = if settings.ignore_eos { &[] } else { model.stop_token_ids() };
        let stop = || StopCondition::with_strings(&settings.stop, &model.tokenizer);
        GenerationRequest {
            prompt: prompt.into(),
            sampling: resolve_sampling(settings.sampling, &model.generation),
            logit_bias: settings.logit_bias.clone(),
            max_new_tokens: settings.sampling.max_new_tokens.unwrap_or(max_new_tokens),
            eos_token_ids: [eos, &settings.stop_token_ids].concat(),
            min_new_tokens: settings.min_new_tokens,
            stop_conditions: (0..settings.n.unwrap_or(1)).map(|_| stop()).collect(),
            top_log_probs: settings.top_log_probs,
            prompt_log_probs: settings.prompt_log_probs,
            grammar: None,
            adapter: None,
            priority: settings.priority,
            deadline: None,
        }
    }

    /// The number of tokens of the prompt plus the maximum number of tokens of a completion.
    pub(crate) fn max_sequence_tokens(&self) -> usize {
        self.prompt.input_ids.len().saturating_add(self.max_new_tokens)
    }

    /// Refuses an empty prompt and parameters that are out of range. The error names the parameter.
    pub(crate) fn validate(&self) -> Result<()> {
        validate_sampling(&self.sampling)?;
        let invalid = |location: &str, what: String, help: String| Err(Error::request(location, what, help));
        if self.prompt.input_ids.is_empty() {
            return invalid("prompt", "has no tokens".into(), "give it some text".into());
        }
        for (name, number) in [("top_logprobs", self.top_log_probs), ("prompt_logprobs", self.prompt_log_probs)] {
            if let Some(asked) = number.filter(|&n| n > MAX_TOP_LOG_PROBS) {
                return invalid(name, format!("is {asked}"), format!("give 0 to {MAX_TOP_LOG_PROBS}"));
            }
        }
        if self.prompt_log_probs.is_some() && self.max_new_tokens == 0 {
            let help = "ask for one token or more";
            return invalid("prompt_logprobs", "needs a completion".into(), help.into());
        }
        if self.logit_bias.len() > MAX_BIASED_TOKENS {
            let what = format!("has {} tokens", self.logit_bias.len());
            return invalid("logit_bias", what, format!("give at most {MAX_BIASED_TOKENS}"));
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            return invalid("logit_bias", format!("adds {bias} to token {id}"), "give a number".into());
        }
        Ok(())
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was sampled, or a stop string appeared.
    Stop,
    /// The completion reached its maximum number of tokens.
    Length,
}

impl FinishReason {
    /// The spelling of OpenAI's API: `stop` or `length`.
    pub fn openai_name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// The tokens that were generated for a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The index of the request among the requests of the call.
    pub request: usize,
    /// The index of the completion in its request.
    pub index: usize,
    /// The generated ids, including the id that ended the completion.
    pub ids: Vec<TokenId>,
    /// For each id, `log softmax(logits / temperature)` over the whole vocabulary: top-p, top-k and penalties do not
    /// change it. At temperature 0, `log softmax(logits)`.
    pub log_probs: Vec<f32>,
    /// For each id, the log-probabilities that [`GenerationRequest::top_log_probs`] asked for; else empty.
    pub token_log_probs: Vec<TokenLogProbs>,
    /// The log-probabilities of all tokens of the prompt except the first, if [`GenerationRequest::prompt_log_probs`]
    /// asked for them; else empty.
    pub prompt_log_probs: Arc<[PromptTokenLogProbs]>,
    /// Why the completion ended.
    pub finish_reason: FinishReason,
}

/// The log-probabilities of a generated token and of the most likely tokens at its position, under softmax(logits).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogProbs {
    /// The log-probability of the token.
    pub log_prob: f32,
    /// The most likely tokens, each with its log-probability, in descending order.
    pub top: Vec<(TokenId, f32)>,
}

/// A token that was just generated.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvent<'a> {
    /// The index of the request among the requests of the call.
    pub request: usize,
    /// The index of the completion in its request.
    pub index: usize,
    /// The token's id.
    pub id: TokenId,
    /// The token's log-probabilities, if the request asked for them.
    pub log_probs: Option<&'a TokenLogProbs>,
    /// The number of tokens of the prompt whose keys and values were in the prefix cache.
    pub cached_tokens: usize,
}

/// The completions and requests that ended in a step of the engine.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// The completions that are finished, in the order in which their requests were added.
    pub completions: Vec<Completion>,
    /// The requests that failed, each with its error. The engine has dropped all completions of these requests.
    pub failed: Vec<(usize, Error)>,
}

/// The durations of the two phases of a call of the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct GenerationTiming {
    /// Seconds of prefilling all prompts, with the vision tower. Each completion's first token comes from this phase.
    pub prefill_seconds: f64,
    /// Seconds of all decode steps.
    pub decode_seconds: f64,
}
