//! One sequence that is being generated: its tokens, its KV blocks, and when it ends.

use std::rc::Rc;

use reel_runtime::ops::DecodeSlot;

use crate::error::{EngineError, Result};
use crate::request::{Completion, FinishReason, GenerationRequest, TokenEvent};
use crate::sampler::{SamplingParams, logit_biases_that_ban};
use crate::stop::StopCondition;

/// The limits that all completions of a request share.
#[derive(Debug)]
struct RequestLimits {
    max_new_tokens: usize,
    min_new_tokens: usize,
    eos_token_ids: Vec<u32>,
    rope_delta: i64,
}

/// A completion that is being generated, with its prompt.
#[derive(Debug)]
pub(crate) struct SequenceState {
    request: usize,
    index: usize,
    limits: Rc<RequestLimits>,
    sampling: SamplingParams,
    stop: StopCondition,
    /// The token ids of the prompt, followed by those of the completion so far.
    ids: Vec<i32>,
    prompt_tokens: usize,
    log_probs: Vec<f32>,
    /// The KV blocks of the sequence, in the order of its tokens.
    pub(crate) block_table: Vec<i32>,
    /// The number of enqueued decode steps whose token for this sequence the host has not read yet.
    pub(crate) in_flight: usize,
    finish_reason: Option<FinishReason>,
}

impl SequenceState {
    /// One sequence for each completion of the request with this index. The sequences have no KV blocks yet.
    pub(crate) fn for_request(request_index: usize, request: GenerationRequest) -> Vec<SequenceState> {
        let ids: Vec<i32> = request.prompt.input_ids.iter().map(|&id| id as i32).collect();
        let limits = Rc::new(RequestLimits {
            max_new_tokens: request.max_new_tokens,
            min_new_tokens: request.min_new_tokens,
            eos_token_ids: request.eos_token_ids.to_vec(),
            rope_delta: request.rope_delta,
        });
        let sequence = |(index, stop): (usize, StopCondition)| SequenceState {
            request: request_index,
            index,
            limits: limits.clone(),
            sampling: SamplingParams { seed: request.sampling.seed.wrapping_add(index as u64), ..request.sampling },
            stop,
            ids: ids.clone(),
            prompt_tokens: ids.len(),
            log_probs: Vec::new(),
            block_table: Vec::new(),
            in_flight: 0,
            finish_reason: if request.max_new_tokens == 0 { Some(FinishReason::Length) } else { None },
        };
        request.stop_conditions.into_iter().enumerate().map(sequence).collect()
    }

    /// The index of the sequence's request.
    pub(crate) fn request(&self) -> usize {
        self.request
    }

    pub(crate) fn sampling(&self) -> SamplingParams {
        self.sampling
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// The number of generated tokens that the host has read.
    fn generated(&self) -> usize {
        self.ids.len() - self.prompt_tokens
    }

    /// Whether the sequence still needs tokens after those of all steps in flight.
    pub(crate) fn needs_another_step(&self) -> bool {
        !self.is_finished() && self.generated() + self.in_flight < self.limits.max_new_tokens
    }

    /// The logit biases that ban the end-of-sequence ids; empty once the completion has its minimum number of tokens.
    pub(crate) fn banned_eos_biases(&self) -> Vec<(i32, f32)> {
        match self.generated() < self.limits.min_new_tokens {
            true => logit_biases_that_ban(&self.limits.eos_token_ids),
            false => Vec::new(),
        }
    }

    /// Whether the step that is about to be enqueued is the first one whose token may be an end-of-sequence id.
    pub(crate) fn next_step_lifts_eos_ban(&self) -> bool {
        let enqueued = self.generated() + self.in_flight;
        enqueued > 0 && enqueued == self.limits.min_new_tokens
    }

    /// The ids of prompt and completion so far, which the repetition penalty reads. Empty without a penalty, so that
    /// no ids are copied to the device.
    pub(crate) fn penalty_history(&self) -> &[i32] {
        if self.sampling.repetition_penalty == 1.0 { &[] } else { &self.ids }
    }

    /// The number that selects the sequence's next random number under its seed: the index of the next token in the
    /// sequence.
    pub(crate) fn next_draw_number(&self) -> i32 {
        self.ids.len() as i32
    }

    /// The state that a decode slot needs to continue the sequence. Its KV cache is complete except for the last
    /// token, which the next step writes.
    pub(crate) fn slot_state(&self) -> DecodeSlot<'_> {
        let keys = self.ids.len();
        DecodeSlot {
            id: self.ids.last().copied().unwrap_or(0),
            position: (keys as i64 - 1 + self.limits.rope_delta) as i32,
            keys,
            limit: self.prompt_tokens + self.limits.max_new_tokens - 1,
            blocks: &self.block_table,
            draw: self.next_draw_number(),
            history: self.penalty_history(),
        }
    }

    /// Appends a generated token, reports it to `on_token`, and finishes the sequence if the token ends it.
    ///
    /// # Errors
    /// [`EngineError::NotANumber`] for a negative id, which the sampling kernel gives where all logits are NaN.
    pub(crate) fn push_token(&mut self, id: i32, log_prob: f32, on_token: &mut dyn FnMut(TokenEvent)) -> Result<()> {
        let Ok(token) = u32::try_from(id) else {
            return Err(EngineError::NotANumber { completion: self.index, token: self.generated() });
        };
        self.ids.push(id);
        self.log_probs.push(log_prob);
        on_token(TokenEvent { request: self.request, index: self.index, id: token });
        if self.limits.eos_token_ids.contains(&token) || self.stop.push_and_match(token) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.generated() >= self.limits.max_new_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
        Ok(())
    }

    pub(crate) fn into_completion(self) -> Completion {
        Completion {
            request: self.request,
            index: self.index,
            ids: self.ids[self.prompt_tokens..].iter().map(|&id| id as u32).collect(),
            log_probs: self.log_probs,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Length),
        }
    }
}
