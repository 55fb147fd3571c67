//! `reel generate --data`: generates completions for each row of a data file and writes them to a predictions file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use reel_diagnostic::escape_controls;
use reel_engine::{Engine, SamplingParams};
use reel_measure::trace;
use reel_model::features::FeatureCache;
use reel_model::input::MediaOptions;
use reel_model::input::encode::ModelFolder;
use reel_model::input::request::RequestSettings;
use reel_prompts::QuestionTemplate;
use reel_runtime::Device;
use reel_train::data::dataset::Dataset;
use reel_train::predict::{
    self, ExistingOutput, PredictionFile, PredictionRun, PredictionSettings, PredictionSummary, RowPrompts,
    SamplingSettings,
};
use serde_json::{Map, Value, json};

use super::GenerateArgs;
use crate::common::CommonOptions;
use crate::fail::{bad_usage, failed};
use crate::model::{self, LoadedModel, WeightPlace};
use crate::prompt::{find_or_download_model, media_files};
use crate::{interrupt, output, replaced};

/// Options for generating answers to the rows of a data file.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options for many prompts")]
pub struct RowFlags {
    /// Data file instead of a single prompt: JSON or JSONL, rows as for sft, grpo and eval. Of a row with a whole chat,
    /// the answer at its end is left out of the prompt
    #[arg(long, value_name = "D.jsonl", requires = "out")]
    #[arg(conflicts_with_all = ["messages", "video", "image", "prompt"])]
    pub data: Option<PathBuf>,
    /// File for the predictions: for each row a line with its columns and the answer (output). OUT.partial until all
    /// rows are done
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Continue OUT after its last whole line; the result has the bytes of an unbroken run
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Replace OUT when the new file is complete
    #[arg(long)]
    overwrite: bool,
    /// Maximum number of completions that decode together; memory may allow fewer [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Words around the question of a row with VideoRFT's fields: evaluation (with the options of a multiple-choice
    /// question) or training [default: evaluation]
    #[arg(long, value_enum, value_name = "USE", hide_possible_values = true)]
    question_template: Option<QuestionTemplate>,
    /// Stop at the first row that cannot be used. Without it, such a row gets a line with its error
    #[arg(long)]
    strict: bool,
}

/// Maximum bytes of vision tokens that are kept for later rows about the same images and videos (256 MiB).
const MAX_FEATURES: usize = 256 << 20;

impl RowFlags {
    /// Refuses options that need `--data`, such as `--out`, if `--data` is not given. clap cannot check this: if
    /// `--prompt` is given, which conflicts with `--data`, clap does not require `--data`.
    pub fn refuse_without_data(&self) -> Result<()> {
        let given = [
            ("--out", self.out.is_some()),
            ("--resume", self.resume),
            ("--overwrite", self.overwrite),
            ("--batch-size", self.batch_size.is_some()),
            ("--question-template", self.question_template.is_some()),
            ("--strict", self.strict),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(bad_usage(option, "needs --data", "give a data file instead of a prompt")),
            None => Ok(()),
        }
    }

    fn existing_output(&self) -> ExistingOutput {
        match (self.resume, self.overwrite) {
            (true, _) => ExistingOutput::Resume,
            (_, true) => ExistingOutput::Overwrite,
            (false, false) => ExistingOutput::Refuse,
        }
    }

    fn batch_size(&self, device: &Device) -> Result<usize> {
        match self.batch_size {
            Some(0) => Err(bad_usage("--batch-size", "is 0", "give 1 or more")),
            Some(n) if n > super::MAX_COMPLETIONS => {
                let most = super::MAX_COMPLETIONS;
                Err(bad_usage("--batch-size", format!("is {n}"), format!("give 1 to {most}")))
            }
            Some(n) => Ok(n),
            None => Ok(model::default_batch_size(device)),
        }
    }
}

impl GenerateArgs {
    /// Generates the completions of all rows of the file `data` and writes them to `--out`.
    pub(super) fn run_rows(&self, data: &Path, common: &CommonOptions) -> Result<()> {
        let out = self.rows.out.as_deref().unwrap_or(Path::new(""));
        self.messages.validate()?;
        let device = model::open_device(common)?;
        let batch_size = self.rows.batch_size(&device)?;
        for own in predict::paths_beside(out) {
            replaced::refuse_file("--out", &own, "--data", data)?;
        }
        let dataset = Dataset::open(data)?;
        let (base, adapter) = self.model.base_model_and_adapter_folder()?;
        let (folder, adapter) = (find_or_download_model(&base)?, adapter.as_deref());
        let bundle = Arc::new(trace::span("open", || ModelFolder::open(&folder))?);
        let media_root = self.messages.media_root_of_rows(data);
        let access = self.messages.media_access(media_root);
        let media = self.messages.media_options(adapter.unwrap_or(&folder), access, !common.quiet, common)?;
        let sampling = SamplingSettings {
            params: SamplingParams::from_settings(
                &self.sampling.settings(&RequestSettings::default(), common.seed),
                &bundle.generation,
            ),
            max_new_tokens: self.sampling.max_new_tokens.unwrap_or(1024),
            n: self.n.unwrap_or(1),
            stop: self.sampling.stop.clone(),
        };
        let rules = (self.messages.parity, self.rows.question_template.unwrap_or_default());
        let options = self.compared_options(&sampling, &media, rules.1, common);
        let prompts = Arc::new(RowPrompts::new(dataset, bundle, media, media_root, rules, common.seed()));
        self.check_rows(&prompts, data, common)?;
        let rows = prompts.data();
        let settings = PredictionSettings::new(
            &folder,
            adapter,
            (data, rows.fingerprint(), rows.len()),
            options,
            &device,
            batch_size,
        )?;
        let file = PredictionFile::open(out, self.rows.existing_output(), settings, |row| prompts.columns(row))?;
        if let Some(done) = PredictionSummary::of_complete_file(&file) {
            return report(out, &done, common);
        }
        if let Some(said) = describe_resume(&file, &self.rows, rows.len(), &device).filter(|_| !common.quiet) {
            eprintln!("{said}");
        }
        let (config, quantization) = (&prompts.bundle().config, self.quantize.quantization());
        let mut model =
            LoadedModel::open_on(&device, &folder, adapter, config, quantization, Some(WeightPlace::Mapped), common)?;
        model.weights.features = Some(Arc::new(FeatureCache::new(MAX_FEATURES)));
        let stop = interrupt::stop_flag();
        let engine = Engine::new(&model.weights, &model.cx)?.max_slots(batch_size).interrupt_flag(&stop);
        let run = PredictionRun {
            prompts: prompts.clone(),
            engine: &engine,
            sampling,
            max_kv_bytes: model::kv_bytes(&device),
            strict: self.rows.strict,
            quiet: common.quiet || common.json,
            stop: &stop,
        };
        let summary = trace::span("rows", || run.run(file)).map_err(|e| generation_error(&model, e))?;
        report(out, &summary, common)
    }

    /// Returns the options that influence the lines of the predictions file. A run that continues the file must have
    /// the same values.
    fn compared_options(
        &self,
        sampling: &SamplingSettings,
        media: &MediaOptions,
        template: QuestionTemplate,
        common: &CommonOptions,
    ) -> Map<String, Value> {
        let params = &sampling.params;
        let mut options = json!({
            "n": sampling.n,
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "repetition_penalty": params.repetition_penalty,
            "stop": sampling.stop,
            "seed": common.seed(),
            "dtype": model::activation_dtype(common).name(),
            "parity": self.messages.parity,
            "question_template": template,
            "profile": media.profile.name(),
        });
        if let Some(format) = self.quantize.name() {
            options["quantize"] = json!(format);
        }
        let limits = json!(media.overrides.or_fallback(media.trained));
        let mut all = options.as_object_mut().map(std::mem::take).unwrap_or_default();
        all.extend(limits.as_object().cloned().unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null()));
        all
    }

    /// Prints how many rows cannot be used; with `--strict`, returns the error of the first such row instead. Also
    /// returns an error if the output file would replace an image or a video of a row.
    fn check_rows(&self, prompts: &RowPrompts, data: &Path, common: &CommonOptions) -> Result<()> {
        let unusable = prompts.find_unusable_rows();
        if let Some(first) = unusable.first {
            if self.rows.strict {
                return Err(first.into());
            }
            if !common.quiet {
                let (count, rows) = (unusable.count, prompts.data().len());
                let (data, first) = (data.display().to_string(), first.to_string());
                let (data, first) = (escape_controls(&data), escape_controls(&first));
                eprintln!(
                    "{data}: {count} of {rows} rows cannot be used and get a line with their error; the first: {first}"
                );
            }
        }
        if self.rows.out.as_ref().is_some_and(|out| out.exists()) {
            for conversation in (0..prompts.data().len()).filter_map(|row| prompts.conversation(row).ok().flatten()) {
                media_files(&conversation)
                    .try_for_each(|(path, location)| replaced::refuse_if_output(path, location))?;
            }
        }
        Ok(())
    }
}

/// Returns the message that is printed before a run with `--resume`: the row after which it continues, or that there is
/// no file to continue. `None` without `--resume`.
fn describe_resume(file: &PredictionFile, flags: &RowFlags, rows: usize, device: &Device) -> Option<String> {
    let warning = file.difference_in_bits(device).map_or(String::new(), |said| format!("\nwarning: {said}"));
    match (flags.resume, file.lines()) {
        (false, _) => None,
        (true, 0) => Some(format!("nothing to resume: starting with the first row{warning}")),
        (true, lines) => Some(format!("resuming after row {lines} of {rows}{warning}")),
    }
}

fn generation_error(model: &LoadedModel, e: reel_train::TrainError) -> anyhow::Error {
    match e {
        reel_train::TrainError::Engine(e) => model.generation_error(e),
        other => other.into(),
    }
}

/// Prints the summary of the run. Returns an error (exit code 1) if some rows have an error instead of an output.
fn report(out: &Path, summary: &PredictionSummary, common: &CommonOptions) -> Result<()> {
    let PredictionSummary { rows, resumed_after, errors, first_error, .. } = summary;
    if common.json {
        let mut printed = json!({"out": out});
        let fields = serde_json::to_value(summary)?;
        if let (Some(to), Value::Object(fields)) = (printed.as_object_mut(), fields) {
            to.extend(fields);
        }
        output::print_json(&printed)?;
    } else {
        let speed = match rows - resumed_after {
            0 => "complete already".to_string(),
            _ => format!("{:.2} rows/s, {:.0} tokens/s", summary.rows_per_second, summary.tokens_per_second),
        };
        output::print_line(format!("{}: {rows} rows, {speed}", out.display()))?;
    }
    let Some(first) = first_error else { return Ok(()) };
    let what = format!("{errors} of {rows} rows have an error instead of an output; the first: {first}");
    let help = "remove the cause, then give the lines with `error` as --data of another run";
    Err(failed(out.display(), what, help))
}
