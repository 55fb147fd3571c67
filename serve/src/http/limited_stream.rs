//! A connection that fails if its peer does not read the data that is sent to it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Maximum time that a connection, at its end, waits for the client to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// A stream that fails with [`io::ErrorKind::TimedOut`] if its peer reads nothing for a time.
///
/// A failed write ends the connection. The end of the connection drops the body of the answer, which makes the engine
/// drop the request.
///
/// At the end of the connection, bytes that the client still sends are read and ignored for a second. Otherwise the
/// system would answer them with a TCP reset, which can destroy an answer that the client has not read yet. For
/// example, the error about a body that is too large is sent while the client still sends the body.
pub(super) struct LimitedStream<S> {
    inner: S,
    write_timeout: Duration,
    /// While a write waits: the timer that ends the wait.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Whether a write waits. The flag is shared, so that the connection's handler can read it, too.
    is_waiting: Arc<AtomicBool>,
    /// The timer of [`LINGER`]; set once the write side is closed.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> LimitedStream<S> {
    pub(super) fn new(inner: S, write_timeout: Duration) -> Self {
        Self { inner, write_timeout, waiting: None, is_waiting: Arc::default(), lingering: None }
    }

    /// The flag that is true while a write waits for the peer.
    pub(super) fn waiting_flag(&self) -> Arc<AtomicBool> {
        self.is_waiting.clone()
    }

    /// Passes on the result of a write. Returns an error if the write has waited for the write timeout.
    fn limit<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.is_waiting.store(polled.is_pending(), Ordering::Relaxed);
        if polled.is_pending() {
            let limit = self.write_timeout;
            ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.waiting = None;
        polled
    }

    /// Reads and ignores bytes until the client has closed its side, or until [`LINGER`] is over.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ignored = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut ignored);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.limit(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.limit(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.limit(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.limit(cx, polled))?;
        }
        self.poll_discard(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    async fn write(stream: &mut LimitedStream<tokio::io::DuplexStream>, bytes: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_fails_the_write_after_the_limit() {
        let (end, mut peer) = tokio::io::duplex(64 << 10);
        let mut stream = LimitedStream::new(end, Duration::from_secs(5));
        let bytes = [0; 64 << 10];
        assert_eq!(write(&mut stream, &bytes).await.unwrap(), bytes.len());
        // If the peer reads in time, the write continues.
        let reader = tokio::spawn(async move {
            sleep(Duration::from_secs(4)).await;
            let mut room = vec![0; 32 << 10];
            poll_fn(|cx| Pin::new(&mut peer).poll_read(cx, &mut ReadBuf::new(&mut room))).await.unwrap();
            peer
        });
        assert_eq!(write(&mut stream, &bytes).await.unwrap(), 32 << 10);
        let _peer = reader.await.unwrap();
        let begun = Instant::now();
        assert_eq!(write(&mut stream, &bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_the_client_but_not_long() {
        let (end, _peer) = tokio::io::duplex(64);
        let mut stream = LimitedStream::new(end, Duration::from_secs(5));
        let begun = Instant::now();
        poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 1);
    }
}
