//! `reel data stats`: counts the rows of a data file by kind and shows distributions.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_samples::inspect::{DataStats, Distribution};
use reel_support::diagnostic::escape_controls;
use reel_tools::report::data_stats::data_stats_page_html;

use super::InspectFlags;
use crate::common::CommonOptions;
use crate::output;

/// Maximum number of values of a column that are printed.
const MAX_VALUES: usize = 10;

/// Count the rows of a data file by kind, and show video durations and token counts with percentiles.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel data stats rows.json --model tiny --html stats.html")]
pub struct StatsArgs {
    #[command(flatten)]
    inspect: InspectFlags,
    /// HTML page with histograms to write
    #[arg(long, value_name = "F.html")]
    html: Option<PathBuf>,
}

/// Returns the measured distributions, each with its name and unit.
pub(super) fn distributions(stats: &DataStats) -> Vec<(&'static str, &'static str, &Distribution)> {
    let all = [
        ("video duration", "s", &stats.video_seconds),
        ("video frame rate", "frames/s", &stats.video_fps),
        ("longer side of media", "pixels", &stats.longer_side),
        ("tokens per row", "tokens", &stats.tokens),
    ];
    all.into_iter().filter_map(|(name, unit, own)| Some((name, unit, own.as_ref()?))).collect()
}

/// Formats a distribution as one line of text.
pub(super) fn distribution_line(name: &str, unit: &str, d: &Distribution) -> String {
    let number = |value: f64| if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") };
    let [min, p50, p90, p99, max, mean] = [d.min, d.p50, d.p90, d.p99, d.max, d.mean].map(number);
    format!("{name} ({unit}): min {min}, p50 {p50}, p90 {p90}, p99 {p99}, max {max}, mean {mean}")
}

impl StatsArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let stats = self.inspect.inspect(common, None)?;
        if let Some(page) = &self.html {
            let title = self.inspect.data().display().to_string();
            output::write_file(page, data_stats_page_html(&title, &stats).as_bytes())?;
        }
        if common.json {
            return output::print_json(&stats);
        }
        output::print_line(format!("rows: {}, of which {} cannot be used", stats.rows, stats.unusable_rows))?;
        let layouts = ("layout".to_string(), stats.layouts.clone());
        for (name, counts) in std::iter::once(&layouts).chain(&stats.columns) {
            let mut values: Vec<_> = counts.iter().collect();
            values.sort_by_key(|(value, count)| (std::cmp::Reverse(**count), (*value).clone()));
            let shown = values.iter().take(MAX_VALUES).map(|(value, count)| format!("{value} {count}"));
            let more = values.len().saturating_sub(MAX_VALUES);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let text = format!("{name}: {}{more}", shown.collect::<Vec<_>>().join(", "));
            output::print_line(escape_controls(&text))?;
        }
        for (name, unit, distribution) in distributions(&stats) {
            output::print_line(distribution_line(name, unit, distribution))?;
        }
        match &self.html {
            Some(page) if !common.quiet => output::print_line(page.display()),
            _ => Ok(()),
        }
    }
}
