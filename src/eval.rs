//! `reel eval`: the scores of a benchmark.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_eval::{Benchmark, BenchmarkReport, EvalError, Prediction, score_benchmark};

use crate::common::Common;
use crate::fail::{bad_usage, failed};
use crate::{lines, output};

/// Score a model's answers to a benchmark as VideoRFT and Video-R1 do.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"problem_type\": \"multiple choice\", \"category\": \"speed\",
    \"solution\": \"<answer>B</answer>\", \"output\": \"<answer>B</answer>\"}' |
    tr -d '\\n' > answers.jsonl
  reel eval --score-only --benchmark tempcompass \\
    --predictions answers.jsonl --out scores.json")]
pub struct Eval {
    /// Score given predictions; running a model over a benchmark is not in this version
    #[arg(long)]
    score_only: bool,
    /// The benchmark: vsibench, videommmu, mmvu, mvbench, tempcompass or videomme
    #[arg(long, value_name = "NAME")]
    benchmark: String,
    /// The predictions, an object a line: the benchmark's problem_type, solution and category, and the model's output
    #[arg(long, value_name = "P.jsonl")]
    predictions: Option<PathBuf>,
    /// Where to write the scores: the mean of all rows, of regression rows (mean relative accuracy) and of others, and of each
    /// category, with 95 % intervals
    #[arg(long, value_name = "F.json")]
    out: PathBuf,
}

impl Eval {
    /// Scores the predictions and writes the figures.
    pub fn run(&self, common: &Common) -> Result<()> {
        if !self.score_only {
            let what = "is missing: this version does not run models over benchmarks";
            return Err(bad_usage("--score-only", what, "answer the benchmark elsewhere and give --predictions"));
        }
        let benchmark = Benchmark::parse(&self.benchmark)?;
        let Some(file) = &self.predictions else {
            return Err(bad_usage("--predictions", "is missing", "give the file with the answers to score"));
        };
        let rows = lines::parse(file, Prediction::parse)?;
        if rows.is_empty() {
            return Err(failed(file.display(), "has no rows", "give a row of JSON a line"));
        }
        let report = score_benchmark(benchmark, &rows)?;
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        output::file(&self.out, text.as_bytes())?;
        if common.json {
            return output::json(&report);
        }
        if common.quiet { Ok(()) } else { print(&report) }
    }
}

/// The figures as a table, in percent.
fn print(report: &BenchmarkReport) -> Result<()> {
    let width = report.by_category.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(10);
    let line = |name: &str, n: usize, score: f64, [low, high]: [f64; 2]| {
        let (score, low, high) = (score * 100.0, low * 100.0, high * 100.0);
        output::line(format!("{name:width$} {n:6} rows {score:5.1}  [{low:5.1}, {high:5.1}]"))
    };
    line(report.benchmark, report.n, report.overall, report.overall_ci95)?;
    if let (Some(mean), Some(interval)) = (report.task_mean, report.task_mean_ci95) {
        line("task mean", report.n, mean, interval)?;
    }
    report.by_category.iter().try_for_each(|(name, part)| line(name, part.n, part.score, part.ci95))
}

/// Whether an error is a mistake in the command line.
pub fn is_usage(e: &anyhow::Error) -> bool {
    e.downcast_ref::<EvalError>().is_some_and(EvalError::is_usage)
}
