//! Runs an evaluation as one process or as several processes that share the questions. `--gpus N` or a launcher
//! starts them.

use std::path::Path;

use anyhow::Result;

use super::{EvalBenchmarkFlags, EvalRunFlags};
use crate::common::CommonOptions;
use crate::ranks::RunProcess;
use crate::{hub, launch, ranks};

/// Calls `evaluate` with the options of this process and, if it is one of several, with the process. With `--gpus N`
/// and no launcher, it starts N processes instead and waits for them. Returns the result of `evaluate` on the process
/// that prints, else `None`.
pub(super) fn run_evaluation_processes<T>(
    what: &EvalBenchmarkFlags,
    options: &EvalRunFlags,
    common: &CommonOptions,
    evaluate: impl FnOnce(Option<&RunProcess>, &CommonOptions) -> Result<T>,
) -> Result<Option<T>> {
    if options.endpoint.is_some() {
        ranks::refuse_several_processes("eval --endpoint")?;
    }
    match (ranks::world_from_environment()?, options.gpus) {
        (Some(world), gpus) => {
            ranks::refuse_wrong_gpu_count(gpus, &world)?;
            options.validate(what)?;
            let out = what.out.as_deref().unwrap_or(Path::new(""));
            let process = RunProcess::join_evaluation(world, out, common)?;
            let prints = process.is_rank_0();
            let done = evaluate(Some(&process), &process.common_options(common));
            process.finish(done).map(|done| prints.then_some(done))
        }
        (None, Some(count @ 2..)) => {
            let (data, _) = options.validate(what)?;
            // The data set is downloaded here once, and each process then finds it in the cache.
            hub::local_benchmark_path("--data", data)?;
            launch::launch_processes("--gpus", count as usize).map(|()| None)
        }
        (None, _) => evaluate(None, common).map(Some),
    }
}
