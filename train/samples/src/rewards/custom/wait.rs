//! Waits for a message with a deadline and a stop flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The reason why no message was received.
pub(super) enum NoMessageReason {
    Timeout,
    Disconnected,
    Stopped,
}

/// Interval at which a wait checks the stop flag.
pub(super) const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The error text of a reward if the wait for the reward was stopped.
pub(super) const STOPPED_PROBLEM: &str = "was stopped before it gave its rewards";
/// The help text of an error with [`STOPPED_PROBLEM`].
pub(super) const STOPPED_HELP: &str = "start the run again";

/// Receives the next message, unless the deadline passes or `stop` is set first. Without a deadline the wait lasts
/// until the sender is dropped.
pub(super) fn receive_until<T>(
    from: &Receiver<T>,
    deadline: Option<Instant>,
    stop: &AtomicBool,
) -> Result<T, NoMessageReason> {
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        match from.recv_timeout(left.min(STOP_CHECK_INTERVAL)) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Disconnected) => return Err(NoMessageReason::Disconnected),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(NoMessageReason::Timeout),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Err(NoMessageReason::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
