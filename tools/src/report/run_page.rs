//! The page of training runs: headline, metrics as curves, evaluations, sampled completions over time, and every
//! option. Several runs share one page, with their curves in the same charts.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::run::TrainingRun;
use crate::report::table::HtmlTable;
use crate::report::{curves, evaluations, rollouts};

/// The HTML page of the run in the output folder `run`. The run may be unfinished.
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
    let runs = folders.iter().map(|folder| TrainingRun::read(folder)).collect::<Result<Vec<TrainingRun>>>()?;
    let title = match &runs[..] {
        [run] => format!("reel {}: {}", run.command(), run.name),
        _ => format!("reel: {} runs", runs.len()),
    };
    let mut page = HtmlPage::new(&title);
    match &runs[..] {
        [run] => page.add(&format!("<p>{}</p>\n", escape_html(&run.headline()))),
        _ => add_overview(&mut page, &runs),
    }
    curves::add_curves(&mut page, &runs);
    evaluations::add_evaluations(&mut page, &runs);
    rollouts::add_rollouts(&mut page, &runs)?;
    add_options(&mut page, &runs);
    Ok(page.into_html())
}

/// Adds a table with one row per run.
fn add_overview(page: &mut HtmlPage, runs: &[TrainingRun]) {
    let columns = ["run", "command", "steps", "device", "dtype", "loss", "reward", "peak memory, GB", "reel"];
    let mut table = HtmlTable::new(&columns).with_text_columns(2);
    for (i, run) in runs.iter().enumerate() {
        let key = format!("<i class=\"key\" style=\"background:var(--c{})\"></i>", i % 8);
        let cells = [
            run.command().to_string(),
            run.progress_text(),
            run.run_json_text("device").to_string(),
            run.run_json_text("dtype").to_string(),
            run.first_and_last_text(4, |m| Some(m.loss)).unwrap_or_default(),
            run.first_and_last_text(3, |m| m.grpo.reward).unwrap_or_default(),
            format!("{:.3}", run.peak_gigabytes()),
            run.run_json_text("version").to_string(),
        ];
        let name = format!("{key}{}", escape_html(&run.name));
        table.add_row([name].into_iter().chain(cells.iter().map(|cell| escape_html(cell))).collect());
    }
    page.add_table(&table);
}

/// Adds the options of the runs. For one run, adds a list; for several runs, a table of the options that differ and a
/// collapsed list of the options that are equal.
fn add_options(page: &mut HtmlPage, runs: &[TrainingRun]) {
    let value = |run: &TrainingRun, name: &str| match &run.about["options"][name] {
        Value::Null => String::new(),
        value => escape_html(&value.to_string()),
    };
    let mut known = BTreeSet::new();
    let options = runs.iter().filter_map(|run| run.about["options"].as_object()).flatten();
    let names: Vec<&String> = options.map(|(name, _)| name).filter(|name| known.insert(*name)).collect();
    if names.is_empty() {
        return;
    }
    let list = |names: &[&String], run: &TrainingRun| {
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
    let mut table = HtmlTable::new(&columns).with_text_columns(columns.len());
    for name in different {
        table.add_row([escape_html(name)].into_iter().chain(runs.iter().map(|run| value(run, name))).collect());
    }
    page.add_table(&table);
    let options = if same.len() == 1 { "1 option is".to_string() } else { format!("{} options are", same.len()) };
    let summary = format!("{options} the same in all runs");
    page.add(&format!("<details><summary>{summary}</summary>{}</details>\n", list(&same, first)));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use reel_train::file_names::{METRICS_FILE, RUN_FILE};
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
        assert_eq!(html, run_page_html(&one).unwrap(), "the page of the same run differs");
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
