//! The events of all prompts of a request, in the order of their arrival. Each event is recorded in the metrics and in
//! the access log.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use reel_engine::{Completion, TokenLogProbs};
use reel_input::TokenId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use super::ApiError;
use crate::engine_thread::GenerationEvent;
use crate::http::RequestLog;
use crate::metrics::{CompletionOutcome, Metrics};

/// An event of one of the completions of a request. Completion j of prompt i is choice `i * n + j`.
#[derive(Debug)]
pub(crate) enum ChoiceEvent {
    /// A token was generated. `cached_tokens` is the number of tokens of the prompt that were in the prefix cache.
    Token { choice: usize, id: TokenId, log_probs: Option<TokenLogProbs>, cached_tokens: usize },
    /// All tokens of a completion were generated.
    Finished { choice: usize, completion: Completion },
}

/// A prompt in the engine's queue.
#[derive(Debug)]
pub(crate) struct QueuedPrompt {
    /// The number of its tokens.
    pub(crate) tokens: usize,
    /// The events of the prompt. Dropping this receiver makes the engine drop the prompt.
    pub(crate) events: UnboundedReceiver<GenerationEvent>,
}

/// The events of a request. Dropping this value makes the engine drop the request's unfinished prompts.
#[derive(Debug)]
pub(crate) struct RequestEvents {
    prompts: Vec<QueuedPrompt>,
    n: usize,
    /// The state of each choice.
    choices: Vec<Choice>,
    /// Index of the prompt that is polled first for the next event. It changes after each event, so that no prompt is
    /// starved.
    next: usize,
    begun: Instant,
    metrics: Arc<Metrics>,
    log: Arc<RequestLog>,
    /// Name of the request field that has the prompts, for error messages.
    prompt_field: &'static str,
    /// Permits of the semaphore that limits the number of requests of the server.
    _permit: OwnedSemaphorePermit,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    tokens: usize,
    last_token: Option<Instant>,
    is_finished: bool,
}

impl RequestEvents {
    /// Creates the events of a request that arrived at `begun`, with `n` completions for each prompt.
    pub(crate) fn new(
        prompts: Vec<QueuedPrompt>,
        n: usize,
        begun: Instant,
        metrics: Arc<Metrics>,
        log: Arc<RequestLog>,
        prompt_field: &'static str,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let choices = vec![Choice::default(); prompts.len() * n];
        Self { prompts, n, choices, next: 0, begun, metrics, log, prompt_field, _permit: permit }
    }

    /// The number of completions that are not finished.
    pub(crate) fn unfinished_count(&self) -> usize {
        self.choices.iter().filter(|choice| !choice.is_finished).count()
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// The engine failed.
    pub(crate) async fn recv(&mut self) -> Result<ChoiceEvent, ApiError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`RequestEvents::recv`].
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<ChoiceEvent, ApiError>> {
        let count = self.prompts.len();
        for prompt in (0..count).map(|i| (self.next + i) % count) {
            // The engine closes the channel of a prompt when all choices of the prompt are finished.
            if self.choices[prompt * self.n..(prompt + 1) * self.n].iter().all(|choice| choice.is_finished) {
                continue;
            }
            if let Poll::Ready(event) = self.prompts[prompt].events.poll_recv(cx) {
                self.next = prompt + 1;
                return Poll::Ready(self.take(prompt, event));
            }
        }
        Poll::Pending
    }

    /// Records an event of a prompt.
    fn take(&mut self, prompt: usize, event: Option<GenerationEvent>) -> Result<ChoiceEvent, ApiError> {
        match event {
            Some(GenerationEvent::Token { index, id, log_probs, cached_tokens }) => {
                let choice = prompt * self.n + index;
                self.record_token(prompt, choice);
                Ok(ChoiceEvent::Token { choice, id, log_probs, cached_tokens })
            }
            Some(GenerationEvent::Finished(completion)) => {
                let choice = prompt * self.n + completion.index;
                self.end(choice, CompletionOutcome::Finished(completion.finish_reason));
                Ok(ChoiceEvent::Finished { choice, completion })
            }
            Some(GenerationEvent::Failed(e)) => Err(self.fail(ApiError::of_request(&e, self.prompt_field))),
            None => Err(self.fail(ApiError::internal("the engine has ended; start the server again"))),
        }
    }

    fn record_token(&mut self, prompt: usize, choice: usize) {
        let (now, tokens) = (Instant::now(), self.prompts[prompt].tokens);
        let of_prompt = &self.choices[prompt * self.n..(prompt + 1) * self.n];
        if of_prompt.iter().all(|choice| choice.tokens == 0) {
            self.metrics.record_first_token(tokens, (now - self.begun).as_secs_f64());
        }
        let choice = &mut self.choices[choice];
        choice.tokens += 1;
        let last = choice.last_token.replace(now);
        self.metrics.record_token(last.map(|last| (now - last).as_secs_f64()));
        self.log.add_completion_token();
    }

    /// Records the end of a choice.
    fn end(&mut self, choice: usize, outcome: CompletionOutcome) {
        let prompt_tokens = self.prompts[choice / self.n].tokens;
        let choice = &mut self.choices[choice];
        choice.is_finished = true;
        self.metrics.record_completion(outcome, prompt_tokens, choice.tokens, self.begun.elapsed().as_secs_f64());
    }

    fn fail(&mut self, e: ApiError) -> ApiError {
        self.end_unfinished(CompletionOutcome::Error);
        e
    }

    fn end_unfinished(&mut self, outcome: CompletionOutcome) {
        for choice in 0..self.choices.len() {
            if !self.choices[choice].is_finished {
                self.end(choice, outcome);
            }
        }
    }
}

impl Drop for RequestEvents {
    fn drop(&mut self) {
        // When the events are dropped, unfinished choices count as aborted, because the client no longer reads them.
        self.end_unfinished(CompletionOutcome::Abort);
    }
}
