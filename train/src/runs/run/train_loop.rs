//! Defines [`TrainLoop`], the part of a run that each training command implements.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::options::TrainingOptions;
use crate::setup::{DataSetup, RunSetup};
use crate::step::trainer::{StepResult, Trainer};
use reel_samples::feed::{FeedRanks, MicroBatchFeed, MicroBatchOptions, StepRowCursor};
use reel_samples::source::DataSource;
use reel_support::ranks::Ranks;

use super::validation::ValidationRows;

/// The part of a run that differs between the training commands `sft` and `grpo`: the data, and what one step does.
pub trait TrainLoop<'a>: Sized {
    /// The options of the command.
    type Options: TrainingOptions + 'a;
    /// The data source from which micro-batches are made.
    type DataSource: DataSource;

    /// Opens the data source of the run.
    fn open_rows(options: &Self::Options, data: &DataSetup) -> Result<Self::DataSource>;
    /// Returns how rows are grouped into micro-batches, for data with `rows` rows.
    fn batching(options: &Self::Options, rows: usize) -> MicroBatchOptions;
    /// Number of training steps of a run whose data gives `batches` micro-batches.
    fn step_count(options: &Self::Options, batches: u64) -> u64;
    /// Number of rows that a process prepares ahead, if the run has `processes` processes.
    fn rows_ahead(options: &Self::Options, processes: usize) -> usize;
    /// Returns how the processes of a run share the rows of a step's micro-batches.
    fn shared_feed(options: &Self::Options, ranks: &Arc<Ranks>) -> FeedRanks;
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
    /// The validation rows; `None` if the run has none.
    fn validation(&self) -> Option<&ValidationRows<'a>> {
        None
    }
    /// The files that this loop needs in a checkpoint in addition to weights and optimizer state, as pairs of the
    /// path in the checkpoint folder and the contents.
    fn resume_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
}
