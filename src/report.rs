//! `reel report`: writes the HTML page of one training run, or of several runs with their curves in the same charts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_report::run;

use crate::common::CommonOptions;
use crate::fail::bad_usage;
use crate::output;

/// File name of the page of several runs if `--out` is not given.
const COMPARISON_PAGE: &str = "compare.html";
/// Maximum number of runs on a page: charts have eight colors for lines.
const MAX_RUNS: usize = 8;

/// Write an HTML page about a training run: its metrics as curves, and sampled completions with their rewards. Several
/// runs share one page, with their curves over each other.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out run --max-steps 5
  reel report run
  reel sft --model tiny --data rows.json --out run2 --max-steps 5 --seed 1
  reel report run run2 --out compare.html")]
pub struct ReportArgs {
    /// Output folder of the run (its --out); the run may still be going on. Up to 8 runs share one page
    #[arg(value_name = "OUT", required = true)]
    run: Vec<PathBuf>,
    /// HTML file to write [default: OUT/report.html; for several runs: compare.html]
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
}

impl ReportArgs {
    /// Reads what the runs have written so far and writes the page.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        refuse_repeated_runs(&self.run)?;
        let folders: Vec<&Path> = self.run.iter().map(PathBuf::as_path).collect();
        let page = run::runs_page_html(&folders)?;
        let default = || match &folders[..] {
            [run] => run.join("report.html"),
            _ => COMPARISON_PAGE.into(),
        };
        let out = self.out.clone().unwrap_or_else(default);
        output::write_file(&out, page.as_bytes())?;
        if common.json {
            return output::print_json(&serde_json::json!({"out": out, "runs": self.run}));
        }
        if common.quiet { Ok(()) } else { output::print_line(out.display()) }
    }
}

/// Refuses more runs than a chart has colors, and a run that is given twice, even by two different paths.
fn refuse_repeated_runs(runs: &[PathBuf]) -> Result<()> {
    if runs.len() > MAX_RUNS {
        let what = format!("{} runs are too many for one page", runs.len());
        return Err(bad_usage("OUT", what, format!("give at most {MAX_RUNS}")));
    }
    let identities: Vec<Option<PathBuf>> = runs.iter().map(|run| run.canonicalize().ok()).collect();
    for (i, run) in runs.iter().enumerate() {
        if identities[i].is_some() && identities[..i].contains(&identities[i]) {
            return Err(bad_usage(&run.display().to_string(), "is given twice", "give each run once"));
        }
    }
    Ok(())
}
