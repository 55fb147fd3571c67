//! Evaluates the model in training (`--eval-steps`). [`ValidationRows`](super::ValidationRows) computes the loss of
//! validation rows; [`PolicyEvaluator`] answers and scores the questions of benchmarks. This file decides when to
//! evaluate, writes `OUT/eval.jsonl`, and passes the results to reports and checkpoints.
//!
//! ```text
//! step N is done: compute the validation loss, log the step with it
//!     evaluate: answers in OUT/eval/step-N, a line in OUT/eval.jsonl
//!     report the step with its scores
//!     checkpoint, which says that step N is evaluated
//! ```
//!
//! If a process is stopped during the evaluation, its checkpoint of step N, if any, does not say that step N is
//! evaluated. The process that resumes from this checkpoint evaluates first and reuses the answers that are already in
//! OUT. They are answers of the same weights, because a resumed run gives the same bits as an uninterrupted run. The
//! process then writes the checkpoint again. A validation loss that is computed in this way is only in `eval.jsonl`.
//! The line of step N in `metrics.jsonl` is not changed, because the digests of the checkpoint cover it.
//!
//! With several ranks, all of them evaluate at the same time: each answers its share of the questions with its own copy
//! of the weights, and rank 0 writes the files. With ZeRO-3 the weights are gathered for the evaluation.
//!
//! An evaluation reads the weights and does not change the training. Its engine, KV cache and cache of vision tokens
//! are its own and are freed at its end, and no random number of the training depends on it.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::error::{Kind, Result};
use crate::metrics::{StepMetrics, ValidationLoss};
use crate::options::{BestMetric, TrainingOptions};
use crate::setup::{BenchmarkScore, EvaluatedPolicy, PolicyEvaluator};
use crate::step::validation::ValidationLossPass;
use reel_device::{RangeName, range};

use super::{Run, TrainLoop};
use crate::runs::folder::evaluations::{self, EvaluationLine};

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    /// Whether an evaluation of the last finished step is due and not yet done. `steps` is the number of steps of the
    /// run. A replay evaluates nothing.
    fn lacks_evaluation(&self, steps: u64) -> bool {
        let step = self.state.step;
        let is_due = self.setup.options.is_evaluation_due(step, steps) && self.state.evaluated != Some(step);
        is_due && self.folder.lock.is_some()
    }

    /// Computes the validation loss after the last finished step, if the run has validation rows and an evaluation is
    /// due and not yet done. Returns the loss, and the seconds that it took.
    ///
    /// # Errors
    /// [`Kind::Stopped`] when the run was interrupted; a row cannot be used in a strict run; the loss is NaN.
    pub(super) fn validate_if_due(&self, steps: u64) -> Result<Option<(ValidationLoss, f64)>> {
        let step = self.state.step;
        let Some(validation) = self.train_loop.validation().filter(|_| self.lacks_evaluation(steps)) else {
            return Ok(None);
        };
        let is_recorded = |line: &EvaluationLine| {
            line.validation.as_ref().is_some_and(|loss| loss.eval_data_hash == validation.fingerprint())
        };
        if let Some(line) = self.recorded_evaluation(&self.weights_hash()?, is_recorded)? {
            return Ok(line.validation.map(|loss| (loss, line.eval_seconds)));
        }
        let print = |text: &str| self.reports.progress.print_line(&format!("step {step}: {text}"));
        let begun = Instant::now();
        let loss = validation.loss(ValidationLossPass::new(&self.trainer), &print)?;
        Ok(Some((loss, begun.elapsed().as_secs_f64())))
    }

    /// Evaluates the model after the last finished step if an evaluation is due and not yet done. `steps` is the
    /// number of steps of the run. `validation` is the result of [`Self::validate_if_due`]. Returns the line of the
    /// evaluation in `eval.jsonl`.
    ///
    /// # Errors
    /// [`Kind::Stopped`] when the run was interrupted. Before any other error is returned, a checkpoint of the
    /// step is written.
    pub(super) fn evaluate_if_due(
        &mut self,
        steps: u64,
        validation: Result<Option<(ValidationLoss, f64)>>,
    ) -> Result<Option<EvaluationLine>> {
        let step = self.state.step;
        let evaluates = self.setup.reports.evaluator.is_some() || self.train_loop.validation().is_some();
        if !evaluates || !self.lacks_evaluation(steps) {
            return Ok(None);
        }
        let line = match validation.and_then(|validation| self.evaluate(validation)) {
            Err(e) if e.kind == Kind::Stopped => return Err(e),
            Err(e) => {
                self.save_before_error()?;
                return Err(e);
            }
            Ok(line) => line,
        };
        self.state.evaluated = Some(step);
        self.reports.progress.print_line(&format!("step {step}: {}", line.summary()));
        Ok(Some(line))
    }

    /// Returns the line of `eval.jsonl` for the last finished step. Evaluates the model if the file does not have the
    /// line yet.
    fn evaluate(&mut self, validation: Option<(ValidationLoss, f64)>) -> Result<EvaluationLine> {
        let (step, hash) = (self.state.step, self.weights_hash()?);
        let (validation, seconds) = validation.unzip();
        if let Some(line) = self.recorded_evaluation(&hash, |line| line.validation == validation)? {
            return Ok(line);
        }
        let (begun, _range) = (Instant::now(), range(RangeName::Phase("evaluation")));
        let benchmarks = match self.setup.reports.evaluator {
            Some(evaluator) => self.benchmark_scores(evaluator, &hash)?,
            None => BTreeMap::new(),
        };
        let seconds = seconds.unwrap_or(0.0) + begun.elapsed().as_secs_f64();
        let line = EvaluationLine::new(step, validation, benchmarks, hash, seconds);
        if let Some(log) = &mut self.logs.evaluations {
            log.append(&line)?;
        }
        Ok(line)
    }

    /// The fingerprint of the trained weights after the last finished step.
    fn weights_hash(&self) -> Result<String> {
        match self.state.step {
            0 => self.trainer.weights_fingerprint(),
            _ => Ok(self.state.hash.clone()),
        }
    }

    /// Evaluates the model on benchmarks. Returns the scores by benchmark name.
    fn benchmark_scores(
        &self,
        evaluator: &dyn PolicyEvaluator,
        hash: &str,
    ) -> Result<BTreeMap<String, BenchmarkScore>> {
        let (out, step) = (&self.setup.options.out, self.state.step);
        self.reports.progress.print_line(&format!("step {step}: evaluating on {}", evaluator.benchmarks().join(", ")));
        // If each rank keeps only a part of the weights, all weights are gathered for the evaluation.
        let _all_weights = self.trainer.gather_all_weights()?;
        let policy = EvaluatedPolicy {
            model: &self.trainer.model,
            device: &self.trainer.device,
            dtype: self.trainer.dtype,
            step,
            hash,
            stop: self.setup.control.stop,
            ranks: self.setup.control.ranks,
        };
        evaluator.evaluate(&policy, &evaluations::step_folder(out, step))
    }

    /// Returns the line of `eval.jsonl` for the last finished step and the weights with the fingerprint `hash`, if
    /// the file has such a line and `is_wanted` returns true for it. Rank 0 reads the file for all ranks.
    fn recorded_evaluation(
        &self,
        hash: &str,
        is_wanted: impl Fn(&EvaluationLine) -> bool,
    ) -> Result<Option<EvaluationLine>> {
        let (out, step) = (&self.setup.options.out, self.state.step);
        let is_recorded = |line: &EvaluationLine| line.step == step && line.hash == hash && is_wanted(line);
        let find = || Ok(evaluations::read(out, step)?.into_iter().rfind(is_recorded));
        match self.setup.control.ranks {
            None => find(),
            Some(run) => run.broadcast("recorded evaluation", if run.is_rank_0() { Some(find()?) } else { None }),
        }
    }

    /// Evaluates before the first step of this process: in a new run the initial model, in a resumed run the
    /// checkpoint's step if its evaluation is not complete.
    pub(super) fn evaluate_before_steps(&mut self) -> Result<()> {
        let validation = self.validate_if_due(self.state.steps);
        let Some(line) = self.evaluate_if_due(self.state.steps, validation)? else { return Ok(()) };
        let finished = self.reports.unreported.take();
        self.report_step(line.step, finished.as_ref(), Some(&line))?;
        if line.step == 0 {
            return Ok(());
        }
        if self.is_scheduled_checkpoint(line.step) {
            self.record_checkpoint(Some(&line));
        }
        // The checkpoint does not contain the evaluation yet, so it is written again.
        self.checkpoints.saved = None;
        self.save()
    }

    /// Reports step `step`: its metrics if they are due (`--logging-steps`), and its evaluation if there is one.
    pub(super) fn report_step(
        &mut self,
        step: u64,
        finished: Option<&StepMetrics>,
        evaluation: Option<&EvaluationLine>,
    ) -> Result<()> {
        let is_reported = step.is_multiple_of(self.setup.options.logging_steps) || step == self.state.steps;
        let mut values = Vec::new();
        let mut preview = None;
        if let Some(line) = finished.filter(|_| is_reported) {
            values = line.named_metric_values();
            preview = self.reports.preview.take();
        }
        values.extend(evaluation.into_iter().flat_map(EvaluationLine::named_values));
        if values.is_empty() {
            return Ok(());
        }
        self.reports.reporters.report_step(step, &values, preview.as_ref())
    }

    /// Whether a checkpoint of step `step` is due by `--save-steps`. A checkpoint after an interruption is not.
    pub(super) fn is_scheduled_checkpoint(&self, step: u64) -> bool {
        let every = self.setup.options.save_steps;
        every > 0 && (step.is_multiple_of(every) || step == self.state.steps)
    }

    /// Compares the scheduled checkpoint of the last finished step with the best checkpoint so far.
    pub(super) fn record_checkpoint(&mut self, evaluation: Option<&EvaluationLine>) {
        match (self.setup.options.best_metric(), evaluation) {
            (BestMetric::Eval, Some(line)) => self.state.rewards.record_evaluated_checkpoint(line),
            (BestMetric::EvalLoss, Some(line)) => self.state.rewards.record_validated_checkpoint(line),
            (BestMetric::Reward, _) => self.state.rewards.record_checkpoint(self.state.step),
            (BestMetric::Eval | BestMetric::EvalLoss, None) | (BestMetric::None, _) => {}
        }
    }
}
