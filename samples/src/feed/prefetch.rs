//! Prepares rows on background threads, a few rows ahead of the consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::{SampleSource, is_row_error};
use crate::order::RowOrder;
use crate::{Result, SampleError};

/// Prepares samples on background threads before they are needed. The consumer gets them in the order of the rows.
pub struct Prefetcher<S: SampleSource> {
    shared: Arc<Shared<S>>,
    order: RowOrder,
}

struct Shared<S: SampleSource> {
    source: Arc<S>,
    window: u64,
    /// The position after the last row.
    end: u64,
    state: Mutex<PrefetchState<S::Sample>>,
    changed: Condvar,
}

struct PrefetchState<T> {
    /// Position of the row that the consumer asked for last; prepared samples before it are dropped.
    at: u64,
    /// Position of the first row that no thread has begun to prepare.
    next: u64,
    ready: BTreeMap<u64, Result<T>>,
    bad: BTreeSet<usize>,
    closed: bool,
    /// The error if no thread could be started.
    not_started: Option<io::Error>,
}

/// Starts threads until a start fails. Returns the error only if no thread was started, because the samples do not
/// depend on the number of threads.
fn error_without_threads(mut starts: impl Iterator<Item = io::Result<()>>) -> Option<io::Error> {
    let first = starts.next()?;
    let _ = first.is_ok() && starts.all(|start| start.is_ok());
    first.err()
}

/// Number of threads that decode images and videos: a quarter of the CPU cores, at least 2 and at most 8. The other
/// cores are left for computing. With a single thread, an evaluation of short videos would wait for the decoder while
/// cores are idle.
pub fn decoding_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| (n.get() / 4).clamp(2, 8))
}

impl<S: SampleSource> Prefetcher<S> {
    /// Prepares the rows at the positions `positions` of `order`, on `threads` background threads, at most `window`
    /// rows ahead of the consumer. The rows in `bad` are not prepared.
    pub fn new(
        source: Arc<S>,
        order: RowOrder,
        bad: &BTreeSet<usize>,
        positions: Range<u64>,
        threads: usize,
        window: usize,
    ) -> Self {
        let from = positions.start;
        let state = PrefetchState {
            at: from,
            next: from,
            ready: BTreeMap::new(),
            bad: bad.clone(),
            closed: false,
            not_started: None,
        };
        let shared = Arc::new(Shared {
            source,
            window: window.max(1) as u64,
            end: positions.end,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        // The threads are not joined when the prefetcher is dropped: a thread that decodes a media file could block
        // until the decoding timeout.
        let start = |_| {
            let (worker, order) = (shared.clone(), order.clone());
            Builder::new().name("rows".into()).spawn(move || worker.run_worker(order)).map(drop)
        };
        shared.lock().not_started = error_without_threads((0..threads.max(1)).map(start));
        Self { shared, order }
    }

    /// The row at position `slot` of the order.
    pub fn row(&mut self, slot: u64) -> usize {
        self.order.row_at(slot)
    }

    /// Number of rows of the source.
    pub fn row_count(&self) -> usize {
        self.shared.source.row_count()
    }

    /// Returns the location of a row for messages (`FILE:LINE`), and its line number.
    pub fn location(&self, row: usize) -> (String, usize) {
        self.shared.source.location(row)
    }

    /// Marks rows that the threads must not prepare.
    pub fn skip_rows(&self, rows: impl Iterator<Item = usize>) {
        self.shared.lock().bad.extend(rows);
    }

    /// Waits for the sample of the row at position `slot` and returns it. Samples before that position are dropped.
    pub fn get(&self, slot: u64) -> Result<S::Sample> {
        loop {
            if let Some(result) = self.get_within(slot, Duration::from_secs(3600)) {
                return result;
            }
        }
    }

    /// Returns the sample of the row at position `slot`, or `None` if it is not ready within `patience`. Samples before
    /// that position are dropped.
    pub fn get_within(&self, slot: u64, patience: Duration) -> Option<Result<S::Sample>> {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        if state.at < slot {
            state.at = slot;
            state.ready = state.ready.split_off(&slot);
            self.shared.changed.notify_all();
        }
        loop {
            if let Some(result) = state.ready.remove(&slot) {
                return Some(result);
            }
            if let Some(reason) = &state.not_started {
                return Some(Err(SampleError::cannot_start_thread("rows", reason)));
            }
            if state.closed {
                let (location, _) = self.location(self.order.clone().row_at(slot));
                return Some(Err(SampleError::data(
                    location,
                    "a thread that prepares rows panicked",
                    "report this as a bug, and include the row",
                )));
            }
            let left = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())?;
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Puts back a sample that did not fit into the packed micro-batch, so that the next micro-batch begins with it.
    pub fn put_back(&self, slot: u64, sample: S::Sample) {
        self.shared.lock().ready.insert(slot, Ok(sample));
    }
}

impl<S: SampleSource> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, PrefetchState<S::Sample>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The loop of a worker thread: claims the next row, at most `window` rows ahead of the consumer, and prepares
    /// it.
    fn run_worker(&self, mut order: RowOrder) {
        let _close = CloseOnPanic(self);
        loop {
            let mut state = self.lock();
            let slot = loop {
                if state.closed {
                    return;
                }
                state.next = state.next.max(state.at);
                if state.next < self.end.min(state.at.saturating_add(self.window)) {
                    break state.next;
                }
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            };
            state.next += 1;
            let row = order.row_at(slot);
            let known_bad = state.bad.contains(&row);
            drop(state);
            if known_bad {
                continue;
            }
            let result = self.source.sample(row);
            let mut state = self.lock();
            if result.as_ref().is_err_and(is_row_error) {
                state.bad.insert(row);
            }
            state.ready.insert(slot, result);
            self.changed.notify_all();
        }
    }
}

/// A drop guard of a worker thread: if the thread panics, the guard closes the prefetcher, so that the consumer does
/// not wait forever.
struct CloseOnPanic<'a, S: SampleSource>(&'a Shared<S>);

impl<S: SampleSource> Drop for CloseOnPanic<'_, S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().closed = true;
            self.0.changed.notify_all();
        }
    }
}

impl<S: SampleSource> Drop for Prefetcher<S> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::tests::rows_of_ones;
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
    fn a_prefetcher_without_threads_returns_their_error() {
        let source = Arc::new(rows_of_ones(2));
        let ahead = Prefetcher::new(source, RowOrder::file_order(2), &BTreeSet::new(), 0..0, 1, 2);
        ahead.shared.lock().not_started = Some(io::Error::from_raw_os_error(11));
        let e = ahead.get(0).unwrap_err();
        assert!(e.to_string().starts_with("rows: its thread cannot be created: "), "{e}");
        assert!(!is_row_error(&e));
    }
}
