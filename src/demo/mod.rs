//! `reel demo`: a tiny model learns to answer questions about films, by the two stages of the recipe, from nothing to a page of results.

mod clips;
mod course;
mod exam;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::common::Common;
use crate::fail::bad_usage;
use crate::output;
use course::{Course, Outcome};
use exam::standard_errors;

/// Teach a tiny model to answer questions about films, by examples and then by rewards (T-GRPO), and show it on a page.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel demo --out demo")]
pub struct Demo {
    /// The folder to make; an earlier demo in it is replaced
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Do it all for this many seeds, from --seed on, each in DIR/seed-N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Steps of each stage instead of the recipe's; fewer teach it less
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    steps: Option<i64>,
    /// Leave the temporal reward out of the second stage: GRPO for T-GRPO, to see what the reward does
    #[arg(long)]
    no_temporal: bool,
}

impl Demo {
    /// Makes everything.
    pub fn run(&self, common: &Common) -> Result<()> {
        course::want_demo(&self.out)?;
        let last = common.seed().checked_add(self.seeds - 1);
        let Some(last) = last else {
            return Err(bad_usage(
                "--seeds",
                format!("from seed {} on there are not so many", common.seed()),
                "lower --seed",
            ));
        };
        let quiet = common.quiet || common.json;
        let mut outcomes = Vec::new();
        for seed in common.seed()..=last {
            let folder = if self.seeds == 1 { self.out.clone() } else { self.out.join(format!("seed-{seed}")) };
            let outcome =
                Course { folder: folder.clone(), seed, steps: self.steps, temporal: !self.no_temporal, common, quiet }
                    .run()?;
            output::file(&folder.join("report.html"), report::page(&outcome, &machine(common)?)?.as_bytes())?;
            outcomes.push(outcome);
        }
        let page = self.out.join("report.html");
        if self.seeds > 1 {
            output::file(&page, report::overview(&outcomes, &machine(common)?).as_bytes())?;
        }
        if common.json {
            return output::json(&json!({"report": page, "seeds": outcomes.iter().map(figures).collect::<Vec<_>>()}));
        }
        outcomes.iter().try_for_each(table)?;
        let all: Duration = outcomes.iter().map(|o| o.all).sum();
        output::line(format!("{} ({})", page.display(), seconds(all)))
    }
}

/// Right answers by task, before, between and after.
fn table(o: &Outcome) -> Result<()> {
    let last = format!("after {}", o.second());
    output::line(format!("seed {}: {:25}{:>9}{:>11}{last:>14}", o.seed, "", "before", "after SFT"))?;
    for row in report::rows(o) {
        let [a, b, c] = row.tallies.map(|t| format!("{:.1} %", 100.0 * t.share()));
        output::line(format!("  {:31}{a:>9}{b:>11}{c:>14}   of {}", row.name, row.tallies[0].of))?;
    }
    let [before, sft, grpo] = o.said.each_ref().map(|s| s.tally(&o.clips, None));
    output::line(format!(
        "  standard errors gained: {:.1} by SFT, {:.1} by {} ({})",
        standard_errors(before, sft),
        standard_errors(sft, grpo),
        o.second(),
        seconds(o.all)
    ))
}

/// The same for programs.
fn figures(o: &Outcome) -> Value {
    let rows = report::rows(o).into_iter().map(|row| {
        let [before, sft, grpo] = row.tallies.map(|t| t.right);
        (row.name.to_string(), json!({"n": row.tallies[0].of, "before": before, "sft": sft, "grpo": grpo}))
    });
    let [before, sft, grpo] = o.said.each_ref().map(|s| s.tally(&o.clips, None));
    json!({
        "seed": o.seed,
        "temporal": o.temporal,
        "right": rows.collect::<serde_json::Map<_, _>>(),
        "standard_errors": {"sft": standard_errors(before, sft), "grpo": standard_errors(sft, grpo)},
        "seconds": {"sft": o.took[0].as_secs_f64(), "grpo": o.took[1].as_secs_f64(), "all": o.all.as_secs_f64()},
    })
}

fn seconds(d: Duration) -> String {
    let s = d.as_secs_f64().round() as u64;
    if s < 100 { format!("{s} s") } else { format!("{} min {} s", s / 60, s % 60) }
}

fn machine(common: &Common) -> Result<String> {
    let info = fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m.trim());
    Ok(format!("reel {}, {} threads of {model}", env!("CARGO_PKG_VERSION"), common.threads()?))
}
