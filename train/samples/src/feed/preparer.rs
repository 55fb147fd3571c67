//! Prepares rows on background threads.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Builder;
use std::time::{Duration, Instant};

use reel_support::ranges::{RangeName, range};

use super::SampleSource;
use crate::error::{Error, Result};

/// Threads that prepare the requested rows, the row with the lowest position first. A position is an index in the
/// sequence of the rows of all epochs.
pub(super) struct RowPreparer<S: SampleSource>(Arc<Shared<S>>);

struct Shared<S: SampleSource> {
    source: Arc<S>,
    state: Mutex<PreparerState<S::Sample>>,
    changed: Condvar,
}

struct PreparerState<T> {
    /// Rows that no thread has begun to prepare, by position.
    wanted: BTreeMap<u64, usize>,
    /// Positions of the rows that threads prepare now.
    begun: BTreeSet<u64>,
    /// Prepared rows that have not been taken yet, by position.
    ready: BTreeMap<u64, Result<T>>,
    /// Samples at positions before this one are dropped.
    first: u64,
    closed: bool,
    /// The error if no thread could be started.
    not_started: Option<io::Error>,
}

/// Starts threads until a start fails. Returns the error only if no thread was started. Fewer threads are no error,
/// because the samples do not depend on their number.
fn error_without_threads(mut starts: impl Iterator<Item = io::Result<()>>) -> Option<io::Error> {
    let first = starts.next()?;
    let _ = first.is_ok() && starts.all(|start| start.is_ok());
    first.err()
}

impl<S: SampleSource> RowPreparer<S> {
    /// Starts `threads` threads, at least 1.
    pub fn new(source: Arc<S>, threads: usize) -> Self {
        let state = PreparerState {
            wanted: BTreeMap::new(),
            begun: BTreeSet::new(),
            ready: BTreeMap::new(),
            first: 0,
            closed: false,
            not_started: None,
        };
        let shared = Arc::new(Shared { source, state: Mutex::new(state), changed: Condvar::new() });
        // The threads are not joined when the preparer is dropped: a thread that decodes a media file could block until
        // the decoding timeout.
        let start = |_| {
            let worker = shared.clone();
            Builder::new().name("rows".into()).spawn(move || worker.run_worker()).map(drop)
        };
        shared.lock().not_started = error_without_threads((0..threads.max(1)).map(start));
        Self(shared)
    }

    /// The source of the rows.
    pub fn source(&self) -> &S {
        &self.0.source
    }

    /// Requests `rows`, by position, in place of the rows that were requested before. Rows that are already prepared
    /// stay.
    pub fn request_rows(&self, mut rows: BTreeMap<u64, usize>) {
        let mut state = self.0.lock();
        rows.retain(|slot, _| !state.begun.contains(slot) && !state.ready.contains_key(slot));
        state.wanted = rows;
        self.0.changed.notify_all();
    }

    /// Drops the samples before position `slot`.
    pub fn drop_samples_before(&self, slot: u64) {
        let mut state = self.0.lock();
        state.first = slot;
        state.ready = state.ready.split_off(&slot);
        state.wanted = state.wanted.split_off(&slot);
    }

    /// Waits for the sample of `row`, which is at position `slot`, and returns it.
    pub fn take_sample(&self, slot: u64, row: usize) -> Result<S::Sample> {
        loop {
            if let Some(result) = self.take_sample_within(slot, row, Duration::from_secs(3600)) {
                return result;
            }
        }
    }

    /// Returns the sample of `row`, which is at position `slot`, or `None` if it is not ready within `patience`.
    pub fn take_sample_within(&self, slot: u64, row: usize, patience: Duration) -> Option<Result<S::Sample>> {
        let begun = Instant::now();
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.ready.remove(&slot) {
                return Some(result);
            }
            if let Some(reason) = &state.not_started {
                return Some(Err(Error::cannot_start_thread("rows", reason)));
            }
            if state.closed {
                return Some(Err(Error::data(
                    self.0.source.location(row).0,
                    "a thread that prepares rows panicked",
                    "report this as a bug, and include the row",
                )));
            }
            if !state.begun.contains(&slot) && state.wanted.insert(slot, row).is_none() {
                self.0.changed.notify_all();
            }
            let left = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())?;
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

impl<S: SampleSource> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, PreparerState<S::Sample>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The loop of a worker thread: prepares one wanted row after the other.
    fn run_worker(&self) {
        let _close = CloseOnPanic(self);
        loop {
            let mut state = self.lock();
            let (slot, row) = loop {
                if state.closed {
                    return;
                }
                if let Some(next) = state.wanted.pop_first() {
                    break next;
                }
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            };
            state.begun.insert(slot);
            drop(state);
            let preparing = range(RangeName::Phase("data preparation"));
            let result = self.source.sample(row);
            drop(preparing);
            let mut state = self.lock();
            state.begun.remove(&slot);
            if slot >= state.first {
                state.ready.insert(slot, result);
            }
            self.changed.notify_all();
        }
    }
}

/// A drop guard of a worker thread. If the thread panics, the guard closes the preparer, so that callers do not wait
/// forever.
struct CloseOnPanic<'a, S: SampleSource>(&'a Shared<S>);

impl<S: SampleSource> Drop for CloseOnPanic<'_, S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().closed = true;
            self.0.changed.notify_all();
        }
    }
}

impl<S: SampleSource> Drop for RowPreparer<S> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::is_row_error;
    use super::super::tests::one_token_rows;
    use super::*;

    #[test]
    fn threads_are_started_until_one_fails_and_none_is_an_error() {
        for (allowed, tried) in [(0, 1), (1, 2), (2, 3), (3, 3)] {
            let starts = Cell::new(0);
            let start = |_| {
                starts.set(starts.get() + 1);
                if starts.get() <= allowed { Ok(()) } else { Err(io::Error::from_raw_os_error(11)) }
            };
            let error = error_without_threads((0..3).map(start));
            assert_eq!((starts.get(), error.is_some()), (tried, allowed == 0), "{allowed}");
        }
    }

    #[test]
    fn a_preparer_without_threads_returns_their_error() {
        let rows = RowPreparer::new(Arc::new(one_token_rows(2)), 1);
        rows.0.lock().not_started = Some(io::Error::from_raw_os_error(11));
        let e = rows.take_sample(0, 0).unwrap_err();
        assert!(e.to_string().starts_with("rows: a thread cannot be created: "), "{e}");
        assert!(!is_row_error(&e));
    }
}
