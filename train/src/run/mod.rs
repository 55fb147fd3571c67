//! A training run, from options to a folder with the trained model. [`sft`] and [`grpo`] implement [`TrainLoop`],
//! which defines what a step does. This file does everything around the steps: fresh start or resume, checkpoints,
//! logs, reports, interruption. `evaluation.rs` evaluates the model between steps.

pub mod evaluation;
pub mod grpo;
mod live_server;
mod record;
pub mod replay;
pub mod sft;
mod validate;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reel_diagnostic::Diagnostic;
use reel_model::input::MediaOptions;
use reel_runtime::device::MatmulLibrary;
use reel_runtime::{DType, Device};
use serde_json::Value;

use crate::data::dataset::DataFile;
use crate::data::feed::{DataPosition, MicroBatch, MicroBatchFeed, MicroBatchOptions, SampleSource};
use crate::data::mixture::Mixture;
use crate::data::order::RowOrder;
use crate::options::{BestMetric, TrainingOptions};
use crate::reporting::metrics::{self, JsonlLog, SkipCause, SkippedRow, StepMetrics};
use crate::reporting::progress::Progress;
use crate::reporting::watch::Reporters;
use crate::run_folder::best;
use crate::run_folder::checkpoint::{self, BaseModel, CheckpointSnapshot, CheckpointWriter, TrainedWeights};
use crate::run_folder::digest::ModelFiles;
use crate::run_folder::digests::{self, LogDigests};
use crate::run_folder::evaluations::{self, EVALUATIONS_FILE};
use crate::run_folder::hashes::{HASHES_FILE, TensorHashLog};
use crate::run_folder::later_skipped;
use crate::run_folder::output::{self, RunStart};
use crate::run_folder::previous::PreviousRun;
use crate::run_folder::resume::{self, PlannedStepCount, RunState};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::{RolloutPreview, StepResult, Trainer, combined_fingerprint};
use crate::{Result, TrainError};

pub use evaluation::{EvaluatedPolicy, PolicyEvaluator};
pub(crate) use live_server::DeviceLender;
pub use live_server::{LiveServer, SERVED_BATCH};
pub use record::difference_in_bits;
use record::run_json;
use validate::count_steps_and_unusable_rows;
pub(crate) use validate::unusable_rows;
pub use validate::{DataCheckResult, check_data};

/// The inputs of a training run.
#[derive(Debug)]
pub struct RunSetup<'a, O> {
    /// The options of the command.
    pub options: &'a O,
    /// The local folder of the model that `options.model` names.
    pub model: &'a Path,
    /// The device that computes.
    pub device: &'a Device,
    /// Dtype of weights and activations, F32 or BF16.
    pub dtype: DType,
    /// Seed of the row order and of all random numbers.
    pub seed: u64,
    /// Options for reading images and videos, such as pixel limits. Whether M-RoPE uses the seconds between frames is
    /// decided by `options.parity` instead.
    pub media: &'a MediaOptions,
    /// All options as a JSON object, for `run.json`.
    pub resolved: &'a Value,
    /// Whether only errors are printed.
    pub quiet: bool,
    /// Becomes true when the run is to stop (Ctrl-C).
    pub stop: &'a AtomicBool,
    /// Answers requests with the model in training, if given.
    pub server: Option<&'a dyn LiveServer>,
    /// Evaluates the model in training (`--eval-steps`), if given.
    pub evaluator: Option<&'a dyn PolicyEvaluator>,
}

impl<O> Clone for RunSetup<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for RunSetup<'_, O> {}

/// The result of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// Number of steps of the whole run, earlier processes included.
    pub steps: u64,
    /// The step of the checkpoint that this process resumed from; 0 for a fresh run.
    pub resumed_after: u64,
    /// Metrics of the last step, if this process did any step.
    pub last: Option<StepMetrics>,
    /// Number of skipped rows.
    pub skipped: usize,
    /// Number of skipped rows by cause. Rows that an earlier version skipped have no cause.
    pub skipped_by_cause: BTreeMap<SkipCause, usize>,
}

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

/// Returns [`TrainError::Stopped`] when the run was interrupted.
pub(crate) fn error_if_stopped(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(TrainError::interrupted()),
        false => Ok(()),
    }
}

/// Trains to the last step, or until `setup.stop` becomes true. OUT is locked meanwhile.
pub fn run<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<RunSummary> {
    setup.options.validate()?;
    let out = &setup.options.out;
    let _lock = output::lock(out)?;
    train::<W>(setup).map_err(|e| e.with_help_to_continue(out))
}

fn train<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<RunSummary> {
    let start = output::find_run_start(setup.options)?;
    let rows = Arc::new(W::open_rows(setup)?);
    let mut run = Run::<W>::begin(setup, start, rows)?;
    let done = run.steps();
    run.progress.finish();
    let done = done.and_then(|()| run.finish_folder());
    let reported = run.reporters.finish(&done);
    if let Err(e) = done.and(reported) {
        // A run that did not do its first step leaves OUT as it was. Its threads and files are closed first.
        let mut previous = std::mem::replace(&mut run.previous, PreviousRun::none(&setup.options.out));
        drop(run);
        // If this fails, the next start in the folder tries again; the error that ended the run says more.
        let _ = previous.put_back();
        return Err(e);
    }
    Ok(RunSummary {
        steps: run.state.steps,
        resumed_after: run.resumed_after,
        last: run.last.clone(),
        skipped: run.state.position.skipped.len(),
        skipped_by_cause: skipped_by_cause(&setup.options.out)?,
    })
}

/// Counts the rows in `skipped.jsonl` by their cause.
fn skipped_by_cause(out: &Path) -> Result<BTreeMap<SkipCause, usize>> {
    let mut counts = BTreeMap::new();
    for line in metrics::read_matching_lines(&out.join(output::SKIPPED_FILE), |row: &SkippedRow| row.cause.is_some())? {
        let cause = serde_json::from_str::<SkippedRow>(&line).ok().and_then(|row| row.cause);
        *counts.entry(cause.unwrap_or(SkipCause::Other)).or_insert(0) += 1;
    }
    Ok(counts)
}

/// Does the steps of a recorded run again, up to `step`, and returns the trainer with the resulting weights. `recorded`
/// is the run's run.json, with the fingerprints of model and data, and the number of steps that the run had planned at
/// which step; the learning rate depends on it.
pub(crate) fn replay_steps<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    step: u64,
    recorded: &Value,
) -> Result<Trainer> {
    let lengths: Vec<PlannedStepCount> = serde_json::from_value(recorded["lengths"].clone()).unwrap_or_default();
    let start = output::find_run_start(setup.options)?;
    let mut run = Run::<W>::begin(setup, start, Arc::new(W::open_rows(setup)?))?;
    check_inputs(setup, &run.state.data_hash, recorded)?;
    while run.state.step < step {
        if let Some(steps) = resume::planned_steps_at(&lengths, run.state.step + 1) {
            run.trainer.hyperparameters.schedule = Hyperparameters::new(setup.options, steps).schedule;
        }
        if !run.one_step()? {
            break;
        }
    }
    run.progress.finish();
    Ok(run.trainer)
}

/// Checks that model and data of a replay are those that the run recorded in its run.json.
fn check_inputs<O: TrainingOptions>(setup: &RunSetup<O>, data_hash: &str, recorded: &Value) -> Result<()> {
    let model = ModelFiles::read(setup.model)?;
    let same_model = recorded["model_hash"].as_str().is_none_or(|hash| model.have_fingerprint(hash));
    let same_data = recorded["data_hash"].as_str().is_none_or(|hash| hash == data_hash);
    let (path, thing, which) = match (same_model, same_data) {
        (true, true) => return Ok(()),
        (false, _) => {
            let files = serde_json::from_value(recorded["model_files"].clone()).unwrap_or_default();
            (setup.model, "the model", model.differences_from(&files))
        }
        (true, false) => (&*setup.options.data, "the data", String::new()),
    };
    let what = format!("is not {thing} that the run was started with: it has another fingerprint{which}");
    let help = "restore it; a step can be repeated from the run's own files only";
    Err(TrainError::Damaged(Diagnostic::new(path.display().to_string(), what, help)))
}

struct Run<'a, W: TrainLoop<'a>> {
    setup: RunSetup<'a, W::Options>,
    rows: Arc<W::DataSource>,
    trainer: Trainer,
    train_loop: W,
    /// The model that the run started from. In a resumed run its weight files are those of the checkpoint.
    base: BaseModel,
    state: RunState,
    lengths: Vec<PlannedStepCount>,
    resumed_after: u64,
    last: Option<StepMetrics>,
    metrics: JsonlLog,
    hashes: TensorHashLog,
    skipped: JsonlLog,
    /// `eval.jsonl`; `None` in a run that evaluates nothing and has evaluated nothing.
    evaluations: Option<JsonlLog>,
    /// The step of the checkpoint that the run resumes from, if it is reported with the evaluation that it lacks.
    unreported: Option<StepMetrics>,
    reporters: Reporters,
    progress: Progress,
    /// The step of the checkpoint that was last written or resumed from; a checkpoint of it is not written again.
    saved: Option<u64>,
    writer: CheckpointWriter,
    /// What run.json says about the matrix-product library and its chosen algorithms.
    products: Option<MatmulLibrary>,
    /// The latest rollouts that were not reported yet. A step that is not reported may have sampled them.
    preview: Option<RolloutPreview>,
    /// What the run replaces in OUT, until its first step is done. The last field: the files of the run are closed
    /// when it is dropped.
    previous: PreviousRun,
}

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    /// Prepares a run up to its first step. OUT is not touched before model, data and training loop are ready, so a
    /// run that fails to start leaves it as it was.
    fn begin(setup: &RunSetup<'a, W::Options>, start: RunStart, rows: Arc<W::DataSource>) -> Result<Self> {
        let options = setup.options;
        let home = start.run_folder(&options.out);
        let digests = start.checkpoint().map(digests::verify_checkpoint).transpose()?.flatten();
        let order = row_order(options.no_shuffle, &*rows, setup.seed);
        let (state, found) = Self::initial_state(setup, &start, &rows, &order)?;
        let recorded =
            start.checkpoint().map(|folder| output::recorded_logs(folder, &state, digests.as_ref())).transpose()?;
        if let Some(folder) = start.checkpoint() {
            digests::verify_log(folder, home, HASHES_FILE, digests.as_ref())?;
        }
        let config = reel_model::config::ModelConfig::open(setup.model)?;
        let hyperparameters = Hyperparameters::new(options, state.steps).with_seed(setup.seed);
        let (mut trainer, files) =
            Trainer::resume(setup.device, &config, setup.model, start.checkpoint(), setup.dtype, hyperparameters)?;
        files.check_values()?;
        reel_model::save::check_files_to_copy(setup.model)?;
        if let (Some(folder), Some(recorded)) = (start.checkpoint(), &recorded) {
            // A checkpoint of an earlier version lacks the hash of the weights; the last line of the metrics has it.
            let logged = recorded.last.as_ref().map(|last| &last.hash);
            let hash = Some(&state.hash).filter(|hash| !hash.is_empty()).or(logged);
            let now = trainer.weights_fingerprint()?;
            if hash.is_some_and(|hash| now != *hash) {
                let what = format!("is damaged: its weights are not those that the run had after step {}", state.step);
                return Err(digests::damaged(folder, "", &what));
            }
            checkpoint::load_optimizer_state(folder, &mut trainer, &state)?;
        }
        let batching = W::batching(options, order.rows_per_pass());
        let (threads, window) = (decoding_threads(), 2 * batching.rows.max(2));
        let later_skipped = match start.checkpoint() {
            Some(_) if !options.strict => later_skipped::read(home, &state.position.skipped)?,
            _ => Vec::new(),
        };
        let feed = MicroBatchFeed::new(rows.clone(), order, batching, &state.position, threads, window);
        let feed = feed.skip_when_reached(later_skipped.clone());
        let train_loop = W::begin(setup, rows.clone(), feed, &mut trainer, start.checkpoint())?;
        if let Some(server) = setup.server {
            server.start(&trainer.model, state.step)?;
        }
        let lengths = match start.checkpoint() {
            None => vec![PlannedStepCount { after: 0, steps: state.steps }],
            Some(folder) => resume::planned_step_counts(folder, home, &state)?,
        };
        let earlier_run = start.checkpoint().and_then(|_| output::read_run_json(home).ok());

        // From here on OUT is changed.
        let output::RunLogs { metrics, skipped, previous } = match (&start, &recorded) {
            (RunStart::From(folder), Some(recorded)) => {
                output::resume_logs(&options.out, folder, recorded, &later_skipped)?
            }
            _ => output::fresh_logs(&options.out, setup.model, &found)?,
        };
        let hashes = TensorHashLog::open(&options.out, home, state.step, trainer.optimizer.parameter_states().count())?;
        let run = run_json(setup, &state, &lengths);
        output::write_run_json(&options.out, &run)?;
        let evaluations = match start.checkpoint() {
            None if setup.evaluator.is_none() => None,
            Some(_) if setup.evaluator.is_none() && !home.join(EVALUATIONS_FILE).exists() => None,
            from => Some(evaluations::open(&options.out, home, from.map(|_| state.step))?),
        };
        let lacks_evaluation = setup.evaluator.is_some()
            && options.evaluation.is_due(state.step, state.steps)
            && state.evaluated != Some(state.step);
        let unreported = recorded.and_then(|recorded| recorded.last).filter(|_| lacks_evaluation);
        let reported = state.step - u64::from(unreported.is_some());
        let reporters = Reporters::begin(options, home, reported, &run)?;
        best::write_trainer_state(&options.out, state.rewards.best.as_ref(), state.step, state.steps)?;
        let progress = Progress::new(setup.quiet, state.steps, state.step, options.logging_steps);
        if let RunStart::From(folder) = &start {
            let (step, steps, folder) = (state.step, state.steps, folder.display());
            progress.print_line(&format!("resuming after step {step} of {steps} from {folder}"));
            if step == steps {
                progress.print_line("no step is left: only the trained model is written");
            }
            if digests.is_none() {
                progress.print_line(&format!(
                    "warning: {folder} was written by an earlier version of reel: only its weights are checked"
                ));
            }
            if let Some(warning) = earlier_run.and_then(|run| difference_in_bits(&run, setup.device)) {
                progress.print_line(&format!("warning: {warning}"));
            }
        }
        if let Some(folder) = reporters.wandb_folder() {
            progress.print_line(&format!("Weights & Biases: upload with `wandb sync {}`", folder.display()));
        }
        Ok(Self {
            train_loop,
            setup: *setup,
            rows,
            base: BaseModel {
                folder: setup.model.to_path_buf(),
                files: Arc::new(files),
                name: base_name(&options.model),
            },
            writer: CheckpointWriter::default(),
            resumed_after: state.step,
            saved: Some(state.step),
            products: setup.device.matmul_library(),
            trainer,
            state,
            lengths,
            last: None,
            metrics,
            hashes,
            skipped,
            evaluations,
            unreported,
            reporters,
            progress,
            preview: None,
            previous,
        })
    }

    /// The state of the run before the first step of this process. For a fresh run, also the rows that are known to
    /// be unusable.
    fn initial_state(
        setup: &RunSetup<'a, W::Options>,
        start: &RunStart,
        rows: &Arc<W::DataSource>,
        order: &RowOrder,
    ) -> Result<(RunState, Vec<SkippedRow>)> {
        let options = setup.options;
        let measure = || count_steps_and_unusable_rows::<W>(setup, rows, order, unusable_rows(options, &**rows)?);
        let RunStart::From(folder) = start else {
            let (steps, found) = measure()?;
            if options.check_data && !setup.quiet {
                let list = options.quarantine_list_path();
                eprintln!("{} of {} rows cannot be used (see {})", found.len(), rows.row_count(), list.display());
            } else if let Some(first) = found.first().filter(|_| !setup.quiet) {
                eprintln!("{} of {} rows are skipped; the first: {}", found.len(), rows.row_count(), first.reason);
            }
            return Ok((resume::fresh_run_state(setup, &**rows, steps, &found)?, found));
        };
        let mut state = resume::resumed_run_state(setup, &**rows, folder, || Ok(measure()?.0))?;
        if state.step == state.steps && output::has_final_model(&options.out, folder)? {
            let what = format!("{} is after the last step of a finished run", folder.display());
            let help =
                format!("raise --max-steps or --num-train-epochs to train on; {} has the model", options.out.display());
            return Err(TrainError::option("--resume-from-checkpoint", what, help));
        }
        state.rewards.forget_best_if_missing(&options.out);
        if options.evaluation.best_metric() == BestMetric::None {
            state.rewards.best = None;
        }
        Ok((state, Vec::new()))
    }

    fn steps(&mut self) -> Result<()> {
        match self.steps_and_evaluations() {
            Ok(()) => {}
            Err(TrainError::Stopped(_)) => return Err(self.stopped()?),
            // If a custom reward fails, the finished steps are saved before the run ends.
            Err(e @ TrainError::Reward(_)) => {
                self.save()?;
                self.writer.wait()?;
                return Err(e);
            }
            Err(e) => return Err(e),
        }
        if self.setup.options.save_steps > 0 {
            self.save()?;
        }
        self.writer.wait()?;
        self.write_products()
    }

    /// Does all steps that are left, with the evaluations between them.
    fn steps_and_evaluations(&mut self) -> Result<()> {
        self.evaluate_before_steps()?;
        while self.state.step < self.state.steps && self.one_step()? {}
        // The data may have ended before the planned number of steps.
        let last = self.evaluate_if_due(self.state.step)?;
        last.map_or(Ok(()), |line| self.report(line.step, None, Some(&line)))
    }

    /// Writes the trained model after the last step.
    fn finish_folder(&mut self) -> Result<()> {
        self.writer.wait()?;
        self.previous.remove()?;
        TrainedWeights::capture(&self.trainer, self.base.clone(), false)?.write(&self.setup.options.out)?;
        later_skipped::remove(&self.setup.options.out)
    }

    /// Does one step, logs it, and writes a checkpoint if one is due. Returns false at the end of the data.
    fn one_step(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let n = self.state.step + 1;
        self.writer.check_finished_job()?;
        self.trainer.device.reset_peak();
        let mut cursor = StepRowCursor { position: self.state.position.clone(), ..StepRowCursor::default() };
        let result = self.train_loop.step(&mut self.trainer, n, &mut cursor)?;
        cursor.skipped.iter().try_for_each(|s| self.skipped.append(s))?;
        self.state.position = cursor.position;
        let Some(result) = result else { return Ok(false) };
        if !result.is_finite() {
            return Err(self.not_finite(n, &result, &cursor.rows));
        }
        if let Some(server) = self.setup.server {
            server.weights_changed(n);
        }
        self.finish(n, result, begun)?;
        Ok(true)
    }

    /// Logs and reports a finished step, and writes a checkpoint if one is due.
    fn finish(&mut self, n: u64, mut result: StepResult, begun: Instant) -> Result<()> {
        let hashes = self.trainer.tensor_hashes()?;
        let hash = combined_fingerprint(&hashes);
        self.hashes.append(&hashes.into_iter().map(|h| h.1).collect::<Vec<_>>())?;
        let step_seconds = begun.elapsed().as_secs_f64();
        self.state.step = n;
        self.state.hash.clone_from(&hash);
        self.state.peak_bytes = self.state.peak_bytes.max(self.trainer.device.memory().peak as u64);
        let line = StepMetrics {
            step: n,
            loss: result.loss,
            grad_norm: result.grad_norm,
            learning_rate: result.learning_rate,
            tokens: result.tokens as u64,
            tokens_per_second: result.tokens as f64 / step_seconds.max(1e-9),
            step_seconds,
            peak_bytes: self.state.peak_bytes,
            hash,
            grpo: std::mem::take(&mut result.grpo),
        };
        self.metrics.append(&line)?;
        self.previous.remove()?;
        self.progress.show_step(&line);
        self.state.rewards.add_step_reward(&line);
        self.preview = result.preview.take().or(self.preview.take());
        self.last = Some(line.clone());
        if self.products.is_none() {
            self.write_products()?;
        }
        let evaluation = self.evaluate_if_due(self.state.steps)?;
        self.report(n, Some(&line), evaluation.as_ref())?;
        if !self.is_scheduled_checkpoint(n) {
            return Ok(());
        }
        self.record_checkpoint(evaluation.as_ref());
        self.save()
    }

    /// Writes a checkpoint of the last finished step unless it has one. If host memory has room for a copy of weights
    /// and optimizer state, a background thread writes the copy while the next steps run.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        // Waits for the previous checkpoint, so that at most one copy of the weights is in host memory.
        self.writer.wait()?;
        self.metrics.sync()?;
        self.skipped.sync()?;
        self.hashes.sync()?;
        self.evaluations.as_ref().map_or(Ok(()), JsonlLog::sync)?;
        let logs = [
            (output::METRICS_FILE, self.metrics.digest()),
            (output::SKIPPED_FILE, self.skipped.digest()),
            (HASHES_FILE, self.hashes.digest()),
        ];
        let evaluations = self.evaluations.as_ref().map(|log| (EVALUATIONS_FILE, log.digest()));
        let logs: LogDigests =
            logs.into_iter().chain(evaluations).map(|(name, digest)| (name.to_string(), digest)).collect();
        self.write_products()?;
        let bytes = checkpoint::checkpoint_bytes(&self.trainer);
        let copy = checkpoint::host_memory_has_room_for(&self.trainer.device, bytes);
        let (base, state) = (self.base.clone(), self.state.clone());
        let snapshot =
            CheckpointSnapshot::capture(&self.trainer, base, state.clone(), self.train_loop.resume_files()?, copy)?
                .with_logs(logs);
        self.saved = Some(state.step);
        let (out, keep) = (self.setup.options.out.clone(), self.setup.options.save_total_limit);
        let job = move || {
            snapshot.write(&out)?;
            let best = state.rewards.best.as_ref();
            best::write_trainer_state(&out, best, state.step, state.steps)?;
            checkpoint::remove_old_checkpoints(&out, keep, best.map(|best| best.step))
        };
        if copy { self.writer.start(job) } else { job() }
    }

    /// Updates run.json if the device has chosen new matrix-product algorithms, which it does for each new shape.
    /// Called after the first step, with each checkpoint and at the end.
    fn write_products(&mut self) -> Result<()> {
        let now = self.trainer.device.matmul_library();
        if now != self.products {
            output::write_run_json(&self.setup.options.out, &run_json(&self.setup, &self.state, &self.lengths))?;
            self.products = now;
        }
        Ok(())
    }

    /// Writes a checkpoint after an interruption. Returns the error that says how to resume.
    fn stopped(&mut self) -> Result<TrainError> {
        self.save()?;
        self.writer.wait()?;
        let help = if self.state.step == 0 {
            "no step was finished, and the folder is as it was before; start again"
        } else {
            "resume with --resume-from-checkpoint last"
        };
        let location = format!("--out {}", self.setup.options.out.display());
        Ok(TrainError::Stopped(Diagnostic::new(location, format!("stopped after step {}", self.state.step), help)))
    }

    /// The error of a step whose loss or gradient norm is NaN or infinite.
    fn not_finite(&self, n: u64, result: &StepResult, rows: &[usize]) -> TrainError {
        let locations: Vec<String> = rows.iter().map(|&row| self.rows.location(row).0).collect();
        let (name, value) = match result.loss.is_finite() {
            true => ("the gradients' norm", result.grad_norm),
            false => ("the loss", result.loss),
        };
        TrainError::NotFinite(Diagnostic::new(
            format!("step {n}"),
            format!("{name} is {value} (rows {})", locations.join(", ")),
            "lower --learning-rate or look at these rows; weights and checkpoints are as they were before this step",
        ))
    }
}

/// The base model's name as an adapter's config states it: the absolute path of a folder, or a Hugging Face id.
fn base_name(model: &str) -> String {
    Path::new(model).canonicalize().map_or(model.to_string(), |path| path.display().to_string())
}

/// The order in which a run takes its rows: file order, or shuffled by `seed`; with weights, that of the mixture.
pub(crate) fn row_order(no_shuffle: bool, rows: &impl DataSource, seed: u64) -> RowOrder {
    match (rows.mixture(), no_shuffle) {
        (Some(mixture), _) => RowOrder::mixed(mixture.clone(), (!no_shuffle).then_some(seed)),
        (None, true) => RowOrder::file_order(rows.row_count()),
        (None, false) => RowOrder::shuffled(rows.row_count(), seed),
    }
}

/// Number of threads that decode images and videos: a quarter of the CPU cores, but 2 to 8. The other cores are left
/// for computing. A single thread would leave cores idle in an evaluation of short videos, which waits for the decoder.
pub(crate) fn decoding_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| (n.get() / 4).clamp(2, 8))
}
