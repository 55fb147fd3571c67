//! `reel report`: writes the HTML page of a training run, of several training runs with their curves in the same
//! charts, or of an evaluation, optionally compared with a second evaluation.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_tools::report::run_page;

use crate::common::CommonOptions;
use crate::eval::page::{
    EvaluationPageFlags, REPORT_PAGE_FILE, is_evaluation, read_evaluation_run, write_evaluation_page,
};
use crate::eval::results::tasks_of_output_folder;
use crate::fail::usage_error;
use crate::media::WorkerFlags;
use crate::output;

/// File name of the page of several runs if `--out` is not given.
const COMPARISON_PAGE: &str = "compare.html";
/// Maximum number of runs on a page: charts have eight line colors.
const MAX_RUNS: usize = 8;

/// Write an HTML page about a training run: its metrics as curves, and sampled completions with their rewards. Several
/// runs share one page, with their curves in the same charts. For a folder of reel eval, the page has scores and
/// answers.
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
    /// Output folder of the run (its --out); a training run may still be going on. Up to 8 training runs share one page
    #[arg(value_name = "OUT", required = true)]
    run: Vec<PathBuf>,
    /// HTML file to write [default: OUT/report.html; for several runs: compare.html]
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
    /// Folder of a second evaluation of the same questions, whose scores and answers are shown beside those of OUT
    #[arg(long, value_name = "OTHER", help_heading = "Options for evaluations")]
    against: Option<PathBuf>,
    /// Benchmarks, or task files [default: the benchmarks that the folder has]
    #[arg(long, value_name = "NAME", help_heading = "Options for evaluations")]
    benchmark: Option<String>,
    /// Folder that the paths of videos are relative to [default: the folder that the run used]
    #[arg(long, value_name = "DIR", help_heading = "Options for evaluations")]
    media_root: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Options for evaluations")]
    page: EvaluationPageFlags,
}

impl ReportArgs {
    /// Reads what the runs have written so far and writes the page.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        refuse_repeated_runs(&self.run)?;
        let out = self.out.clone().unwrap_or_else(|| match (&self.run[..], &self.against) {
            ([run], None) => run.join(REPORT_PAGE_FILE),
            _ => COMPARISON_PAGE.into(),
        });
        match self.run.iter().find(|run| is_evaluation(run)) {
            Some(folder) => self.write_evaluation(folder, &out, common)?,
            None => self.write_training(&out)?,
        }
        if common.json {
            return output::print_json(&serde_json::json!({"out": out, "runs": self.run}));
        }
        if common.quiet { Ok(()) } else { output::print_line(out.display()) }
    }

    fn write_training(&self, out: &Path) -> Result<()> {
        let options = [
            ("--against", self.against.is_some(), "give training runs one after the other"),
            ("--benchmark", self.benchmark.is_some(), "remove it"),
            ("--media-root", self.media_root.is_some(), "remove it"),
            ("--frames-mib", self.page.has_frame_options(), "remove it"),
        ];
        if let Some((option, _, help)) = options.into_iter().find(|(_, given, _)| *given) {
            return Err(usage_error(option, "has an effect for folders of reel eval only", help));
        }
        let folders: Vec<&Path> = self.run.iter().map(PathBuf::as_path).collect();
        output::write_file(out, run_page::runs_page_html(&folders)?.as_bytes())
    }

    fn write_evaluation(&self, folder: &Path, out: &Path, common: &CommonOptions) -> Result<()> {
        if let Some(other) = self.run.iter().find(|other| *other != folder) {
            let what = "is given beside a folder of reel eval";
            let help = format!("give the second of two evaluations as --against {}", other.display());
            return Err(usage_error(&other.display().to_string(), what, help));
        }
        let run = read_evaluation_run(folder, &tasks_of_output_folder(folder, self.benchmark.as_deref())?)?;
        let against = match &self.against {
            None => None,
            Some(other) => {
                Some(read_evaluation_run(other, &tasks_of_output_folder(other, self.benchmark.as_deref())?)?)
            }
        };
        let source = self.page.frame_source(self.media_root.as_deref(), &WorkerFlags::default(), common)?;
        write_evaluation_page(out, &run, against.as_ref(), &source, common)
    }
}

/// Returns an error if there are more runs than a chart has colors, or if a run is given twice, even by two different
/// paths.
fn refuse_repeated_runs(runs: &[PathBuf]) -> Result<()> {
    if runs.len() > MAX_RUNS {
        let what = format!("{} runs are too many for one page", runs.len());
        return Err(usage_error("OUT", what, format!("give at most {MAX_RUNS}")));
    }
    let identities: Vec<Option<PathBuf>> = runs.iter().map(|run| run.canonicalize().ok()).collect();
    for (i, run) in runs.iter().enumerate() {
        if identities[i].is_some() && identities[..i].contains(&identities[i]) {
            return Err(usage_error(&run.display().to_string(), "is given twice", "give each run once"));
        }
    }
    Ok(())
}
