//! Accepts connections, serves HTTP/1.1 on each of them, and closes them at the end.
//!
//! ```text
//! accept:   at most `connections` at a time; further clients wait in the system's listen backlog
//! serve:    TLS handshake and request header within `read_timeout`; writes by `limited_stream.rs`; bodies by `body.rs`
//! stop:     idle connections are closed, those with an incomplete request a second later (`stopping.rs`), busy ones
//!           after their present answer; new clients get one answer, which is status 503, until the last of the old
//!           connections is closed
//! ```

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::limited_stream::LimitedStream;
use super::stopping::{AnswerBody, AnsweringFlag, COMPLETION_GRACE, ReceivedBody};
use super::{ConnectionLimits, Tls};

/// Maximum bytes of a request's header, and of an answer that waits for the client. Each of thousands of connections
/// may take this much memory.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// The pause after a connection could not be accepted because the process has no free file descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Extra time at the end of the server for answers with status 503 that are still in flight when the last old
/// connection has closed.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// The address of the other end of a connection, which may be a proxy. Handlers get it from the request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// The permit that a connection holds as long as it is open.
type Permit = Result<OwnedSemaphorePermit, AcquireError>;

/// What all connections share.
struct HttpServer {
    router: Router,
    limits: ConnectionLimits,
    tls: Option<Tls>,
}

/// Serves `router` on all connections of `listener` until `stopped` ends and all requests that arrived before are
/// answered.
pub(crate) async fn serve_connections(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    stopped: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let server = Arc::new(HttpServer { router, limits, tls });
    let (running, on_stop) = watch::channel(());
    let mut stopped = pin!(stopped);
    loop {
        tokio::select! {
            (stream, peer, permit) = accept(&listener, &permits) => {
                tokio::spawn(server.clone().handle(stream, peer, permit, on_stop.clone(), true));
            }
            () = &mut stopped => break,
        }
    }
    drop(on_stop);
    running.send_replace(());
    let (refused, on_end) = watch::channel(());
    loop {
        tokio::select! {
            () = running.closed() => break,
            (stream, peer, permit) = accept(&listener, &permits) => {
                tokio::spawn(server.clone().handle(stream, peer, permit, on_end.clone(), false));
            }
        }
    }
    drop((listener, on_end));
    refused.send_replace(());
    let _ = timeout(LAST_ANSWERS, refused.closed()).await;
}

/// Waits for a permit, then for a connection.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, PeerAddress, Permit) {
    let permit = permits.clone().acquire_owned().await;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, PeerAddress(address), permit),
            // Either the client has already disconnected, or this process has no free file descriptor.
            Err(_) => sleep(ACCEPT_RETRY).await,
        }
    }
}

impl HttpServer {
    /// Serves one connection. `stop` changes when the server stops. The server waits until all clones of `stop` are
    /// dropped, that is, until all connections have ended. Without `keep_alive`, the connection ends after one answer.
    async fn handle(
        self: Arc<Self>,
        stream: TcpStream,
        peer: PeerAddress,
        permit: Permit,
        mut stop: watch::Receiver<()>,
        keep_alive: bool,
    ) {
        let _permit = permit;
        // Small pieces of a streamed answer must be sent at once (no Nagle delay). An error means that the client is
        // gone.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let stream = LimitedStream::new(stream, self.limits.write_timeout);
            return self.serve_http1(stream, peer, stop, keep_alive).await;
        };
        let handshake = timeout(self.limits.read_timeout, tls.acceptor().accept(stream));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            _ = stop.changed() => return,
        };
        let Ok(Ok(stream)) = accepted else { return };
        let stream = LimitedStream::new(stream, self.limits.write_timeout);
        self.serve_http1(stream, peer, stop, keep_alive).await;
    }

    async fn serve_http1(
        &self,
        stream: LimitedStream<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
        peer: PeerAddress,
        mut stop: watch::Receiver<()>,
        keep_alive: bool,
    ) {
        let router = TowerToHyperService::new(self.router.clone());
        let (progress, write_waits) = (AnsweringFlag::default(), stream.waiting_flag());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let answer = router.call(request.map(|body| ReceivedBody::new(body, progress.clone())));
            let progress = progress.clone();
            async move { answer.await.map(|answer| answer.map(|body| AnswerBody::new(body, progress))) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.read_timeout)
            .keep_alive(keep_alive)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        // Errors of a connection are ignored. Their cause is a client that is gone, is too slow, or does not speak
        // HTTP.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = stop.changed() => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(COMPLETION_GRACE, connection.as_mut()).await;
        // The rest of an answer may have to wait for a slow client. [`LimitedStream`] limits this wait.
        if progress.is_answering() || write_waits.load(Ordering::Relaxed) {
            let _ = connection.await;
        }
    }
}
