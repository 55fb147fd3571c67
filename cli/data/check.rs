//! `reel data check`: finds the rows of a data file that cannot be used.

use anyhow::Result;
use clap::Args;
use reel_samples::inspect::{DataStats, ProblemKind, TrainingCommand};
use serde_json::{Value, json};

use super::InspectFlags;
use crate::common::CommonOptions;
use crate::fail::failed;
use crate::output;

/// Find the rows of a data file that cannot be used.
///
/// Parses every row and opens its images and videos as training does, in a worker process with a time limit. A row
/// cannot be used if it has wrong fields, or media that are missing or cannot be decoded. The exit code is 1 if there
/// are rows that neither reel sft nor reel grpo can use (with --for: rows that the named command cannot use). Rows
/// without an answer and duplicates of earlier rows are listed too. Media with an http address are not opened.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel data check rows.json")]
pub struct CheckArgs {
    #[command(flatten)]
    inspect: InspectFlags,
    /// Check for this command only: sft or grpo [default: both]
    #[arg(long = "for", value_name = "COMMAND", value_enum, hide_possible_values = true)]
    command: Option<TrainingCommand>,
    /// Number of rows that are named for each kind of problem; all are counted
    #[arg(long, value_name = "N", default_value_t = 5)]
    show: usize,
}

impl CheckArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let stats = self.inspect.inspect(common, self.command)?;
        if common.json {
            output::print_json(&self.json(&stats)?)?;
        } else {
            self.print(&stats)?;
        }
        match stats.problems.iter().find(|problem| problem.kind.is_unusable()) {
            None => Ok(()),
            Some(first) => {
                let by = self.command.map_or(String::new(), |command| format!(" by {}", command.name()));
                let what = format!(
                    "{} of {} rows cannot be used{by}; the first: {}",
                    stats.unusable_rows, stats.rows, first.message
                );
                Err(failed(self.inspect.data().display(), what, "correct or remove these rows"))
            }
        }
    }

    fn json(&self, stats: &DataStats) -> Result<Value> {
        let mut result = serde_json::to_value(stats)?;
        let shown = ProblemKind::ALL.into_iter().flat_map(|kind| self.first(stats, kind)).collect::<Vec<_>>();
        result["problems"] = json!(shown);
        Ok(result)
    }

    /// Returns the first problems of a kind, at most as many as `--show` allows.
    fn first<'a>(
        &self,
        stats: &'a DataStats,
        kind: ProblemKind,
    ) -> impl Iterator<Item = &'a reel_samples::inspect::RowProblem> {
        stats.problems.iter().filter(move |problem| problem.kind == kind).take(self.show)
    }

    fn print(&self, stats: &DataStats) -> Result<()> {
        let layouts: Vec<String> = stats.layouts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        output::print_line(format!(
            "{} rows ({}), {} images and videos",
            stats.rows,
            layouts.join(", "),
            stats.media_files
        ))?;
        for used in &stats.commands {
            output::print_line(format!("{} can use {} of {} rows", used.command.name(), used.usable_rows, stats.rows))?;
            if let Some(message) = &used.first_refusal {
                output::print_line(format!("  {message}"))?;
            }
        }
        for (kind, count) in &stats.problem_counts {
            output::print_line(format!("{}: {count} rows", kind.name()))?;
            for problem in self.first(stats, *kind) {
                output::print_line(format!("  {}", problem.message))?;
            }
        }
        for (name, unit, distribution) in super::stats::distributions(stats) {
            output::print_line(super::stats::distribution_line(name, unit, distribution))?;
        }
        if stats.problems.is_empty() { output::print_line("no problem found") } else { Ok(()) }
    }
}
