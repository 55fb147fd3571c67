//! The engine's input and output: requests, completions and token events.

use reel_diagnostic::Diagnostic;
use reel_model::TokenId;
use reel_model::batch::Sequence;

use crate::error::{EngineError, Result};
use crate::sampler::SamplingParams;
use crate::stop::StopCondition;

/// A prompt with its sampling parameters and limits.
#[derive(Debug)]
pub struct GenerationRequest<'a> {
    /// The prompt, with its media.
    pub prompt: Sequence<'a>,
    /// The offset from a token's index to its rotary position, for tokens after the prompt (see `rope_index`).
    pub rope_delta: i64,
    /// How tokens are sampled.
    pub sampling: SamplingParams,
    /// Maximum number of tokens of a completion.
    pub max_new_tokens: usize,
    /// Ids that end a completion. The id that ends a completion becomes its last token.
    pub eos_token_ids: &'a [TokenId],
    /// Minimum number of tokens of a completion: until it has that many, `eos_token_ids` are never sampled.
    pub min_new_tokens: usize,
    /// One stop condition per completion: the length of this vector is the number of completions of the prompt.
    /// Completion i samples with the seed of the sampling parameters plus i.
    pub stop_conditions: Vec<StopCondition>,
}

impl GenerationRequest<'_> {
    /// The number of tokens of the prompt plus those of a completion of maximum length.
    pub(crate) fn max_sequence_tokens(&self) -> usize {
        self.prompt.input_ids.len() + self.max_new_tokens
    }

    /// Refuses an empty prompt and sampling parameters that are out of range, with an error that says which.
    pub(crate) fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if self.prompt.input_ids.is_empty() {
            return Err(EngineError::Request(Diagnostic::new("prompt", "has no tokens", "give it some text")));
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
    /// The index of the request in the call of the engine.
    pub request: usize,
    /// The index of the completion in its request.
    pub index: usize,
    /// The generated ids, including the id that ended the completion.
    pub ids: Vec<TokenId>,
    /// For each id, `log softmax(logits / temperature)` over the whole vocabulary: top-p, top-k and penalties do not
    /// change it. At temperature 0, `log softmax(logits)`.
    pub log_probs: Vec<f32>,
    /// Why the completion ended.
    pub finish_reason: FinishReason,
}

/// A token that was just generated.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvent {
    /// The index of the request in the call of the engine.
    pub request: usize,
    /// The index of the completion in its request.
    pub index: usize,
    /// The token's id.
    pub id: TokenId,
}

/// The durations of the two phases of a call of the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct GenerationTiming {
    /// Seconds of prefilling all prompts, with the vision tower. Each completion's first token comes from this phase.
    pub prefill_seconds: f64,
    /// Seconds of all decode steps.
    pub decode_seconds: f64,
}
