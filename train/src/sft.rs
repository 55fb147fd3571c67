//! A run of supervised fine-tuning: from options to a folder with the trained model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reel_model::checkpoint::Checkpoint;
use reel_model::input::{Bundle, MediaOptions, SecondPerGrid};
use reel_runtime::device::ProductLibrary;
use reel_runtime::{DType, Device};
use serde_json::{Value, json};

use crate::checkpoint::{self, Origin};
use crate::data::Dataset;
use crate::events::Events;
use crate::feed::{Feed, MicroBatch, Position, Source};
use crate::labels::Labels;
use crate::length;
use crate::metrics::{Log, Skipped, StepMetrics};
use crate::options::{Parity, SftOptions};
use crate::order::Order;
use crate::output::{self, Start};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::resume::{self, State};
use crate::sample::{Kept, Sample, Samples};
use crate::step::step;
use crate::trainer::{StepResult, Trainer};
use crate::{Result, TrainError};

/// What a run is given beside its options.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The options.
    pub options: &'a SftOptions,
    /// The folder that `options.model` names.
    pub model: &'a Path,
    /// Where to compute.
    pub device: &'a Device,
    /// Dtype of weights and activations, F32 or BF16.
    pub dtype: DType,
    /// Seed of the order of rows.
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

/// What a run did.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps of the whole run.
    pub steps: u64,
    /// The step that this call started after.
    pub resumed_after: u64,
    /// The last step's line of `metrics.jsonl`, if this call did any.
    pub last: Option<StepMetrics>,
    /// Rows left out.
    pub skipped: usize,
}

/// Runs to the end, or to the point where `setup.stop` turns true.
pub fn run(setup: &Setup) -> Result<Summary> {
    setup.options.validate()?;
    let start = output::start(setup.options)?;
    let samples = Arc::new(samples(setup)?);
    samples.check()?;
    let mut run = Run::begin(setup, start, samples)?;
    let done = run.steps();
    run.progress.finish();
    done?;
    checkpoint::save_weights(&setup.options.out, &run.trainer, run.origin())?;
    Ok(Summary {
        steps: run.state.steps,
        resumed_after: run.resumed_after,
        last: run.last,
        skipped: run.state.position.skipped.len(),
    })
}

/// The rows of the data file, as the model of the run learns from them.
pub fn samples(setup: &Setup) -> Result<Samples> {
    let options = setup.options;
    let bundle = Arc::new(Bundle::open(setup.model)?);
    let labels = Labels::new(options.label_rule(), &bundle.tokenizer).map_err(|token| {
        TrainError::option(
            "--labels",
            format!("this rule needs the token {token}, which the model's tokenizer lacks"),
            "choose another rule",
        )
    })?;
    let second_per_grid = if options.parity == Parity::Paper { SecondPerGrid::True } else { SecondPerGrid::One };
    Ok(Samples {
        data: Dataset::open(&options.data)?,
        bundle,
        labels,
        media: MediaOptions { second_per_grid, ..setup.media.clone() },
        media_root: options.media_root(),
        parity: options.parity,
        kept: Kept::default(),
    })
}

/// A run at work.
struct Run<'a> {
    setup: Setup<'a>,
    samples: Arc<Samples>,
    trainer: Trainer,
    /// The weight files that the run started from or went on from.
    files: Checkpoint,
    feed: Feed<Samples>,
    state: State,
    resumed_after: u64,
    last: Option<StepMetrics>,
    metrics: Log,
    skipped: Log,
    events: Events,
    progress: Progress,
    /// The step of the checkpoint that was written or read last, to write none twice.
    saved: u64,
    /// What run.json says of the products' library.
    products: Option<ProductLibrary>,
}

/// What the micro-batches of a step used up.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    position: Position,
    rows: Vec<usize>,
    skipped: Vec<Skipped>,
}

impl<'a> Run<'a> {
    fn begin(setup: &Setup<'a>, start: Start, samples: Arc<Samples>) -> Result<Self> {
        let (options, rows) = (setup.options, samples.rows());
        let order = if options.no_shuffle { Order::of_file(rows) } else { Order::shuffled(rows, setup.seed) };
        let (state, found, folder) = match &start {
            Start::Fresh => {
                if length::needs_every_row(options) && !setup.quiet {
                    eprintln!("looking at {rows} rows");
                }
                let length = length::measure(options, &samples, &order, setup.stop)?;
                (resume::fresh(setup, &samples, &length)?, length.skipped, setup.model)
            }
            Start::From(folder) => (resume::continued(setup, &samples, &order, folder)?, Vec::new(), folder.as_path()),
        };
        let recipe = Recipe::new(options, state.steps).seeded(setup.seed);
        let (mut trainer, files) = Trainer::open(setup.device, &samples.bundle.config, folder, setup.dtype, recipe)?;
        let (metrics, skipped) = match &start {
            Start::Fresh => output::fresh_logs(&options.out, setup.model, &found)?,
            Start::From(folder) => {
                checkpoint::load_optimizer(folder, &mut trainer, &state)?;
                output::resume_logs(&options.out, folder, state.step, state.position.skipped.len())?
            }
        };
        output::write_run(&options.out, &run_json(setup, &state))?;
        let products = setup.device.products();
        let progress = Progress::new(setup.quiet, state.steps, state.step, options.logging_steps);
        if let Start::From(folder) = &start {
            progress.note(&format!("going on after step {} of {}, from {}", state.step, state.steps, folder.display()));
        }
        let batching = length::batching(options, rows);
        let (threads, window) = (decoding_threads(), 2 * batching.rows.max(2));
        Ok(Self {
            setup: *setup,
            feed: Feed::new(samples.clone(), order, batching, &state.position, threads, window),
            samples,
            trainer,
            files,
            resumed_after: state.step,
            saved: state.step,
            products,
            state,
            last: None,
            metrics,
            skipped,
            events: Events::create(&options.out)?,
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
                Err(e) => return Err(e),
            }
        }
        if self.setup.options.save_steps > 0 {
            self.save()?;
        }
        self.write_products()
    }

    /// One step with all that belongs to it; false at the end of the data.
    fn one_step(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let n = self.state.step + 1;
        self.trainer.device.reset_peak();
        let mut taken = Taken { position: self.state.position.clone(), ..Taken::default() };
        let (feed, stop) = (&mut self.feed, self.setup.stop);
        let result = step(&mut self.trainer, n, || next_samples(feed, stop, &mut taken))?;
        taken.skipped.iter().try_for_each(|s| self.skipped.add(s))?;
        self.state.position = taken.position;
        let Some(result) = result else { return Ok(false) };
        if !result.is_finite() {
            return Err(self.not_finite(n, &result, &taken.rows));
        }
        self.finish(n, &result, begun)?;
        Ok(true)
    }

    /// Writes down a step that is done.
    fn finish(&mut self, n: u64, result: &StepResult, begun: Instant) -> Result<()> {
        let hash = self.trainer.hash()?;
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
        };
        self.metrics.add(&line)?;
        self.progress.step(&line);
        let options = self.setup.options;
        if n.is_multiple_of(options.logging_steps) || n == self.state.steps {
            self.events.scalars(n, &points(&line))?;
        }
        self.last = Some(line);
        if self.products.is_none() {
            self.write_products()?;
        }
        if options.save_steps > 0 && n.is_multiple_of(options.save_steps) { self.save() } else { Ok(()) }
    }

    /// A checkpoint of the last finished step, unless there is one.
    fn save(&mut self) -> Result<()> {
        if self.saved == self.state.step {
            return Ok(());
        }
        self.metrics.sync()?;
        self.skipped.sync()?;
        self.write_products()?;
        let options = self.setup.options;
        checkpoint::save(&options.out, &self.trainer, self.origin(), self.state.clone())?;
        self.saved = self.state.step;
        checkpoint::prune(&options.out, options.save_total_limit)
    }

    /// Writes run.json again where products of other shapes were asked for since: after the first step, with each checkpoint and at the
    /// end. Which algorithms there are is known only then.
    fn write_products(&mut self) -> Result<()> {
        let now = self.trainer.device.products();
        if now != self.products {
            output::write_run(&self.setup.options.out, &run_json(&self.setup, &self.state))?;
            self.products = now;
        }
        Ok(())
    }

    fn origin(&self) -> Origin<'_> {
        Origin { folder: self.setup.model, files: &self.files }
    }

    /// Leaves what can be resumed; the error says how.
    fn stopped(&mut self) -> Result<TrainError> {
        self.save()?;
        let cure = if self.state.step == 0 {
            "nothing was done; start again"
        } else {
            "go on with --resume-from-checkpoint last"
        };
        let place = format!("--out {}", self.setup.options.out.display());
        Ok(TrainError::Stopped { place, step: self.state.step, cure: cure.to_string() })
    }

    fn not_finite(&self, n: u64, result: &StepResult, rows: &[usize]) -> TrainError {
        let places: Vec<String> = rows.iter().map(|&row| self.samples.data.place(row)).collect();
        let what = if result.loss.is_finite() { "the gradients' norm" } else { "the loss" };
        let value = if result.loss.is_finite() { result.grad_norm } else { result.loss };
        let cure =
            "lower --learning-rate or look at these rows; weights and checkpoints are as they were before this step";
        TrainError::NotFinite {
            step: n,
            what: format!("{what} is {value}"),
            rows: places.join(", "),
            cure: cure.to_string(),
        }
    }
}

/// The samples of the next micro-batch that has any.
pub(crate) fn next_samples(
    feed: &mut Feed<Samples>,
    stop: &AtomicBool,
    taken: &mut Taken,
) -> Result<Option<Vec<Sample>>> {
    while let Some(batch) = interruptible(feed, stop)? {
        taken.position.advance(&batch);
        taken.skipped.extend(batch.skipped);
        taken.rows.extend(batch.rows);
        if !batch.samples.is_empty() {
            return Ok(Some(batch.samples));
        }
    }
    Ok(None)
}

fn interruptible(feed: &mut Feed<Samples>, stop: &AtomicBool) -> Result<Option<MicroBatch<Sample>>> {
    if stop.load(Ordering::Relaxed) {
        return Err(TrainError::Stopped { place: String::new(), step: 0, cure: String::new() });
    }
    feed.next_batch()
}

/// A quarter of the processors prepares rows; the rest computes.
fn decoding_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 4).clamp(1, 8))
}

fn points(line: &StepMetrics) -> [(&'static str, f64); 5] {
    [
        ("train/loss", line.loss),
        ("train/grad_norm", line.grad_norm),
        ("train/learning_rate", line.learning_rate),
        ("train/tokens_per_second", line.tokens_per_second),
        ("train/peak_bytes", line.peak_bytes as f64),
    ]
}

fn run_json(setup: &Setup, state: &State) -> Value {
    let hardware = setup.device.hardware();
    let products =
        setup.device.products().map(|p| json!({"library": p.name, "algorithms": p.algorithms, "hash": p.hash}));
    json!({
        "command": "sft",
        "version": env!("CARGO_PKG_VERSION"),
        "steps": state.steps,
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

#[cfg(test)]
mod tests;
