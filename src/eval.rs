//! `reel eval`: scores the predictions for a video benchmark.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_diagnostic::escape_controls;
use reel_eval::{Benchmark, BenchmarkReport, Prediction, score_benchmark};

use crate::common::CommonOptions;
use crate::fail::{bad_usage, failed};
use crate::{lines, output};

/// Score predictions of a video benchmark as VideoRFT and Video-R1 do, with 95 % confidence intervals.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"problem_type\": \"multiple choice\", \"category\": \"speed\",
    \"solution\": \"<answer>B</answer>\", \"output\": \"<answer>B</answer>\"}' |
    tr -d '\\n' > answers.jsonl
  reel eval --score-only --benchmark tempcompass \\
    --predictions answers.jsonl --out scores.json")]
pub struct EvalArgs {
    /// Score the given predictions (required: this version cannot run a model over a benchmark)
    #[arg(long)]
    score_only: bool,
    /// Benchmark: vsibench, videommmu, mmvu, mvbench, tempcompass or videomme
    #[arg(long, value_name = "NAME")]
    benchmark: String,
    /// Predictions, one JSON object per line, as reel generate --data writes them: problem_type, solution and category
    /// of the benchmark, and output of the model
    #[arg(long, value_name = "P.jsonl")]
    predictions: Option<PathBuf>,
    /// JSON file for the scores: means over all rows, over regression rows (mean relative accuracy), over other rows,
    /// and over each category, with 95 % confidence intervals
    #[arg(long, value_name = "F.json")]
    out: PathBuf,
}

impl EvalArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        if !self.score_only {
            let what = "is missing: this version does not run models over benchmarks";
            return Err(bad_usage(
                "--score-only",
                what,
                "write predictions with reel generate --data, then give --score-only --predictions",
            ));
        }
        let benchmark = Benchmark::from_name(&self.benchmark)?;
        let Some(file) = &self.predictions else {
            return Err(bad_usage("--predictions", "is missing", "give the file with the answers to score"));
        };
        let rows = lines::parse_json_lines(file, Prediction::from_json_line)?;
        if rows.is_empty() {
            return Err(failed(file.display(), "has no rows", "give one JSON object per line"));
        }
        lines::warn_of_unusable_solutions(file, &rows, Prediction::check_solution, common.quiet);
        warn_of_errors(file, &rows, common.quiet);
        let rows: Vec<Prediction> = rows.into_iter().map(|(_, row)| row).collect();
        let report = score_benchmark(benchmark, &rows)?;
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        output::write_file(&self.out, text.as_bytes())?;
        if common.json {
            return output::print_json(&report);
        }
        if common.quiet { Ok(()) } else { print(&report) }
    }
}

/// Prints a warning on stderr if some rows have an error instead of an output, as `reel generate --data` writes them.
fn warn_of_errors(file: &Path, rows: &[(usize, Prediction)], quiet: bool) {
    let mut errors = rows.iter().filter_map(|(line, row)| Some((line, row.error.as_ref()?)));
    let Some((line, first)) = errors.next().filter(|_| !quiet) else { return };
    let (count, of, file, first) = (1 + errors.count(), rows.len(), file.display(), escape_controls(first));
    let first = format!("{file}:{line}: {first}");
    eprintln!("warning: {count} of {of} rows have an error instead of an output and score 0; the first: {first}");
}

/// Prints the scores as a table, in percent.
fn print(report: &BenchmarkReport) -> Result<()> {
    let width = report.by_category.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(10);
    let line = |name: &str, n: usize, score: f64, [low, high]: [f64; 2]| {
        let (score, low, high) = (score * 100.0, low * 100.0, high * 100.0);
        output::print_line(format!("{name:width$} {n:6} rows {score:5.1}  [{low:5.1}, {high:5.1}]"))
    };
    line(report.benchmark, report.n, report.overall, report.overall_ci95)?;
    if let (Some(mean), Some(interval)) = (report.task_mean, report.task_mean_ci95) {
        line("task mean", report.n, mean, interval)?;
    }
    report.by_category.iter().try_for_each(|(name, part)| line(name, part.n, part.score, part.ci95))
}
