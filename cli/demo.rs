//! `reel demo`: curates chains of thought about synthetic video clips, trains a tiny model on them (SFT, then T-GRPO),
//! teaches it to call a tool, evaluates it, and writes a page with the results.

use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Command, FromArgMatches};
use reel_input::config::Family;
use reel_tools::showcase::clips::ClipSet;
use reel_tools::showcase::command_line::CommandLine;
use reel_tools::showcase::evaluation::difference_in_standard_errors;
use reel_tools::showcase::page::{self, duration_text};
use reel_tools::showcase::pipeline::{self, DemoOutcome};
use reel_train::options::{GrpoOptions, RunOptions, SftOptions, TrainingOptions};
use reel_train::runs::config_file::ConfigFile;
use reel_train::runs::{grpo, sft};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::common::CommonOptions;
use crate::curate::CurateArgs;
use crate::eval::EvalArgs;
use crate::fail::{failed, usage_error};
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::output;
use crate::rank_flags::JobFlags;
use crate::report::ReportArgs;
use crate::training::ResolvedOptions;

/// Train a tiny model with random weights to answer questions about synthetic video clips: curation of chains of
/// thought (a stand-in on this machine answers for large models), SFT, then GRPO with the temporal reward (T-GRPO), and
/// an evaluation between the stages. A third stage trains the random model to call the tool crop_video, and asks it
/// questions with and without the tool. Writes a page with accuracy on held-out clips, curves and frames. Takes minutes
/// on a CPU.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel demo --out demo")]
pub struct DemoArgs {
    /// Output folder; an earlier demo in it is replaced
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Repeat the demo with N seeds, starting at --seed; the results of seed S are in DIR/seed-S
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Training steps of each stage [default: 600 for SFT, 800 for GRPO, 200 for tool calls]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    steps: Option<i64>,
    /// Number of held-out clips; a quarter as many more for tool calls. The clips of a smaller N are among those of a
    /// larger N; with fewer clips the evaluation takes less time and the accuracies are less precise
    #[arg(long, value_name = "N", default_value_t = ClipSet::HeldOut.default_clip_count() as u64, value_parser = clap::value_parser!(u64).range(4..=100_000))]
    held_out: u64,
    /// Model family: qwen2.5 or qwen3
    #[arg(long, value_enum, value_name = "FAMILY", default_value_t, hide_possible_values = true)]
    family: Family,
    /// Train the second stage without the temporal reward (plain GRPO), for comparison
    #[arg(long)]
    no_temporal: bool,
}

impl DemoArgs {
    /// Runs the demo for every seed, writes the pages and prints the results.
    pub fn run(&self, common: &CommonOptions, parser: &Command) -> Result<()> {
        let _lock = pipeline::lock_output_folder(&self.out)?;
        let Some(last) = common.seed().checked_add(self.seeds - 1) else {
            let what =
                format!("{} seeds, starting at seed {}, go beyond the largest 64-bit seed", self.seeds, common.seed());
            return Err(usage_error("--seeds", what, "lower --seed"));
        };
        let mut outcomes = Vec::new();
        for seed in common.seed()..=last {
            let folder = if self.seeds == 1 { self.out.clone() } else { self.out.join(format!("seed-{seed}")) };
            let outcome = self.run_seed(common, parser, (&folder, seed))?;
            output::write_file(&folder.join("report.html"), page::demo_page(&outcome, &machine(common)?).as_bytes())?;
            outcomes.push(outcome);
        }
        let page = self.out.join("report.html");
        if self.seeds > 1 {
            output::write_file(&page, page::overview_page(&outcomes, &machine(common)?).as_bytes())?;
        }
        if common.json {
            return output::print_json(
                &json!({"report": page, "seeds": outcomes.iter().map(figures).collect::<Vec<_>>()}),
            );
        }
        outcomes.iter().try_for_each(print_table)?;
        let all: Duration = outcomes.iter().map(|o| o.all).sum();
        output::print_line(format!("{} ({})", page.display(), duration_text(all)))
    }

    fn run_seed(&self, common: &CommonOptions, parser: &Command, (folder, seed): (&Path, u64)) -> Result<DemoOutcome> {
        let quiet = common.quiet || common.json;
        let demo = pipeline::Demo {
            folder: folder.into(),
            seed,
            family: self.family,
            held_out: self.held_out as usize,
            steps: self.steps,
            temporal: !self.no_temporal,
            quiet,
        };
        let common = CommonOptions { seed: Some(seed), json: false, quiet, trace: None, ..common.clone() };
        let prepared = demo.prepare()?;
        let mut sft_run = resolved(SftOptions::default(), &demo.path_in_folder("sft.toml"), &common)?;
        let mut grpo_run = resolved(GrpoOptions::default(), &demo.path_in_folder("grpo.toml"), &common)?;
        let mut tools_run = resolved(SftOptions::default(), &demo.path_in_folder("tools.toml"), &common)?;
        demo.set_paths_and_steps(&mut sft_run.options, "model", "sft");
        demo.set_paths_and_steps(&mut grpo_run.options, "sft", "grpo");
        demo.set_paths_and_steps(&mut tools_run.options, "model", "tools");
        grpo_run.options.siglip = Some(demo.path_in_folder("siglip"));
        let run_sft = |run: &ResolvedOptions<SftOptions>| run.with_setup(None, |setup| Ok(sft::run(setup)?)).map(drop);
        let run_grpo = || grpo_run.with_setup(None, |setup| Ok(grpo::run(setup)?)).map(drop);
        let printless = CommonOptions { quiet: true, hides_result: true, ..common.clone() };
        let command = |command: &CommandLine| run_command(parser, command, &printless);
        demo.run(prepared, command, || run_sft(&sft_run), run_grpo, || run_sft(&tools_run))
    }
}

/// Runs a command line of the demo in this process. `parser` is the parser of the whole command line; `common` has the
/// options that all commands share.
fn run_command(parser: &Command, command: &CommandLine, common: &CommonOptions) -> Result<()> {
    let matches = parser.clone().try_get_matches_from(&command.words)?;
    match matches.subcommand() {
        Some(("curate", own)) => CurateArgs::from_arg_matches(own)?.run(common),
        Some(("eval", own)) => EvalArgs::from_arg_matches(own)?.run(common),
        Some(("report", own)) => ReportArgs::from_arg_matches(own)?.run(common),
        _ => Err(failed(command.shell_text(), "is not a command that the demo runs", "report this as a defect")),
    }
}

/// Returns the options of a training stage: the values that the stage's .toml file sets, and the training command's
/// defaults for all others.
fn resolved<O: TrainingOptions + DerefMut<Target = RunOptions> + Clone + DeserializeOwned>(
    options: O,
    config: &Path,
    common: &CommonOptions,
) -> Result<ResolvedOptions<O>> {
    let (media, worker) = (MediaFlags::default(), WorkerFlags::default());
    let access = MediaAccessFlags::default();
    let (job, own) = (JobFlags::default(), common.clone());
    let defaults = ResolvedOptions { options, media, access, worker, job, common: own, has_default_rate: false };
    let mut resolved: ResolvedOptions<O> = ConfigFile::read(config)?.apply(&defaults, |_| false)?;
    resolved.common = common.clone();
    Ok(resolved)
}

/// Prints the accuracy on held-out clips, by task: before training, after SFT, and after the second stage.
fn print_table(o: &DemoOutcome) -> Result<()> {
    let last = format!("after {}", o.second_stage_name());
    output::print_line(format!("seed {}: {:25}{:>9}{:>11}{last:>14}", o.seed, "", "before", "after SFT"))?;
    for row in page::result_rows(o) {
        let [a, b, c] = row.tallies.map(|t| format!("{:.1} %", 100.0 * t.accuracy()));
        output::print_line(format!("  {:31}{a:>9}{b:>11}{c:>14}   of {}", row.name, row.tallies[0].total))?;
    }
    let [before, sft, grpo] = o.answers.each_ref().map(|s| s.tally(&o.clips, None));
    output::print_line(format!(
        "  gain in accuracy, in standard errors: {:.1} by SFT, {:.1} by {}",
        difference_in_standard_errors(before, sft),
        difference_in_standard_errors(sft, grpo),
        o.second_stage_name(),
    ))?;
    let [with, without] = [o.tools.with_tools, o.tools.without_tools].map(|t| 100.0 * t.accuracy());
    output::print_line(format!(
        "  after SFT with tool calls: {with:.1} % with crop_video, {without:.1} % without it, of {}",
        o.tools.with_tools.total
    ))?;
    output::print_line(format!("  the whole demo took {}", duration_text(o.all)))
}

/// Returns the results of one seed as JSON.
fn figures(o: &DemoOutcome) -> Value {
    let rows = page::result_rows(o).into_iter().map(|row| {
        let [before, sft, grpo] = row.tallies.map(|t| t.correct);
        (row.name.to_string(), json!({"n": row.tallies[0].total, "before": before, "sft": sft, "grpo": grpo}))
    });
    let [before, sft, grpo] = o.answers.each_ref().map(|s| s.tally(&o.clips, None));
    json!({
        "seed": o.seed,
        "temporal": o.temporal,
        "curation": o.curation,
        "right": rows.collect::<serde_json::Map<_, _>>(),
        "standard_errors": {"sft": difference_in_standard_errors(before, sft), "grpo": difference_in_standard_errors(sft, grpo)},
        "tools": {"n": o.tools.with_tools.total, "with": o.tools.with_tools.correct,
            "without": o.tools.without_tools.correct},
        "seconds": {"sft": o.took[0].as_secs_f64(), "grpo": o.took[1].as_secs_f64(),
            "tools": o.tools.took.as_secs_f64(), "all": o.all.as_secs_f64()},
    })
}

/// Returns the version of reel, the number of threads and the CPU model, for the footer of a page.
fn machine(common: &CommonOptions) -> Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m.trim());
    Ok(format!("reel {}, {} threads of {model}", env!("CARGO_PKG_VERSION"), common.threads()?))
}
