//! `reel report`: the page of a training run.

mod curves;
mod rollouts;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_train::reporting::metrics::{self, StepMetrics};
use reel_train::run_folder::output::{METRICS, RUN};
use serde_json::Value;

use crate::common::Common;
use crate::fail::failed;
use crate::{html, output};

const STYLE: &str = include_str!("style.css");

/// Write the page of a training run: its curves, and what it drew over time.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out run --max-steps 5
  reel report run")]
pub struct Report {
    /// The OUT of the run
    #[arg(value_name = "OUT")]
    run: PathBuf,
    /// The page to write [default: OUT/report.html]
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
}

impl Report {
    /// Reads the run as far as it has come and writes the page.
    pub fn run(&self, common: &Common) -> Result<()> {
        let page = page(&self.run)?;
        let out = self.out.clone().unwrap_or_else(|| self.run.join("report.html"));
        output::file(&out, page.as_bytes())?;
        if common.json {
            return output::json(&serde_json::json!({"out": out}));
        }
        if common.quiet { Ok(()) } else { output::line(out.display()) }
    }
}

/// The page of the run in a folder.
pub fn page(run: &Path) -> Result<String> {
    let log = run.join(METRICS);
    let lines = metrics::read(&log, |_: &StepMetrics| true)?;
    let steps: Vec<StepMetrics> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return Err(failed(log.display(), "has no steps", "give the OUT of a run that has done some"));
    };
    let about: Value =
        fs::read(run.join(RUN)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let command = about["command"].as_str().unwrap_or("training");
    let mut page = html::begin(&format!("reel {command}: {}", run.display()));
    page += &format!("<style>{STYLE}</style><p>{}</p>", html::escape(&headline(first, last, &about)));
    page += &curves::html(&steps);
    page += &rollouts::html(run, &steps)?;
    page += &options(&about);
    Ok(page + html::END)
}

/// What was trained, how far, and what came of it.
fn headline(first: &StepMetrics, last: &StepMetrics, about: &Value) -> String {
    let of = about["steps"].as_u64().map_or(String::new(), |n| format!(" of {n}"));
    let text = |name: &str| about[name].as_str().unwrap_or("?").to_string();
    let reward = |m: &StepMetrics| m.more.get("reward").and_then(Value::as_f64);
    let rewards = match (reward(first), reward(last)) {
        (Some(a), Some(b)) => format!(", reward {a:.3} → {b:.3}"),
        _ => String::new(),
    };
    format!(
        "{} steps{of} on {} in {}: loss {:.4} → {:.4}{rewards}, {:.1} GB at most. Version {}.",
        last.step,
        text("device"),
        text("dtype"),
        first.loss,
        last.loss,
        last.peak_bytes as f64 / 1e9,
        text("version"),
    )
}

/// Every option as it was resolved.
fn options(about: &Value) -> String {
    let Some(options) = about["options"].as_object() else { return String::new() };
    let row = |(name, value): (&String, &Value)| match value {
        Value::Null => String::new(),
        value => format!("<dt>{}</dt><dd>{}</dd>", html::escape(name), html::escape(&value.to_string())),
    };
    format!("<h2>Options</h2><dl class=\"options\">{}</dl>", options.iter().map(row).collect::<String>())
}
