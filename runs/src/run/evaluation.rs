//! Evaluations of the model in training (`--eval-steps`). [`PolicyEvaluator`] answers and scores; this file decides
//! when, keeps `OUT/eval.jsonl`, and makes the scores known to reports and checkpoints.
//!
//! ```text
//! step N is done and logged
//!     evaluate: answers in OUT/eval/step-N, a line in OUT/eval.jsonl
//!     report the step with its scores
//!     checkpoint, which says that step N is evaluated
//! ```
//!
//! A process that is stopped during the evaluation leaves a checkpoint of step N that does not say so, or none. The
//! process that resumes from it evaluates first, and continues the answers that are there: they have the same weights,
//! because a resumed run has the bits of an unbroken one. It then writes the checkpoint again.
//!
//! An evaluation reads the weights and changes nothing: it has its own engine, KV cache and cache of vision tokens,
//! which are freed when it ends, and no random number of the training depends on it.

use std::time::Instant;

use reel_train::metrics::StepMetrics;
use reel_train::options::BestMetric;
use reel_train::setup::{EvaluatedPolicy, PolicyEvaluator};
use reel_train::{Result, TrainError};

use super::{Run, TrainLoop};
use crate::folder::evaluations::{self, EvaluationLine};

impl<'a, W: TrainLoop<'a>> Run<'a, W> {
    /// Evaluates the model after the last finished step if that is due and not done. `steps` is the number of steps of
    /// the run. Returns the line of the evaluation.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] when the run was interrupted. After another error there is a checkpoint of the step.
    pub(super) fn evaluate_if_due(&mut self, steps: u64) -> Result<Option<EvaluationLine>> {
        let step = self.state.step;
        let is_due = self.setup.options.evaluation.is_due(step, steps) && self.state.evaluated != Some(step);
        let Some(evaluator) = self.setup.evaluator.filter(|_| is_due) else { return Ok(None) };
        let line = match self.evaluate(evaluator) {
            Err(e @ TrainError::Stopped(_)) => return Err(e),
            Err(e) => {
                self.save()?;
                self.checkpoints.writer.wait()?;
                return Err(e);
            }
            Ok(line) => line,
        };
        self.state.evaluated = Some(step);
        self.reports.progress.print_line(&format!("step {step}: {}", line.summary()));
        Ok(Some(line))
    }

    /// The line of the last finished step: that of `eval.jsonl` if it is there, else that of a new evaluation.
    fn evaluate(&mut self, evaluator: &dyn PolicyEvaluator) -> Result<EvaluationLine> {
        let (out, step) = (&self.setup.options.out, self.state.step);
        let hash = match step {
            0 => self.trainer.weights_fingerprint()?,
            _ => self.state.hash.clone(),
        };
        let known = evaluations::read(out, step)?.into_iter().rfind(|line| line.step == step && line.hash == hash);
        if let Some(line) = known {
            return Ok(line);
        }
        let begun = Instant::now();
        self.reports.progress.print_line(&format!("step {step}: evaluating on {}", evaluator.benchmarks().join(", ")));
        let policy = EvaluatedPolicy {
            model: &self.trainer.model,
            device: &self.trainer.device,
            dtype: self.trainer.dtype,
            step,
            hash: &hash,
            server: self.setup.server,
            stop: self.setup.stop,
        };
        let benchmarks = evaluator.evaluate(&policy, &evaluations::step_folder(out, step))?;
        let line = EvaluationLine::new(step, benchmarks, hash, begun.elapsed().as_secs_f64());
        if let Some(log) = &mut self.logs.evaluations {
            log.append(&line)?;
        }
        Ok(line)
    }

    /// Evaluates before the first step of this process: before step 1, or after the step of the checkpoint that the run
    /// resumes from, if its evaluation is not complete.
    pub(super) fn evaluate_before_steps(&mut self) -> Result<()> {
        let Some(line) = self.evaluate_if_due(self.state.steps)? else { return Ok(()) };
        let finished = self.reports.unreported.take();
        self.report(line.step, finished.as_ref(), Some(&line))?;
        if line.step == 0 {
            return Ok(());
        }
        if self.is_scheduled_checkpoint(line.step) {
            self.record_checkpoint(Some(&line));
        }
        // The checkpoint does not have the evaluation yet.
        self.checkpoints.saved = None;
        self.save()
    }

    /// Reports step `step`: its metrics, if it is one of the steps that are reported, and its evaluation.
    pub(super) fn report(
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

    /// Whether a checkpoint of step `step` is written without an interruption.
    pub(super) fn is_scheduled_checkpoint(&self, step: u64) -> bool {
        let every = self.setup.options.save_steps;
        every > 0 && (step.is_multiple_of(every) || step == self.state.steps)
    }

    /// Compares the scheduled checkpoint of the last finished step with the best one.
    pub(super) fn record_checkpoint(&mut self, evaluation: Option<&EvaluationLine>) {
        match (self.setup.options.evaluation.best_metric(), evaluation) {
            (BestMetric::Eval, Some(line)) => self.state.rewards.record_evaluated_checkpoint(line),
            (BestMetric::Reward, _) => self.state.rewards.record_checkpoint(self.state.step),
            (BestMetric::Eval, None) | (BestMetric::None, _) => {}
        }
    }
}
