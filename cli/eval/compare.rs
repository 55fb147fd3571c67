//! `reel eval compare`: compares two runs over the same questions.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_eval::{Comparison, Extraction, ScoreDifference, Task, compare_runs};
use serde_json::Value;

use super::results::{
    extraction_of_run, predictions_file, read_predictions, read_run_settings, tasks_of_output_folder, write_json,
};
use crate::common::CommonOptions;
use crate::fail::failed;
use crate::output;

/// Compare two runs over the same questions: B minus A for each benchmark and category with the paired 95 % bootstrap
/// interval, and McNemar's exact test.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"problem_id\": 1, \"problem\": \"Which?\", \"output\": \"A\",
    \"problem_type\": \"multiple choice\", \"solution\": \"<answer>B</answer>\"}' |
    tr -d '\\n' > a.jsonl
  sed 's/\"A\"/\"B\"/' a.jsonl > b.jsonl
  reel eval compare a.jsonl b.jsonl --benchmark mmvu")]
pub struct CompareArgs {
    /// Folder of run A, or a predictions file of one benchmark from run A
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Folder of run B, or a predictions file of one benchmark from run B
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Benchmarks, or task files [default: the benchmarks that run A has]
    #[arg(long, value_name = "NAME")]
    benchmark: Option<String>,
    /// How the answer is found in an output: tags or lenient
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "RULE")]
    extraction: Extraction,
    /// JSON file for the result
    #[arg(long, value_name = "F.json")]
    out: Option<PathBuf>,
}

impl CompareArgs {
    pub(super) fn run(&self, common: &CommonOptions) -> Result<()> {
        if let Some(run) = [&self.a, &self.b].into_iter().find(|run| !run.exists()) {
            return Err(failed(
                run.display(),
                "does not exist",
                "give the output folders of two runs, or their answer files",
            ));
        }
        let parent = || self.a.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = if self.a.is_dir() { &self.a } else { parent() };
        let names = self.benchmark.clone().or_else(|| benchmark_of(&self.a));
        let tasks = tasks_of_output_folder(folder, names.as_deref())?;
        let mut compared = Vec::new();
        for task in &tasks {
            let files = [&self.a, &self.b].map(|run| match run.is_dir() {
                true => predictions_file(run, &task.name),
                false => run.clone(),
            });
            if let Some(file) = files.iter().find(|file| !file.exists()) {
                return Err(failed(file.display(), "does not exist", "compare runs of the same benchmarks"));
            }
            let rows = [read_predictions(&files[0], task, true)?, read_predictions(&files[1], task, true)?];
            let settings = read_run_settings(&files[0]).unwrap_or_default();
            let extraction = extraction_of_run(&settings, self.extraction);
            let comparison = compare_runs(task, [&rows[0], &rows[1]], extraction)?;
            if !common.json {
                print(task, &comparison)?;
            }
            warn_of_other_protocols(&files, common.quiet);
            compared.push(comparison);
        }
        let result = serde_json::to_value(&compared)?;
        if let Some(out) = &self.out {
            write_json(out, &result)?;
        }
        if common.json { output::print_json(&result) } else { Ok(()) }
    }
}

/// Returns the name of the benchmark in the first row of a predictions file.
fn benchmark_of(file: &Path) -> Option<String> {
    let text = output::read_file(file).ok()?;
    let first = text.split(|&byte| byte == b'\n').find(|line| !line.is_empty())?;
    let row: Value = serde_json::from_slice(first).ok()?;
    row.get("benchmark")?.as_str().map(String::from)
}

/// Prints a note if the runs differ in recorded options, for example in frames or decoding: the comparison then also
/// measures the effect of these options.
fn warn_of_other_protocols(files: &[PathBuf; 2], quiet: bool) {
    let [Ok(a), Ok(b)] = [read_run_settings(&files[0]), read_run_settings(&files[1])] else { return };
    let (Some(a), Some(b)) = (a["options"].as_object(), b["options"].as_object()) else { return };
    let names: Vec<&String> = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| {
            let shown = |value: Option<&Value>| value.map_or("absent".into(), Value::to_string);
            format!("{name} ({} and {})", shown(a.get(name)), shown(b.get(name)))
        })
        .collect();
    if !differing.is_empty() && !quiet {
        reel_support::diagnostic::note!("note: the runs differ in {}", differing.join(", "));
    }
}

fn print(task: &Task, comparison: &Comparison) -> Result<()> {
    let width = comparison.by_category.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(10);
    let line = |name: &str, d: &ScoreDifference| {
        let [a, b, difference, low, high] = [d.a, d.b, d.difference, d.ci95[0], d.ci95[1]].map(|x| x * 100.0);
        let n = d.n;
        output::print_line(format!(
            "{name:width$} {n:6} rows {a:5.1} {b:5.1} {difference:+6.1}  [{low:+6.1}, {high:+6.1}]"
        ))
    };
    line(&task.name, &comparison.score)?;
    comparison.by_category.iter().try_for_each(|(name, difference)| line(name, difference))?;
    let Comparison { only_a_right, only_b_right, mcnemar_p, only_in_a, only_in_b, .. } = comparison;
    output::print_line(format!(
        "only A right {only_a_right}, only B right {only_b_right}, McNemar p = {mcnemar_p:.4}"
    ))?;
    if only_in_a + only_in_b > 0 {
        let text = format!("not compared: {only_in_a} rows that only A has, {only_in_b} rows that only B has");
        output::print_line(text)?;
    }
    Ok(())
}
