//! The page of training runs: headline, metrics as curves, evaluations, sampled completions over time, and every
//! option. Several runs share one page, with their curves in the same charts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use reel_diagnostic::{Diagnostic, input};
use reel_files::log::read_matching_lines;
use reel_runs::folder::evaluations::{self, EvaluationLine};
use reel_train::file_names::{METRICS_FILE, RUN_FILE};
use reel_train::metrics::StepMetrics;
use serde_json::Value;

use crate::html::{Page, escape_html};
use crate::table::Table;
use crate::{ReportError, Result, curves, rollouts};

/// A run as the page shows it: its name and the files that were read from its folder.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The output folder as the user wrote it.
    pub name: String,
    /// The output folder.
    pub folder: PathBuf,
    /// The finished steps.
    pub steps: Vec<StepMetrics>,
    /// `run.json`; null if it cannot be read.
    pub about: Value,
    /// The evaluations during training.
    pub evaluations: Vec<EvaluationLine>,
}

/// The HTML page of the run whose output folder is `run`; the run may still be going on.
///
/// # Errors
/// The folder is not that of a run, `metrics.jsonl` or a rollout file of the run cannot be read, or no step has
/// finished.
pub fn run_page_html(run: &Path) -> Result<String> {
    runs_page_html(&[run])
}

/// The HTML page of one run, or of several runs with their curves in the same charts.
///
/// # Errors
/// A folder is not that of a run, `metrics.jsonl` or a rollout file cannot be read, or a run has finished no step.
pub fn runs_page_html(folders: &[&Path]) -> Result<String> {
    let runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<Run>>>()?;
    let title = match &runs[..] {
        [run] => format!("reel {}: {}", run.command(), run.name),
        _ => format!("reel: {} runs", runs.len()),
    };
    let mut page = Page::new(&title);
    match &runs[..] {
        [run] => page.add(&format!("<p>{}</p>\n", escape_html(&run.headline()))),
        _ => add_overview(&mut page, &runs),
    }
    curves::add_curves(&mut page, &runs);
    crate::evaluations::add_evaluations(&mut page, &runs);
    rollouts::add_rollouts(&mut page, &runs)?;
    add_options(&mut page, &runs);
    Ok(page.into_html())
}

impl Run {
    fn read(folder: &Path) -> Result<Run> {
        refuse_other_folders(folder)?;
        let log = folder.join(METRICS_FILE);
        let lines = read_matching_lines(&log, |_: &StepMetrics| true)?;
        let steps: Vec<StepMetrics> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if steps.is_empty() {
            let help = "give the output folder of a run that has finished a step";
            return Err(ReportError::Run(Diagnostic::new(log.display().to_string(), "has no steps", help)));
        }
        let about: Value = input::read_file(folder.join(RUN_FILE), input::MAX_MESSAGES_BYTES)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let evaluations = evaluations::read(folder, u64::MAX)?;
        Ok(Run { name: folder.display().to_string(), folder: folder.to_path_buf(), steps, about, evaluations })
    }

    fn command(&self) -> &str {
        self.about["command"].as_str().unwrap_or("training")
    }

    fn text(&self, key: &str) -> &str {
        self.about[key].as_str().unwrap_or("?")
    }

    /// The number of the last finished step and the planned number of steps: `40 of 100`.
    fn progress(&self) -> String {
        let of = self.about["steps"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
        format!("{}{of}", self.steps.last().map_or(0, |last| last.step))
    }

    /// The first and the last value of a metric: `3.1 → 0.2`.
    fn change(&self, digits: usize, value: impl Fn(&StepMetrics) -> Option<f64>) -> Option<String> {
        let mut values = self.steps.iter().filter_map(&value);
        let first = values.next()?;
        Some(format!("{first:.digits$} → {:.digits$}", values.next_back().unwrap_or(first)))
    }

    fn peak_gigabytes(&self) -> f64 {
        self.steps.iter().map(|s| s.peak_bytes).max().unwrap_or(0) as f64 / 1e9
    }

    /// One line about the run: steps, device, change of loss and reward, peak memory, version.
    fn headline(&self) -> String {
        let reward = self.change(3, |m| m.grpo.reward).map_or(String::new(), |change| format!(", reward {change}"));
        format!(
            "{} steps on {} in {}: loss {}{reward}, peak memory {:.1} GB. reel {}.",
            self.progress(),
            self.text("device"),
            self.text("dtype"),
            self.change(4, |m| Some(m.loss)).unwrap_or_default(),
            self.peak_gigabytes(),
            self.text("version"),
        )
    }
}

/// Refuses a folder that has neither of the files which every run writes.
fn refuse_other_folders(run: &Path) -> Result<()> {
    let error = |what: &str| {
        let help = "give the --out of reel sft, reel grpo or reel eval";
        Err(ReportError::Run(Diagnostic::new(run.display().to_string(), what, help)))
    };
    match fs::metadata(run) {
        Err(e) => Err(ReportError::Run(Diagnostic::cannot_read(run, &e))),
        Ok(facts) if !facts.is_dir() => error("is not a folder"),
        Ok(_) if !run.join(METRICS_FILE).exists() && !run.join(RUN_FILE).exists() => {
            error("is not the output folder of a run: it has neither run.json nor metrics.jsonl")
        }
        Ok(_) => Ok(()),
    }
}

/// Adds a table with one row per run.
fn add_overview(page: &mut Page, runs: &[Run]) {
    let columns = ["run", "command", "steps", "device", "dtype", "loss", "reward", "peak memory, GB", "reel"];
    let mut table = Table::new(&columns).with_text_columns(2);
    for (i, run) in runs.iter().enumerate() {
        let key = format!("<i class=\"key\" style=\"background:var(--c{})\"></i>", i % 8);
        let cells = [
            run.command().to_string(),
            run.progress(),
            run.text("device").to_string(),
            run.text("dtype").to_string(),
            run.change(4, |m| Some(m.loss)).unwrap_or_default(),
            run.change(3, |m| m.grpo.reward).unwrap_or_default(),
            format!("{:.3}", run.peak_gigabytes()),
            run.text("version").to_string(),
        ];
        let name = format!("{key}{}", escape_html(&run.name));
        table.row([name].into_iter().chain(cells.iter().map(|cell| escape_html(cell))).collect());
    }
    page.add_table(&table);
}

/// Adds the options of the runs. For one run, adds a list; for several runs, a table of the options that differ and a
/// closed list of the others.
fn add_options(page: &mut Page, runs: &[Run]) {
    let value = |run: &Run, name: &str| match &run.about["options"][name] {
        Value::Null => String::new(),
        value => escape_html(&value.to_string()),
    };
    let mut known = BTreeSet::new();
    let options = runs.iter().filter_map(|run| run.about["options"].as_object()).flatten();
    let names: Vec<&String> = options.map(|(name, _)| name).filter(|name| known.insert(*name)).collect();
    if names.is_empty() {
        return;
    }
    let list = |names: &[&String], run: &Run| {
        let item = |name: &&String| match value(run, name) {
            value if value.is_empty() => value,
            value => format!("<dt>{}</dt><dd>{value}</dd>", escape_html(name)),
        };
        format!("<dl class=\"options\">{}</dl>\n", names.iter().map(item).collect::<String>())
    };
    let [first, others @ ..] = runs else { return };
    if others.is_empty() {
        page.add(&format!("<h2>Options</h2>{}", list(&names, first)));
        return;
    }
    let is_same = |name: &&String| others.iter().all(|run| value(run, name) == value(first, name));
    let (same, different): (Vec<&String>, Vec<&String>) = names.into_iter().partition(is_same);
    page.add("<h2>Options that differ</h2>\n");
    if different.is_empty() {
        page.add("<p>The runs have the same options.</p>\n");
    }
    let columns: Vec<&str> = ["option"].into_iter().chain(runs.iter().map(|run| run.name.as_str())).collect();
    let mut table = Table::new(&columns).with_text_columns(columns.len());
    for name in different {
        table.row([escape_html(name)].into_iter().chain(runs.iter().map(|run| value(run, name))).collect());
    }
    page.add_table(&table);
    let options = if same.len() == 1 { "1 option is".to_string() } else { format!("{} options are", same.len()) };
    let summary = format!("{options} the same in all runs");
    page.add(&format!("<details><summary>{summary}</summary>{}</details>\n", list(&same, first)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(folder: &Path, name: &str, options: Value) -> PathBuf {
        let run = folder.join(name);
        fs::create_dir_all(&run).unwrap();
        let line = |step: u64| {
            json!({"step": step, "loss": 4.0 / step as f64, "grad_norm": 1.0, "learning_rate": 1e-6, "tokens": 5,
                "tokens_per_second": 9.0, "step_seconds": 0.5, "peak_bytes": 5_000_000 * (3 - step), "hash": "0"})
        };
        fs::write(run.join(METRICS_FILE), format!("{}\n{}\n", line(1), line(2))).unwrap();
        let about =
            json!({"command": "sft", "steps": 9, "device": "cpu", "dtype": "f32", "version": "1", "options": options});
        fs::write(run.join(RUN_FILE), about.to_string()).unwrap();
        run
    }

    #[test]
    fn page_of_one_run_has_its_headline_and_options() {
        let folder = tempfile::tempdir().unwrap();
        let one = run(folder.path(), "one", json!({"lr": 1e-6, "note": "<i>", "absent": null}));
        let html = run_page_html(&one).unwrap();
        assert!(
            html.contains("2 of 9 steps on cpu in f32: loss 4.0000 → 2.0000, peak memory 0.0 GB. reel 1."),
            "{html}"
        );
        assert!(html.contains("<dt>note</dt><dd>&quot;&lt;i&gt;&quot;</dd>") && !html.contains("absent"));
        assert_eq!(html, run_page_html(&one).unwrap(), "the same run gives other bytes");
    }

    #[test]
    fn page_of_two_runs_has_both_lines_and_the_options_that_differ() {
        let folder = tempfile::tempdir().unwrap();
        let a = run(folder.path(), "a", json!({"lr": 0.5, "seed": 1}));
        let b = run(folder.path(), "b&b", json!({"lr": 0.25, "seed": 1, "lora_r": 8}));
        let html = runs_page_html(&[&a, &b]).unwrap();
        let [a, b] = [&a, &b].map(|path| escape_html(&path.display().to_string()));
        assert!(html.contains("reel: 2 runs") && html.contains("b&amp;b"));
        let table = html.split("Options that differ").nth(1).unwrap();
        assert!(table.contains(&format!("<th class=\"text\">{a}</th><th class=\"text\">{b}</th>")), "{table}");
        for part in ["<td class=\"text\">lr</td>", ">0.5</td>", ">0.25</td>", "<td class=\"text\">lora_r</td>"] {
            assert!(table.contains(part), "no {part} in {table}");
        }
        assert!(table.contains("1 option is the same in all runs"));
        let loss = html.split("<figcaption><b>loss</b>").nth(1).unwrap();
        assert_eq!(loss.split("</figure>").next().unwrap().matches("\"y\":[4.0,2.0]").count(), 2);
    }
}
