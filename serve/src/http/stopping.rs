//! Decides which requests a stopping server still answers: the requests that have arrived completely. A client that has
//! sent only a part of a header or of a body when the server stops has [`COMPLETION_GRACE`] to send the rest. After
//! that time, the server drops the request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};

/// How long a stopping server waits for the rest of a request.
pub(super) const COMPLETION_GRACE: Duration = Duration::from_secs(1);

/// A flag: true while a completely received request is being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct AnsweringFlag(Arc<AtomicBool>);

impl AnsweringFlag {
    pub(super) fn is_answering(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the flag. A request that is answered before its whole body has arrived also counts as being answered.
    pub(super) fn set_answering(&self, is_answering: bool) {
        self.0.store(is_answering, Ordering::Relaxed);
    }
}

/// The body of a request. When its end is read, the request is complete.
pub(super) struct ReceivedBody<B> {
    body: B,
    progress: AnsweringFlag,
}

impl<B: Body> ReceivedBody<B> {
    pub(super) fn new(body: B, progress: AnsweringFlag) -> Self {
        progress.set_answering(body.is_end_stream());
        Self { body, progress }
    }
}

impl<B: Body + Unpin> Body for ReceivedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.progress.set_answering(true);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. When it is dropped, the answer is complete.
pub(super) struct AnswerBody<B> {
    body: B,
    progress: AnsweringFlag,
}

impl<B> AnswerBody<B> {
    pub(super) fn new(body: B, progress: AnsweringFlag) -> Self {
        progress.set_answering(true);
        Self { body, progress }
    }
}

impl<B> Drop for AnswerBody<B> {
    fn drop(&mut self) {
        self.progress.set_answering(false);
    }
}

impl<B: Body + Unpin> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
