//! `reel report`: writes the HTML page of a training run.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_report::run;

use crate::common::CommonOptions;
use crate::output;

/// Write an HTML page about a training run: its metrics as curves, and sampled completions with their rewards.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out run --max-steps 5
  reel report run")]
pub struct ReportArgs {
    /// Output folder of the run (its --out); the run may still be going on
    #[arg(value_name = "OUT")]
    run: PathBuf,
    /// HTML file to write [default: OUT/report.html]
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
}

impl ReportArgs {
    /// Reads what the run has written so far and writes the page.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let page = run::run_page_html(&self.run)?;
        let out = self.out.clone().unwrap_or_else(|| self.run.join("report.html"));
        output::write_file(&out, page.as_bytes())?;
        if common.json {
            return output::print_json(&serde_json::json!({"out": out}));
        }
        if common.quiet { Ok(()) } else { output::print_line(out.display()) }
    }
}
