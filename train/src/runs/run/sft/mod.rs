//! `reel sft`: supervised fine-tuning on conversations.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::options::{SftOptions, TruncationStrategy};
use crate::step::sft::step;
use crate::step::trainer::{StepResult, Trainer};
use reel_input::fetch::MediaAccess;
use reel_input::media::worker::DecodeWorker;
use reel_input::{MediaOptions, ModelFolder, SecondPerGrid};
use reel_samples::dataset::Dataset;
use reel_samples::feed::{FeedRanks, MicroBatchFeed, MicroBatchOptions, RankAssignment, StepRowCursor};
use reel_samples::labels::TokenLabeler;
use reel_samples::media_files::ReadMediaFiles;
use reel_samples::sample::{SampleCache, SftSampleSource};
use reel_samples::source::DataSource;
use reel_support::ranks::Ranks;

use crate::runs::run::replay::{self, ReplayReport};
use crate::runs::run::start::media_threads;
use crate::runs::run::{self, TrainLoop, ValidationRows};
use crate::setup::{DataSetup, RunControl};

pub use crate::runs::run::{DataCheckResult, RunSummary};
pub use crate::setup::SftSetup;

/// Trains to the last step, or until `setup.control.stop` becomes true.
pub fn run(setup: &SftSetup) -> Result<RunSummary> {
    run::run::<SftLoop>(setup)
}

/// Checks every row of the data and of `--eval-file`, including their media, without training.
pub fn check_data(setup: &SftSetup) -> Result<DataCheckResult> {
    let of_data = run::check_data::<SftLoop>(setup)?;
    let Some(file) = &setup.options.eval_file else { return Ok(of_data) };
    let validation = open_rows(setup.options, &setup.data, setup.control, ("--eval-file", file), None)?;
    Ok(DataCheckResult { validation: Some(validation.check_rows()?), ..of_data })
}

/// Repeats step `step` of the run in `recorded` and compares the weights. See [`replay`].
pub fn replay_step(setup: &SftSetup, recorded: &Path, step: u64, want: &str) -> Result<ReplayReport> {
    replay::replay::<SftLoop>(setup, recorded, step, want)
}

/// The training loop of supervised fine-tuning.
pub(crate) struct SftLoop<'a> {
    feed: MicroBatchFeed<SftSampleSource>,
    stop: &'a AtomicBool,
    validation: Option<ValidationRows<'a>>,
}

impl<'a> TrainLoop<'a> for SftLoop<'a> {
    type Options = SftOptions;
    type DataSource = SftSampleSource;

    fn open_rows(options: &SftOptions, data: &DataSetup) -> Result<SftSampleSource> {
        open_samples(options, data)
    }

    fn batching(options: &SftOptions, rows: usize) -> MicroBatchOptions {
        MicroBatchOptions {
            rows: options.per_device_train_batch_size,
            packing: options.packing,
            max_length: options.max_length,
            limit: "--max-length",
            end: options.rows_in_all_epochs(rows),
            strict: options.strict,
        }
    }

    fn step_count(options: &SftOptions, batches: u64) -> u64 {
        batches.div_ceil(options.gradient_accumulation_steps as u64)
    }

    fn rows_ahead(options: &SftOptions, _: usize) -> usize {
        2 * options.per_device_train_batch_size.max(2)
    }

    fn shared_feed(options: &SftOptions, ranks: &Arc<Ranks>) -> FeedRanks {
        let per_step = options.gradient_accumulation_steps;
        FeedRanks { ranks: ranks.clone(), per_step, assignment: RankAssignment::InTurn }
    }

    /// True with `--check-data`. Also true with packing (unless `--max-steps` is given), because the number of
    /// micro-batches then depends on the length of every row.
    fn must_scan_all_rows(options: &SftOptions) -> bool {
        options.check_data || options.packing && options.requested_step_count().is_none()
    }

    fn begin(
        setup: &SftSetup<'a>,
        rows: Arc<SftSampleSource>,
        feed: MicroBatchFeed<SftSampleSource>,
        _: &mut Trainer,
        _: Option<&Path>,
    ) -> Result<Self> {
        let validation = open_validation(setup.options, &setup.data, setup.control, &rows)?;
        if let (true, Some(_), Some(rows)) = (setup.options.check_data, &setup.options.eval_file, &validation) {
            rows.check_rows()?.print_unusable(setup.reports.quiet);
        }
        Ok(Self { feed, stop: setup.control.stop, validation })
    }

    fn validation(&self) -> Option<&ValidationRows<'a>> {
        self.validation.as_ref()
    }

    fn step(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut StepRowCursor) -> Result<Option<StepResult>> {
        step(trainer, n, || {
            let batch = cursor.next_micro_batch(&mut self.feed, self.stop)?;
            Ok(batch.map(|batch| batch.samples))
        })
    }

    /// Returns no files, because a resume only needs the position in the data, which is part of the run state.
    fn resume_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        Ok(Vec::new())
    }
}

/// Opens the validation rows of a run: the rows of `--eval-file`, or the rows of `--data` that `training` holds back.
/// `None` if the run has no validation rows.
///
/// # Errors
/// The file cannot be opened; in a strict run, the fields of a row cannot be used.
pub fn open_validation<'a>(
    options: &SftOptions,
    data: &DataSetup<'_>,
    control: RunControl<'a>,
    training: &Arc<SftSampleSource>,
) -> Result<Option<ValidationRows<'a>>> {
    match &options.eval_file {
        Some(file) => open_rows(options, data, control, ("--eval-file", file), None).map(Some),
        None if options.held_out_size().is_some() => {
            let held_out = training.held_out_rows().to_vec();
            validation_of(options, data, control, training.clone(), ("--val-size", held_out)).map(Some)
        }
        None => Ok(None),
    }
}

/// Opens the rows of `file`, the value of the option `flag`, to compute their loss: all, or the first `max_rows`.
///
/// # Errors
/// The file cannot be opened; the fields of no row can be used.
pub fn open_rows<'a>(
    options: &SftOptions,
    data: &DataSetup<'_>,
    control: RunControl<'a>,
    (flag, file): (&'static str, &Path),
    max_rows: Option<usize>,
) -> Result<ValidationRows<'a>> {
    let dataset = Dataset::open_for_option(flag, file, max_rows)?;
    dataset.refuse_weights_for_option(flag)?;
    let rows = (0..dataset.len()).collect();
    let media_root = options.run.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(file));
    let source = open_samples_of(options, data, dataset, media_root)?;
    validation_of(options, data, control, Arc::new(source), (flag, rows))
}

/// Makes validation rows from the rows `rows` of `source`, which the option `flag` names.
fn validation_of<'a>(
    options: &SftOptions,
    data: &DataSetup<'_>,
    control: RunControl<'a>,
    source: Arc<SftSampleSource>,
    (flag, rows): (&'static str, Vec<usize>),
) -> Result<ValidationRows<'a>> {
    let batching = SftLoop::batching(options, rows.len());
    let ahead = SftLoop::rows_ahead(options, control.processes());
    ValidationRows::new(options, control, source, (flag, rows), batching, (media_threads(data.media, &control), ahead))
}

/// Opens the data file as supervised training samples.
pub fn open_samples(options: &SftOptions, data: &DataSetup) -> Result<SftSampleSource> {
    let mut dataset = Dataset::open_first_rows(&options.data, options.max_samples)?;
    if let Some(size) = options.held_out_size() {
        dataset.hold_out_rows(size, data.seed)?;
    }
    open_samples_of(options, data, dataset, options.media_root())
}

/// Makes training samples from the rows of `dataset`. Relative paths of media refer to `media_root`.
fn open_samples_of(
    options: &SftOptions,
    data: &DataSetup,
    dataset: Dataset,
    media_root: PathBuf,
) -> Result<SftSampleSource> {
    let bundle = Arc::new(ModelFolder::open(data.model)?);
    let labels = TokenLabeler::new(options.label_rule(), &*bundle.tokenizer).map_err(|token| {
        Error::usage(
            "--labels",
            format!("needs the token {token}, which the model's tokenizer lacks"),
            "choose another rule",
        )
    })?;
    let second_per_grid = if options.parity.follows_papers() { SecondPerGrid::True } else { SecondPerGrid::One };
    // The decoder needs no frame cache, because the sample cache already holds the frames.
    let decoder = DecodeWorker { cache: None, ..data.media.decoder.clone() };
    let confined_to = data.media.access.confined_to.as_ref().map(|_| media_root.clone());
    let access = MediaAccess { confined_to, ..data.media.access.clone() };
    Ok(SftSampleSource {
        data: dataset,
        bundle,
        labels,
        cut_at: options.max_length.filter(|_| options.truncation_strategy == TruncationStrategy::Right),
        media: MediaOptions { second_per_grid, decoder, access, ..data.media.clone() },
        media_root,
        parity: options.parity,
        kept: SampleCache::default(),
        files: ReadMediaFiles::default(),
    })
}

#[cfg(test)]
mod tests;
