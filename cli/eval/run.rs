//! `reel eval --model` and `--endpoint`: asks a model or a server the questions of benchmarks, and scores the answers.
//!
//! ```text
//! for each benchmark: task file + data files -> rows with prompts                 EvaluationProtocol
//! for each benchmark: rows -> OUT/NAME.jsonl; a killed run continues there        AnswerSource
//! for each benchmark: OUT/NAME.jsonl -> OUT/NAME.json                             results
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;
use reel_eval::predict::{ExistingOutput, SamplingSettings, companion_paths};
use reel_eval::{Suite, Task};
use reel_train::rollout::tools::ToolSet;

use super::answerer::AnswerSource;
use super::page;
use super::questions::{Benchmark, BenchmarkQuestions, EvaluationProtocol, sampling_settings};
use super::results::{self, ScoredBenchmark};
use super::{EvalBenchmarkFlags, EvalRunFlags, Protocol, processes};
use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::open_disk_cache;
use crate::predictor::PredictionJob;
use crate::ranks::RunProcess;
use crate::{hub, output, replaced};

/// The command's name in settings files.
pub const COMMAND: &str = "eval";

pub(super) fn run(what: &EvalBenchmarkFlags, options: &EvalRunFlags, common: &CommonOptions) -> Result<()> {
    let out = what.out.as_deref().unwrap_or(Path::new(""));
    let evaluate = |process: Option<&RunProcess>, common: &CommonOptions| evaluate(what, options, common, process);
    match processes::run_evaluation_processes(what, options, common, evaluate)? {
        Some(scored) => results::error_if_rows_failed(&scored, out),
        None => Ok(()),
    }
}

/// Answers and scores the benchmarks, writes the results and prints the scores. With `--shard` there are no scores.
/// If several processes share the rows, each calls this function with its `process` and answers its share of the
/// questions; rank 0 writes and prints.
pub(super) fn evaluate(
    what: &EvalBenchmarkFlags,
    options: &EvalRunFlags,
    common: &CommonOptions,
    process: Option<&RunProcess>,
) -> Result<Vec<ScoredBenchmark>> {
    let writes = process.is_none_or(RunProcess::is_rank_0);
    let out = what.out.as_deref().unwrap_or(Path::new(""));
    let (data, tasks) = options.validate(what)?;
    ToolSet::check(Some(&options.tool).filter(|_| process.is_none()), common.verbose)?;
    open_disk_cache(&options.frame_cache)?;
    let protocol = options.protocol(what, &hub::local_benchmark_path("--data", data)?, options.sampling()?);
    let benchmarks = protocol.load_benchmarks(tasks, common.quiet)?;
    if writes {
        std::fs::create_dir_all(out).map_err(|e| output::cannot_write(out, e))?;
        for benchmark in &benchmarks {
            refuse_data_in_outputs(benchmark, out)?;
            describe(benchmark, common);
        }
        benchmarks
            .iter()
            .try_for_each(|benchmark| results::write_custom_task_file(&benchmark.task, out, options.overwrite))?;
    }
    let mut answerer = AnswerSource::open(options, common, process)?;
    let mut scored = Vec::new();
    for benchmark in &benchmarks {
        let file = answer(benchmark, &protocol, &mut answerer, out, options, common)?;
        match options.shard {
            _ if !writes => {}
            Some(_) if !common.quiet => output::print_line(format!("{}: complete", file.display()))?,
            Some(_) => {}
            None => scored.push(results::score_and_write(&benchmark.task, out, what.extraction()?, common.quiet)?),
        }
    }
    if writes && options.shard.is_none() {
        let tasks: Vec<Task> = benchmarks.iter().map(|benchmark| benchmark.task.clone()).collect();
        let frames = options.page.frame_source(options.media_root.as_deref(), &options.worker, common)?;
        page::write_evaluation_page(
            &page::evaluation_page_path(out),
            &page::read_evaluation_run(out, &tasks)?,
            None,
            &frames,
            common,
        )?;
        results::print_benchmark_reports(&scored, common)?;
        if let Some(suite) = what.suite.as_deref().filter(|_| !common.json && !common.hides_result) {
            results::print_suite_table(&Suite::find(suite)?, &tasks, &scored)?;
        }
    }
    Ok(scored)
}

impl EvalRunFlags {
    /// Checks what can be checked without reading a file. Returns the folder of the benchmarks' data and the tasks.
    pub(super) fn validate(&self, what: &EvalBenchmarkFlags) -> Result<(&Path, Vec<Task>)> {
        let missing = |option: &str, help: &str| usage_error(option, "is missing", help);
        if self.model.is_none() && self.endpoint.is_none() {
            let help = "give the model to evaluate, --endpoint to ask a server, or --score-only --predictions to score \
                        answers";
            return Err(missing("--model", help));
        }
        let Some(data) = &self.data else {
            return Err(missing("--data", "give the folder with the benchmarks' files"));
        };
        let mut tasks = what.tasks()?;
        what.extraction()?;
        if what.protocol == Protocol::Reference {
            tasks = tasks.into_iter().map(Task::with_reference_prompt).collect::<Result<_, _>>()?;
        }
        self.sampling()?;
        self.tool.validate()?;
        match self.limit {
            Some(0) => Err(usage_error("--limit", "is 0", "give 1 or more")),
            _ => Ok((data, tasks)),
        }
    }

    /// The sampling parameters: those of the model cards, unless options set others.
    fn sampling(&self) -> Result<SamplingSettings> {
        let settings = sampling_settings(self.parity, self.sampling)?;
        match settings.max_new_tokens {
            0 => Err(usage_error("--max-new-tokens", "is 0", "give 1 or more")),
            _ => Ok(settings),
        }
    }

    /// Returns the protocol by which the benchmarks in `data` are evaluated.
    fn protocol(&self, what: &EvalBenchmarkFlags, data: &Path, sampling: SamplingSettings) -> EvaluationProtocol {
        EvaluationProtocol {
            media_root: self.media_root.clone(),
            limit: self.limit,
            skip_bad_rows: self.skip_bad_rows,
            clips: self.clips,
            text_only: self.text_only,
            subtitles: self.subtitles,
            is_reference: what.protocol == Protocol::Reference,
            ..EvaluationProtocol::new(data, self.parity, &self.media, sampling)
        }
    }

    fn existing_output(&self) -> ExistingOutput {
        match (self.resume, self.overwrite) {
            (true, _) => ExistingOutput::Resume,
            (_, true) => ExistingOutput::Overwrite,
            (false, false) => ExistingOutput::Refuse,
        }
    }
}

/// Writes the answers to the questions of a benchmark; continues the file if an earlier run has left one. Returns the
/// path of the file.
fn answer(
    benchmark: &Benchmark,
    protocol: &EvaluationProtocol,
    answerer: &mut AnswerSource<'_>,
    out: &Path,
    options: &EvalRunFlags,
    common: &CommonOptions,
) -> Result<PathBuf> {
    let Benchmark { task, loaded } = benchmark;
    let access = options.access.media_access(&loaded.media_root);
    let media = answerer.media_options(&protocol.media, access, options, common)?;
    let mut compared = answerer.options_that_must_match(&protocol.sampling, &media)?;
    compared.extend(options.tool.named_values());
    let BenchmarkQuestions { rows, fingerprint, options: settings } =
        protocol.questions(benchmark, media, compared, common.seed(), options.shard)?;
    let file = match options.shard {
        Some(shard) => shard.predictions_file(out, &task.name),
        None => results::predictions_file(out, &task.name),
    };
    let name = PathBuf::from(&task.name);
    answerer.run(PredictionJob {
        command: COMMAND,
        rows,
        data: (&name, fingerprint),
        media_root: Some(&loaded.media_root),
        out: &file,
        existing: options.existing_output(),
        options: settings,
        sampling: protocol.sampling.clone(),
        tools: Some(&options.tool).filter(|tools| tools.are_given()),
        strict: false,
    })?;
    Ok(file)
}

/// Refuses to write the results of a benchmark over its data files.
fn refuse_data_in_outputs(benchmark: &Benchmark, out: &Path) -> Result<()> {
    let answers = results::predictions_file(out, &benchmark.task.name);
    let scores = [out.join(format!("{}.json", benchmark.task.name)), page::evaluation_page_path(out)];
    let outputs = companion_paths(&answers).into_iter().chain(scores).chain([answers]);
    for output in outputs {
        for file in &benchmark.loaded.files {
            replaced::refuse_output_file_over_input("--out", &output, "--data", &file.path)?;
        }
    }
    Ok(())
}

fn describe(benchmark: &Benchmark, common: &CommonOptions) {
    if common.quiet || common.json {
        return;
    }
    let Benchmark { task, loaded } = benchmark;
    let left_out: Vec<String> = loaded.left_out.iter().map(|(reason, n)| format!("{n} left out: {reason}")).collect();
    let left_out = if left_out.is_empty() { String::new() } else { format!(" ({})", left_out.join("; ")) };
    let files = loaded.files.len();
    let plural = if files == 1 { "" } else { "s" };
    reel_support::diagnostic::note!(
        "{}: {} questions of {files} file{plural}, layout {}{left_out}",
        task.name,
        loaded.rows.len(),
        loaded.layout
    );
    if loaded.without_options > 0 {
        reel_support::diagnostic::note!(
            "{}: the model does not see the options of {} questions: prompt.template has no {{options}}, and the questions \
             do not contain them",
            task.name,
            loaded.without_options
        );
    }
}
