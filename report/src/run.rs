//! The page of a training run: headline, metrics as curves, sampled completions over time, and every option of the run.

use std::fs;
use std::path::Path;

use reel_diagnostic::{Diagnostic, input};
use reel_train::reporting::metrics::{self, StepMetrics};
use reel_train::run_folder::output::{METRICS_FILE, RUN_FILE};
use serde_json::Value;

use crate::{ReportError, Result, curves, html, rollouts};

const STYLE: &str = include_str!("run.css");

/// The HTML page of the run whose output folder is `run`; the run may still be going on.
///
/// # Errors
/// The folder is not that of a run, `metrics.jsonl` or a rollout file of the run cannot be read, or no step has
/// finished.
pub fn run_page_html(run: &Path) -> Result<String> {
    let log = run.join(METRICS_FILE);
    refuse_other_folders(run)?;
    let lines = metrics::read_matching_lines(&log, |_: &StepMetrics| true)?;
    let steps: Vec<StepMetrics> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        let help = "give the output folder of a run that has finished a step";
        return Err(ReportError::Run(Diagnostic::new(log.display().to_string(), "has no steps", help)));
    };
    let about: Value = input::read_file(run.join(RUN_FILE), input::MAX_MESSAGES_BYTES)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let command = about["command"].as_str().unwrap_or("training");
    let mut page = html::page_start_html(&format!("reel {command}: {}", run.display()));
    page += &format!("<style>{STYLE}</style><p>{}</p>", html::escape_html(&headline(first, last, &about)));
    page += &curves::curves_html(&steps);
    page += &rollouts::rollouts_html(run, &steps)?;
    page += &options(&about);
    Ok(page + html::PAGE_END)
}

/// Refuses a folder that has neither of the files which every run writes.
fn refuse_other_folders(run: &Path) -> Result<()> {
    let error = |what: &str| {
        let help = "give the --out of reel sft or reel grpo";
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

/// One line about the run: steps, device, change of loss and reward, peak memory, version.
fn headline(first: &StepMetrics, last: &StepMetrics, about: &Value) -> String {
    let of = about["steps"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
    let text = |name: &str| about[name].as_str().unwrap_or("?").to_string();
    let reward = |m: &StepMetrics| m.grpo.reward;
    let rewards = match (reward(first), reward(last)) {
        (Some(a), Some(b)) => format!(", reward {a:.3} → {b:.3}"),
        _ => String::new(),
    };
    format!(
        "{} steps{of} on {} in {}: loss {:.4} → {:.4}{rewards}, peak memory {:.1} GB. reel {}.",
        last.step,
        text("device"),
        text("dtype"),
        first.loss,
        last.loss,
        last.peak_bytes as f64 / 1e9,
        text("version"),
    )
}

/// The options of the run as a list.
fn options(about: &Value) -> String {
    let Some(options) = about["options"].as_object() else { return String::new() };
    let row = |(name, value): (&String, &Value)| match value {
        Value::Null => String::new(),
        value => format!("<dt>{}</dt><dd>{}</dd>", html::escape_html(name), html::escape_html(&value.to_string())),
    };
    format!("<h2>Options</h2><dl class=\"options\">{}</dl>", options.iter().map(row).collect::<String>())
}
