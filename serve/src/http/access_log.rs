//! Request ids, and the access log: one line of JSON on stderr for each request.
//!
//! A line contains no texts and no keys. It has the time, the request id, method and path without query, the status,
//! milliseconds until the last byte of the answer, prompt and completion tokens, and whether the client read the whole
//! answer.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use serde_json::json;

/// The header with the id of a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a request id that a client gives.
const MAX_ID_BYTES: usize = 128;
/// Maximum length of a path in the log; the rest is left out.
const MAX_PATH_CHARS: usize = 256;
/// Maximum number of lines that wait to be written to stderr. Further lines are dropped, so that a full pipe delays no
/// request.
const MAX_WAITING_LINES: usize = 4096;
/// Maximum time that the server waits at its end until all lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The status in the log if the client closed the connection before it got an answer, as in nginx.
const CLIENT_CLOSED: u16 = 499;

/// The access log of a server. Its lines are written by a thread of its own.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<String>,
    written: Receiver<()>,
}

impl AccessLog {
    /// Starts the thread that writes the lines to stderr.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (lines, queue) = sync_channel::<String>(MAX_WAITING_LINES);
        let (done, written) = mpsc::channel();
        std::thread::Builder::new().name("access log".into()).spawn(move || {
            // A write to a closed stderr fails, which must not end the server.
            queue.iter().for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
            let _ = done.send(());
        })?;
        Ok(Self { lines, written })
    }

    /// The sender through which requests add lines to the log.
    pub(crate) fn sender(&self) -> SyncSender<String> {
        self.lines.clone()
    }

    /// Waits until the lines of all requests are written, but at most for the time [`LAST_LINES`], because the reader
    /// of stderr may read nothing.
    pub(crate) fn finish(self) {
        drop(self.lines);
        let _ = self.written.recv_timeout(LAST_LINES);
    }
}

/// The data of the log line of one request. The line is written when this value is dropped: after the last byte of
/// the answer, or when the client disconnects. Handlers get this value from the request's extensions.
#[derive(Debug)]
pub(crate) struct RequestLog {
    lines: Option<SyncSender<String>>,
    begun: Instant,
    id: String,
    method: String,
    path: String,
    status: AtomicU16,
    /// 1 once the last byte of the answer was handed to the connection.
    complete: AtomicU16,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

impl RequestLog {
    /// Adds the number of tokens of a prompt.
    pub(crate) fn add_prompt_tokens(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Counts a generated token.
    pub(crate) fn add_completion_token(&self) {
        self.completion_tokens.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let Some(lines) = &self.lines else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let line = json!({
            "time": (time * 1e3).round() / 1e3,
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status.load(Ordering::Relaxed),
            "milliseconds": (self.begun.elapsed().as_secs_f64() * 1e6).round() / 1e3,
            "prompt_tokens": self.prompt_tokens.load(Ordering::Relaxed),
            "completion_tokens": self.completion_tokens.load(Ordering::Relaxed),
            "complete": self.complete.load(Ordering::Relaxed) == 1,
        });
        // If the queue is full, the line is dropped.
        let _ = lines.try_send(line.to_string());
    }
}

/// Gives each request an id, which is sent with its answer, and writes a line to the access log if the server has one.
pub(crate) async fn observe_request(
    State(lines): State<Option<SyncSender<String>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request.headers().get(REQUEST_ID).and_then(usable_id).unwrap_or_else(random_id);
    let log = Arc::new(RequestLog {
        lines,
        begun: Instant::now(),
        id: id.clone(),
        method: request.method().to_string(),
        path: request.uri().path().chars().take(MAX_PATH_CHARS).collect(),
        status: AtomicU16::new(CLIENT_CLOSED),
        complete: AtomicU16::new(0),
        prompt_tokens: AtomicU64::new(0),
        completion_tokens: AtomicU64::new(0),
    });
    request.extensions_mut().insert(log.clone());
    let mut response = next.run(request).await;
    log.status.store(response.status().as_u16(), Ordering::Relaxed);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|inner| {
        // A body without bytes is complete now, because it is never polled.
        log.complete.store(u16::from(http_body::Body::is_end_stream(&inner)), Ordering::Relaxed);
        Body::new(LoggedBody { inner, log })
    })
}

/// The request id that a client gives, if it is short and has only characters that are safe in headers, logs and file
/// names.
fn usable_id(value: &HeaderValue) -> Option<String> {
    let id = value.to_str().ok()?;
    let is_safe = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.', ':'].contains(&c);
    (!id.is_empty() && id.len() <= MAX_ID_BYTES && id.chars().all(is_safe)).then(|| id.to_string())
}

/// 32 random hexadecimal digits.
fn random_id() -> String {
    format!("{:016x}{:016x}", random_number(), random_number())
}

/// A random number, computed as a hash with keys from the random source of the operating system.
pub(crate) fn random_number() -> u64 {
    RandomState::new().hash_one(())
}

/// The body of an answer. It holds the log of its request, so that the log line is written when the body is dropped.
struct LoggedBody {
    inner: Body,
    log: Arc<RequestLog>,
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        // A body of known length is not polled again after its last bytes, so its end must be noticed here.
        if matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.log.complete.store(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients_are_used_if_they_are_safe() {
        let usable = |text: &str| usable_id(&HeaderValue::from_bytes(text.as_bytes()).unwrap());
        assert_eq!(usable("a-1_b.c:9").as_deref(), Some("a-1_b.c:9"));
        for unsafe_id in ["", "a b", "a\"b", "\u{e9}", "a/b", &"x".repeat(129)] {
            assert_eq!(usable(unsafe_id), None, "{unsafe_id:?}");
        }
        let (one, other) = (random_id(), random_id());
        assert!(one.len() == 32 && one != other);
    }
}
