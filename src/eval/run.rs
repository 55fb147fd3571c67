//! `reel eval --model` and `--endpoint`: asks a model or a server the questions of benchmarks, and scores the answers.
//!
//! ```text
//! for each benchmark: task file + data files -> rows with prompts                 load_benchmark
//! for each benchmark: rows -> OUT/NAME.jsonl; a killed run continues there        Answerer
//! for each benchmark: OUT/NAME.jsonl -> OUT/NAME.json, OUT/results.json           results
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use reel_diagnostic::escape_controls;
use reel_engine::{EngineError, SamplingParams};
use reel_eval::{BenchmarkRow, LoadedBenchmark, Task, load_benchmark};
use reel_media::profile::MediaProfile;
use reel_media::selection::select_frames;
use reel_prompts::QuestionTemplate;
use reel_train::data::dataset::Dataset;
use reel_train::options::Recipe;
use reel_train::predict::{ExistingOutput, RowConversations, SamplingSettings, paths_beside};
use serde_json::{Value, json};

use super::answerer::Answerer;
use super::page;
use super::results::{self, Scored};
use super::{EvalRun, EvalWhat};
use crate::common::CommonOptions;
use crate::fail::{bad_usage, failed};
use crate::media::error_naming_option;
use crate::predictor::{PredictionJob, decimal};
use crate::{output, replaced};

/// The frame and pixel limits of the reference's evaluation, which `--profile` replaces.
const DEFAULT_PROFILE: &str = "videorft-eval";

/// A benchmark and its rows.
struct Benchmark {
    task: Task,
    loaded: LoadedBenchmark,
}

pub(super) fn run(what: &EvalWhat, options: &EvalRun, common: &CommonOptions) -> Result<()> {
    let scored = evaluate(what, options, common)?;
    results::error_if_rows_failed(&scored, what.out.as_deref().unwrap_or(Path::new("")))
}

/// Answers and scores the benchmarks, writes the results and prints the scores. With `--shard` there are no scores.
pub(super) fn evaluate(what: &EvalWhat, options: &EvalRun, common: &CommonOptions) -> Result<Vec<Scored>> {
    let missing = |option: &str, help: &str| bad_usage(option, "is missing", help);
    if options.model.is_none() && options.endpoint.is_none() {
        let help =
            "give the model to evaluate, --endpoint to ask a server, or --score-only --predictions to score answers";
        return Err(missing("--model", help));
    }
    let Some(data) = &options.data else {
        return Err(missing("--data", "give the folder with the benchmarks' files"));
    };
    let out = what.out.as_deref().unwrap_or(Path::new(""));
    let tasks = Task::from_names(what.benchmark.as_deref().unwrap_or_default())?;
    let sampling = options.sampling()?;
    if options.limit == Some(0) {
        return Err(bad_usage("--limit", "is 0", "give 1 or more"));
    }
    let load = |task: Task| {
        let mut loaded = load_benchmark(&task, data, options.media_root.as_deref(), options.skip_bad_rows)?;
        if options.text_only {
            loaded.rows.iter_mut().for_each(BenchmarkRow::remove_media);
        }
        check_videos(&task, &mut loaded, options.skip_bad_rows, common.quiet)?;
        loaded.rows.truncate(options.limit.unwrap_or(usize::MAX));
        options.select_frames(&mut loaded)?;
        Ok::<_, anyhow::Error>(Benchmark { task, loaded })
    };
    let benchmarks: Vec<Benchmark> = tasks.into_iter().map(load).collect::<Result<_>>()?;
    std::fs::create_dir_all(out).map_err(|e| output::cannot_write(out, e))?;
    for benchmark in &benchmarks {
        refuse_data_in_outputs(benchmark, out)?;
        describe(benchmark, common);
    }
    let mut answerer = Answerer::open(options, common)?;
    let mut scored = Vec::new();
    for Benchmark { task, loaded } in &benchmarks {
        let file = answer(task, loaded, &mut answerer, &sampling, out, options, common)?;
        match options.shard {
            Some(_) if !common.quiet => output::print_line(format!("{}: complete", file.display()))?,
            Some(_) => {}
            None => scored.push(results::score_and_write(task, out, what.extraction, common.quiet)?),
        }
    }
    if options.shard.is_none() {
        results::write_lm_eval(out, &scored)?;
        let tasks: Vec<Task> = benchmarks.iter().map(|benchmark| benchmark.task.clone()).collect();
        let frames = options.page.frame_source(options.media_root.as_deref(), &options.worker, common)?;
        page::write_page(&page::page_in(out), &page::read_run(out, &tasks)?, None, &frames, common)?;
        results::print_reports(&scored, common.json, common.quiet)?;
    }
    Ok(scored)
}

impl EvalRun {
    /// The sampling of the model cards, unless flags say otherwise.
    fn sampling(&self) -> Result<SamplingSettings> {
        let default_temperature = if self.parity == Recipe::Paper { 0.01 } else { 0.1 };
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(default_temperature),
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            ..SamplingParams::default()
        };
        params.validate().map_err(|e| match e {
            EngineError::Request(d) => bad_usage(&format!("--{}", d.location.replace('_', "-")), d.what, d.help),
            other => other.into(),
        })?;
        if self.max_new_tokens == 0 {
            return Err(bad_usage("--max-new-tokens", "is 0", "give 1 or more"));
        }
        Ok(SamplingSettings { params, max_new_tokens: self.max_new_tokens, n: 1, stop: Vec::new() })
    }

    /// Applies `--clips`, and selects frames of videos that are image files as those of a video file are.
    fn select_frames(&self, loaded: &mut LoadedBenchmark) -> Result<()> {
        let flags = self.media.with_default_profile(DEFAULT_PROFILE);
        let profile = flags.profile(MediaProfile::Qwen)?;
        let overrides = flags.overrides(profile)?;
        for clip in loaded.rows.iter_mut().filter_map(|row| row.video.as_mut()) {
            if !self.clips {
                (clip.start, clip.end) = (None, None);
            }
            clip.select_frames(|frames, fps| match frames {
                // A single image is shown as it is; the rules of videos need two frames.
                1 => Ok((vec![0], fps)),
                _ => select_frames(frames as u64, fps, profile, &overrides)
                    .map(|choice| (choice.indices, choice.sample_fps)),
            })
            .map_err(error_naming_option)?;
        }
        Ok(())
    }

    fn existing_output(&self) -> ExistingOutput {
        match (self.resume, self.overwrite) {
            (true, _) => ExistingOutput::Resume,
            (_, true) => ExistingOutput::Overwrite,
            (false, false) => ExistingOutput::Refuse,
        }
    }
}

/// Writes the answers to the questions of a benchmark, or those that an earlier run has left. Returns their file.
fn answer(
    task: &Task,
    loaded: &LoadedBenchmark,
    answerer: &mut Answerer<'_>,
    sampling: &SamplingSettings,
    out: &Path,
    options: &EvalRun,
    common: &CommonOptions,
) -> Result<PathBuf> {
    let flags = options.media.with_default_profile(DEFAULT_PROFILE);
    let access = options.access.media_access(&loaded.media_root);
    let media = answerer.media_options(&flags, access, options, common)?;
    let mut settings = answerer.compared_options(sampling, &media);
    let rows: Vec<String> =
        loaded.rows.iter().map(|row| Value::Object(row.to_json(task, options.parity)).to_string()).collect();
    let fingerprint = reel_data::fingerprint::bytes_fingerprint(rows.join("\n").as_bytes());
    // Rows of other parts are blank lines, so that a row has the same line number in messages whatever the parts are.
    let text: String = rows
        .iter()
        .enumerate()
        .map(|(i, row)| if options.shard.is_none_or(|shard| shard.has(i)) { format!("{row}\n") } else { "\n".into() })
        .collect();
    if text.trim().is_empty() {
        let what = format!("leaves no row of {} for this part", task.title);
        return Err(bad_usage("--shard", what, format!("use at most {} parts", rows.len())));
    }
    settings.insert("temperature".into(), decimal(sampling.params.temperature));
    settings.insert("top_p".into(), decimal(sampling.params.top_p));
    settings.insert("repetition_penalty".into(), decimal(sampling.params.repetition_penalty));
    settings.insert("parity".into(), json!(options.parity));
    settings.insert("benchmark".into(), json!(task.name));
    settings.insert("task_version".into(), json!(task.version));
    settings.insert("data_files".into(), results::describe_data(loaded));
    let given =
        [("limit", options.limit.map(|limit| json!(limit))), ("text_only", options.text_only.then(|| json!(true)))];
    settings.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
    if let Some(shard) = options.shard {
        settings.insert("shard".into(), json!(shard.to_string()));
    }
    let file = match options.shard {
        Some(shard) => shard.file(out, &task.name),
        None => results::predictions_file(out, &task.name),
    };
    let dataset = Dataset::parse(Path::new(&task.name), text)?;
    // The prompts are complete; the template says only that frame times are the true ones.
    let rules = (options.parity, QuestionTemplate::Evaluation);
    let rows = Arc::new(RowConversations::new(dataset, media, &loaded.media_root, rules, common.seed()));
    let name = PathBuf::from(&task.name);
    answerer.run(PredictionJob {
        command: "eval",
        rows,
        data: (&name, fingerprint),
        media_root: Some(&loaded.media_root),
        out: &file,
        existing: options.existing_output(),
        options: settings,
        sampling: sampling.clone(),
        strict: false,
    })?;
    Ok(file)
}

/// Refuses a benchmark none of whose videos is there, which is a wrong `--media-root`. If some are missing, warns, or
/// with `leave_out` leaves their rows out and counts them.
fn check_videos(task: &Task, loaded: &mut LoadedBenchmark, leave_out: bool, quiet: bool) -> Result<()> {
    let root = loaded.media_root.clone();
    let is_missing = |row: &BenchmarkRow| {
        let path = row.video.as_ref().map(|clip| &clip.path).filter(|path| !path.contains("://"));
        path.is_some_and(|path| !root.join(path).exists())
    };
    let of = loaded.rows.iter().filter(|row| row.video.is_some()).count();
    let missing: Vec<&BenchmarkRow> = loaded.rows.iter().filter(|row| is_missing(row)).collect();
    let count = missing.len();
    let Some(first) = missing.first().and_then(|row| Some(row.video.as_ref()?.path.clone())) else { return Ok(()) };
    if count == of {
        let what = format!("has none of the {of} videos of {}; the first is {first}", task.title);
        return Err(failed(root.display(), what, "give their folder as --media-root"));
    }
    if leave_out {
        loaded.rows.retain(|row| !is_missing(row));
        loaded.left_out.insert("video is missing".into(), count);
    } else if !quiet {
        let (root, first) = (root.display(), escape_controls(&first));
        eprintln!("warning: {root} lacks the videos of {count} of {of} rows of {}; the first is {first}", task.title);
    }
    Ok(())
}

/// Refuses to write the results of a benchmark over its data files.
fn refuse_data_in_outputs(benchmark: &Benchmark, out: &Path) -> Result<()> {
    let answers = results::predictions_file(out, &benchmark.task.name);
    let scores = [out.join(format!("{}.json", benchmark.task.name)), out.join("results.json"), page::page_in(out)];
    let outputs = paths_beside(&answers).into_iter().chain(scores).chain([answers]);
    for output in outputs {
        for file in &benchmark.loaded.files {
            replaced::refuse_file("--out", &output, "--data", &file.path)?;
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
    eprintln!(
        "{}: {} questions of {files} file{plural}, layout {}{left_out}",
        task.name,
        loaded.rows.len(),
        loaded.layout
    );
}
