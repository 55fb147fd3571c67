//! `reel eval --score-only`: scores the predictions in a file.

use anyhow::Result;
use reel_eval::{OWN_ROWS, Task, can_be_predictions_of, score_benchmark};

use super::{EvalBenchmarkFlags, Protocol, results};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::output;

pub(super) fn run(what: &EvalBenchmarkFlags, common: &CommonOptions) -> Result<()> {
    let names = what.benchmark.as_deref();
    let tasks = names.map_or_else(|| Ok(vec![Task::of_own_rows()]), Task::from_names)?;
    let [task] = &tasks[..] else {
        let wrong = format!("is {}, but --predictions is a file of one benchmark", names.unwrap_or_default());
        return Err(usage_error("--benchmark", wrong, "give the name of one benchmark"));
    };
    if what.protocol == Protocol::Reference {
        task.check_reference_protocol()?;
    }
    let (Some(file), Some(out)) = (&what.predictions, &what.out) else {
        return Err(usage_error("--predictions", "is missing", "give the file with the answers to score"));
    };
    let rows = results::read_predictions(file, task, common.quiet)?;
    let mut report = score_benchmark(task, &rows, what.extraction()?)?;
    if !can_be_predictions_of(task, &rows) {
        // A published benchmark's name stands for its questions.
        if !common.quiet {
            reel_support::diagnostic::note!(
                "note: {}: the number of rows ({}) is not that of {} ({}), so they are reported as {OWN_ROWS}, by its rules",
                file.display(),
                rows.len(),
                task.title,
                task.rows.unwrap_or_default()
            );
        }
        (report.benchmark, report.published_rows) = (OWN_ROWS.into(), None);
    }
    results::write_json(out, &serde_json::to_value(&report)?)?;
    if common.json { output::print_json(&report) } else { results::print_benchmark_report(&report) }
}
