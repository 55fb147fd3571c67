//! The start of a run: everything up to its first step, fresh or resumed from a checkpoint.

use std::path::Path;
use std::sync::Arc;

use reel_model::save::SmallFiles;

use super::record::run_json;
use super::validate::{count_steps_and_unusable_rows, unusable_rows};
use super::{Run, RunSetup, TrainLoop, decoding_threads, difference_in_bits, row_order};
use crate::data::feed::{MicroBatchFeed, SampleSource};
use crate::data::order::RowOrder;
use crate::options::BestMetric;
use crate::reporting::metrics::{JsonlLog, SkippedRow, StepMetrics};
use crate::reporting::progress::Progress;
use crate::reporting::watch::Reporters;
use crate::run_folder::best;
use crate::run_folder::checkpoint::{self, BaseModel, CheckpointWriter};
use crate::run_folder::digests;
use crate::run_folder::evaluations::{self, EVALUATIONS_FILE};
use crate::run_folder::hashes::{HASHES_FILE, TensorHashLog};
use crate::run_folder::later_skipped;
use crate::run_folder::output::{self, RunStart};
use crate::run_folder::resume::{self, PlannedStepCount, RunState};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::Trainer;
use crate::{Result, TrainError};

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    /// Prepares a run up to its first step. OUT is not touched before model, data and training loop are ready, so a
    /// run that fails to start leaves it as it was.
    pub(super) fn begin(setup: &RunSetup<'a, W::Options>, start: RunStart, rows: Arc<W::DataSource>) -> Result<Self> {
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
        // Read before the first step, so that no file of the model makes a save fail hours later.
        let small_files = SmallFiles::read(setup.model)?;
        let small_files = Arc::new(match options.folder_format {
            Some(name) => small_files.in_format(name.format())?,
            None => small_files,
        });
        if let (Some(folder), Some(recorded)) = (start.checkpoint(), &recorded) {
            restore_optimizer_state(folder, &mut trainer, &state, recorded.last.as_ref())?;
        }
        let later_skipped = match start.checkpoint() {
            Some(_) if !options.strict => later_skipped::read(home, &state.position.skipped)?,
            _ => Vec::new(),
        };
        let feed = Self::feed(options, &rows, order, &state).skip_when_reached(later_skipped.clone());
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
        let evaluations = Self::evaluation_log(setup, &start, state.step)?;
        let unreported = recorded.and_then(|recorded| recorded.last).filter(|_| Self::lacks_evaluation(setup, &state));
        let reported = state.step - u64::from(unreported.is_some());
        let reporters = Reporters::begin(options, home, reported, &run)?;
        best::write_trainer_state(&options.out, state.rewards.best.as_ref(), state.step, state.steps)?;
        let progress = Progress::new(setup.quiet, state.steps, state.step, options.logging_steps);
        if let RunStart::From(folder) = &start {
            let difference = earlier_run.and_then(|run| difference_in_bits(&run, setup.device));
            print_resumption(&progress, folder, &state, digests.is_some(), difference);
        }
        if let Some(folder) = reporters.wandb_folder() {
            progress.print_line(&format!("Weights & Biases: upload with `wandb sync {}`", folder.display()));
        }
        Ok(Self {
            train_loop,
            setup: *setup,
            rows,
            base: BaseModel { small_files, files: Arc::new(files), name: base_name(&options.model) },
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
            lock: None,
            previous,
        })
    }

    /// The micro-batches from the position of `state` in the data on, whose samples threads load ahead.
    fn feed(
        options: &W::Options,
        rows: &Arc<W::DataSource>,
        order: RowOrder,
        state: &RunState,
    ) -> MicroBatchFeed<W::DataSource> {
        let batching = W::batching(options, order.rows_per_pass());
        let (threads, window) = (decoding_threads(), 2 * batching.rows.max(2));
        MicroBatchFeed::new(rows.clone(), order, batching, &state.position, threads, window)
    }

    /// Opens the log of evaluations, with the lines up to `step` if the run resumes. `None` if the run evaluates
    /// nothing and has never done so.
    fn evaluation_log(setup: &RunSetup<'a, W::Options>, start: &RunStart, step: u64) -> Result<Option<JsonlLog>> {
        let out = &setup.options.out;
        let home = start.run_folder(out);
        let is_resumed = start.checkpoint().is_some();
        if setup.evaluator.is_none() && !(is_resumed && home.join(EVALUATIONS_FILE).exists()) {
            return Ok(None);
        }
        evaluations::open(out, home, is_resumed.then_some(step)).map(Some)
    }

    /// Whether the last step before the checkpoint is yet to be evaluated. It is reported after that.
    fn lacks_evaluation(setup: &RunSetup<'a, W::Options>, state: &RunState) -> bool {
        setup.evaluator.is_some()
            && setup.options.evaluation.is_due(state.step, state.steps)
            && state.evaluated != Some(state.step)
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
                reel_diagnostic::note!(
                    "{} of {} rows cannot be used (see {})",
                    found.len(),
                    rows.row_count(),
                    list.display()
                );
            } else if let Some(first) = found.first().filter(|_| !setup.quiet) {
                reel_diagnostic::note!(
                    "{} of {} rows are skipped; the first: {}",
                    found.len(),
                    rows.row_count(),
                    first.reason
                );
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
}

/// Loads the state of the optimizer from a checkpoint, after a check that the trainer has the weights of the
/// checkpoint. `last` is the last step in the run's log of metrics.
///
/// # Errors
/// The weights are not those that the run had after its step `state.step`; the optimizer's file cannot be read.
fn restore_optimizer_state(
    folder: &Path,
    trainer: &mut Trainer,
    state: &RunState,
    last: Option<&StepMetrics>,
) -> Result<()> {
    // A checkpoint of an earlier version lacks the hash of the weights; the last line of the metrics has it.
    let hash = Some(&state.hash).filter(|hash| !hash.is_empty()).or(last.map(|last| &last.hash));
    let now = trainer.weights_fingerprint()?;
    if hash.is_some_and(|hash| now != *hash) {
        let what = format!("is damaged: its weights are not those that the run had after step {}", state.step);
        return Err(digests::damaged(folder, "", &what));
    }
    checkpoint::load_optimizer_state(folder, trainer, state)
}

/// Prints where a run resumes, and what differs from the run that wrote the checkpoint. `difference` says why its bits
/// may differ.
fn print_resumption(
    progress: &Progress,
    folder: &Path,
    state: &RunState,
    has_digests: bool,
    difference: Option<String>,
) {
    let (step, steps, folder) = (state.step, state.steps, folder.display());
    progress.print_line(&format!("resuming after step {step} of {steps} from {folder}"));
    if step == steps {
        progress.print_line("no step is left: only the trained model is written");
    }
    if !has_digests {
        progress.print_line(&format!(
            "warning: {folder} was written by an earlier version of reel: only its weights are checked"
        ));
    }
    if let Some(warning) = difference {
        progress.print_line(&format!("warning: {warning}"));
    }
}

/// The base model's name as an adapter's config states it: the absolute path of a folder, or a Hugging Face id.
fn base_name(model: &str) -> String {
    Path::new(model).canonicalize().map_or(model.to_string(), |path| path.display().to_string())
}
