//! An answer as server-sent events.
//!
//! The next event is taken only when the connection can send it. So a slow client delays only its own answer: the
//! engine continues, and the tokens wait in a queue. If the client disconnects or reads nothing for too long, the
//! stream is dropped, which makes the engine drop the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::HeaderName;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use reel_engine::{CompletionStream, TokenLogProbs};
use reel_input::TokenId;
use serde_json::Value;
use tokio_stream::Stream;

use super::answer::{AnswerBuilder, TextOffsets};
use super::events::{ChoiceEvent, RequestEvents};
use super::reasoning::{AddedText, ReasoningParser};
use super::shared::ServerState;
use super::tool_calls::{AnswerPiece, ToolCallParser};
use crate::settings::ServedModel;

/// The last event of a streamed answer.
const DONE: &str = "[DONE]";

/// The streamed answer to a request. `first` is the request's first event, `events` gives the following ones.
pub(crate) fn stream_answer(
    answer: AnswerBuilder,
    shared: &ServerState,
    choices: usize,
    first: ChoiceEvent,
    events: RequestEvents,
) -> Response {
    let choice = |_| StreamedChoice {
        text: Some(CompletionStream::new(&shared.model.folder.tokenizer, &answer.stop)),
        reasoning: answer.include_reasoning.map(|is_shown| (ReasoningParser::default(), is_shown)),
        calls: answer.calls.map(|rules| ToolCallParser::new(rules.one_call)),
        log_probs: Vec::new(),
        offsets: TextOffsets::default(),
    };
    let states = (0..choices).map(choice).collect();
    let ready = (0..choices).filter_map(|choice| answer.first_chunk(choice)).map(|chunk| chunk.to_string()).collect();
    let mut stream =
        AnswerStream { answer, model: shared.model.clone(), choices: states, tokens: 0, ready, events: Some(events) };
    stream.take(first);
    // This header makes nginx pass on each event at once, even if its configuration does not.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    (unbuffered, Sse::new(stream).keep_alive(KeepAlive::default())).into_response()
}

/// The state of one choice while its tokens are generated.
struct StreamedChoice {
    /// Decodes the choice's tokens to text and finds stop strings. `None` once the choice is finished.
    text: Option<CompletionStream>,
    /// The parser that finds the reasoning, and whether the reasoning is part of the answer; `None` if reasoning stays
    /// in the text.
    reasoning: Option<(ReasoningParser, bool)>,
    /// The parser that finds tool calls; `None` if the answer is text only.
    calls: Option<ToolCallParser>,
    /// The log-probabilities of tokens that no event contains yet.
    log_probs: Vec<(TokenId, TokenLogProbs)>,
    /// Counts the characters of all tokens with log-probabilities that were already sent.
    offsets: TextOffsets,
}

impl StreamedChoice {
    /// Reads a piece of the completion's text. Returns the resulting pieces of the answer.
    fn push(&mut self, text: String) -> Vec<AnswerPiece> {
        match &mut self.reasoning {
            Some((parser, _)) => {
                let added = parser.push(&text);
                self.add(added)
            }
            None => self.add(AddedText { text, ..AddedText::default() }),
        }
    }

    /// The pieces of an answer for a piece of reasoning and the text after it.
    fn add(&mut self, AddedText { reasoning, text }: AddedText) -> Vec<AnswerPiece> {
        let is_shown = self.reasoning.as_ref().is_some_and(|(_, is_shown)| *is_shown) && !reasoning.is_empty();
        let mut pieces: Vec<AnswerPiece> = is_shown.then_some(AnswerPiece::Reasoning(reasoning)).into_iter().collect();
        match &mut self.calls {
            Some(parser) => pieces.extend(parser.push(&text)),
            None if text.is_empty() => {}
            None => pieces.push(AnswerPiece::Text(text)),
        }
        pieces
    }

    /// Ends the choice. Returns the pieces that were held back.
    fn finish(&mut self) -> Vec<AnswerPiece> {
        let rest = self.text.take().map_or(String::new(), CompletionStream::finish);
        let mut pieces = self.push(rest);
        if let Some((parser, _)) = &mut self.reasoning {
            let added = parser.finish();
            pieces.extend(self.add(added));
        }
        if let Some(parser) = &mut self.calls {
            pieces.extend(parser.finish());
            // An answer without any text, reasoning or call gets one piece of empty text.
            let empty = parser.is_empty().then(|| AnswerPiece::Text(String::new()));
            pieces.extend(empty);
        }
        pieces
    }

    fn take_log_probs(&mut self, answer: &AnswerBuilder, model: &ServedModel) -> Value {
        let tokens = std::mem::take(&mut self.log_probs);
        answer.log_probs(&model.folder.tokenizer, &tokens, &mut self.offsets)
    }
}

struct AnswerStream {
    answer: AnswerBuilder,
    model: Arc<ServedModel>,
    choices: Vec<StreamedChoice>,
    /// The number of tokens of all choices so far.
    tokens: usize,
    /// The data of the events that are to be sent next.
    ready: VecDeque<String>,
    /// The events of the request; `None` once the last event is in `ready`.
    events: Option<RequestEvents>,
}

impl Stream for AnswerStream {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(sse::Event::default().data(data))));
            }
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            match ready!(events.poll_recv(cx)) {
                Ok(event) => self.take(event),
                // The HTTP status has already been sent, so the error is sent as an event.
                Err(e) => {
                    self.ready.extend([e.to_json().to_string(), DONE.to_string()]);
                    self.events = None;
                }
            }
        }
    }
}

impl AnswerStream {
    /// Turns an event of the engine into chunks, and adds them to `ready`.
    fn take(&mut self, event: ChoiceEvent) {
        let Self { answer, model, choices, tokens, ready, events } = self;
        match event {
            ChoiceEvent::Token { choice, id, log_probs } => {
                *tokens += 1;
                let state = &mut choices[choice];
                state.log_probs.extend(log_probs.map(|log_probs| (id, log_probs)));
                let text = state.text.as_mut().map_or(String::new(), |text| text.push(id));
                let mut pieces: Vec<Option<AnswerPiece>> = state.push(text).into_iter().map(Some).collect();
                if pieces.is_empty() {
                    // As in vLLM, each token has an event, even without text, because clients measure the time between
                    // events.
                    pieces.push(None);
                }
                for piece in pieces {
                    let log_probs = state.take_log_probs(answer, model);
                    ready.push_back(answer.piece_chunk(choice, piece, log_probs, *tokens).to_string());
                }
            }
            ChoiceEvent::Finished { choice, completion } => {
                let state = &mut choices[choice];
                for piece in state.finish() {
                    ready.push_back(answer.piece_chunk(choice, Some(piece), Value::Null, *tokens).to_string());
                }
                let has_calls = state.calls.as_ref().is_some_and(ToolCallParser::has_calls);
                let reason = completion.finish_reason;
                ready.push_back(answer.last_chunk(choice, reason, has_calls, *tokens).to_string());
            }
        }
        if events.as_ref().is_some_and(|events| events.unfinished_count() == 0) {
            if answer.stream.include_usage {
                ready.push_back(answer.usage_chunk(*tokens).to_string());
            }
            ready.push_back(DONE.to_string());
            *events = None;
        }
    }
}
