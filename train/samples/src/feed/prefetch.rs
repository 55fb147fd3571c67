//! Prepares rows in the order in which they are used, a few rows ahead of the consumer.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::SampleSource;
use super::preparer::RowPreparer;
use crate::Result;
use crate::order::RowOrder;

/// Prepares samples on background threads before they are needed. The consumer gets them in the order of the rows.
pub struct Prefetcher<S: SampleSource> {
    rows: RowPreparer<S>,
    order: RowOrder,
    /// Rows that are left out and not prepared.
    left_out: BTreeSet<usize>,
    /// The position in the data after the last row.
    end: u64,
    window: u64,
}

/// The number of threads that decode images and videos, for each of `processes` processes on this machine: a quarter
/// of the process's CPU cores, at most 8. The other cores are left for computing. A single process has at least 2
/// threads, because with one thread an evaluation of short videos would wait for the decoder while cores are idle.
/// Each of several processes has at least 1 thread.
pub fn decoding_threads(processes: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(8, usize::from) / processes.max(1);
    (cores / 4).clamp(if processes > 1 { 1 } else { 2 }, 8)
}

impl<S: SampleSource> Prefetcher<S> {
    /// Prepares the rows at the positions `positions` of `order`, on `threads` background threads, at most `window`
    /// rows ahead of the consumer. The rows in `left_out` are not prepared.
    pub fn new(
        source: Arc<S>,
        order: RowOrder,
        left_out: &BTreeSet<usize>,
        positions: Range<u64>,
        threads: usize,
        window: usize,
    ) -> Self {
        let (rows, left_out, window) = (RowPreparer::new(source, threads), left_out.clone(), window.max(1) as u64);
        let mut new = Self { rows, order, left_out, end: positions.end, window };
        new.prepare_from(positions.start);
        new
    }

    fn prepare_from(&mut self, slot: u64) {
        let window = slot..self.end.min(slot.saturating_add(self.window));
        let rows = window.map(|slot| (slot, self.order.row_at(slot)));
        self.rows.request_rows(rows.filter(|(_, row)| !self.left_out.contains(row)).collect());
    }

    /// Returns the sample of the row at position `slot`, or `None` if it is not ready within `patience`. Samples before
    /// that position are dropped.
    pub fn get_sample_within(&mut self, slot: u64, patience: Duration) -> Option<Result<S::Sample>> {
        self.rows.drop_samples_before(slot);
        self.prepare_from(slot);
        self.rows.take_sample_within(slot, self.order.row_at(slot), patience)
    }
}
