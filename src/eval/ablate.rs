//! `reel eval ablate`: runs an evaluation once for each value of an option and compares the runs.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Command, FromArgMatches};
use reel_eval::{Task, compare_runs, score_benchmark};
use serde_json::json;

use super::results::{ScoredBenchmark, error_if_rows_failed, predictions_file, read_predictions, write_json};
use super::{EvalArgs, EvalBenchmarkFlags, EvalRunFlags, processes, run};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::output;
use crate::ranks::RunProcess;

/// Measure how much an option changes the scores: one run for each value, in OUT/OPTION=VALUE, and the paired
/// differences to the run with the first value.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  printf '%s' '[{\"video ID\": \"a\", \"Question ID\": 1, \"Question Type\": \"TA\",
    \"Question\": \"Who?\", \"Options\": {\"A\": \"he\", \"B\": \"she\"},
    \"Answer\": \"B\"}]' > test_Video-Holmes.json
  reel eval ablate --option temperature=0,1 --model tiny --data . \\
    --benchmark videoholmes --out ablation --max-new-tokens 8 --text-only")]
pub struct AblateArgs {
    /// Option of reel eval and its values, the baseline first: nframes=32,16,64 or clips=false,true
    #[arg(long, value_name = "NAME=V1,V2", required = true)]
    option: Option<String>,
    #[command(flatten)]
    what: EvalBenchmarkFlags,
    #[command(flatten)]
    run: EvalRunFlags,
}

/// A value of the option and the folder of its run.
struct Variant {
    value: String,
    args: EvalArgs,
    out: PathBuf,
}

impl AblateArgs {
    pub(super) fn run(&self, common: &CommonOptions, parser: &Command) -> Result<()> {
        let variants = self.variants(parser)?;
        variants.iter().try_for_each(|variant| variant.args.run.check_values())?;
        let evaluate_all = |process: Option<&RunProcess>, common: &CommonOptions| {
            let mut scored = Vec::new();
            for variant in &variants {
                if !common.quiet {
                    reel_diagnostic::note!("{}:", variant.out.display());
                }
                let is_quiet = common.quiet || common.json;
                let inner = CommonOptions { quiet: is_quiet, json: false, hides_result: is_quiet, ..common.clone() };
                scored.extend(run::evaluate(&variant.args.what, &variant.args.run, &inner, process)?);
            }
            Ok(scored)
        };
        match processes::run_evaluation_processes(&self.what, &self.run, common, evaluate_all)? {
            Some(scored) => self.compare(&variants, &scored, common),
            None => Ok(()),
        }
    }

    /// Writes and prints the scores of the runs, with their differences to the first one.
    fn compare(&self, variants: &[Variant], scored: &[ScoredBenchmark], common: &CommonOptions) -> Result<()> {
        let tasks = Task::from_names(self.what.benchmark.as_deref().unwrap_or_default())?;
        let mut table = Vec::new();
        for task in &tasks {
            let rows: Vec<_> = variants
                .iter()
                .map(|variant| read_predictions(&predictions_file(&variant.out, &task.name), task, true))
                .collect::<Result<_>>()?;
            for (variant, own) in variants.iter().zip(&rows) {
                let (first, extraction) = (variants[0].args.what.extraction, variant.args.what.extraction);
                let report = score_benchmark(task, own, extraction)?;
                // The runs differ only in how answers are extracted from the same predictions, so there is no paired
                // difference.
                let difference = match first == extraction {
                    true => Some(compare_runs(task, [&rows[0], own], extraction)?),
                    false => None,
                };
                table.push(json!({
                    "benchmark": task.name, "value": variant.value, "score": report.headline.score,
                    "ci95": report.headline.ci95, "truncated": report.truncated,
                    "difference": difference.as_ref().map(|d| d.score.difference),
                    "difference_ci95": difference.as_ref().map(|d| d.score.ci95),
                    "mcnemar_p": difference.as_ref().map(|d| d.mcnemar_p),
                }));
                if !common.json {
                    let [low, high] = report.headline.ci95.map(|x| 100.0 * x);
                    let score = 100.0 * report.headline.score;
                    let name = self.option.as_deref().and_then(|o| o.split_once('=')).map_or("", |(name, _)| name);
                    let change = difference.map_or(String::new(), |d| {
                        let [d, low, high] = [d.score.difference, d.score.ci95[0], d.score.ci95[1]].map(|x| 100.0 * x);
                        format!("  {d:+6.1}  [{low:+6.1}, {high:+6.1}]")
                    });
                    let what = format!("{:12} {name}={:10}", task.name, variant.value);
                    output::print_line(format!("{what} {score:5.1}  [{low:5.1}, {high:5.1}]{change}"))?;
                }
            }
        }
        let result = json!({"option": self.option, "runs": table});
        write_json(&self.out().join("ablation.json"), &result)?;
        if common.json {
            output::print_json(&result)?;
        }
        error_if_rows_failed(scored, &self.out())
    }

    fn out(&self) -> PathBuf {
        self.what.out.clone().unwrap_or_default()
    }

    /// Returns the runs, one for each value of the option. The arguments of a run are this command line without
    /// `ablate` and `--option`, followed by `--out` and the option's value. If an option is given twice, the last one
    /// counts.
    fn variants(&self, parser: &Command) -> Result<Vec<Variant>> {
        let given = self.option.as_deref().unwrap_or_default();
        let wrong = |what: &str| {
            usage_error("--option", format!("is {given}, {what}"), "give NAME=V1,V2 such as nframes=32,16")
        };
        let Some((name, values)) = given.split_once('=') else { return Err(wrong("which has no values")) };
        let name = name.trim_start_matches('-').replace('_', "-");
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        if values.len() < 2 || values.iter().any(|value| value.is_empty() || value.contains('/')) {
            return Err(wrong("which is not a list of at least two values"));
        }
        let what_is_evaluated = ["model", "adapter", "endpoint", "endpoint-model", "data", "benchmark", "media-root"];
        if what_is_evaluated.contains(&name.as_str()) || ["out", "shard", "option", "gpus"].contains(&name.as_str()) {
            return Err(wrong("but --option can change only how questions are asked"));
        }
        let mut words: Vec<String> = std::env::args().collect();
        words.retain(|word| !word.starts_with("--option="));
        if let Some(at) = words.iter().position(|word| word == "ablate") {
            words.remove(at);
        }
        if let Some(at) = words.iter().position(|word| word == "--option") {
            words.drain(at..(at + 2).min(words.len()));
        }
        let variant = |value: &str| {
            let out = self.out().join(format!("{name}={value}"));
            let mut words = words.clone();
            words.extend(["--out".to_string(), out.display().to_string()]);
            words.extend(match value {
                "true" => vec![format!("--{name}")],
                "false" => Vec::new(),
                value => vec![format!("--{name}"), value.to_string()],
            });
            let parsed = parser.clone().args_override_self(true).try_get_matches_from(words);
            let parsed = parsed.and_then(|matches| match matches.subcommand() {
                Some(("eval", own)) => EvalArgs::from_arg_matches(own),
                _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
            });
            match parsed {
                Ok(args) => Ok(Variant { value: value.to_string(), args, out }),
                Err(e) => {
                    let said = e.to_string();
                    let said = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
                    Err(usage_error("--option", format!("{name}={value}: {said}"), "see reel eval --help"))
                }
            }
        };
        values.iter().map(|value| variant(value)).collect()
    }
}
