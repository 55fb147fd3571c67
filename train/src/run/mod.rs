//! A run of any command that trains: from options to a folder with the trained model. What is done in a step is the command's
//! [`TrainLoop`]; what is around the steps is here: where to begin, checkpoints, logs, what is shown, how to stop.

pub mod grpo;
pub mod replay;
pub mod sft;
mod validate;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reel_model::input::MediaOptions;
use reel_runtime::device::MatmulLibrary;
use reel_runtime::{DType, Device};
use serde_json::{Value, json};

use crate::data::feed::{BatchFeed, BatchOptions, DataPosition, MicroBatch, SampleSource};
use crate::data::order::Order;
use crate::options::TrainingOptions;
use crate::reporting::metrics::{JsonlLog, SkippedRow, StepMetrics};
use crate::reporting::progress::Progress;
use crate::reporting::watch::Reporters;
use crate::run_folder::best;
use crate::run_folder::checkpoint::{self, BaseModel, CheckpointWriter, Snapshot, TrainedWeights};
use crate::run_folder::hashes::HashLog;
use crate::run_folder::output::{self, RunStart};
use crate::run_folder::resume::{self, PlannedLength, RunState};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::{StepResult, Trainer, fingerprint};
use crate::{Result, TrainError};

use validate::plan_length;
pub(crate) use validate::skipped_rows;
pub use validate::{DataCheck, check};

/// What a run is given beside its options.
#[derive(Debug)]
pub struct RunSetup<'a, O> {
    /// The options.
    pub options: &'a O,
    /// The folder that `options.model` names.
    pub model: &'a Path,
    /// Where to compute.
    pub device: &'a Device,
    /// Dtype of weights and activations, F32 or BF16.
    pub dtype: DType,
    /// Seed of the order of rows, and of everything that is drawn.
    pub seed: u64,
    /// Frame and pixel limits, decoder. The time step of films follows `options.parity`.
    pub media: &'a MediaOptions,
    /// Every option as it was resolved, for `run.json`: an object.
    pub resolved: &'a Value,
    /// Print nothing but errors.
    pub quiet: bool,
    /// Turns true when the run is to stop.
    pub stop: &'a AtomicBool,
}

impl<O> Clone for RunSetup<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for RunSetup<'_, O> {}

/// What a run did.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// Steps of the whole run.
    pub steps: u64,
    /// The step that this call started after.
    pub resumed_after: u64,
    /// The last step's line of `metrics.jsonl`, if this call did any.
    pub last: Option<StepMetrics>,
    /// Rows left out.
    pub skipped: usize,
}

/// Rows that a run can recognise when it goes on.
pub trait DataSource: SampleSource {
    /// A hash of everything that the rows are read from, media aside.
    fn hash(&self) -> String;
    /// Looks at the fields of a row, not at its media.
    fn validate_row(&self, row: usize) -> Result<()>;
}

/// What one command does in a step.
pub trait TrainLoop<'a>: Sized {
    /// Its options.
    type Options: TrainingOptions + 'a;
    /// What its batches are made of.
    type DataSource: DataSource;

    /// Opens its rows.
    fn open_rows(setup: &RunSetup<'a, Self::Options>) -> Result<Self::DataSource>;
    /// How rows are put together, of `rows` there are.
    fn batching(options: &Self::Options, rows: usize) -> BatchOptions;
    /// Steps that so many batches of rows make.
    fn step_count(options: &Self::Options, batches: u64) -> u64;
    /// Whether every row has to be looked at before the first step.
    fn must_scan_all_rows(options: &Self::Options) -> bool;
    /// Gets ready, after the checkpoint in `from` if there is one.
    fn begin(
        setup: &RunSetup<'a, Self::Options>,
        rows: Arc<Self::DataSource>,
        feed: BatchFeed<Self::DataSource>,
        trainer: &mut Trainer,
        from: Option<&Path>,
    ) -> Result<Self>;
    /// Step `n`, counted from 1; `None` at the end of the data.
    fn step(&mut self, trainer: &mut Trainer, n: u64, cursor: &mut BatchCursor) -> Result<Option<StepResult>>;
    /// What it needs to go on after the last step: files by their path in a checkpoint's folder.
    fn save(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
}

/// What a step used up.
#[derive(Debug, Default)]
pub struct BatchCursor {
    /// How far in the data.
    pub position: DataPosition,
    /// Rows that it was made of.
    pub rows: Vec<usize>,
    /// Rows that were left out.
    pub skipped: Vec<SkippedRow>,
}

impl BatchCursor {
    /// The next batch of `feed` that has any rows; `None` at the end of the data.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] when `stop` turned true.
    pub fn next_batch<S: SampleSource>(
        &mut self,
        feed: &mut BatchFeed<S>,
        stop: &AtomicBool,
    ) -> Result<Option<MicroBatch<S::Sample>>> {
        loop {
            stop_if(stop)?;
            let Some(mut batch) = feed.next_batch()? else { return Ok(None) };
            self.position.advance(&batch);
            self.skipped.append(&mut batch.skipped);
            self.rows.extend(&batch.rows);
            if !batch.samples.is_empty() {
                return Ok(Some(batch));
            }
        }
    }
}

/// An error that ends the run where it was asked to stop; the run says where and how to go on.
pub(crate) fn stop_if(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(TrainError::interrupted()),
        false => Ok(()),
    }
}

/// Runs to the end, or to the point where `setup.stop` turns true.
pub fn run<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<RunSummary> {
    setup.options.validate()?;
    let start = output::start(setup.options)?;
    let rows = Arc::new(W::open_rows(setup)?);
    let mut run = Run::<W>::begin(setup, start, rows)?;
    let done = run.steps();
    run.progress.finish();
    let done = done.and_then(|()| run.write_model());
    let told = run.watch.finish(&done);
    done.and(told)?;
    Ok(RunSummary {
        steps: run.state.steps,
        resumed_after: run.resumed_after,
        last: run.last,
        skipped: run.state.position.skipped.len(),
    })
}

/// Does the steps up to `step` of a run that was planned for these lengths, and gives what they left on the device.
pub(crate) fn replay_steps<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    step: u64,
    lengths: &[PlannedLength],
) -> Result<Trainer> {
    let start = output::start(setup.options)?;
    let mut run = Run::<W>::begin(setup, start, Arc::new(W::open_rows(setup)?))?;
    while run.state.step < step {
        if let Some(steps) = resume::length_at(lengths, run.state.step + 1) {
            run.trainer.hyperparameters.schedule = Hyperparameters::new(setup.options, steps).schedule;
        }
        if !run.one_step()? {
            break;
        }
    }
    run.progress.finish();
    Ok(run.trainer)
}

/// A run at work.
struct Run<'a, W: TrainLoop<'a>> {
    setup: RunSetup<'a, W::Options>,
    rows: Arc<W::DataSource>,
    trainer: Trainer,
    train_loop: W,
    /// The model that the run started from; its files may be those of the checkpoint that it went on from.
    origin: BaseModel,
    state: RunState,
    lengths: Vec<PlannedLength>,
    resumed_after: u64,
    last: Option<StepMetrics>,
    metrics: JsonlLog,
    hashes: HashLog,
    skipped: JsonlLog,
    watch: Reporters,
    progress: Progress,
    /// The step of the checkpoint that was written or read last, to write none twice.
    saved: u64,
    saver: CheckpointWriter,
    /// What run.json says of the products' library.
    products: Option<MatmulLibrary>,
}

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    fn begin(setup: &RunSetup<'a, W::Options>, start: RunStart, rows: Arc<W::DataSource>) -> Result<Self> {
        let options = setup.options;
        let order = order(options.no_shuffle, rows.rows(), setup.seed);
        let (state, found, from) = match &start {
            RunStart::Fresh => {
                let found = skipped_rows(options, &*rows)?;
                let (steps, found) = plan_length::<W>(setup, &rows, &order, found)?;
                if options.check_data && !setup.quiet {
                    let list = options.quarantine_list();
                    eprintln!("{} of {} rows cannot be used (see {})", found.len(), rows.rows(), list.display());
                } else if let Some(first) = found.first().filter(|_| !setup.quiet) {
                    eprintln!("{} of {} rows are left out; the first: {}", found.len(), rows.rows(), first.reason);
                }
                (resume::fresh(setup, &*rows, steps, &found)?, found, None)
            }
            RunStart::From(folder) => {
                let longer = || {
                    let found = skipped_rows(options, &*rows)?;
                    Ok(plan_length::<W>(setup, &rows, &order, found)?.0)
                };
                let mut state = resume::continued(setup, &*rows, folder, longer)?;
                state.rewards.keep_if_in(&options.out);
                (state, Vec::new(), Some(folder.as_path()))
            }
        };
        let config = reel_model::config::ModelConfig::open(setup.model)?;
        let hyperparameters = Hyperparameters::new(options, state.steps).with_seed(setup.seed);
        let (mut trainer, files) =
            Trainer::resume(setup.device, &config, setup.model, from, setup.dtype, hyperparameters)?;
        let batching = W::batching(options, rows.rows());
        let (threads, window) = (decoding_threads(), 2 * batching.rows.max(2));
        let feed = BatchFeed::new(rows.clone(), order, batching, &state.position, threads, window);
        // Before anything is written: where it cannot begin, OUT stays as it was.
        let train_loop = W::begin(setup, rows.clone(), feed, &mut trainer, from)?;
        let (metrics, skipped) = match &start {
            RunStart::Fresh => output::fresh_logs(&options.out, setup.model, &found)?,
            RunStart::From(folder) => {
                checkpoint::load_optimizer(folder, &mut trainer, &state)?;
                output::resume_logs(&options.out, folder, state.step, state.position.skipped.len())?
            }
        };
        let home = match &start {
            RunStart::Fresh => options.out.as_path(),
            RunStart::From(folder) => folder.parent().unwrap_or(Path::new("")),
        };
        let hashes = HashLog::open(&options.out, home, state.step, trainer.optimizer.states().count())?;
        let lengths = match from {
            None => vec![PlannedLength { after: 0, steps: state.steps }],
            Some(folder) => resume::lengths(folder, home, &state)?,
        };
        let run = run_json(setup, &state, &lengths);
        output::write_run(&options.out, &run)?;
        let watch = Reporters::begin(options, home, state.step, &run)?;
        best::write(&options.out, state.rewards.best, state.step, state.steps)?;
        let products = setup.device.matmul_library();
        let progress = Progress::new(setup.quiet, state.steps, state.step, options.logging_steps);
        if let RunStart::From(folder) = &start {
            progress.note(&format!("going on after step {} of {}, from {}", state.step, state.steps, folder.display()));
        }
        if let Some(folder) = watch.wandb() {
            progress.note(&format!("Weights & Biases: upload with `wandb sync {}`", folder.display()));
        }
        Ok(Self {
            train_loop,
            setup: *setup,
            rows,
            trainer,
            origin: BaseModel {
                folder: setup.model.to_path_buf(),
                files: Arc::new(files),
                name: name_of(&options.model),
            },
            saver: CheckpointWriter::default(),
            resumed_after: state.step,
            saved: state.step,
            products,
            state,
            lengths,
            last: None,
            metrics,
            hashes,
            skipped,
            watch,
            progress,
        })
    }

    /// Does the steps that are left.
    fn steps(&mut self) -> Result<()> {
        while self.state.step < self.state.steps {
            match self.one_step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(TrainError::Stopped { .. }) => return Err(self.stopped()?),
                // A reward is somebody else's program: what was done before it failed is kept.
                Err(e @ TrainError::Reward(_)) => {
                    self.save()?;
                    self.saver.wait()?;
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        if self.setup.options.save_steps > 0 {
            self.save()?;
        }
        self.saver.wait()?;
        self.write_products()
    }

    /// The model as it is now, in OUT.
    fn write_model(&mut self) -> Result<()> {
        self.saver.wait()?;
        TrainedWeights::capture(&self.trainer, self.origin.clone(), false)?.write(&self.setup.options.out)
    }

    /// One step with all that belongs to it; false at the end of the data.
    fn one_step(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let n = self.state.step + 1;
        self.saver.poll()?;
        self.trainer.device.reset_peak();
        let mut cursor = BatchCursor { position: self.state.position.clone(), ..BatchCursor::default() };
        let result = self.train_loop.step(&mut self.trainer, n, &mut cursor)?;
        cursor.skipped.iter().try_for_each(|s| self.skipped.add(s))?;
        self.state.position = cursor.position;
        let Some(result) = result else { return Ok(false) };
        if !result.is_finite() {
            return Err(self.not_finite(n, &result, &cursor.rows));
        }
        self.finish(n, result, begun)?;
        Ok(true)
    }

    /// Writes down a step that is done.
    fn finish(&mut self, n: u64, mut result: StepResult, begun: Instant) -> Result<()> {
        let hashes = self.trainer.hashes()?;
        let hash = fingerprint(&hashes);
        self.hashes.add(&hashes.into_iter().map(|h| h.1).collect::<Vec<_>>())?;
        let step_seconds = begun.elapsed().as_secs_f64();
        self.state.step = n;
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
            more: std::mem::take(&mut result.more),
        };
        self.metrics.add(&line)?;
        self.progress.step(&line);
        self.state.rewards.add(&line);
        let options = self.setup.options;
        if n.is_multiple_of(options.logging_steps) || n == self.state.steps {
            self.watch.step(&line, result.preview.as_ref())?;
        }
        self.last = Some(line);
        if self.products.is_none() {
            self.write_products()?;
        }
        let turn = options.save_steps > 0 && (n.is_multiple_of(options.save_steps) || n == self.state.steps);
        if !turn {
            return Ok(());
        }
        self.state.rewards.checkpoint(n);
        self.save()
    }

    /// A checkpoint of the last finished step, unless there is one. It is written while the steps go on, where there is memory for a copy
    /// of what it holds.
    fn save(&mut self) -> Result<()> {
        if self.saved == self.state.step {
            return Ok(());
        }
        // One copy at a time.
        self.saver.wait()?;
        self.metrics.sync()?;
        self.skipped.sync()?;
        self.write_products()?;
        let copy = checkpoint::has_room_for(checkpoint::checkpoint_bytes(&self.trainer));
        let (origin, state) = (self.origin.clone(), self.state.clone());
        let snapshot = Snapshot::capture(&self.trainer, origin, state.clone(), self.train_loop.save()?, copy)?;
        self.saved = state.step;
        let (out, keep) = (self.setup.options.out.clone(), self.setup.options.save_total_limit);
        let job = move || {
            snapshot.write(&out)?;
            best::write(&out, state.rewards.best, state.step, state.steps)?;
            checkpoint::prune(&out, keep, state.rewards.best.map(|best| best.step))
        };
        if copy { self.saver.start(job) } else { job() }
    }

    /// Writes run.json again where products of other shapes were asked for since: after the first step, with each checkpoint and at the
    /// end. Which algorithms there are is known only then.
    fn write_products(&mut self) -> Result<()> {
        let now = self.trainer.device.matmul_library();
        if now != self.products {
            output::write_run(&self.setup.options.out, &run_json(&self.setup, &self.state, &self.lengths))?;
            self.products = now;
        }
        Ok(())
    }

    /// Leaves what can be resumed; the error says how.
    fn stopped(&mut self) -> Result<TrainError> {
        self.save()?;
        self.saver.wait()?;
        let help = if self.state.step == 0 {
            "nothing was done; start again"
        } else {
            "go on with --resume-from-checkpoint last"
        };
        let location = format!("--out {}", self.setup.options.out.display());
        Ok(TrainError::Stopped { location, step: self.state.step, help: help.to_string() })
    }

    fn not_finite(&self, n: u64, result: &StepResult, rows: &[usize]) -> TrainError {
        let places: Vec<String> = rows.iter().map(|&row| self.rows.location(row).0).collect();
        let what = if result.loss.is_finite() { "the gradients' norm" } else { "the loss" };
        let value = if result.loss.is_finite() { result.grad_norm } else { result.loss };
        let help =
            "lower --learning-rate or look at these rows; weights and checkpoints are as they were before this step";
        TrainError::NotFinite {
            step: n,
            what: format!("{what} is {value}"),
            rows: places.join(", "),
            help: help.to_string(),
        }
    }
}

/// A model as an adapter's config is to name it: a folder by its absolute path, so that it is found from anywhere; a hub id as it is.
fn name_of(model: &str) -> String {
    Path::new(model).canonicalize().map_or(model.to_string(), |path| path.display().to_string())
}

/// The order of rows.
pub(crate) fn order(of_file: bool, rows: usize, seed: u64) -> Order {
    if of_file { Order::of_file(rows) } else { Order::shuffled(rows, seed) }
}

/// A quarter of the processors prepares rows; the rest computes.
fn decoding_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 4).clamp(1, 8))
}

fn run_json<O: TrainingOptions>(setup: &RunSetup<O>, state: &RunState, lengths: &[PlannedLength]) -> Value {
    let hardware = setup.device.hardware();
    let products =
        setup.device.matmul_library().map(|p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}));
    json!({
        "command": O::COMMAND,
        "version": env!("CARGO_PKG_VERSION"),
        "steps": state.steps,
        "lengths": lengths,
        "seed": setup.seed,
        "dtype": setup.dtype.name(),
        "device": setup.device.name(),
        "machine": {"name": hardware.name, "driver": hardware.driver},
        "products": products,
        "model_hash": state.model_hash,
        "data_hash": state.data_hash,
        "options": setup.resolved,
    })
}
