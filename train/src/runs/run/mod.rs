//! Does a training run, from options to a folder with the trained model. [`sft`] and [`grpo`] implement [`TrainLoop`],
//! which defines what a step does. `start.rs` prepares a run, fresh or resumed. This file does everything around the
//! steps: checkpoints, logs, reports, interruption. `evaluation.rs` evaluates the model between steps.

mod agreement;
mod evaluation;
pub mod grpo;
mod hardware;
mod record;
pub mod replay;
pub mod sft;
mod start;
mod train_loop;
mod unusable_rows;
mod validate;
mod validation;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::error::{Error, Kind, Result, RowFailureKind, SkipCause};
use crate::file_names::SKIPPED_FILE;
use crate::metrics::{RolloutPreview, StepMetrics};
use crate::options::{ReportTo, TrainingOptions};
use crate::setup::{RunRanks, RunSetup};
use crate::step::hyperparameters::Hyperparameters;
use crate::step::trainer::{StepResult, Trainer, combined_fingerprint};
use reel_device::{RangeName, range};
use reel_samples::feed::{SampleSource, StepRowCursor};
use reel_samples::skipped_row::SkippedRow;
use reel_support::files::FolderLock;
use reel_support::files::digest::ModelFiles;
use reel_support::files::log;
use serde_json::Value;

use crate::runs::folder::checkpoint::{self, BaseModel, CheckpointSnapshot, CheckpointWriter, TrainedWeights};
use crate::runs::folder::entries;
use crate::runs::folder::later_skipped;
use crate::runs::folder::logs::RunLogs;
use crate::runs::folder::output;
use crate::runs::folder::previous::PreviousRun;
use crate::runs::folder::resume::{self, PlannedStepCount, RunState};
use crate::runs::folder::trainer_state;
use crate::runs::reporting::progress::Progress;
use crate::runs::reporting::signal::RewardSignalWatch;
use crate::runs::reporting::wandb::environment::WandbEnvironment;
use crate::runs::reporting::watch::Reporters;
use hardware::HardwareMonitor;
use record::RunJsonExtras;
pub use record::device_change_warning;
pub use train_loop::TrainLoop;
pub(crate) use unusable_rows::unusable_rows;
pub use validate::{DataCheckResult, check_data};
pub use validation::ValidationCheckResult;
pub(crate) use validation::ValidationRows;

/// The result of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// Number of finished steps of the whole run, including those of earlier processes.
    pub steps: u64,
    /// Planned number of steps of the whole run. Fewer steps are finished if the data ended early because rows were
    /// skipped.
    pub planned_steps: u64,
    /// The step of the checkpoint from which this process resumed; 0 for a fresh run.
    pub resumed_after: u64,
    /// Metrics of the last step, if this process did any step.
    pub last: Option<StepMetrics>,
    /// Number of skipped rows.
    pub skipped: usize,
    /// Number of skipped rows by cause.
    pub skipped_by_cause: BTreeMap<SkipCause, usize>,
}

/// Trains to the last step, or until `setup.control.stop` becomes true. OUT is locked during the run.
pub fn run<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<RunSummary> {
    setup.options.validate()?;
    if setup.options.reports_to(ReportTo::Wandb) {
        // Invalid variables are refused before OUT is changed.
        WandbEnvironment::read()?;
    }
    let lock = Arc::new(output::lock_output_folder(&setup.options.out)?);
    train::<W>(setup, &lock).map_err(|e| output::with_help_to_continue(e, setup.shared_out()))
}

fn train<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>, lock: &Arc<FolderLock>) -> Result<RunSummary> {
    let inputs = start::read_inputs::<W>(setup)?;
    inputs.check_profiled_steps(setup.options.profile_steps)?;
    let loaded = start::load_run::<W>(setup, &inputs)?;
    // Rank 0 may change OUT only after all ranks have read the checkpoint from which they resume.
    loaded.check_start(setup, &inputs)?;
    let mut run = start::begin_run(setup, inputs, loaded, Some(lock.clone()))?;
    let done = run.steps();
    run.reports.progress.finish();
    let done = done.and_then(|()| run.finish_folder());
    // All ranks leave together, because NCCL on the other ranks reports an early leave as an error.
    let end = || setup.control.ranks.map_or(Ok(()), |run| Ok(run.ranks.barrier("end of the run")?));
    let done = done.and_then(|()| end());
    let reported = run.reports.reporters.finish(&done);
    if let Err(e) = done.and(reported) {
        // If the run failed before the end of its first step, OUT is restored to its earlier state. Before that, the
        // run's threads and files are closed.
        let mut previous = std::mem::replace(&mut run.folder.previous, PreviousRun::none(&setup.options.out));
        drop(run);
        // If restoring fails, the next process that starts in this folder tries again. The error that ended the run is
        // more informative and is returned.
        let _ = previous.put_back();
        return Err(e);
    }
    Ok(RunSummary {
        steps: run.state.step,
        planned_steps: run.state.steps,
        resumed_after: run.resumed_after,
        last: run.last.clone(),
        skipped: run.state.position.skipped.len(),
        skipped_by_cause: skipped_by_cause(&setup.options.out)?,
    })
}

/// Counts the rows in `skipped.jsonl` by their cause.
fn skipped_by_cause(out: &Path) -> Result<BTreeMap<SkipCause, usize>> {
    let mut counts = BTreeMap::new();
    for line in log::read_matching_lines(&out.join(SKIPPED_FILE), |_: &SkippedRow| true)? {
        if let Ok(row) = serde_json::from_str::<SkippedRow>(&line) {
            *counts.entry(row.cause).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

/// Repeats the steps of a recorded run up to `step` and returns the trainer with the resulting weights. `recorded` is
/// the run's run.json, which has the fingerprints of model and data, and the total numbers of steps that the run had
/// planned. A step's learning rate depends on the number that was planned at that step.
pub(crate) fn replay_steps<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    step: u64,
    recorded: &Value,
) -> Result<Trainer> {
    let lengths: Vec<PlannedStepCount> = serde_json::from_value(recorded["lengths"].clone()).unwrap_or_default();
    let inputs = start::read_inputs::<W>(setup)?;
    let loaded = start::load_run::<W>(setup, &inputs)?;
    let mut run = start::begin_run(setup, inputs, loaded, None)?;
    check_inputs(setup, &run.state.data_hash, recorded)?;
    while run.state.step < step {
        if let Some(steps) = resume::planned_steps_at(&lengths, run.state.step + 1) {
            run.trainer.hyperparameters.schedule = Hyperparameters::new(setup.options, steps).schedule;
        }
        if !run.one_step()? {
            break;
        }
    }
    run.reports.progress.finish();
    Ok(run.trainer)
}

/// Checks that the model and data of a replay have the fingerprints that the run recorded in its run.json.
fn check_inputs<O: TrainingOptions>(setup: &RunSetup<O>, data_hash: &str, recorded: &Value) -> Result<()> {
    let model = ModelFiles::read(setup.data.model)?;
    let same_model = recorded["model_hash"].as_str().is_none_or(|hash| hash == model.fingerprint());
    let same_data = recorded["data_hash"].as_str().is_none_or(|hash| hash == data_hash);
    let (path, thing, which) = match (same_model, same_data) {
        (true, true) => return Ok(()),
        (false, _) => {
            let files = serde_json::from_value(recorded["model_files"].clone()).unwrap_or_default();
            (setup.data.model, "the model", model.differences_from(&files))
        }
        (true, false) => (&*setup.options.data, "the data", String::new()),
    };
    let what = format!("is not {thing} that the run was started with: its fingerprint differs{which}");
    let help = "restore it; a step can be repeated from the run's own files only";
    Err(Error::damaged(path.display().to_string(), what, help))
}

struct Run<'a, W: TrainLoop<'a>> {
    setup: RunSetup<'a, W::Options>,
    rows: Arc<W::DataSource>,
    trainer: Trainer,
    train_loop: W,
    state: RunState,
    resumed_after: u64,
    last: Option<StepMetrics>,
    recorded: RunJsonExtras,
    logs: RunLogs,
    hardware: HardwareMonitor,
    reports: Reports,
    checkpoints: CheckpointWriting,
    /// This field must be the last one, so that the run's files are closed before an earlier run is put back.
    folder: OutFolder,
}

/// The reports of a run: progress on the terminal, TensorBoard and Weights & Biases.
struct Reports {
    reporters: Reporters,
    progress: Progress,
    signal: RewardSignalWatch,
    /// The latest rollout preview that has not been reported yet. It may come from a step whose metrics are not
    /// reported.
    preview: Option<RolloutPreview>,
    /// Metrics of the checkpoint's step from which the run resumes, if that step still lacks its evaluation. They are
    /// reported after the evaluation.
    unreported: Option<StepMetrics>,
}

/// State for writing the checkpoints and the final model of a run.
struct CheckpointWriting {
    /// The model from which the run started. In a resumed run, its weight files are those of the checkpoint.
    base: BaseModel,
    writer: CheckpointWriter,
    /// The step of the checkpoint that was last written or from which the run resumed. A checkpoint of this step is
    /// not written again.
    saved: Option<u64>,
}

/// The folder OUT while a run writes to it.
struct OutFolder {
    /// The lock on OUT; `None` in a replay.
    lock: Option<Arc<FolderLock>>,
    /// The earlier run in OUT that this run replaces; kept until this run's first step is done.
    previous: PreviousRun,
}

/// Adds to the help of an error about a row, the data or media how to resume from the newest checkpoint. `strict` tells
/// whether the run stops at the first unusable row (`--strict`). Other errors are returned unchanged.
fn with_help_to_resume(mut e: Error, strict: bool) -> Error {
    if let Kind::Row(kind) = e.kind {
        e.diagnostic.help += match strict && kind != RowFailureKind::MediaUnavailable {
            true => "; then resume with --resume-from-checkpoint last, without --strict to skip such rows",
            false => "; then resume with --resume-from-checkpoint last",
        };
    }
    e
}

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    fn steps(&mut self) -> Result<()> {
        match self.steps_and_evaluations() {
            Ok(()) => {}
            Err(e) if e.kind == Kind::Stopped => return Err(self.stopped()?),
            // The finished steps are saved before the run ends, if a custom reward fails, media are unavailable, or a
            // row cannot be used.
            Err(e) if matches!(e.kind, Kind::Reward | Kind::SemanticReward | Kind::Row(_)) => {
                self.save_before_error()?;
                let saved = entries::checkpoints_by_step(self.setup.shared_out())?;
                return Err(match saved.contains_key(&self.state.step) {
                    true => with_help_to_resume(e, self.setup.options.strict),
                    false => e,
                });
            }
            Err(e) => return Err(e),
        }
        if self.setup.options.save_steps > 0 {
            self.save()?;
        }
        self.checkpoints.writer.wait()?;
        self.recorded.update_matmul_algorithms(&self.setup, &self.state)
    }

    /// Does all remaining steps, and the evaluations between them.
    fn steps_and_evaluations(&mut self) -> Result<()> {
        self.evaluate_before_steps()?;
        while self.state.step < self.state.steps && self.one_step()? {}
        // If the data ended before the planned number of steps, the evaluation after the last step is still missing.
        let validation = self.validate_if_due(self.state.step);
        let Some(line) = self.evaluate_if_due(self.state.step, validation)? else { return Ok(()) };
        self.report_step(line.step, None, Some(&line))?;
        if line.step == 0 {
            return Ok(());
        }
        if self.is_scheduled_checkpoint(line.step) {
            self.record_checkpoint(Some(&line));
        }
        // A checkpoint of the last step may already be written, but without the evaluation, so it is written again.
        self.checkpoints.saved = None;
        Ok(())
    }

    /// Writes the trained model after the last step.
    fn finish_folder(&mut self) -> Result<()> {
        let _range = range(RangeName::Phase("trained model"));
        self.checkpoints.writer.wait()?;
        self.check_out_is_the_same()?;
        self.folder.previous.remove()?;
        let weights = TrainedWeights::capture(&self.trainer, self.checkpoints.base.clone());
        match self.setup.control.ranks {
            None => weights.write(&self.setup.options.out, &|_| Ok(()))?,
            Some(run) => weights.write(run.out, &|name| Ok(run.ranks.barrier(name)?))?,
        }
        if !self.setup.control.is_rank_0() {
            return Ok(());
        }
        let (state, options) = (&self.state, self.setup.options);
        let steps = (state.step, state.steps);
        trainer_state::write(&options.out, state.rewards.best.as_ref(), steps, options.logging_steps)?;
        later_skipped::remove(&options.out)
    }

    /// Does one step, logs it, and writes a checkpoint if one is due. Returns false at the end of the data.
    fn one_step(&mut self) -> Result<bool> {
        let n = self.state.step + 1;
        self.save_or_stop_if_asked()?;
        self.setup.trainer.profiler.map_or(Ok(()), |profiler| profiler.before_step(n))?;
        let is_done = self.one_step_in_range(n)?;
        self.setup.trainer.profiler.map_or(Ok(()), |profiler| profiler.after_step(n))?;
        Ok(is_done)
    }

    /// Does step `n` for [`Self::one_step`], within a range of the profile.
    fn one_step_in_range(&mut self, n: u64) -> Result<bool> {
        let _step = range(RangeName::Step(n));
        let begun = Instant::now();
        self.checkpoints.writer.check_finished_job()?;
        self.trainer.device.reset_peak();
        self.hardware.begin_step();
        let mut cursor = StepRowCursor { position: self.state.position.clone(), ..StepRowCursor::default() };
        let result = self.train_loop.step(&mut self.trainer, n, &mut cursor)?;
        cursor.skipped.iter().try_for_each(|s| self.logs.skipped.append(s))?;
        self.state.position = cursor.position;
        let Some(result) = result else { return Ok(false) };
        if !result.is_finite() {
            return Err(self.not_finite(n, &result, &cursor.rows));
        }
        self.finish(n, result, begun)?;
        Ok(true)
    }

    /// Writes a checkpoint if a process has received SIGUSR1. If one rank was interrupted, makes all ranks stop
    /// before the same step. The ranks exchange both flags, so that all of them do the same.
    fn save_or_stop_if_asked(&mut self) -> Result<()> {
        let mut save = self.setup.control.save.is_some_and(|save| save.swap(false, Ordering::Relaxed));
        if let Some(RunRanks { ranks, interrupted, .. }) = self.setup.control.ranks {
            let own = [u8::from(interrupted.load(Ordering::Relaxed)), u8::from(save)];
            let flags = ranks.all_gather("interruptions", &own)?;
            let any = |index: usize| flags.iter().any(|flags| flags.get(index).is_some_and(|&flag| flag != 0));
            if any(0) {
                self.setup.control.stop.store(true, Ordering::Relaxed);
            }
            save = any(1);
        }
        // A replay does not write checkpoints.
        if save && self.state.step > 0 && self.folder.lock.is_some() {
            self.reports.progress.print_line(&format!("SIGUSR1: saving a checkpoint of step {}", self.state.step));
            self.save()?;
        }
        Ok(())
    }

    /// Compares the weights of all ranks after step `n`. `hash` is the fingerprint of this rank's weights.
    fn check_ranks_have_the_same_weights(&self, n: u64, hash: &str) -> Result<()> {
        let Some(RunRanks { ranks, .. }) = self.setup.control.ranks else { return Ok(()) };
        let hashes = ranks.all_gather("fingerprints of the weights", hash.as_bytes())?;
        let Some(other) = hashes.iter().position(|other| *other != hashes[0]) else { return Ok(()) };
        Err(Error::damaged(
            format!("step {n}"),
            format!("left weights on rank {other} that differ from those of rank 0"),
            "start all ranks with the same program, options and instruction set; resume from the last checkpoint",
        ))
    }

    /// Logs and reports a finished step, and writes a checkpoint if one is due.
    fn finish(&mut self, n: u64, mut result: StepResult, begun: Instant) -> Result<()> {
        let hashing = self.trainer.device.profiler().phase("fingerprint");
        let hashes = self.trainer.tensor_hashes()?;
        let hash = combined_fingerprint(&hashes);
        drop(hashing);
        let logging = range(RangeName::Phase("logging"));
        self.check_ranks_have_the_same_weights(n, &hash)?;
        self.logs.hashes.append(&hashes.into_iter().map(|h| h.1).collect::<Vec<_>>())?;
        let step_seconds = begun.elapsed().as_secs_f64();
        self.state.step = n;
        self.state.hash.clone_from(&hash);
        self.state.peak_bytes = self.state.peak_bytes.max(self.trainer.device.memory().peak as u64);
        let mut line = StepMetrics {
            step: n,
            loss: result.loss,
            grad_norm: result.grad_norm,
            learning_rate: result.learning_rate,
            tokens: result.tokens as u64,
            tokens_per_second: result.tokens as f64 / step_seconds.max(1e-9),
            step_seconds,
            peak_bytes: self.state.peak_bytes,
            hash,
            hardware: self.hardware.metrics_of_step(&result, step_seconds),
            grpo: std::mem::take(&mut result.grpo),
            validation: None,
        };
        self.reports.progress.show_step(&line);
        self.warn_of_no_gradient(&line);
        if let Some(note) = self.reports.signal.note_of_step(n, line.grpo.frac_reward_zero_std) {
            self.reports.progress.print_line(&note);
        }
        drop(logging);
        let validating = range(RangeName::Phase("validation"));
        // The step's line in `metrics.jsonl` includes its validation loss. If the loss cannot be computed, the line
        // is written without it, so that a checkpoint of the step can be written.
        let validation = self.validate_if_due(self.state.steps);
        line.validation = validation.as_ref().ok().and_then(|done| Some(done.as_ref()?.0.clone()));
        drop(validating);
        let logging = range(RangeName::Phase("logging"));
        self.logs.metrics.append(&line)?;
        self.folder.previous.remove()?;
        self.state.rewards.add_step_reward(&line);
        self.reports.preview = result.preview.take().or(self.reports.preview.take());
        self.last = Some(line.clone());
        if !self.recorded.records_matmul_algorithms() {
            self.recorded.update_matmul_algorithms(&self.setup, &self.state)?;
        }
        drop(logging);
        let evaluation = self.evaluate_if_due(self.state.steps, validation)?;
        let logging = range(RangeName::Phase("logging"));
        self.report_step(n, Some(&line), evaluation.as_ref())?;
        drop(logging);
        if !self.is_scheduled_checkpoint(n) {
            return Ok(());
        }
        self.record_checkpoint(evaluation.as_ref());
        self.save()
    }

    /// Prints a warning, once, if the first step of SFT has no gradient, for example if rows have no media and only
    /// the vision tower is trained. In GRPO a step without gradient is common: all answers of a prompt had the same
    /// reward.
    fn warn_of_no_gradient(&self, line: &StepMetrics) {
        if line.step == self.resumed_after + 1 && line.grad_norm == 0.0 && line.grpo.reward.is_none() {
            self.reports.progress.print_line(&format!(
                "warning: step {}: the gradient is 0, so nothing is learned; the trained weights do not take part in these \
                 rows (is only the vision tower trained, on rows without media?)",
                line.step
            ));
        }
    }

    /// Writes a checkpoint of the last finished step unless there is one. If host memory has room for a copy of weights
    /// and optimizer state, a background thread writes the copy while the next steps run. Several ranks write it
    /// together, without a copy.
    fn save(&mut self) -> Result<()> {
        self.check_out_is_the_same()?;
        if self.checkpoints.saved == Some(self.state.step) {
            return Ok(());
        }
        let _range = range(RangeName::Phase("checkpoint"));
        // Waits for the previous checkpoint, so that at most one copy of the weights is in host memory.
        self.checkpoints.writer.wait()?;
        self.logs.sync()?;
        let logs = self.logs.digests();
        self.recorded.update_matmul_algorithms(&self.setup, &self.state)?;
        let (base, state) = (self.checkpoints.base.clone(), self.state.clone());
        let files = self.train_loop.resume_files()?;
        let mut snapshot = CheckpointSnapshot::capture(&self.trainer, base, state.clone(), files)?.with_logs(logs);
        self.checkpoints.saved = Some(state.step);
        let (out, keep) = (self.setup.options.out.clone(), self.setup.options.checkpoint_limit());
        let (folder, logging_steps) = (out.clone(), self.setup.options.logging_steps);
        let finish = move || {
            let best = state.rewards.best.as_ref();
            trainer_state::write(&folder, best, (state.step, state.steps), logging_steps)?;
            checkpoint::remove_old_checkpoints(&folder, keep, best.map(|best| best.step))
        };
        if let Some(RunRanks { ranks, out: shared, .. }) = self.setup.control.ranks {
            let barrier = |name: &str| Ok(ranks.barrier(name)?);
            if ranks.rank() > 0 {
                snapshot.write_cells(shared, &barrier)?;
            } else {
                snapshot.write_with_barrier(&out, &barrier)?;
                finish()?;
            }
            // If another rank ended before the checkpoint is complete, rank 0 would fail too, so all ranks wait here.
            return barrier("complete checkpoint");
        }
        let bytes = checkpoint::checkpoint_bytes(&self.trainer);
        let copied = checkpoint::host_memory_has_room_for(&self.trainer.device, bytes) && snapshot.copy_tensors()?;
        let job = move || {
            // On the writer's thread this is a separate range, parallel to the next steps.
            let _range = range(RangeName::Phase("checkpoint files"));
            snapshot.write(&out)?;
            finish()
        };
        if copied { self.checkpoints.writer.start(job) } else { job() }
    }

    /// Saves the finished steps before the run ends with an error. Several ranks can only save together. So nothing
    /// is saved if only this rank has the error; the job then fails.
    fn save_before_error(&mut self) -> Result<()> {
        match self.save() {
            Err(_) if self.setup.control.ranks.is_some() => Ok(()),
            saved => saved.and_then(|()| self.checkpoints.writer.wait()),
        }
    }

    /// Checks that OUT is still the folder that the run has locked and that contains the run's logs. Ranks other than 0
    /// have no lock on OUT.
    fn check_out_is_the_same(&self) -> Result<()> {
        let lock = self.folder.lock.as_ref().filter(|_| self.setup.control.is_rank_0());
        if lock.is_none_or(|lock| lock.still_protects_folder()) {
            return Ok(());
        }
        let location = format!("--out {}", self.setup.options.out.display());
        let what = format!("was removed or replaced during the run, after step {} at the latest", self.state.step);
        Err(Error::failed(location, what, "put the folder back and resume, or start the run again in another --out"))
    }

    /// Writes a checkpoint after an interruption and returns the error that says how to resume.
    fn stopped(&mut self) -> Result<Error> {
        self.save()?;
        self.checkpoints.writer.wait()?;
        let help = if self.state.step == 0 {
            "no step was finished and the folder is unchanged; start the run again"
        } else {
            "resume with --resume-from-checkpoint last"
        };
        let location = format!("--out {}", self.setup.shared_out().display());
        let what = format!("stopped after step {}", self.state.step);
        Ok(Error::stopped(location, what, help))
    }

    /// The error of a step whose loss or gradient norm is NaN or infinite.
    fn not_finite(&self, n: u64, result: &StepResult, rows: &[usize]) -> Error {
        let locations: Vec<String> = rows.iter().map(|&row| self.rows.location(row).0).collect();
        let (name, value) = match result.loss.is_finite() {
            true => ("the gradients' norm", result.grad_norm),
            false => ("the loss", result.loss),
        };
        Error::failed(
            format!("step {n}"),
            format!("{name} is {value} (rows {})", locations.join(", ")),
            "lower --learning-rate or look at these rows; weights and checkpoints are as they were before this step",
        )
    }
}
