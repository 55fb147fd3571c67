//! Runs an evaluation as one process or as several processes that share the questions. `--gpus N` or a launcher
//! starts them.

use std::path::Path;

use anyhow::Result;
use reel_train::rollout::tools::ToolSet;

use super::{EvalBenchmarkFlags, EvalRunFlags};
use crate::common::CommonOptions;
use crate::ranks::RunProcess;
use crate::{hub, launch, ranks};

/// Calls `evaluate` with the options of this process and, if it is one of several, with the process. With `--gpus N`,
/// it starts N processes instead and waits for them. Returns the result of `evaluate` on the process
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
    let world = ranks::world_from_environment()?.map(|world| options.job.place(world));
    if let Some(local) = options.job.processes_to_start(options.gpus, world.as_ref())? {
        let (data, _) = options.validate(what)?;
        ToolSet::check(Some(&options.tool), common.verbose)?;
        // The data set is downloaded here once, and each process then finds it in the cache.
        hub::local_benchmark_path("--data", data)?;
        return launch::launch_processes("--gpus", &local).map(|()| None);
    }
    let Some(world) = world else { return evaluate(None, common).map(Some) };
    options.validate(what)?;
    let out = what.out.as_deref().unwrap_or(Path::new(""));
    let process = RunProcess::join_evaluation(world, out, common, &options.job.ranks)?;
    let prints = process.is_rank_0();
    let done = evaluate(Some(&process), &process.common_options(common));
    process.finish(done).map(|done| prints.then_some(done))
}
