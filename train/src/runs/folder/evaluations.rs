//! Reads and writes the evaluations of a run in its output folder.
//!
//! | file | contents |
//! |---|---|
//! | `OUT/eval.jsonl` | a line for each evaluation: step, scores, weights |
//! | `OUT/eval/step-N/` | the answers and scores of one evaluation, in the form of `reel eval` |
//!
//! A line is written when its evaluation is complete. A resumed run keeps the lines up to its checkpoint. The folders
//! of later steps are kept as well: when the resumed run evaluates such a step with the same weights, it reuses the
//! answers in the folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::file_names::{EVALUATIONS_FILE, EVALUATIONS_FOLDER};
use crate::metrics::ValidationLoss;
use crate::setup::BenchmarkScore;
use reel_support::files::log::{self, JsonlLog};
use serde::{Deserialize, Serialize};

/// The prefix of the name of a step's folder.
const STEP_FOLDER: &str = "step-";

/// One evaluation: a line of `eval.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLine {
    /// The step after which the model was evaluated; 0 is before the first step.
    pub step: u64,
    /// The validation loss. Its fields are absent in a run without validation rows.
    #[serde(flatten)]
    pub validation: Option<ValidationLoss>,
    /// Mean of the scores of the benchmarks; absent without benchmarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The scores by name of the benchmark.
    pub benchmarks: BTreeMap<String, BenchmarkScore>,
    /// Fingerprint of the trained weights, as in `metrics.jsonl`.
    pub hash: String,
    /// Seconds that this process took for the evaluation. The value depends on the clock, and is smaller if an earlier
    /// process had already written some of the answers.
    pub eval_seconds: f64,
}

impl EvaluationLine {
    /// Makes the line of an evaluation after step `step`.
    pub fn new(
        step: u64,
        validation: Option<ValidationLoss>,
        benchmarks: BTreeMap<String, BenchmarkScore>,
        hash: String,
        eval_seconds: f64,
    ) -> Self {
        let sum = benchmarks.values().map(|b| b.score).sum::<f64>();
        let score = (!benchmarks.is_empty()).then(|| sum / benchmarks.len() as f64);
        Self { step, validation, score, benchmarks, hash, eval_seconds }
    }

    /// Returns the numbers for TensorBoard and Weights & Biases: the validation loss `eval/loss`, `eval/NAME` for each
    /// benchmark, and the mean of the benchmarks `eval/mean`.
    pub fn named_values(&self) -> Vec<(String, f64)> {
        let loss = self.validation.iter().map(|validation| ("eval/loss".to_string(), validation.eval_loss));
        let scores = self.benchmarks.iter().map(|(name, b)| (format!("eval/{name}"), b.score));
        let mean = self.score.map(|score| ("eval/mean".to_string(), score));
        loss.chain(scores).chain(mean).collect()
    }

    /// Names the benchmarks and their numbers of rows: `eval/mmvu(625)`. Scores with different names are not
    /// comparable, because the questions differ.
    pub fn metric_name(&self) -> String {
        let names: Vec<String> = self.benchmarks.iter().map(|(name, b)| format!("{name}({})", b.n)).collect();
        format!("eval/{}", names.join(","))
    }

    /// Makes the text of a progress line: the validation loss, and the scores in percent with their confidence
    /// intervals.
    pub fn summary(&self) -> String {
        let percent = |score: f64| format!("{:.1}", 100.0 * score);
        let loss = |v: &ValidationLoss| {
            let skipped = if v.eval_skipped == 0 { String::new() } else { format!(", {} skipped", v.eval_skipped) };
            format!("eval_loss {:.4} ({} tokens of {} rows{skipped})", v.eval_loss, v.eval_tokens, v.eval_rows)
        };
        let one = |(name, b): (&String, &BenchmarkScore)| {
            let errors =
                if b.errors == 0 { String::new() } else { format!(" ({} of {} rows with errors)", b.errors, b.n) };
            format!("{name} {} [{}, {}]{errors}", percent(b.score), percent(b.ci95[0]), percent(b.ci95[1]))
        };
        let mut parts: Vec<String> = self.validation.iter().map(loss).collect();
        parts.extend(self.benchmarks.iter().map(one));
        if let Some(score) = self.score.filter(|_| self.benchmarks.len() > 1) {
            parts.push(format!("mean {}", percent(score)));
        }
        parts.push(format!("{:.1} s", self.eval_seconds));
        parts.join("  ")
    }
}

/// The folder of the evaluation after step `step`.
pub fn step_folder(out: &Path, step: u64) -> PathBuf {
    out.join(EVALUATIONS_FOLDER).join(format!("{STEP_FOLDER}{step}"))
}

/// Reads the evaluations in the output folder `home`, up to step `last_step`.
///
/// # Errors
/// The log cannot be read.
pub fn read(home: &Path, last_step: u64) -> Result<Vec<EvaluationLine>> {
    let lines = log::read_matching_lines(&home.join(EVALUATIONS_FILE), |line: &EvaluationLine| line.step <= last_step)?;
    Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Opens the log of evaluations in `out` for a run that continues after step `step` of the run in `home`; the lines up
/// to this step are kept. For a new run, `step` is `None`.
///
/// # Errors
/// The log cannot be read or written.
pub fn open(out: &Path, home: &Path, step: Option<u64>) -> Result<JsonlLog> {
    let path = out.join(EVALUATIONS_FILE);
    let Some(step) = step else { return JsonlLog::create(&path) };
    let lines = log::read_matching_lines(&home.join(EVALUATIONS_FILE), |line: &EvaluationLine| line.step <= step)?;
    JsonlLog::resume(&path, &lines)
}

/// Whether a folder of this name in `OUT/eval` is that of a step. Other files there belong to the user.
pub(crate) fn is_step_folder(name: &str) -> bool {
    name.strip_prefix(STEP_FOLDER).is_some_and(|step| step.parse::<u64>().is_ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes an evaluation of benchmarks with ten rows each.
    pub(crate) fn line(step: u64, scores: &[(&str, f64)]) -> EvaluationLine {
        let score = |score| BenchmarkScore {
            n: 10,
            score,
            ci95: [score / 2.0, (1.0 + score) / 2.0],
            errors: 0,
            truncated: 1,
            completion_tokens: 30,
        };
        let benchmarks = scores.iter().map(|(name, value)| (name.to_string(), score(*value))).collect();
        EvaluationLine::new(step, None, benchmarks, "00".into(), 1.25)
    }

    /// Makes an evaluation of ten validation rows with the fingerprint `rows`.
    pub(crate) fn loss_line(step: u64, eval_loss: f64, rows: &str) -> EvaluationLine {
        let loss =
            ValidationLoss { eval_loss, eval_tokens: 70, eval_rows: 10, eval_skipped: 1, eval_data_hash: rows.into() };
        EvaluationLine::new(step, Some(loss), BTreeMap::new(), "00".into(), 1.25)
    }

    #[test]
    fn an_evaluation_may_have_a_validation_loss_alone() {
        let line = loss_line(4, 1.5, "0a");
        assert_eq!(line.summary(), "eval_loss 1.5000 (70 tokens of 10 rows, 1 skipped)  1.2 s");
        assert_eq!(line.named_values(), [("eval/loss".to_string(), 1.5)]);
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.contains("\"eval_loss\":1.5") && !text.contains("score"), "{text}");
        assert_eq!(serde_json::from_str::<EvaluationLine>(&text).unwrap(), line);
    }

    #[test]
    fn mean_is_over_benchmarks_and_each_has_a_name() {
        let line = line(4, &[("mmvu", 0.5), ("vsibench", 0.25)]);
        assert_eq!((line.score, line.metric_name().as_str()), (Some(0.375), "eval/mmvu(10),vsibench(10)"));
        let values = line.named_values();
        assert_eq!(values[0], ("eval/mmvu".to_string(), 0.5));
        assert_eq!(values[2], ("eval/mean".to_string(), 0.375));
        let want = "mmvu 50.0 [25.0, 75.0]  vsibench 25.0 [12.5, 62.5]  mean 37.5  1.2 s";
        assert_eq!(line.summary(), want);
    }

    #[test]
    fn resumed_log_has_the_lines_up_to_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let mut log = open(out, out, None).unwrap();
        [0, 2, 4].iter().for_each(|&step| log.append(&line(step, &[("a", 0.5)])).unwrap());
        let steps = |last| read(out, last).unwrap().iter().map(|line| line.step).collect::<Vec<u64>>();
        assert_eq!((steps(9), steps(2)), (vec![0, 2, 4], vec![0, 2]));
        open(out, out, Some(3)).unwrap().append(&line(4, &[("a", 0.75)])).unwrap();
        assert_eq!(read(out, 9).unwrap()[2], line(4, &[("a", 0.75)]));
        assert_eq!(["step-2", "step-x", "mine"].map(is_step_folder), [true, false, false]);
    }
}
