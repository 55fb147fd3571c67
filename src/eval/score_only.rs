//! `reel eval --score-only`: scores the predictions in a file.

use anyhow::Result;
use reel_eval::{Task, score_benchmark};

use super::{EvalBenchmarkFlags, results};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::output;

pub(super) fn run(what: &EvalBenchmarkFlags, common: &CommonOptions) -> Result<()> {
    let names = what.benchmark.as_deref().unwrap_or_default();
    let tasks = Task::from_names(names)?;
    let [task] = &tasks[..] else {
        let wrong = format!("is {names}, but --predictions is a file of one benchmark");
        return Err(usage_error("--benchmark", wrong, "give the name of one benchmark"));
    };
    let (Some(file), Some(out)) = (&what.predictions, &what.out) else {
        return Err(usage_error("--predictions", "is missing", "give the file with the answers to score"));
    };
    let rows = results::read_predictions(file, task, common.quiet)?;
    let report = score_benchmark(task, &rows, what.extraction)?;
    results::write_json(out, &serde_json::to_value(&report)?)?;
    if common.json { output::print_json(&report) } else { results::print_benchmark_report(&report) }
}
