//! `--eval-steps` of `reel sft` and `reel grpo`: evaluates the model in training as `reel eval` evaluates a model
//! folder. The questions, the engine, the predictions files and the scores are those of `reel eval`; only the weights
//! come from the trainer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use reel_device::{DType, Device};
use reel_engine::Engine;
use reel_eval::predict::{
    ExistingOutput, FingerprintedInput, PredictionFile, PredictionOutput, PredictionRun, PredictionSettings,
    RowPrompts, SamplingSettings,
};
use reel_eval::{Extraction, Task};
use reel_input::encode::ModelFolder;
use reel_input::sampling::SamplingOptions;
use reel_model::features::FeatureCache;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use reel_support::diagnostic::Diagnostic;
use reel_support::error::{Error, Kind};
use reel_train::options::{RunOptions, ToolOptions};
use reel_train::rollout::reward_log::program_log;
use reel_train::rollout::tools::ToolSet;
use reel_train::runs::folder::entries::checkpoint_folder_name;
use reel_train::setup::BenchmarkScore;
use reel_train::setup::{EvaluatedPolicy, PolicyEvaluator};
use serde_json::json;

use crate::common::CommonOptions;
use crate::eval::questions::{Benchmark, BenchmarkQuestions, EvaluationProtocol, sampling_settings};
use crate::eval::results;
use crate::eval::run::COMMAND;
use crate::fail::{UsageError, usage_error};
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::predictor::{MAX_FEATURE_CACHE_BYTES, checked_batch_size, sampling_options};
use crate::prompt::media_options;
use crate::ranks::processes_on_device;
use crate::{hub, model};

/// Evaluates the model of a training run during training.
#[derive(Debug)]
pub struct TrainingRunEvaluator {
    benchmarks: Vec<(Task, BenchmarkQuestions, PathBuf)>,
    /// Tokenizer and chat template.
    bundle: Arc<ModelFolder>,
    sampling: SamplingSettings,
    /// The tools that the model may call, if any.
    tools: Option<ToolOptions>,
    batch_size: usize,
    out: PathBuf,
}

/// The parts of a run's options that evaluations share with training: model, device and media.
#[derive(Clone, Copy, Debug)]
pub struct EvaluationSetup<'a> {
    /// The folder of the model that the run starts from.
    pub model: &'a Path,
    pub device: &'a Device,
    pub dtype: DType,
    /// The run's own media options, of which evaluations share the form of prompts.
    pub media: &'a MediaFlags,
    pub access: &'a MediaAccessFlags,
    pub worker: &'a WorkerFlags,
    /// The tools of the run.
    pub tools: Option<&'a ToolOptions>,
    pub common: &'a CommonOptions,
}

impl TrainingRunEvaluator {
    /// Reads the benchmarks of a run; `None` without `--eval-benchmark`.
    ///
    /// # Errors
    /// A benchmark is unknown, or its data cannot be used.
    pub fn new(options: &RunOptions, setup: EvaluationSetup<'_>) -> Result<Option<Self>> {
        if !options.evaluation.has_benchmarks() || options.is_check_only() {
            return Ok(None);
        }
        Self::open(options, setup).map(Some).map_err(naming_training_options)
    }

    fn open(options: &RunOptions, setup: EvaluationSetup<'_>) -> Result<Self> {
        let EvaluationSetup { device, access, worker, common, .. } = setup;
        let own = &options.evaluation;
        let tasks = Task::from_names(own.eval_benchmark.as_deref().unwrap_or_default())?;
        let max_new_tokens = Some(own.eval_max_new_tokens);
        let sampling = sampling_settings(options.parity, SamplingOptions { max_new_tokens, ..Default::default() })?;
        let data = hub::local_benchmark_path("--eval-data", own.eval_data.as_deref().unwrap_or(Path::new("")))?;
        let protocol = EvaluationProtocol {
            media_root: own.eval_media_root.clone(),
            limit: own.eval_limit,
            skip_bad_rows: own.eval_skip_bad_rows,
            ..EvaluationProtocol::new(&data, options.parity, &MediaFlags::default(), sampling.clone())
        };
        if let Some(folder) = own.eval_media_root.as_ref().filter(|folder| !folder.is_dir()) {
            let what = format!("is {}, which is not a folder", folder.display());
            return Err(usage_error("--media-root", what, "give the folder of the benchmarks' videos"));
        }
        let bundle = Arc::new(ModelFolder::open(setup.model)?);
        let loaded = protocol.load_benchmarks(tasks, common.quiet || common.json)?;
        let prepare = |benchmark: Benchmark| {
            let media_root = benchmark.loaded.media_root.clone();
            let media = media_options(&protocol.media, worker, None, access.media_access(&media_root), false, common)?;
            let media = setup.media.with_prompt_form_or(setup.media, media);
            let mut compared = sampling_options(&sampling, &media, bundle.config.family(), common);
            compared.insert("dtype".into(), json!(setup.dtype.name()));
            compared.extend(setup.tools.map(ToolOptions::named_values).unwrap_or_default());
            let questions = protocol.questions(&benchmark, media, compared, common.seed(), None)?;
            Ok((benchmark.task, questions, media_root))
        };
        Ok(Self {
            benchmarks: loaded.into_iter().map(prepare).collect::<Result<_>>()?,
            bundle,
            batch_size: checked_batch_size(own.eval_batch_size, device)?,
            sampling,
            tools: setup.tools.filter(|tools| tools.are_given()).cloned(),
            out: options.out.clone(),
        })
    }

    /// Opens the predictions file of a benchmark, and takes this process's share of the questions. Answers that an
    /// earlier process wrote with the same weights and options are kept; other answers are replaced.
    fn predictions<'p>(
        &self,
        (task, questions, media_root): &(Task, BenchmarkQuestions, PathBuf),
        policy: &EvaluatedPolicy<'p>,
        folder: &Path,
    ) -> reel_train::Result<PredictionOutput<'p>> {
        let file = results::predictions_file(folder, &task.name);
        let model = self.out.join(checkpoint_folder_name(policy.step));
        let settings = PredictionSettings::new(
            COMMAND,
            (FingerprintedInput::new(&model, policy.hash), None),
            (Path::new(&task.name), questions.fingerprint.clone(), questions.rows.data().len()),
            questions.options.clone(),
            Some((policy.device, self.batch_size)),
        )
        .with_media_root(media_root);
        let open =
            |existing| PredictionFile::open(&file, existing, settings.clone(), |row| questions.rows.columns(row));
        PredictionOutput::open(policy.ranks, &settings, &questions.rows, || {
            open(ExistingOutput::Resume).or_else(|_| open(ExistingOutput::Overwrite))
        })
    }

    fn answer_and_score(
        &self,
        benchmark: &(Task, BenchmarkQuestions, PathBuf),
        policy: &EvaluatedPolicy<'_>,
        engine: &Engine<'_>,
        folder: &Path,
    ) -> reel_train::Result<BenchmarkScore> {
        let (task, questions, _) = benchmark;
        let output = self.predictions(benchmark, policy, folder)?;
        if !output.is_complete() {
            let log = program_log(&self.out, policy.ranks.map(|run| run.ranks.rank()), false);
            let open = |tools| ToolSet::open(tools, questions.rows.media_options(), &log);
            let tools = self.tools.as_ref().map(open).transpose()?;
            let processes = policy.ranks.map_or(1, |run| processes_on_device(run.ranks, policy.device));
            let run = PredictionRun {
                prompts: Arc::new(RowPrompts::new(questions.rows.clone(), self.bundle.clone()).with_tools(tools)),
                engine,
                sampling: self.sampling.clone(),
                max_kv_bytes: model::default_kv_bytes(policy.device) / processes,
                strict: false,
                quiet: true,
                stop: policy.stop,
                divided: None,
            };
            run.run(output)?;
        }
        let score = || {
            results::write_custom_task_file(task, folder, true)?;
            let report = results::score_and_write(task, folder, Extraction::default(), true)?.report;
            Ok(BenchmarkScore {
                n: report.n,
                score: report.overall,
                ci95: report.overall_ci95,
                errors: report.errors,
                truncated: report.truncated,
                completion_tokens: results::count_completion_tokens(&results::predictions_file(folder, &task.name))?,
            })
        };
        let score = || score().map_err(|e| as_train_error(e, folder));
        match policy.ranks {
            None => score(),
            Some(run) => run.broadcast("scores", if run.is_rank_0() { Some(score()?) } else { None }),
        }
    }
}

impl PolicyEvaluator for TrainingRunEvaluator {
    fn benchmarks(&self) -> Vec<String> {
        self.benchmarks.iter().map(|(task, ..)| task.name.clone()).collect()
    }

    fn evaluate(
        &self,
        policy: &EvaluatedPolicy<'_>,
        folder: &Path,
    ) -> reel_train::Result<BTreeMap<String, BenchmarkScore>> {
        if policy.ranks.is_none_or(|run| run.is_rank_0()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::cannot_write(folder, e))?;
        }
        // The evaluation has its own cache of vision tokens, so that a cache of the policy stays as training has left
        // it.
        let features = Some(Arc::new(FeatureCache::new(MAX_FEATURE_CACHE_BYTES)));
        let weights = QwenVl { features, ..policy.model.clone() };
        let cx = Cx::inference(policy.device, policy.dtype);
        let engine = Engine::new(&weights, &cx)?.max_slots(self.batch_size).interrupt_flag(policy.stop);
        let score = |benchmark: &(Task, BenchmarkQuestions, PathBuf)| {
            Ok((benchmark.0.name.clone(), self.answer_and_score(benchmark, policy, &engine, folder)?))
        };
        self.benchmarks.iter().map(score).collect()
    }
}

/// Converts an error of scoring to an error of the training run.
fn as_train_error(e: anyhow::Error, folder: &Path) -> Error {
    match e.downcast::<Diagnostic>() {
        Ok(diagnostic) => Kind::Failed.error(diagnostic),
        Err(e) => {
            let help = "remove the cause, then resume with --resume-from-checkpoint last";
            Error::failed(folder.display().to_string(), e.to_string(), help)
        }
    }
}

/// Converts an error about an option of `reel eval` to an error about the same option of the training command, whose
/// name begins with `eval-`.
fn naming_training_options(e: anyhow::Error) -> anyhow::Error {
    let is_usage = e.is::<UsageError>() || e.downcast_ref::<Error>().is_some_and(Error::is_usage_error);
    let options = ["benchmark", "data", "media-root", "skip-bad-rows", "batch-size"];
    let text =
        options.iter().fold(e.to_string(), |text, name| text.replace(&format!("--{name}"), &format!("--eval-{name}")));
    if is_usage { UsageError(text).into() } else { anyhow::Error::msg(text) }
}
