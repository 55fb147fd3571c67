//! Keeps track of the rows that a step uses.

use std::sync::atomic::AtomicBool;

use reel_diagnostic::Diagnostic;
use reel_ranks::Ranks;

use super::{DataPosition, MicroBatch, MicroBatchFeed, SampleSource, all_gather};
use crate::error::error_if_stopped;
use crate::skipped_row::SkippedRow;
use crate::{Result, SampleError};

/// Collects which rows one step uses, and where in the data the next step begins.
#[derive(Debug, Default)]
pub struct StepRowCursor {
    /// The position in the data after the rows that the step has used so far.
    pub position: DataPosition,
    /// Rows that the step trains on.
    pub rows: Vec<usize>,
    /// Rows that were skipped.
    pub skipped: Vec<SkippedRow>,
}

impl StepRowCursor {
    /// Returns the next batch of `feed` that has usable rows; `None` at the end of the data.
    ///
    /// # Errors
    /// [`SampleError::Stopped`] when `stop` is true, or the error of a row in a strict run.
    pub fn next_micro_batch<S: SampleSource>(
        &mut self,
        feed: &mut MicroBatchFeed<S>,
        stop: &AtomicBool,
    ) -> Result<Option<MicroBatch<S::Sample>>> {
        loop {
            error_if_stopped(stop)?;
            let Some(mut batch) = feed.next_micro_batch()? else { return Ok(None) };
            self.position.advance_past(&batch);
            self.skipped.append(&mut batch.skipped);
            self.rows.extend(&batch.rows);
            if !batch.rows.is_empty() {
                return Ok(Some(batch));
            }
        }
    }

    /// Checks that all ranks have used and skipped the same rows in this step, if each of them reads all rows. All ranks
    /// call it together.
    ///
    /// # Errors
    /// A rank cannot use a row that another one can use, such as one whose file is not on its machine; another rank has
    /// failed. All ranks get the same error.
    pub fn check_same_rows(&self, ranks: &Ranks) -> Result<()> {
        let of_ranks = all_gather(ranks, "rows of a step", &(self.rows.clone(), self.skipped.clone()))?;
        let skips = |rank: usize, row: usize| of_ranks[rank].1.iter().any(|skipped| skipped.row == row);
        for (rank, (rows, skipped)) in of_ranks.iter().enumerate() {
            // The first row that one of the two ranks has skipped, and the other one has not.
            let alone = |rank: usize, other: usize| of_ranks[rank].1.iter().find(|skipped| !skips(other, skipped.row));
            let failed = alone(rank, 0).map(|skipped| (rank, skipped)).or(alone(0, rank).map(|skipped| (0, skipped)));
            if let Some((rank, skipped)) = failed {
                let what = format!("cannot use a row that another rank can use: {}", skipped.reason);
                let help = "make all media files readable on every machine";
                return Err(SampleError::MediaUnavailable(Diagnostic::new(format!("rank {rank}"), what, help)));
            }
            if (rows, skipped.len()) != (&of_ranks[0].0, of_ranks[0].1.len()) {
                let help = "start all ranks with the same data and options";
                return Err(SampleError::output(format!("rank {rank}"), "has other rows than rank 0", help));
            }
        }
        Ok(())
    }
}
