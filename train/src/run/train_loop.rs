//! What the training commands define of a run: [`TrainLoop`], their data, and which rows a step uses.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{RunSetup, error_if_stopped};
use crate::Result;
use crate::data::dataset::DataFile;
use crate::data::feed::{DataPosition, MicroBatch, MicroBatchFeed, MicroBatchOptions, SampleSource};
use crate::data::mixture::Mixture;
use crate::options::TrainingOptions;
use crate::reporting::metrics::SkippedRow;
use crate::step::trainer::{StepResult, Trainer};

/// A source of samples with a fingerprint, by which a resumed run checks that its data is the same.
pub trait DataSource: SampleSource {
    /// Fingerprint of the data files, without media.
    fn fingerprint(&self) -> String;
    /// The data files with their fingerprints.
    fn files(&self) -> &[DataFile];
    /// How the data files are mixed, if they have weights.
    fn mixture(&self) -> Option<&Mixture>;
    /// Checks the fields of a row, without loading its media.
    fn validate_row(&self, row: usize) -> Result<()>;
}

/// What differs between the training commands (`sft` and `grpo`): their data, and what one step does.
pub trait TrainLoop<'a>: Sized {
    /// The options of the command.
    type Options: TrainingOptions + 'a;
    /// The data that micro-batches are made of.
    type DataSource: DataSource;

    /// Opens the data.
    fn open_rows(setup: &RunSetup<'a, Self::Options>) -> Result<Self::DataSource>;
    /// How rows are grouped into micro-batches, if the data has `rows` rows.
    fn batching(options: &Self::Options, rows: usize) -> MicroBatchOptions;
    /// Number of training steps that a run does if the data feed gives it `batches` batches.
    fn step_count(options: &Self::Options, batches: u64) -> u64;
    /// Whether every row must be read with its media before the first step.
    fn must_scan_all_rows(options: &Self::Options) -> bool;
    /// Creates the training loop before the first step. `from` is the folder of the checkpoint if the run resumes.
    fn begin(
        setup: &RunSetup<'a, Self::Options>,
        rows: Arc<Self::DataSource>,
        feed: MicroBatchFeed<Self::DataSource>,
        trainer: &mut Trainer,
        from: Option<&Path>,
    ) -> Result<Self>;
    /// Does step `n`, counted from 1. Returns `None` if the data has ended.
    fn step(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut StepRowCursor) -> Result<Option<StepResult>>;
    /// Files that a checkpoint needs for this loop besides weights and optimizer state, as (path in the checkpoint
    /// folder, contents).
    fn resume_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
}

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
    /// [`TrainError::Stopped`] when `stop` is true, or the error of a row in a strict run.
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
            if !batch.samples.is_empty() {
                return Ok(Some(batch));
            }
        }
    }
}
