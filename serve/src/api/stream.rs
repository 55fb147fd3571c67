//! An answer as server-sent events.
//!
//! The connection asks for the next event once it has room for it, so a slow client holds back its own answer and
//! nothing else: the engine goes on, and its tokens wait. Dropping the stream, because the client is gone or reads
//! nothing for too long, makes the engine drop the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::HeaderName;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use reel_engine::{CompletionStream, TokenText};
use tokio_stream::Stream;

use super::answer::Answer;
use super::events::{ChoiceEvent, RequestEvents};

/// The last event of a streamed answer.
const DONE: &str = "[DONE]";

/// The answer with the events of a request, of which `first` has come already.
pub(crate) fn stream(
    answer: Answer,
    text: &TokenText,
    choices: usize,
    first: ChoiceEvent,
    events: RequestEvents,
) -> Response {
    let texts = (0..choices).map(|_| Some(CompletionStream::new(text.clone(), &answer.stop))).collect();
    let ready = (0..choices).filter_map(|choice| answer.first_chunk(choice)).map(|chunk| chunk.to_string()).collect();
    let mut stream = AnswerStream { answer, texts, tokens: 0, ready, events: Some(events) };
    stream.take(first);
    // nginx passes on the pieces at once, also where its configuration does not say so.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    (unbuffered, Sse::new(stream).keep_alive(KeepAlive::default())).into_response()
}

struct AnswerStream {
    answer: Answer,
    /// The text of each choice that is not finished.
    texts: Vec<Option<CompletionStream<TokenText>>>,
    /// The number of tokens of all choices so far.
    tokens: usize,
    /// The data of events that are to be sent.
    ready: VecDeque<String>,
    /// `None` once the last event is among `ready`.
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
                // The status of the answer is sent already, so the error is an event.
                Err(e) => {
                    self.ready.extend([e.to_json().to_string(), DONE.to_string()]);
                    self.events = None;
                }
            }
        }
    }
}

impl AnswerStream {
    /// Adds the chunks of an event to those that are to be sent.
    fn take(&mut self, event: ChoiceEvent) {
        let Self { answer, texts, tokens, ready, events } = self;
        match event {
            ChoiceEvent::Token { choice, id } => {
                *tokens += 1;
                let piece = texts[choice].as_mut().map_or(String::new(), |text| text.push(id));
                if !piece.is_empty() {
                    ready.push_back(answer.text_chunk(choice, &piece, *tokens).to_string());
                }
            }
            ChoiceEvent::Finished { choice, completion } => {
                let rest = texts[choice].take().map_or(String::new(), CompletionStream::finish);
                if !rest.is_empty() {
                    ready.push_back(answer.text_chunk(choice, &rest, *tokens).to_string());
                }
                ready.push_back(answer.last_chunk(choice, completion.finish_reason, *tokens).to_string());
            }
        }
        if events.as_ref().is_some_and(|events| events.unfinished() == 0) {
            if answer.stream.include_usage {
                ready.push_back(answer.usage_chunk(*tokens).to_string());
            }
            ready.push_back(DONE.to_string());
            *events = None;
        }
    }
}
