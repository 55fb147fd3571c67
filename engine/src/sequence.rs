//! A sequence that is being generated: its tokens, its KV blocks, and the conditions that end it.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use reel_input::config::ModelConfig;
use reel_input::{ModelInput, TokenId};
use reel_model::chunked_prompt::PromptTokens;
use reel_runtime::ops::{DecodeSlot, RowSampling, SamplingParams};

use crate::adapters::AdapterId;
use crate::block_allocator::BlockAllocator;
use crate::block_hash::{BlockHash, SequenceTokens};
use crate::error::{Error, Result};
use crate::grammar::Grammar;
use crate::prompt_log_probs::PromptTokenLogProbs;
use crate::request::{Completion, FinishReason, GenerationRequest, TokenEvent, TokenLogProbs};
use crate::sampler::SamplingFeatures;
use crate::stop::StopCondition;

/// Minimum temperature for sampling. A lower temperature counts as 0 (greedy).
const MIN_TEMPERATURE: f32 = 1e-20;

/// The fields of a request that all its completions share.
#[derive(Debug)]
pub(crate) struct RequestState {
    /// The index of the request among the requests of the call.
    pub(crate) index: usize,
    pub(crate) input: Arc<ModelInput>,
    pub(crate) prompt: PromptTokens,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) priority: i32,
    pub(crate) deadline: Option<Instant>,
    max_new_tokens: usize,
    min_new_tokens: usize,
    eos_token_ids: Vec<TokenId>,
    logit_bias: Vec<(i32, f32)>,
    top_log_probs: Option<usize>,
    /// The number of most likely tokens to list for each token of the prompt; `None` if the request does not ask for
    /// its prompt's log-probabilities.
    top_prompt_log_probs: Option<usize>,
    /// The log-probabilities of the prompt's tokens, once they are computed.
    prompt_log_probs: OnceCell<Arc<[PromptTokenLogProbs]>>,
    /// The number of tokens of the prompt that were found in the prefix cache.
    pub(crate) cached_tokens: Cell<usize>,
}

/// A sampled token, as downloaded from the device.
#[derive(Debug)]
pub(crate) struct SampledToken {
    /// The token's id; -1 if the logits were NaN.
    pub(crate) id: i32,
    pub(crate) log_prob: f32,
    /// The log-probability under softmax(logits) and the most likely tokens, if the step computed them.
    pub(crate) likeliest: Option<TokenLogProbs>,
}

/// A completion that is being generated, together with its prompt.
#[derive(Debug)]
pub(crate) struct SequenceState {
    pub(crate) request: Rc<RequestState>,
    index: usize,
    sampling: SamplingParams,
    stop: StopCondition,
    grammar: Option<Grammar>,
    /// The token ids of the prompt, followed by the ids of the completion so far.
    ids: Vec<i32>,
    log_probs: Vec<f32>,
    token_log_probs: Vec<TokenLogProbs>,
    /// The KV blocks of the sequence, in the order of its tokens.
    pub(crate) block_table: Vec<i32>,
    /// The hashes of the sequence's full blocks, from the first one on.
    pub(crate) hashes: Vec<BlockHash>,
    /// The number of decode steps in flight that compute a token for this sequence.
    pub(crate) in_flight: usize,
    finish_reason: Option<FinishReason>,
}

impl SequenceState {
    /// Creates one sequence for each completion of a request; the sequences have no KV blocks. `index` is the index
    /// of the request. With `with_hashes`, the content of the prompt's media is hashed for the prefix cache.
    ///
    /// # Errors
    /// The prompt does not fit the model; a parameter is out of range.
    pub(crate) fn sequences_of_request(
        index: usize,
        request: GenerationRequest,
        config: &ModelConfig,
        with_hashes: bool,
    ) -> Result<Vec<SequenceState>> {
        request.validate()?;
        let prompt = PromptTokens::new(config, &request.prompt.sequence(), with_hashes, "prompt")?;
        let ids = prompt.ids.clone();
        let GenerationRequest { sampling, max_new_tokens, stop_conditions, grammar, .. } = request;
        let mut logit_bias: Vec<(i32, f32)> = Vec::with_capacity(request.logit_bias.len());
        for (id, bias) in request.logit_bias {
            // The sampling kernel accepts each token at most once in the list of biases, so an earlier bias of this
            // token is removed.
            logit_bias.retain(|(other, _)| *other != id as i32);
            logit_bias.push((id as i32, bias));
        }
        let request = Rc::new(RequestState {
            index,
            input: request.prompt,
            prompt,
            adapter: request.adapter,
            priority: request.priority,
            deadline: request.deadline,
            max_new_tokens,
            min_new_tokens: request.min_new_tokens,
            eos_token_ids: request.eos_token_ids,
            logit_bias,
            top_log_probs: request.top_log_probs,
            top_prompt_log_probs: request.prompt_log_probs,
            prompt_log_probs: OnceCell::new(),
            cached_tokens: Cell::new(0),
        });
        let sequence = |(index, stop): (usize, StopCondition)| SequenceState {
            request: request.clone(),
            index,
            sampling: SamplingParams { seed: sampling.seed.wrapping_add(index as u64), ..sampling },
            stop,
            grammar: grammar.clone(),
            ids: ids.clone(),
            log_probs: Vec::new(),
            token_log_probs: Vec::new(),
            block_table: Vec::new(),
            hashes: Vec::new(),
            in_flight: 0,
            finish_reason: if max_new_tokens == 0 { Some(FinishReason::Length) } else { None },
        };
        Ok(stop_conditions.into_iter().enumerate().map(sequence).collect())
    }

    /// Returns all tokens of the sequence so far: the prompt and the generated tokens.
    pub(crate) fn tokens(&self) -> SequenceTokens<'_> {
        let RequestState { prompt, input, adapter, .. } = &*self.request;
        SequenceTokens { prompt, ids: &self.ids, rope_delta: input.rope_delta, adapter: *adapter }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    fn prompt_tokens(&self) -> usize {
        self.request.prompt.ids.len()
    }

    /// The number of generated tokens that the host has read.
    pub(crate) fn generated_token_count(&self) -> usize {
        self.ids.len() - self.prompt_tokens()
    }

    /// The number of tokens whose keys and values a prefill must compute before the sequence can decode: all tokens
    /// of the prompt. After a preemption, it is the number of all tokens except the last, because the next decode
    /// step writes the last token's key and value.
    pub(crate) fn prefill_token_count(&self) -> usize {
        if self.generated_token_count() == 0 { self.ids.len() } else { self.ids.len() - 1 }
    }

    /// The number of most likely tokens to list for each token of the prompt. `None` if the request does not ask for
    /// its prompt's log-probabilities or they are already computed.
    pub(crate) fn wanted_prompt_log_probs(&self) -> Option<usize> {
        let is_known = self.request.prompt_log_probs.get().is_some();
        self.request.top_prompt_log_probs.filter(|_| !is_known)
    }

    /// Stores the log-probabilities of the prompt's tokens. All completions of the request share them.
    pub(crate) fn set_prompt_log_probs(&self, log_probs: Vec<PromptTokenLogProbs>) {
        self.request.prompt_log_probs.get_or_init(|| log_probs.into());
    }

    /// The number of tokens whose keys and values are in the cache while the sequence decodes: all tokens that the
    /// host has read, except the last.
    pub(crate) fn cached_token_count(&self) -> usize {
        self.ids.len() - 1
    }

    /// Maximum number of keys in the cache. The last token of a completion is no input of a step, so it has no key.
    fn max_keys(&self) -> usize {
        self.prompt_tokens() + self.request.max_new_tokens - 1
    }

    /// The number of KV blocks that the sequence needs if it reaches its maximum length.
    pub(crate) fn max_blocks(&self) -> usize {
        BlockAllocator::blocks_for_tokens(self.max_keys())
    }

    /// The number of keys that the KV blocks must have room for before the next decode step. The step writes the key
    /// of its input token, and computes the cache slot of the following key.
    pub(crate) fn key_capacity_for_next_step(&self) -> usize {
        (self.ids.len() + self.in_flight + 1).min(self.max_keys())
    }

    /// Whether the sequence needs further decode steps after all steps in flight.
    pub(crate) fn needs_another_step(&self) -> bool {
        !self.is_finished() && self.generated_token_count() + self.in_flight < self.request.max_new_tokens
    }

    /// The numbers that are added to logits: the request's biases, and −∞ for end tokens until the completion has its
    /// minimum number of tokens.
    pub(crate) fn logit_biases(&self) -> Vec<(i32, f32)> {
        let request = &self.request;
        // A complete grammar allows only end tokens.
        let must_end = self.grammar.as_ref().is_some_and(Grammar::is_complete);
        if self.generated_token_count() + self.in_flight >= request.min_new_tokens || must_end {
            return request.logit_bias.clone();
        }
        let is_end = |id: i32| request.eos_token_ids.contains(&(id as u32));
        let own = request.logit_bias.iter().filter(|(id, _)| !is_end(*id)).copied();
        own.chain(request.eos_token_ids.iter().map(|&id| (id as i32, f32::NEG_INFINITY))).collect()
    }

    /// The sampling parameters in the form that the kernel takes; `bias` is [`Self::logit_biases`].
    pub(crate) fn row_sampling<'b>(&'b self, bias: &'b [(i32, f32)]) -> RowSampling<'b> {
        // Dividing by a lower temperature would overflow; sampling at 1e-20 is practically greedy already.
        let is_greedy = self.sampling.temperature < MIN_TEMPERATURE;
        let temperature = if is_greedy { 0.0 } else { self.sampling.temperature };
        RowSampling {
            params: SamplingParams { temperature, ..self.sampling },
            counted_from: self.prompt_tokens(),
            bias,
            allowed: self.allowed_tokens(),
        }
    }

    /// The mask of the tokens that the grammar allows next; empty without a grammar.
    pub(crate) fn allowed_tokens(&self) -> &[u32] {
        self.grammar.as_ref().map_or(&[], Grammar::allowed_token_mask)
    }

    /// The features that this sequence's sampling needs beyond temperature, top-p, top-k and min-p.
    pub(crate) fn sampling_features(&self) -> SamplingFeatures {
        let request = &self.request;
        let banned =
            if self.generated_token_count() < request.min_new_tokens { request.eos_token_ids.len() } else { 0 };
        SamplingFeatures {
            history: self.sampling.has_penalty(),
            biased_tokens: banned + request.logit_bias.len(),
            grammar: self.grammar.is_some(),
            likeliest: request.top_log_probs.is_some(),
        }
    }

    /// Whether the step that is about to be enqueued is the first one whose token may be an end-of-sequence id.
    pub(crate) fn next_step_lifts_eos_ban(&self) -> bool {
        let enqueued = self.generated_token_count() + self.in_flight;
        enqueued > 0 && enqueued == self.request.min_new_tokens
    }

    /// The ids of the prompt and of the completion so far, for penalties. Empty without a penalty, so that no ids are
    /// copied to the device.
    pub(crate) fn penalty_history(&self) -> &[i32] {
        if self.sampling.has_penalty() { &self.ids } else { &[] }
    }

    /// The index of the next token in the sequence. The token's random number is determined by this index and the seed.
    pub(crate) fn next_random_index(&self) -> i32 {
        self.ids.len() as i32
    }

    /// The state that a decode slot needs to continue the sequence. Its KV cache is complete except for the last
    /// token, which the next step writes. `adapter` is the number of the sequence's adapter in decode steps.
    pub(crate) fn slot_state(&self, adapter: i32) -> DecodeSlot<'_> {
        let keys = self.ids.len();
        DecodeSlot {
            id: self.ids.last().copied().unwrap_or(0),
            position: self.tokens().position(0, keys - 1),
            keys,
            limit: self.max_keys(),
            blocks: &self.block_table,
            draw: self.next_random_index(),
            history: self.penalty_history(),
            adapter,
        }
    }

    /// Appends a generated token, reports it to `on_token`, and finishes the sequence if the token ends it.
    ///
    /// # Errors
    /// [`Kind::NotANumber`](crate::error::Kind::NotANumber) for a negative id, which the sampling kernel returns if all
    /// logits are NaN; computing the tokens that the grammar allows next takes too long.
    pub(crate) fn push_token(&mut self, sampled: SampledToken, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        let Ok(id) = u32::try_from(sampled.id) else {
            let (token, completion) = (self.generated_token_count(), self.index);
            return Err(Error::logits_not_a_number(&format!("at generated token {token} of completion {completion}")));
        };
        self.ids.push(sampled.id);
        self.log_probs.push(sampled.log_prob);
        if let (Some(wanted), Some(mut likeliest)) = (self.request.top_log_probs, sampled.likeliest) {
            likeliest.top.truncate(wanted);
            self.token_log_probs.push(likeliest);
        }
        let log_probs = self.token_log_probs.last();
        let RequestState { index: request, cached_tokens, .. } = &*self.request;
        on_token(TokenEvent {
            request: *request,
            index: self.index,
            id,
            log_probs,
            cached_tokens: cached_tokens.get(),
        });
        // An end token that the grammar allows ends the completion even if the request ignores end tokens, because no
        // token may follow it.
        let ends_grammar = self.grammar.as_ref().is_some_and(|grammar| grammar.is_end_token(id));
        if ends_grammar || self.request.eos_token_ids.contains(&id) || self.stop.push_and_match(id) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.generated_token_count() >= self.request.max_new_tokens {
            self.finish_reason = Some(FinishReason::Length);
        } else if let Some(grammar) = &mut self.grammar {
            grammar.accept(id)?;
            if self.request.eos_token_ids.is_empty() && grammar.is_complete() {
                self.finish_reason = Some(FinishReason::Stop);
            }
        }
        Ok(())
    }

    pub(crate) fn into_completion(self) -> Completion {
        Completion {
            request: self.request.index,
            index: self.index,
            ids: self.ids[self.prompt_tokens()..].iter().map(|&id| id as u32).collect(),
            log_probs: self.log_probs,
            token_log_probs: self.token_log_probs,
            prompt_log_probs: self.request.prompt_log_probs.get().cloned().unwrap_or_default(),
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Length),
        }
    }
}
