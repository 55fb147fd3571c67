//! Makes micro-batches of rows: groups the rows, skips unusable rows, and tracks the position in the data. Threads
//! prepare rows ahead of time. The micro-batches depend only on the rows, not on the number of threads.

mod cursor;
mod prefetch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::order::RowOrder;
use crate::skipped_row::SkippedRow;
use crate::token_limit::check_token_count;
use crate::{Result, SampleError};

pub use cursor::StepRowCursor;
pub use prefetch::{Prefetcher, decoding_threads};

/// A source of training samples: one sample for each row of the data. An error for which [`is_row_error`] is true
/// concerns one row, which can be skipped.
pub trait SampleSource: Send + Sync + 'static {
    /// The training sample made of a row, in the form that the training step needs.
    type Sample: Send + 'static;
    /// Number of rows.
    fn row_count(&self) -> usize;
    /// Prepares row `row`, counted from 0: tokenizes its text and loads its media.
    fn sample(&self, row: usize) -> Result<Self::Sample>;
    /// Number of tokens of a sample.
    fn token_count(sample: &Self::Sample) -> usize;
    /// Returns where a row is in its file: `FILE:LINE` for messages, and the line number.
    fn location(&self, row: usize) -> (String, usize);
}

/// Whether an error concerns a single row. If so, the run can skip that row.
pub fn is_row_error(e: &SampleError) -> bool {
    matches!(e, SampleError::Row(_) | SampleError::TooLong(_) | SampleError::Media { .. } | SampleError::Data(_))
}

/// How rows are grouped into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatchOptions {
    /// Rows per micro-batch; ignored with packing.
    pub rows: usize,
    /// Whether each micro-batch is filled with rows up to `max_length` tokens in all.
    pub packing: bool,
    /// Maximum tokens of a row and, with packing, of a micro-batch.
    pub max_length: Option<usize>,
    /// The name of the flag that sets `max_length`, for messages.
    pub limit: &'static str,
    /// Number of rows, over all epochs, after which the feed ends; with `None` the feed never ends.
    pub end: Option<u64>,
    /// Whether the run fails at the first unusable row instead of skipping it.
    pub strict: bool,
}

/// The position of a run in its data, as a checkpoint stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// Number of rows passed so far over all epochs, skipped rows included. This is also the index of the next row in
    /// the sequence of all epochs' rows.
    pub slot: u64,
    /// Unusable rows found so far, in the order in which they were found. Later epochs do not try these rows again.
    pub skipped: Vec<usize>,
}

/// One micro-batch: its rows and their samples. The micro-batch has no rows if the data ended and all remaining rows
/// were unusable.
#[derive(Debug)]
pub struct MicroBatch<S> {
    /// Row numbers in the data file, counted from 0.
    pub rows: Vec<usize>,
    /// The samples made of the rows `rows`, in the same order.
    pub samples: Vec<S>,
    /// Unusable rows found while this micro-batch was made.
    pub skipped: Vec<SkippedRow>,
    /// The data position after this micro-batch (see [`DataPosition::slot`]).
    pub slot: u64,
}

impl DataPosition {
    /// Moves the position past `batch` and adds the unusable rows that were found while the batch was made.
    pub fn advance_past<S>(&mut self, batch: &MicroBatch<S>) {
        self.slot = batch.slot;
        self.skipped.extend(batch.skipped.iter().map(|s| s.row));
    }
}

/// Iterates over the micro-batches of a run.
pub struct MicroBatchFeed<S: SampleSource> {
    ahead: Prefetcher<S>,
    batching: MicroBatchOptions,
    slot: u64,
    bad: BTreeSet<usize>,
    /// Whether any row has been used so far, by this process or, in a resumed run, by an earlier one.
    used: bool,
    /// Rows that the feed skips without preparing them, by row number (see [`Self::skip_when_reached`]).
    expected: BTreeMap<usize, SkippedRow>,
}

impl<S: SampleSource> MicroBatchFeed<S> {
    /// Creates a feed that starts at data position `from`. `threads` background threads prepare at most `window` rows
    /// ahead.
    pub fn new(
        source: Arc<S>,
        order: RowOrder,
        batching: MicroBatchOptions,
        from: &DataPosition,
        threads: usize,
        window: usize,
    ) -> Self {
        let bad: BTreeSet<usize> = from.skipped.iter().copied().collect();
        let positions = from.slot..batching.end.unwrap_or(u64::MAX);
        let ahead = Prefetcher::new(source, order, &bad, positions, threads, window);
        Self { ahead, batching, slot: from.slot, bad, used: from.slot > 0, expected: BTreeMap::new() }
    }

    /// Makes the feed skip `rows` when it reaches them, for the reasons that an earlier process of the run recorded.
    pub fn skip_when_reached(mut self, rows: Vec<SkippedRow>) -> Self {
        self.ahead.skip_rows(rows.iter().map(|row| row.row));
        self.expected = rows.into_iter().map(|row| (row.row, row)).collect();
        self
    }

    /// Returns the next micro-batch, or `None` after the last row of the last epoch.
    pub fn next_micro_batch(&mut self) -> Result<Option<MicroBatch<S::Sample>>> {
        let mut batch = MicroBatch { rows: Vec::new(), samples: Vec::new(), skipped: Vec::new(), slot: self.slot };
        let (mut filled, mut slot) = (0, self.slot);
        while !self.is_full(&batch, slot, filled) {
            let row = self.ahead.row(slot);
            if self.bad.contains(&row) {
                slot += 1;
                continue;
            }
            let expected = self.expected.remove(&row);
            match expected.map_or_else(|| self.sample_or_skip(slot, row), |skipped| Ok(Err(skipped)))? {
                Err(skipped) => batch.skipped.push(self.skip(skipped)?),
                Ok(sample) => {
                    filled += S::token_count(&sample);
                    if self.exceeds_max_length(&batch, filled) {
                        self.ahead.put_back(slot, sample);
                        break;
                    }
                    self.used = true;
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
        let MicroBatchOptions { rows, packing, max_length, end, .. } = self.batching;
        let ended = end.is_some_and(|end| slot >= end);
        ended || if packing { max_length.is_some_and(|max| filled >= max) } else { batch.rows.len() >= rows }
    }

    fn exceeds_max_length(&self, batch: &MicroBatch<S::Sample>, filled: usize) -> bool {
        self.batching.packing && !batch.rows.is_empty() && self.batching.max_length.is_some_and(|m| filled > m)
    }

    /// Returns the sample of row `row`, which is at position `slot`, or the reason why the row is skipped.
    fn sample_or_skip(&self, slot: u64, row: usize) -> Result<Result<S::Sample, SkippedRow>> {
        match self.ahead.get(slot).and_then(|sample| self.check_token_count(row, sample)) {
            Ok(sample) => Ok(Ok(sample)),
            Err(e) if is_row_error(&e) && !self.batching.strict => {
                Ok(Err(SkippedRow::new(row, self.ahead.location(row).1, &e)))
            }
            Err(e) => Err(e),
        }
    }

    fn check_token_count(&self, row: usize, sample: S::Sample) -> Result<S::Sample> {
        let MicroBatchOptions { limit, max_length, .. } = self.batching;
        check_token_count(|| self.ahead.location(row).0, S::token_count(&sample), limit, max_length)?;
        Ok(sample)
    }

    fn skip(&mut self, skipped: SkippedRow) -> Result<SkippedRow> {
        self.bad.insert(skipped.row);
        match self.bad.len() >= self.ahead.row_count() {
            true => Err(SampleError::no_usable_row(&self.ahead.location(skipped.row).0, &skipped.reason, self.used)),
            false => Ok(skipped),
        }
    }
}

#[cfg(test)]
mod tests;
