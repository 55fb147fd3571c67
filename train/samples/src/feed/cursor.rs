//! Tracks the rows that a step uses.

use std::sync::atomic::AtomicBool;

use super::{DataPosition, MicroBatch, MicroBatchFeed, SampleSource, error_if_stopped};
use crate::Result;
use crate::skipped_row::SkippedRow;

/// Collects which rows one step uses, and where in the data the next step begins.
#[derive(Debug, Default)]
pub struct StepRowCursor {
    /// The position in the data after the rows that the step has used so far.
    pub position: DataPosition,
    /// Rows that the step trains on.
    pub rows: Vec<usize>,
    /// Rows that were skipped during the step.
    pub skipped: Vec<SkippedRow>,
}

impl StepRowCursor {
    /// Returns the next batch of `feed` that has usable rows; `None` at the end of the data.
    ///
    /// # Errors
    /// [`Kind::Stopped`](crate::error::Kind::Stopped) when `stop` is true, or the error of a row in a strict run.
    pub fn next_micro_batch<S: SampleSource>(
        &mut self,
        feed: &mut MicroBatchFeed<S>,
        stop: &AtomicBool,
    ) -> Result<Option<MicroBatch<S::Sample>>> {
        loop {
            error_if_stopped(stop)?;
            let Some(mut batch) = feed.next_micro_batch_or_stop(Some(stop))? else { return Ok(None) };
            self.position.advance_past(&batch);
            self.skipped.append(&mut batch.skipped);
            self.rows.extend(&batch.rows);
            if !batch.rows.is_empty() {
                return Ok(Some(batch));
            }
        }
    }
}
