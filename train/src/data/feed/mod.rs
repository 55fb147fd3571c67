//! Micro-batches from rows: which rows go together, which are left out, and how far into the data that is. Rows are
//! prepared ahead on other threads; what comes out depends on the rows alone, not on the threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::data::length;
use crate::data::order::Order;
use crate::reporting::metrics::SkippedRow;
use crate::{Result, TrainError};

/// Makes samples of rows. An error that [`is_row_fault`] is about that row alone: it may be left out.
pub trait SampleSource: Send + Sync + 'static {
    /// What a row becomes.
    type Sample: Send + 'static;
    /// How many rows there are.
    fn row_count(&self) -> usize;
    /// Prepares row `row`.
    fn sample(&self, row: usize) -> Result<Self::Sample>;
    /// Tokens of a sample.
    fn token_count(sample: &Self::Sample) -> usize;
    /// File and line of a row.
    fn location(&self, row: usize) -> (String, usize);
}

/// Whether an error concerns one row, so that the others can still be trained on.
pub fn is_row_fault(e: &TrainError) -> bool {
    matches!(e, TrainError::Row(_) | TrainError::Data(_))
}

/// How rows are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows of a micro-batch; with packing as many as fit.
    pub rows: usize,
    /// Fill micro-batches up to `max_length` tokens instead.
    pub packing: bool,
    /// The most tokens of a row, and with packing of a micro-batch.
    pub max_length: Option<usize>,
    /// The flag that sets it, for messages.
    pub limit: &'static str,
    /// Where the stream of rows ends; `None`: nowhere.
    pub end: Option<u64>,
    /// A row that cannot be used is an error.
    pub strict: bool,
}

/// How far a run is in its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// The next place in the stream of rows.
    pub slot: u64,
    /// Rows found unusable so far, in the order in which they were found. They are not tried again.
    pub skipped: Vec<usize>,
}

/// Rows whose loss is one mean. The last of a run may have none, when what was left of the data cannot be used.
#[derive(Debug)]
pub struct MicroBatch<S> {
    /// The rows, counted from 0.
    pub rows: Vec<usize>,
    /// What they became.
    pub samples: Vec<S>,
    /// Rows found unusable on the way.
    pub skipped: Vec<SkippedRow>,
    /// The place in the stream after this.
    pub slot: u64,
}

impl DataPosition {
    /// The position after a micro-batch.
    pub fn advance<S>(&mut self, batch: &MicroBatch<S>) {
        self.slot = batch.slot;
        self.skipped.extend(batch.skipped.iter().map(|s| s.row));
    }
}

/// The micro-batches of a run, one after the other.
pub struct BatchFeed<S: SampleSource> {
    ahead: Prefetcher<S>,
    batching: BatchOptions,
    slot: u64,
    bad: BTreeSet<usize>,
}

impl<S: SampleSource> BatchFeed<S> {
    /// The micro-batches from `from` on. `threads` prepare up to `window` rows ahead.
    pub fn new(
        source: Arc<S>,
        order: Order,
        batching: BatchOptions,
        from: &DataPosition,
        threads: usize,
        window: usize,
    ) -> Self {
        let bad: BTreeSet<usize> = from.skipped.iter().copied().collect();
        let ahead = Prefetcher::new(source, order, &bad, from.slot, threads, window);
        Self { ahead, batching, slot: from.slot, bad }
    }

    /// The next micro-batch; `None` at the end of the stream.
    pub fn next_batch(&mut self) -> Result<Option<MicroBatch<S::Sample>>> {
        let mut batch = MicroBatch { rows: Vec::new(), samples: Vec::new(), skipped: Vec::new(), slot: self.slot };
        let (mut filled, mut slot) = (0, self.slot);
        while !self.is_full(&batch, slot, filled) {
            let row = self.ahead.row(slot);
            if self.bad.contains(&row) {
                slot += 1;
                continue;
            }
            match self.ahead.get(slot).and_then(|s| self.fitting(row, s)) {
                Err(e) if is_row_fault(&e) && !self.batching.strict => batch.skipped.push(self.skip(row, &e)?),
                Err(e) => return Err(e),
                Ok(sample) => {
                    filled += S::token_count(&sample);
                    if self.overfull(&batch, filled) {
                        self.ahead.put_back(slot, sample);
                        break;
                    }
                    batch.rows.push(row);
                    batch.samples.push(sample);
                }
            }
            slot += 1;
            batch.slot = slot;
        }
        self.slot = batch.slot;
        let ended = batch.rows.is_empty() && batch.skipped.is_empty();
        Ok(if ended { None } else { Some(batch) })
    }

    fn is_full(&self, batch: &MicroBatch<S::Sample>, slot: u64, filled: usize) -> bool {
        let BatchOptions { rows, packing, max_length, end, .. } = self.batching;
        let ended = end.is_some_and(|end| slot >= end);
        ended || if packing { max_length.is_some_and(|most| filled >= most) } else { batch.rows.len() >= rows }
    }

    fn overfull(&self, batch: &MicroBatch<S::Sample>, filled: usize) -> bool {
        self.batching.packing && !batch.rows.is_empty() && self.batching.max_length.is_some_and(|m| filled > m)
    }

    fn fitting(&self, row: usize, sample: S::Sample) -> Result<S::Sample> {
        let tokens = S::token_count(&sample);
        match self.batching.max_length {
            Some(most) if tokens > most => {
                Err(length::too_long(&self.ahead.location(row).0, tokens, self.batching.limit, most))
            }
            _ => Ok(sample),
        }
    }

    fn skip(&mut self, row: usize, e: &TrainError) -> Result<SkippedRow> {
        self.bad.insert(row);
        let (location, line) = self.ahead.location(row);
        if self.bad.len() >= self.ahead.row_count() {
            return Err(length::no_usable_row(&location, &e.to_string()));
        }
        Ok(SkippedRow { row, line, reason: e.to_string() })
    }
}

/// Prepares rows ahead of their use, in the order of the stream.
struct Prefetcher<S: SampleSource> {
    shared: Arc<Shared<S>>,
    order: Order,
}

struct Shared<S: SampleSource> {
    source: Arc<S>,
    window: u64,
    state: Mutex<PrefetchState<S::Sample>>,
    changed: Condvar,
}

struct PrefetchState<T> {
    /// The place that the consumer is at; nothing before it is kept.
    at: u64,
    /// The next place that nobody prepares yet.
    next: u64,
    ready: BTreeMap<u64, Result<T>>,
    bad: BTreeSet<usize>,
    closed: bool,
}

impl<S: SampleSource> Prefetcher<S> {
    fn new(source: Arc<S>, order: Order, bad: &BTreeSet<usize>, from: u64, threads: usize, window: usize) -> Self {
        let state = PrefetchState { at: from, next: from, ready: BTreeMap::new(), bad: bad.clone(), closed: false };
        let shared = Arc::new(Shared {
            source,
            window: window.max(1) as u64,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        for _ in 0..threads.max(1) {
            // Nobody waits for these threads: the last row that they work on may take as long as its deadline.
            let (shared, order) = (shared.clone(), order.clone());
            std::thread::spawn(move || shared.run_worker(order));
        }
        Self { shared, order }
    }

    fn row(&mut self, slot: u64) -> usize {
        self.order.row(slot)
    }

    fn row_count(&self) -> usize {
        self.shared.source.row_count()
    }

    fn location(&self, row: usize) -> (String, usize) {
        self.shared.source.location(row)
    }

    /// The sample at `slot`, waiting for it where needed. Places before it are forgotten.
    fn get(&self, slot: u64) -> Result<S::Sample> {
        let mut state = self.shared.lock();
        state.at = slot;
        state.ready = state.ready.split_off(&slot);
        self.shared.changed.notify_all();
        loop {
            if let Some(result) = state.ready.remove(&slot) {
                return result;
            }
            if state.closed {
                let (location, _) = self.location(self.order.clone().row(slot));
                return Err(TrainError::data(
                    location,
                    "preparing it ended early",
                    "report this as a defect, with the row",
                ));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Keeps a sample that is used later after all.
    fn put_back(&self, slot: u64, sample: S::Sample) {
        self.shared.lock().ready.insert(slot, Ok(sample));
    }
}

impl<S: SampleSource> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, PrefetchState<S::Sample>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What a thread does: the next place that nobody has, as long as it is near.
    fn run_worker(&self, mut order: Order) {
        let _close = CloseOnPanic(self);
        loop {
            let mut state = self.lock();
            let slot = loop {
                if state.closed {
                    return;
                }
                state.next = state.next.max(state.at);
                if state.next < state.at + self.window {
                    break state.next;
                }
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            };
            state.next += 1;
            let row = order.row(slot);
            let known_bad = state.bad.contains(&row);
            drop(state);
            if known_bad {
                continue;
            }
            let result = self.source.sample(row);
            let mut state = self.lock();
            if result.as_ref().is_err_and(is_row_fault) {
                state.bad.insert(row);
            }
            state.ready.insert(slot, result);
            self.changed.notify_all();
        }
    }
}

/// A thread that dies must not leave the consumer waiting.
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
mod tests;
