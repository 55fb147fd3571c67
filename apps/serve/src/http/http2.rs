//! Serves HTTP/2 on a connection. The connection may carry many requests at the same time; each request is a stream
//! with its own task.
//!
//! ```text
//! loop:
//!     a request:        start its task: header → body (`body.rs`) → answer, as the client's flow control allows
//!     RST_STREAM:       its task ends, which drops the request
//!     no open stream for `read_timeout`, or the server stops:
//!                       send GOAWAY; streams that are open go on, but those whose request is still incomplete after a
//!                       second (`stopping.rs`) are reset; then close
//! ```
//!
//! PING, SETTINGS and unfinished headers do not count as use of a connection. The crate h2 ends connections that flood
//! it with frames: resets (CVE-2023-44487), CONTINUATION, empty DATA.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{CONTENT_LENGTH, DATE};
use axum::http::{HeaderValue, Request, Response};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ConnectionLimits;
use super::connections::{HttpServer, MAX_BUFFER_BYTES, PeerAddress};
use super::limited_stream::LimitedStream;
use super::stall::StallBudget;
use super::stopping::{AnsweringFlag, ReceivedBody};

/// The first bytes that a client sends on an HTTP/2 connection.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Maximum number of open streams of a connection. A client opens further streams when earlier ones have ended.
const MAX_STREAMS: u32 = 128;
/// Maximum number of body bytes that a client may send before the server has read them.
const WINDOW_BYTES: u32 = 1 << 20;
/// Maximum number of streams that the client may reset before the server has accepted them. A further reset ends the
/// connection.
const MAX_UNSEEN_RESETS: usize = 20;
/// Maximum number of streams that the server resets because of the client's errors. A further reset ends the
/// connection.
const MAX_ERROR_RESETS: usize = 100;
/// How long a client may take to answer a GOAWAY once its streams have ended.
const GOODBYE: Duration = Duration::from_secs(1);

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_BUFFER_BYTES as u32)
        .max_send_buffer_size(MAX_BUFFER_BYTES)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
    builder
}

impl HttpServer {
    /// Serves HTTP/2 until the connection is closed. `stop` changes when the server stops. Without `keep_alive`, the
    /// connection ends after one answer.
    pub(super) async fn serve_http2(
        &self,
        stream: LimitedStream<impl AsyncRead + AsyncWrite + Unpin>,
        peer: PeerAddress,
        mut stop: watch::Receiver<()>,
        keep_alive: bool,
    ) {
        let ConnectionLimits { read_timeout, write_timeout, .. } = self.limits;
        let write_waits = stream.waiting_flag();
        // Each request waits for a change of `stop` with its own clone of this receiver, which has not seen the
        // change yet.
        let stop_of_requests = stop.clone();
        let handshake = tokio::select! {
            handshake = timeout(read_timeout, builder().handshake::<_, Bytes>(stream)) => handshake,
            _ = stop.changed() => return,
        };
        // Errors of a connection are ignored. Their cause is a client that is gone, is too slow, or does not speak
        // HTTP.
        let Ok(Ok(mut connection)) = handshake else { return };
        let mut tasks = JoinSet::new();
        let mut is_closing = false;
        // Timer that ends an idle connection. The timer is ignored while a stream is open.
        let mut idle_end = pin!(sleep(read_timeout));
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    // Returning drops the set of tasks, which ends the remaining tasks.
                    let Some(Ok((request, mut respond))) = accepted else { return };
                    match self.streams.clone().try_acquire_owned() {
                        Ok(permit) => drop(tasks.spawn({
                            let (router, stop) = (self.router.clone(), stop_of_requests.clone());
                            async move {
                                let _permit = permit;
                                // An error means that the client has reset the stream or reads nothing, so there is
                                // nothing to report.
                                let _ = answer(router, request, respond, peer, write_timeout, stop).await;
                            }
                        })),
                        // After this error code, a client may send the request again.
                        Err(_) => respond.send_reset(Reason::REFUSED_STREAM),
                    }
                    if keep_alive {
                        continue;
                    }
                }
                Some(_) = tasks.join_next() => {
                    let limit = if is_closing { GOODBYE } else { read_timeout };
                    idle_end.as_mut().reset(Instant::now() + limit);
                    continue;
                }
                () = idle_end.as_mut(), if tasks.is_empty() => {
                    // The stream itself limits how long a slow client may take to read the rest.
                    if is_closing && !write_waits.load(Ordering::Relaxed) {
                        return;
                    }
                }
                _ = stop.changed(), if !is_closing => {}
            }
            connection.graceful_shutdown();
            is_closing = true;
            idle_end.as_mut().reset(Instant::now() + GOODBYE);
        }
    }
}

/// Answers one request.
///
/// # Errors
/// The client has reset the stream or is gone, takes nothing of the answer for `write_timeout`, or has not sent its
/// request soon after the server stopped.
async fn answer(
    router: Router,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: PeerAddress,
    write_timeout: Duration,
    stop: watch::Receiver<()>,
) -> Result<(), h2::Error> {
    let progress = AnsweringFlag::default();
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut request =
        request.map(|stream| ReceivedBody::new(RequestStream { stream, missing: length }, progress.clone()));
    request.extensions_mut().insert(peer);
    let service = TowerToHyperService::new(router);
    let Ok(response) = tokio::select! {
        response = service.call(request) => response,
        reset = poll_fn(|cx| respond.poll_reset(cx)) => return Err(reset?.into()),
        () = progress.wait_until_given_up(stop) => {
            respond.send_reset(Reason::CANCEL);
            return Err(Reason::CANCEL.into());
        }
    };
    let (mut head, mut body) = response.into_parts();
    let date = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now()));
    head.headers.extend(date.ok().map(|date| (DATE, date)));
    let mut stream = respond.send_response(Response::from_parts(head, ()), body.is_end_stream())?;
    if body.is_end_stream() {
        return Ok(());
    }
    let mut budget = StallBudget::new(write_timeout);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            reset = poll_fn(|cx| stream.poll_reset(cx)) => return Err(reset?.into()),
        };
        match frame {
            None => return stream.send_data(Bytes::new(), true),
            Some(Ok(frame)) => {
                // The only other kind of frame, trailers, does not occur in answers.
                let Ok(data) = frame.into_data() else { continue };
                let is_last = body.is_end_stream();
                send(&mut stream, data, is_last, &mut budget).await?;
                if is_last {
                    return Ok(());
                }
            }
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(Reason::INTERNAL_ERROR.into());
            }
        }
    }
}

/// Sends a part of an answer as the client's flow control allows. The crate h2 gets no more bytes than flow control
/// allows. Otherwise h2 would keep data of a stream whose task has ended.
///
/// # Errors
/// The client has reset the stream or is gone, or `budget` is used up.
async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_last: bool,
    budget: &mut StallBudget,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let begun = Instant::now();
        while stream.capacity() == 0 {
            let left = budget.remaining_time().saturating_sub(begun.elapsed());
            let Ok(capacity) = timeout(left, poll_fn(|cx| stream.poll_capacity(cx))).await else {
                stream.send_reset(Reason::CANCEL);
                return Err(Reason::CANCEL.into());
            };
            // None: the stream is reset.
            capacity.ok_or(Reason::CANCEL)??;
        }
        let part = data.split_to(stream.capacity().min(data.len()));
        budget.record_transfer(begun.elapsed(), part.len());
        stream.send_data(part, is_last && data.is_empty())?;
    }
    Ok(())
}

/// The body of a request.
struct RequestStream {
    stream: RecvStream,
    /// Number of bytes of the body that have not arrived yet; `None` if the request has no `Content-Length`.
    missing: Option<u64>,
}

impl http_body::Body for RequestStream {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let polled = ready!(self.stream.poll_data(cx));
        Poll::Ready(polled.map(|data| {
            let data = data?;
            self.stream.flow_control().release_capacity(data.len())?;
            self.missing = self.missing.map(|missing| missing.saturating_sub(data.len() as u64));
            Ok(Frame::data(data))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.missing.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
