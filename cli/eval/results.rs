//! The result files of an evaluation, and the tables that are printed.
//!
//! | file | contents |
//! |---|---|
//! | `OUT/NAME.jsonl` | each question with the model's answer |
//! | `OUT/NAME.jsonl.run.json` | the settings of the run |
//! | `OUT/NAME.json` | scores with 95 % intervals, and the settings (`protocol`) |
//! | `OUT/NAME.toml` | the task file, if NAME is not built in |
//! | `OUT/report.html` | the HTML page (`page.rs`) |

use std::path::{Path, PathBuf};

use anyhow::Result;
use reel_eval::{BenchmarkReport, Extraction, Prediction, Suite, Task, score_benchmark};
use reel_support::diagnostic::{escape_controls, input};
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::{lines, output};

/// The scores of a benchmark.
pub struct ScoredBenchmark {
    pub report: BenchmarkReport,
}

/// The path of a benchmark's predictions file.
pub fn predictions_file(out: &Path, benchmark: &str) -> PathBuf {
    out.join(format!("{benchmark}.jsonl"))
}

/// Reads the predictions of a benchmark. Prints a warning about rows that cannot be scored meaningfully: those with
/// an unusable solution, or with an error instead of an output.
pub fn read_predictions(file: &Path, task: &Task, quiet: bool) -> Result<Vec<Prediction>> {
    let of_task = |line: &str| Prediction::from_json_line(line).map(|row| row.prepare_for_scoring(task));
    let rows = lines::parse_json_lines(file, of_task)?;
    refuse_rows_of_other_benchmark(file, task, rows.iter().map(|(line, row)| (*line, row)))?;
    lines::warn_of_unusable_solutions(file, &rows, Prediction::check_solution, quiet);
    warn_of_errors(file, &rows, quiet);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Refuses predictions without rows, and rows of another benchmark.
pub fn refuse_rows_of_other_benchmark<'r>(
    file: &Path,
    task: &Task,
    rows: impl Iterator<Item = (usize, &'r Prediction)>,
) -> Result<()> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Err(failed(file.display(), "has no rows", "give one JSON object per line"));
    }
    let other =
        |(line, row): (usize, &'r Prediction)| Some((line, row.benchmark.as_ref().filter(|b| **b != task.name)?));
    match rows.find_map(other) {
        None => Ok(()),
        Some((line, other)) => {
            let location = format!("{}:{line}", file.display());
            let what = format!("benchmark: is `{other}`, not {}", task.name);
            Err(failed(location, what, "give the predictions of the benchmark that --benchmark names"))
        }
    }
}

/// Prints a warning on stderr if some rows have an error instead of an output. A run writes such a row if a question
/// could not be answered.
fn warn_of_errors(file: &Path, rows: &[(usize, Prediction)], quiet: bool) {
    let mut errors = rows.iter().filter_map(|(line, row)| Some((line, row.error.as_ref()?)));
    let Some((line, first)) = errors.next().filter(|_| !quiet) else { return };
    let (count, of, file, first) = (1 + errors.count(), rows.len(), file.display(), escape_controls(first));
    let first = format!("{file}:{line}: {first}");
    reel_support::diagnostic::note!(
        "warning: {count} of {of} rows have an error instead of an output and score 0; the first: {first}"
    );
}

/// Scores the predictions in `OUT/NAME.jsonl` and writes `OUT/NAME.json`.
pub fn score_and_write(task: &Task, out: &Path, extraction: Extraction, quiet: bool) -> Result<ScoredBenchmark> {
    let file = predictions_file(out, &task.name);
    let settings = read_run_settings(&file)?;
    let extraction = extraction_of_run(&settings, extraction);
    let report = score_benchmark(task, &read_predictions(&file, task, quiet)?, extraction)?;
    let mut result = serde_json::to_value(&report)?;
    result["protocol"] = settings;
    write_json(&out.join(format!("{}.json", task.name)), &result)?;
    Ok(ScoredBenchmark { report })
}

/// The value of `protocol` in the settings of a run with the reference protocols of its benchmarks.
pub const REFERENCE_PROTOCOL: &str = "reference";

/// Returns the rule by which the answers of a run are found: that of the run's protocol, unless another rule than the
/// default one is given.
pub fn extraction_of_run(settings: &Value, given: Extraction) -> Extraction {
    match given {
        Extraction::Tags if settings["options"]["protocol"] == REFERENCE_PROTOCOL => Extraction::Reference,
        given => given,
    }
}

/// Writes the task file `OUT/NAME.toml` if the benchmark is not built in, so that later commands can score its
/// answers. Unless `overwrite` is true, refuses to replace a different file of this name.
pub fn write_custom_task_file(task: &Task, out: &Path, overwrite: bool) -> Result<()> {
    let Some(text) = &task.user_file_text else { return Ok(()) };
    let file = out.join(format!("{}.toml", task.name));
    match std::fs::read(&file) {
        Ok(old) if old == text.as_bytes() => Ok(()),
        Ok(_) if !overwrite => {
            let help = "give another --out, or --overwrite to replace it";
            Err(failed(file.display(), "exists, and is not the task file that --benchmark names", help))
        }
        _ => output::write_file(&file, text.as_bytes()),
    }
}

/// Returns the number of tokens that were generated for the rows of a predictions file.
pub fn count_completion_tokens(predictions: &Path) -> Result<u64> {
    let tokens = |line: &str| {
        let row: Value = serde_json::from_str(line).ok()?;
        row["generation"]["completion_tokens"].as_u64()
    };
    let text = output::read_file(predictions)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(tokens).sum())
}

/// Reads the settings of the run that wrote a predictions file.
pub fn read_run_settings(predictions: &Path) -> Result<Value> {
    let name = predictions.file_name().unwrap_or_default().to_string_lossy();
    let file = predictions.with_file_name(format!("{name}.run.json"));
    let bytes = input::read_file(&file, input::MAX_CONFIG_BYTES).map_err(|e| output::cannot_read(&file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        failed(file.display(), format!("does not have the settings of a run: {e}"), "run the evaluation again")
    })
}

pub fn write_json(file: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    output::write_file(file, text.as_bytes())
}

/// Prints the scores of benchmarks: as a list of JSON objects, or as tables in percent.
pub fn print_benchmark_reports(scored: &[ScoredBenchmark], common: &CommonOptions) -> Result<()> {
    if common.hides_result {
        return Ok(());
    }
    if common.json {
        return output::print_json(&scored.iter().map(|scored| &scored.report).collect::<Vec<_>>());
    }
    scored.iter().try_for_each(|scored| print_benchmark_report(&scored.report))
}

/// Prints the scores of a benchmark as a table, in percent.
pub fn print_benchmark_report(report: &BenchmarkReport) -> Result<()> {
    // Longer names only shift their own line. The limit is needed because a format width above 65535 would panic.
    let width = report.by_category.keys().map(|name| name.chars().count()).max().unwrap_or(0).clamp(10, 60);
    let line = |name: &str, n: usize, score: f64, [low, high]: [f64; 2]| {
        let (score, low, high) = (score * 100.0, low * 100.0, high * 100.0);
        output::print_line(format!("{name:width$} {n:6} rows {score:5.1}  [{low:5.1}, {high:5.1}]"))
    };
    line(&report.benchmark, report.n, report.overall, report.overall_ci95)?;
    if let Some(rows) = report.published_rows {
        let what = format!("of {rows} questions, so not comparable with published scores");
        output::print_line(format!("{:width$} {:6} {what}", "", report.n))?;
    }
    if report.truncated > 0 {
        let (cut, n) = (report.truncated, report.n);
        output::print_line(format!("{:width$} {n:6} rows, {cut} of them cut at --max-new-tokens", ""))?;
    }
    if let (Some(mean), Some(interval)) = (report.task_mean, report.task_mean_ci95) {
        line("task mean", report.n, mean, interval)?;
    }
    if report.headline.metric == reel_eval::Headline::MeanOfAccuracyAndMra {
        line("(acc+mra)/2", report.n, report.headline.score, report.headline.ci95)?;
    }
    report.by_category.iter().try_for_each(|(name, part)| line(name, part.n, part.score, part.ci95))?;
    report.metrics.iter().try_for_each(|(name, metric)| match (metric.score, metric.ci95) {
        (Some(score), Some(interval)) => line(name, metric.n, score, interval),
        (Some(score), None) => output::print_line(format!("{name:width$} {:11} {:5.1}", "", score * 100.0)),
        (None, _) => output::print_line(format!("{name:width$} {:11}     -", "")),
    })
}

/// Prints the scores of a paper's benchmarks beside the published ones, in percent. `-` is a figure that no source with
/// this number of frames has been found for.
pub fn print_suite_table(suite: &Suite, tasks: &[Task], scored: &[ScoredBenchmark]) -> Result<()> {
    let width = tasks.iter().map(|task| task.title.chars().count()).max().unwrap_or(0);
    let models: String = suite.models.iter().map(|model| format!("  {model:>13}")).collect();
    output::print_line(format!("\n{}", suite.title))?;
    output::print_line(format!("{:width$}  {:>8}{models}", "", "this run"))?;
    for (task, scored) in tasks.iter().zip(scored) {
        let published = |model: &String| match Suite::published(task, model) {
            Some(score) => format!("  {score:13.1}"),
            None => format!("  {:>13}", "-"),
        };
        let published: String = suite.models.iter().map(published).collect();
        let own = scored.report.headline.score * 100.0;
        output::print_line(format!("{:width$}  {own:8.1}{published}", task.title))?;
    }
    Ok(())
}

/// Returns an error if rows of the run have an error instead of an output.
pub fn error_if_rows_failed(scored: &[ScoredBenchmark], out: &Path) -> Result<()> {
    let failed_rows: Vec<String> = scored
        .iter()
        .filter(|scored| scored.report.errors > 0)
        .map(|scored| format!("{} of {} rows of {}", scored.report.errors, scored.report.n, scored.report.benchmark))
        .collect();
    match failed_rows.is_empty() {
        true => Ok(()),
        false => {
            let what = format!("{} have an error instead of an answer and score 0", failed_rows.join(", "));
            Err(failed(
                out.display(),
                what,
                "see `error` in NAME.jsonl; remove the cause, then run again with --overwrite",
            ))
        }
    }
}

/// Returns the tasks of a run in the folder `out`: the tasks of `--benchmark`, else all tasks that have answers in
/// the folder. A task that is not built in is read from the copy `OUT/NAME.toml`, or from the file that `--benchmark`
/// names.
pub fn tasks_of_output_folder(out: &Path, benchmark: Option<&str>) -> Result<Vec<Task>> {
    let entries = std::fs::read_dir(out).map_err(|e| output::cannot_read(out, e))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has_answers = |task: &str| {
        let of_task = |name: &String| {
            name.strip_prefix(task).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".jsonl"))
        };
        names.iter().any(of_task)
    };
    let own = names.iter().filter(|name| name.strip_suffix(".toml").is_some_and(has_answers));
    let built_in = Task::built_in_tasks();
    let is_built_in = |name: &str| built_in.iter().any(|task| task.name == name);
    if let Some(given) = benchmark {
        // A name that is neither a built-in task nor a `.toml` file refers to `NAME.toml` in the folder.
        let file = |name: &str| out.join(format!("{name}.toml"));
        let of_folder = |name: &&str| !name.ends_with(".toml") && !is_built_in(name) && file(name).exists();
        return match Some(given.trim()).filter(of_folder) {
            Some(name) => Ok(vec![Task::open(&file(name))?]),
            None => Ok(Task::from_names(given)?),
        };
    }
    let mut found: Vec<Task> = built_in.iter().filter(|task| has_answers(&task.name)).cloned().collect();
    for name in own.filter(|name| !is_built_in(name.trim_end_matches(".toml"))) {
        found.push(Task::open(&out.join(name))?);
    }
    match found.is_empty() {
        true => Err(failed(
            out.display(),
            "has no predictions of a benchmark",
            "give a folder that reel eval wrote, or --benchmark",
        )),
        false => Ok(found),
    }
}

/// Describes a benchmark's data as JSON: layout, files with fingerprints, and counts of rows that were left out.
pub fn describe_benchmark_data(loaded: &reel_eval::LoadedBenchmark) -> Value {
    let file = |file: &reel_eval::DataFile| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        json!({"name": name, "fingerprint": file.fingerprint, "rows": file.rows})
    };
    json!({
        "layout": loaded.layout,
        "files": loaded.files.iter().map(file).collect::<Vec<_>>(),
        "left_out": loaded.left_out,
    })
}
