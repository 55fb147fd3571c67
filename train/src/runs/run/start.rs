//! Starts a run, either new or resumed from a checkpoint, in three stages:
//!
//! ```text
//! find     read what is on disk: rows, their order, the checkpoint and its logs. Changes no file
//! open     load the model and the optimizer, start to prepare rows, make the training loop. Changes no file
//! begin    change OUT: set an earlier run aside, open the logs and the reporters
//! ```
//!
//! So a run that fails in the first two stages does not change OUT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file_names::HASHES_FILE;
use crate::options::{BestMetric, StepRange, TrainingOptions};
use crate::setup::{RunControl, RunSetup};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::Trainer;
use reel_input::MediaOptions;
use reel_input::config::ModelConfig;
use reel_model::save::ConfigAndTokenizerFiles;
use reel_samples::feed::{MicroBatchFeed, SampleSource, decoding_threads};
use reel_samples::order::RowOrder;
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::row_order;
use reel_support::files::FolderLock;
use reel_support::files::digest::ModelFiles;
use serde_json::Value;

use super::hardware::HardwareMonitor;
use super::record::{RunJsonExtras, code_change_warning, device_change_warning};
use super::unusable_rows::{refuse_missing_media, unusable_rows};
use super::validate::{ScannedRows, scan_rows};
use super::{CheckpointWriting, OutFolder, Reports, Run, TrainLoop, agreement};
use crate::runs::folder::checkpoint::{self, BaseModel, CheckpointWriter};
use crate::runs::folder::logs::{self, RecordedLogs, RunLogs};
use crate::runs::folder::output::{self, RunStart};
use crate::runs::folder::resume::{self, PlannedStepCount, RunState};
use crate::runs::folder::{digests, later_skipped, trainer_state};
use crate::runs::reporting::progress::Progress;
use crate::runs::reporting::signal::RewardSignalWatch;
use crate::runs::reporting::watch::Reporters;

/// The inputs of a run that are read from disk.
pub(super) struct RunInputs<S> {
    rows: Arc<S>,
    /// The known numbers of tokens, by row, before the rows are prepared.
    row_lengths: BTreeMap<usize, usize>,
    order: RowOrder,
    /// The run state before the first step of this process.
    state: RunState,
    /// The total numbers of steps that the run has planned so far.
    lengths: Vec<PlannedStepCount>,
    /// Rows that are known to be unusable before the first step of a fresh run.
    unusable: Vec<SkippedRow>,
    /// The checkpoint from which the run resumes; `None` for a fresh run.
    resumed: Option<ResumedCheckpoint>,
}

/// The checkpoint from which a run resumes, with the logs up to this checkpoint.
struct ResumedCheckpoint {
    folder: PathBuf,
    logs: RecordedLogs,
    /// Rows that the run skipped after the checkpoint.
    later_skipped: Vec<SkippedRow>,
    /// The content of the run's `run.json`, if it can be read.
    run: Option<Value>,
}

impl ResumedCheckpoint {
    /// The output folder of the run that wrote the checkpoint.
    fn home(&self) -> &Path {
        logs::output_folder_of(&self.folder)
    }
}

impl<S> RunInputs<S> {
    fn checkpoint(&self) -> Option<&Path> {
        self.resumed.as_ref().map(|resumed| resumed.folder.as_path())
    }

    /// Refuses a range of `--profile-steps` of which this process does no step.
    ///
    /// # Errors
    /// The range is after the last step of the run, or before the first step of this process.
    pub(super) fn check_profiled_steps(&self, range: Option<StepRange>) -> Result<()> {
        let (before, last) = (self.state.step, self.state.steps);
        let Some(range) = range.filter(|range| range.last <= before || range.first > last) else { return Ok(()) };
        let what = format!("is {range}, but this process does the steps {} to {last} of the run", before + 1);
        Err(Error::usage("--profile-steps", what, "give some of these steps, counted from 1"))
    }
}

/// Reads the run's inputs from disk, and checks that data, options and checkpoint belong together.
///
/// # Errors
/// An input cannot be read, is damaged, or does not belong to the run of the checkpoint.
pub(super) fn read_inputs<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<RunInputs<W::DataSource>> {
    let start = output::find_run_start(setup.options)?;
    if !setup.reports.quiet && output::is_overwrite_without_effect(setup.options, &start) {
        reel_support::diagnostic::note!("the run resumes (--resume-from-checkpoint), so --overwrite has no effect");
    }
    let rows = Arc::new(W::open_rows(setup.options, &setup.data)?);
    if matches!(start, RunStart::Fresh) && !setup.options.check_data {
        refuse_missing_media(setup.options, &*rows)?;
    }
    let model = ModelFiles::read(setup.data.model)?;
    agreement::check_files(setup, &*rows, Some(&model))?;
    let order = row_order(setup.options.no_shuffle, &*rows, setup.data.seed);
    match start {
        RunStart::Fresh => inputs_of_fresh_run::<W>(setup, model, rows, order),
        RunStart::From(folder) => inputs_of_resumed_run::<W>(setup, folder, &model, rows, order),
    }
}

fn inputs_of_fresh_run<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    model: ModelFiles,
    rows: Arc<W::DataSource>,
    order: RowOrder,
) -> Result<RunInputs<W::DataSource>> {
    let options = setup.options;
    let known = unusable_rows(options, &*rows)?;
    let ScannedRows { steps, unusable, lengths: row_lengths } = scan_rows::<W>(setup, &rows, &order, known)?;
    let share = format!("{} of {} rows", unusable.len(), rows.row_count());
    if options.check_data && !setup.reports.quiet {
        reel_support::diagnostic::note!("{share} cannot be used (see {})", options.quarantine_list_path().display());
    } else if let Some(first) = unusable.first().filter(|_| !setup.reports.quiet) {
        reel_support::diagnostic::note!("{share} are skipped; the first: {}", first.reason);
    }
    let state = resume::fresh_run_state(setup, model, &*rows, steps, &unusable);
    let lengths = vec![PlannedStepCount { after: 0, steps }];
    Ok(RunInputs { rows, row_lengths, order, state, lengths, unusable, resumed: None })
}

fn inputs_of_resumed_run<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    folder: PathBuf,
    model: &ModelFiles,
    rows: Arc<W::DataSource>,
    order: RowOrder,
) -> Result<RunInputs<W::DataSource>> {
    let (options, home) = (setup.options, logs::output_folder_of(&folder));
    let digests = digests::verify_checkpoint(&folder)?;
    let mut row_lengths = BTreeMap::new();
    let count_steps = || {
        let known = unusable_rows(options, &*rows)?;
        let scanned = scan_rows::<W>(setup, &rows, &order, known)?;
        row_lengths = scanned.lengths;
        Ok(scanned.steps)
    };
    let mut state = resume::resumed_run_state(setup, model, &*rows, &folder, count_steps)?;
    if state.step == state.steps && output::has_final_model(&options.out, &folder)? {
        let what = format!("{} is after the last step of a finished run", folder.display());
        let help =
            format!("raise --max-steps or --num-train-epochs to train on; {} has the model", options.out.display());
        return Err(Error::usage("--resume-from-checkpoint", what, help));
    }
    state.rewards.forget_best_if_missing(&options.out);
    if options.best_metric() == BestMetric::None {
        state.rewards.best = None;
    }
    let logs = logs::recorded_logs(&folder, &state, &digests)?;
    digests::verify_log(&folder, home, HASHES_FILE, &digests)?;
    let later_skipped = match options.strict {
        true => Vec::new(),
        false => later_skipped::read(home, &state.position.skipped)?,
    };
    let lengths = resume::planned_step_counts(&folder, home, &state)?;
    let run = output::read_run_json(home).ok();
    let resumed = Some(ResumedCheckpoint { folder, logs, later_skipped, run });
    Ok(RunInputs { rows, row_lengths, order, state, lengths, unusable: Vec::new(), resumed })
}

/// The parts of a run that are loaded before its first step.
pub(super) struct LoadedRun<W> {
    trainer: Trainer,
    train_loop: W,
    base: BaseModel,
}

impl<'a, W: TrainLoop<'a>> LoadedRun<W> {
    /// Waits for the other ranks, and checks that all of them start in the same way.
    ///
    /// # Errors
    /// A rank has other steps or rows, or has failed.
    pub(super) fn check_start(
        &self,
        setup: &RunSetup<'a, W::Options>,
        inputs: &RunInputs<W::DataSource>,
    ) -> Result<()> {
        agreement::check_start(setup.control.ranks, &inputs.state, self.train_loop.validation())
    }
}

/// Loads the model and the optimizer, and starts to prepare rows. If the run serves its model, also starts to answer
/// requests.
///
/// # Errors
/// A file of the model or of the checkpoint is damaged; the device is out of memory; the server cannot be started.
pub(super) fn load_run<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    inputs: &RunInputs<W::DataSource>,
) -> Result<LoadedRun<W>> {
    let (options, state) = (setup.options, &inputs.state);
    let config = ModelConfig::open(setup.data.model)?;
    let hyperparameters = Hyperparameters::new(options, state.steps).with_seed(setup.data.seed);
    let hyperparameters = hyperparameters.with_loss_mean(options.loss_mean());
    let ranks = setup.control.ranks.map(|run| run.ranks.clone());
    let (mut trainer, files) = Trainer::resume(
        setup.trainer.device,
        &config,
        setup.data.model,
        inputs.checkpoint(),
        setup.trainer.dtype,
        hyperparameters,
        ranks,
    )?;
    files.check_values()?;
    // The small files are read before the first step, so that a missing or damaged file cannot make a save fail hours
    // later.
    let small_files = ConfigAndTokenizerFiles::read(setup.data.model)?;
    let small_files = Arc::new(match options.folder_format {
        Some(name) => small_files.in_format(name.format())?,
        None => small_files,
    });
    if let Some(resumed) = &inputs.resumed {
        restore_optimizer_state(&resumed.folder, &mut trainer, state)?;
    }
    let batching = W::batching(options, inputs.order.rows_per_pass());
    let threads = media_threads(setup.data.media, &setup.control);
    let window = W::rows_ahead(options, setup.control.processes());
    let (rows, order) = (inputs.rows.clone(), inputs.order.clone());
    let mut feed = MicroBatchFeed::new(rows, order, batching, &state.position, threads, window)
        .share_among(setup.control.ranks.map(|run| W::shared_feed(options, run.ranks)))
        .add_known_lengths(inputs.row_lengths.iter().map(|(row, tokens)| (*row, *tokens)));
    if let Some(resumed) = &inputs.resumed {
        feed = feed.skip_when_reached(resumed.later_skipped.clone());
    }
    let train_loop = W::begin(setup, inputs.rows.clone(), feed, &mut trainer, inputs.checkpoint())?;
    let base = BaseModel { small_files, files: Arc::new(files), name: base_name(&options.model) };
    Ok(LoadedRun { trainer, train_loop, base })
}

/// Number of threads of this process that load images and videos, at least one. The processes on this machine share
/// its CPU cores and its memory. Memory also limits the number, because each thread may need `--media-memory` for a
/// file.
pub(super) fn media_threads(media: &MediaOptions, control: &RunControl) -> usize {
    let processes = control.ranks.map_or(1, |run| run.ranks.world().local_size);
    let free_mib = reel_device::free_host_bytes().map_or(u64::MAX, |bytes| bytes >> 20);
    let by_memory = free_mib / processes as u64 / media.decoder.memory_mib.max(1);
    decoding_threads(processes).min(usize::try_from(by_memory).unwrap_or(usize::MAX)).max(1)
}

/// Begins the run in OUT, which `lock` protects. A replay has no lock.
///
/// # Errors
/// A file in OUT cannot be moved or written.
pub(super) fn begin_run<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    inputs: RunInputs<W::DataSource>,
    loaded: LoadedRun<W>,
    lock: Option<Arc<FolderLock>>,
) -> Result<Run<'a, W>> {
    let RunInputs { rows, state, lengths, unusable, resumed, .. } = inputs;
    let LoadedRun { trainer, train_loop, base } = loaded;
    let (options, out) = (setup.options, &setup.options.out);
    let evaluates = setup.reports.evaluator.is_some() || train_loop.validation().is_some();
    let tensors = trainer.optimizer.parameter_states().count();
    let (logs, previous) = match &resumed {
        None => RunLogs::create(out, setup.data.model, &unusable, tensors, evaluates)?,
        Some(ResumedCheckpoint { folder, logs, later_skipped, .. }) => {
            RunLogs::resume(out, folder, logs, later_skipped, tensors, evaluates)?
        }
    };
    let folder = OutFolder { lock, previous };
    let recorded = RunJsonExtras::write(setup, &state, lengths)?;
    // If the checkpoint's step still lacks its evaluation, the step is reported after the evaluation.
    let lacks_evaluation =
        evaluates && options.is_evaluation_due(state.step, state.steps) && state.evaluated != Some(state.step);
    let last_step = resumed.as_ref().and_then(|resumed| resumed.logs.last.clone());
    let unreported = last_step.filter(|_| lacks_evaluation);
    let reported = state.step - u64::from(unreported.is_some());
    let home = resumed.as_ref().map_or(out.as_path(), ResumedCheckpoint::home);
    let reporters = Reporters::start(options, home, reported, &recorded.run_json(setup, &state))?;
    if state.step > 0 {
        trainer_state::write(out, state.rewards.best.as_ref(), (state.step, state.steps), options.logging_steps)?;
    }
    let signal = RewardSignalWatch::new(options.logging_steps);
    let progress = Progress::new(setup.reports.quiet, state.steps, state.step, options.logging_steps);
    if let Some(resumed) = &resumed {
        let run = resumed.run.as_ref();
        let in_bits = run.and_then(|run| device_change_warning(run, setup.trainer.device));
        let in_code = run.and_then(|run| code_change_warning(run, options));
        print_resumption(&progress, resumed, &state, in_bits.into_iter().chain(in_code));
    }
    if let Some(folder) = reporters.wandb_folder() {
        progress.print_line(&format!("Weights & Biases: upload with `wandb sync {}`", folder.display()));
    }
    Ok(Run {
        setup: *setup,
        rows,
        trainer,
        train_loop,
        resumed_after: state.step,
        last: None,
        recorded,
        logs,
        hardware: HardwareMonitor::start(&setup.trainer, &setup.control),
        reports: Reports { reporters, progress, signal, preview: None, unreported },
        checkpoints: CheckpointWriting { base, writer: CheckpointWriter::default(), saved: Some(state.step) },
        state,
        folder,
    })
}

/// Checks that the trainer has the weights that the run had after the checkpoint's step, then loads the optimizer
/// state from the checkpoint.
///
/// # Errors
/// The weights are not those that the run had after step `state.step`; the optimizer's file cannot be read.
fn restore_optimizer_state(folder: &Path, trainer: &mut Trainer, state: &RunState) -> Result<()> {
    if trainer.weights_fingerprint()? != state.hash {
        let what = format!("is damaged: its weights are not those that the run had after step {}", state.step);
        return Err(digests::damaged_file_error(folder, "", &what));
    }
    checkpoint::load_optimizer_state(folder, trainer, state)
}

/// Prints at which step a run resumes, with warnings. `differences` are warnings that the device, the instruction set
/// or code has changed, so that bits may differ from those of the earlier process.
fn print_resumption(
    progress: &Progress,
    resumed: &ResumedCheckpoint,
    state: &RunState,
    differences: impl Iterator<Item = String>,
) {
    let (step, steps, folder) = (state.step, state.steps, resumed.folder.display());
    progress.print_line(&format!("resuming after step {step} of {steps} from {folder}"));
    if step == steps {
        progress.print_line("no step is left: only the trained model is written");
    }
    for warning in differences {
        progress.print_line(&format!("warning: {warning}"));
    }
}

/// The base model's name as an adapter's config states it: the absolute path of a folder, or a Hugging Face id.
fn base_name(model: &str) -> String {
    Path::new(model).canonicalize().map_or(model.to_string(), |path| path.display().to_string())
}
