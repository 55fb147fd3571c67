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

use super::ApiError;
use super::answer::{AnswerBuilder, TextOffsets};
use super::events::{ChoiceEvent, RequestEvents};
use super::reasoning::{AddedText, ReasoningParser};
use super::responses::ResponseWriter;
use super::shared::ServerState;
use super::tool_calls::{AnswerPiece, ToolCallParser};
use crate::settings::ServedModel;

/// The last event of a streamed answer.
const DONE: &str = "[DONE]";

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

/// Turns the events of a request into the events that the client gets.
pub(crate) struct AnswerStream {
    answer: AnswerBuilder,
    /// Writes the events of the Responses API; `None` for the chunks of the other APIs.
    response: Option<ResponseWriter>,
    model: Arc<ServedModel>,
    choices: Vec<StreamedChoice>,
    /// The number of tokens of all choices so far.
    tokens: usize,
    /// The data of the events that are to be sent next.
    ready: VecDeque<Value>,
    /// The events of the request; `None` once the last event is in `ready`.
    events: Option<RequestEvents>,
}

impl Stream for AnswerStream {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(data) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(server_sent_event(&data))));
            }
            let Some(events) = &mut this.events else { return Poll::Ready(None) };
            match ready!(events.poll_recv(cx)) {
                Ok(event) => this.take(event),
                // The HTTP status has already been sent, so the error is sent as an event.
                Err(e) => {
                    match &mut this.response {
                        Some(response) => response.fail(&e, &mut this.ready),
                        None => this.ready.extend([e.to_json(), DONE.into()]),
                    }
                    this.events = None;
                }
            }
        }
    }
}

/// An event with this data. If the data has a `type`, as in the Responses API, this is the name of the event.
fn server_sent_event(data: &Value) -> sse::Event {
    match (data, data["type"].as_str()) {
        (Value::String(text), _) => sse::Event::default().data(text),
        (data, Some(name)) => sse::Event::default().event(name).data(data.to_string()),
        (data, None) => sse::Event::default().data(data.to_string()),
    }
}

impl AnswerStream {
    /// Creates the stream of an answer with so many `choices`, to which `events` lead.
    pub(crate) fn new(
        answer: AnswerBuilder,
        mut response: Option<ResponseWriter>,
        shared: &ServerState,
        choices: usize,
        events: RequestEvents,
    ) -> Self {
        let choice = |_| StreamedChoice {
            text: Some(CompletionStream::new(&shared.model.folder.tokenizer, &answer.stop)),
            reasoning: answer
                .include_reasoning
                .map(|is_shown| (ReasoningParser::new(answer.is_reasoning_begun), is_shown)),
            calls: answer.calls.map(|rules| ToolCallParser::new(rules.one_call)),
            log_probs: Vec::new(),
            offsets: TextOffsets::default(),
        };
        let states = (0..choices).map(choice).collect();
        let mut ready = VecDeque::new();
        match &mut response {
            Some(response) => response.begin(&mut ready),
            None => ready.extend((0..choices).filter_map(|choice| answer.first_chunk(choice))),
        }
        let model = shared.model.clone();
        Self { answer, response, model, choices: states, tokens: 0, ready, events: Some(events) }
    }

    /// The answer as server-sent events. `first` is the request's first event.
    pub(crate) fn into_response(mut self, first: ChoiceEvent) -> Response {
        self.take(first);
        // This header makes nginx pass on each event at once, even if its configuration does not.
        let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
        (unbuffered, Sse::new(self).keep_alive(KeepAlive::default())).into_response()
    }

    /// Waits for the end of an answer of the Responses API. Returns the object that the last event of the stream has.
    pub(crate) async fn whole_response(mut self) -> Result<Value, ApiError> {
        while let Some(events) = &mut self.events {
            let event = events.recv().await?;
            self.take(event);
            self.ready.clear();
        }
        Ok(self.response.map_or(Value::Null, ResponseWriter::into_object))
    }

    /// Turns an event of the engine into events for the client, and adds them to `ready`.
    fn take(&mut self, event: ChoiceEvent) {
        match event {
            ChoiceEvent::Token { choice, id, log_probs, cached_tokens } => {
                self.tokens += 1;
                self.response.iter_mut().for_each(|response| response.cached_tokens = cached_tokens);
                let state = &mut self.choices[choice];
                state.log_probs.extend(log_probs.map(|log_probs| (id, log_probs)));
                let text = state.text.as_mut().map_or(String::new(), |text| text.push(id));
                let mut pieces: Vec<Option<AnswerPiece>> = state.push(text).into_iter().map(Some).collect();
                if pieces.is_empty() {
                    // As in vLLM, each token has an event, even without text, because clients measure the time between
                    // events.
                    pieces.push(None);
                }
                for piece in pieces {
                    let log_probs = self.choices[choice].take_log_probs(&self.answer, &self.model);
                    self.add_piece(choice, piece, log_probs);
                }
            }
            ChoiceEvent::Finished { choice, completion } => {
                for piece in self.choices[choice].finish() {
                    self.add_piece(choice, Some(piece), Value::Null);
                }
                let reason = completion.finish_reason;
                match &mut self.response {
                    Some(response) => response.finish(reason, self.tokens, &mut self.ready),
                    None => {
                        let has_calls = self.choices[choice].calls.as_ref().is_some_and(ToolCallParser::has_calls);
                        let chunk = self.answer.last_chunk(choice, reason, has_calls, self.tokens);
                        self.ready.push_back(chunk);
                    }
                }
            }
        }
        if self.events.as_ref().is_some_and(|events| events.unfinished_count() == 0) {
            if self.response.is_none() {
                let usage = self.answer.stream.include_usage.then(|| self.answer.usage_chunk(self.tokens));
                self.ready.extend(usage.into_iter().chain([DONE.into()]));
            }
            self.events = None;
        }
    }

    /// Adds the events of a piece of a choice; `piece` is `None` for a token that adds no text.
    fn add_piece(&mut self, choice: usize, piece: Option<AnswerPiece>, log_probs: Value) {
        match &mut self.response {
            Some(response) => response.add(piece, log_probs, self.tokens, &mut self.ready),
            None => {
                let chunk = self.answer.piece_chunk(choice, piece, log_probs, self.tokens);
                self.ready.push_back(chunk);
            }
        }
    }
}
