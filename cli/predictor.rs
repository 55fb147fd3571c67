//! Generates completions for the rows of data files with one model, on one process or several. `reel generate --data`
//! and `reel eval` use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use reel_device::Device;
use reel_engine::Engine;
use reel_eval::predict::{
    ExistingOutput, FingerprintedInput, PredictionFile, PredictionOutput, PredictionRun, PredictionSettings,
    PredictionSummary, RowPrompts, SamplingSettings,
};
use reel_input::MediaOptions;
use reel_input::config::Family;
use reel_input::encode::ModelFolder;
use reel_input::video_marks::VideoMarks;
use reel_model::features::FeatureCache;
use reel_samples::conversations::RowConversations;
use reel_support::diagnostic::escape_controls;
use reel_support::error::Error;
use reel_tools::measure::trace;
use reel_train::options::ToolOptions;
use reel_train::rollout::reward_log::program_log;
use reel_train::rollout::tools::ToolSet;
use reel_train::setup::RunRanks;
use serde_json::{Map, Value, json};

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::media::check_fits_model;
use crate::model::{self, LoadedModel, QuantizeFlag, WeightLocation};
use crate::prompt::{ModelFlags, find_or_download_model};
use crate::ranks::{RunProcess, processes_on_device};
use crate::tensor_parallel::TensorParallelProcess;
use crate::{generate, interrupt};

/// Maximum bytes of vision tokens that are kept for later rows about the same images and videos (256 MiB).
pub const MAX_FEATURE_CACHE_BYTES: usize = 256 << 20;

/// How the processes of a run divide the work.
#[derive(Clone, Copy)]
pub enum WorkDivision<'c> {
    One,
    /// Several processes, each with a whole model, share the rows.
    ShareRows(&'c RunProcess),
    /// Several processes, each with a part of the model, answer all rows together.
    DivideModel(&'c TensorParallelProcess),
}

impl<'c> WorkDivision<'c> {
    fn sharing_rows(self) -> Option<&'c RunProcess> {
        match self {
            WorkDivision::ShareRows(process) => Some(process),
            WorkDivision::One | WorkDivision::DivideModel(_) => None,
        }
    }

    fn dividing_model(self) -> Option<&'c TensorParallelProcess> {
        match self {
            WorkDivision::DivideModel(process) => Some(process),
            WorkDivision::One | WorkDivision::ShareRows(_) => None,
        }
    }
}

/// A model that answers the rows of data files. Its weights are opened when the first row needs them.
pub struct Predictor<'c> {
    device: Device,
    /// The folder of the base model.
    pub folder: PathBuf,
    /// The folder of the LoRA adapter.
    pub adapter: Option<PathBuf>,
    /// Config, tokenizer and chat template.
    pub bundle: Arc<ModelFolder>,
    quantize: QuantizeFlag,
    /// Where the weights are stored on a CPU; for `None` see [`LoadedModel::open_on_device`].
    place: Option<WeightLocation>,
    batch_size: usize,
    model: Option<LoadedModel>,
    common: &'c CommonOptions,
    processes: WorkDivision<'c>,
}

/// A set of rows, and the options with which they are answered.
pub struct PredictionJob<'j> {
    /// The name of the running command, for the settings file.
    pub command: &'j str,
    /// The rows to generate completions for.
    pub rows: Arc<RowConversations>,
    /// The data file or folder, and the fingerprint of the rows.
    pub data: (&'j Path, String),
    /// The folder that paths of media are relative to; `None` if the settings file does not record it.
    pub media_root: Option<&'j Path>,
    /// The path of the predictions file.
    pub out: &'j Path,
    pub existing: ExistingOutput,
    /// The options that influence the predictions, by name. A run that continues the file must have the same values.
    pub options: Map<String, Value>,
    pub sampling: SamplingSettings,
    /// The tools that the model may call.
    pub tools: Option<&'j ToolOptions>,
    /// Whether a row that cannot be used ends the run with an error.
    pub strict: bool,
}

impl<'c> Predictor<'c> {
    /// Opens the model folder on a device that is already open. `place` is where the weights are on a CPU (see
    /// [`LoadedModel::open_on_device`]), `batch_size` is `--batch-size`.
    pub fn open(
        flags: &ModelFlags,
        quantize: QuantizeFlag,
        place: Option<WeightLocation>,
        device: Device,
        batch_size: Option<usize>,
        common: &'c CommonOptions,
        processes: WorkDivision<'c>,
    ) -> Result<Self> {
        let batch_size = checked_batch_size(batch_size, &device)?;
        let (base, adapter) = flags.base_model_and_adapter_folder()?;
        let folder = find_or_download_model(&base)?;
        let bundle = Arc::new(trace::span("open", || ModelFolder::open(&folder))?);
        Ok(Self { device, folder, adapter, bundle, quantize, place, batch_size, model: None, common, processes })
    }

    /// Returns the folder that the training run wrote: the adapter's folder, else the model's.
    pub fn trained_folder(&self) -> &Path {
        self.adapter.as_deref().unwrap_or(&self.folder)
    }

    /// Returns the options that influence the predictions of every run with a model. A resumed run must have the same
    /// values.
    ///
    /// # Errors
    /// Media options that do not fit the model.
    pub fn options_that_must_match(
        &self,
        sampling: &SamplingSettings,
        media: &MediaOptions,
    ) -> Result<Map<String, Value>> {
        check_fits_model(media, &self.bundle.config)?;
        let mut options = sampling_options(sampling, media, self.bundle.config.family(), self.common);
        options.insert("dtype".into(), json!(model::activation_dtype(self.common).name()));
        if let Some(format) = self.quantize.name() {
            options.insert("quantize".into(), json!(format));
        }
        Ok(options)
    }

    /// Writes the predictions of a job; continues the file if an earlier run has left one. The summary is `None` on
    /// ranks other than 0.
    pub fn run(&mut self, job: PredictionJob<'_>) -> Result<Option<PredictionSummary>> {
        let rows = job.rows.data().len();
        let model = FingerprintedInput::of_folder(&self.folder)?;
        let adapter = self.adapter.as_deref().map(FingerprintedInput::of_folder).transpose()?;
        let (data, device) = ((job.data.0, job.data.1, rows), Some((&self.device, self.batch_size)));
        let mut settings = PredictionSettings::new(job.command, (model, adapter), data, job.options, device);
        if let Some(folder) = job.media_root {
            settings = settings.with_media_root(folder);
        }
        let ranks = self.processes.sharing_rows().map(RunProcess::ranks);
        let divided = self.processes.dividing_model();
        let interrupted = divided.map(|_| interrupt::stop_flag()).unwrap_or_default();
        let divided_ranks =
            divided.map(|process| RunRanks { ranks: process.ranks(), out: job.out, interrupted: &interrupted });
        let open = || PredictionFile::open(job.out, job.existing, settings.clone(), |row| job.rows.columns(row));
        let output = match divided_ranks {
            Some(ranks) => PredictionOutput::open_for_divided_model(ranks, &settings, open)?,
            None => PredictionOutput::open(ranks, &settings, &job.rows, open)?,
        };
        if output.is_complete() {
            return Ok(output.file().and_then(PredictionSummary::of_complete_file));
        }
        if let Some(file) = output.file().filter(|_| job.existing == ExistingOutput::Resume && !self.common.quiet) {
            reel_support::diagnostic::note!("{}", describe_resume(file, rows, &self.device));
        }
        let log = || program_log(job.out.parent().unwrap_or(job.out), ranks.map(|run| run.ranks.rank()), false);
        let tools = job.tools.map(|options| ToolSet::open(options, job.rows.media_options(), &log())).transpose()?;
        let model = match self.model.take() {
            Some(model) => model,
            None => self.open_model()?,
        };
        let own_stop = interrupt::stop_flag();
        // Processes that share the rows agree on when to stop, so they use the common flag.
        let stop = self.processes.sharing_rows().map_or(&*own_stop, |process| &process.stop);
        let mut engine = Engine::new(&model.weights, &model.cx)?.max_slots(self.batch_size);
        if divided.is_none() {
            engine = engine.interrupt_flag(stop);
        }
        let kv_bytes = model::default_kv_bytes(&self.device) / self.processes_on_device();
        let max_kv_bytes = match divided {
            Some(process) => process.min_over_ranks("memory for the KV cache", kv_bytes)?,
            None => kv_bytes,
        };
        let run = PredictionRun {
            prompts: Arc::new(RowPrompts::new(job.rows, self.bundle.clone()).with_tools(tools)),
            engine: &engine,
            sampling: job.sampling,
            max_kv_bytes,
            strict: job.strict,
            quiet: self.common.quiet || self.common.json,
            stop,
            divided: divided_ranks,
        };
        let summary = trace::span("rows", || run.run(output)).map_err(|e| model.generation_error(e));
        drop(engine);
        self.model = Some(model);
        summary
    }

    /// Returns the number of processes that share the memory of the device.
    fn processes_on_device(&self) -> u64 {
        match self.processes {
            WorkDivision::One => 1,
            WorkDivision::ShareRows(process) => process.processes_on_device(&self.device),
            WorkDivision::DivideModel(process) => processes_on_device(process.ranks(), &self.device),
        }
    }

    fn open_model(&self) -> Result<LoadedModel> {
        let (config, quantization) = (&self.bundle.config, self.quantize.quantization());
        let (adapter, device) = (self.adapter.as_deref(), &self.device);
        let parallel =
            self.processes.dividing_model().map(|process| process.divide_model(config, device)).transpose()?;
        let mut model = LoadedModel::open_on_device(
            device,
            &self.folder,
            adapter,
            config,
            quantization,
            self.place,
            parallel.as_ref(),
            self.common,
        )?;
        model.weights.features = Some(Arc::new(FeatureCache::new(MAX_FEATURE_CACHE_BYTES)));
        Ok(model)
    }
}

/// Returns the sampling parameters, the seed, the family of the model, and the frame and pixel limits of a run, by
/// name.
pub fn sampling_options(
    sampling: &SamplingSettings,
    media: &MediaOptions,
    family: Family,
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
        "profile": media.profile.name(),
    });
    let limits = json!(media.overrides.or_fallback(media.trained));
    let mut all = options.as_object_mut().map(std::mem::take).unwrap_or_default();
    // Recorded only where it is not the default, so files of earlier versions stay comparable.
    if family != Family::default() {
        all.insert("family".into(), json!(family));
    }
    if let Some(marks) = media.video_marks.filter(|marks| *marks != VideoMarks::default()) {
        all.insert("video_marks".into(), json!(marks));
    }
    if media.add_vision_id {
        all.insert("add_vision_id".into(), json!(true));
    }
    all.extend(limits.as_object().cloned().unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null()));
    all
}

/// Converts a number to the decimal that the user typed: 0.1 instead of the value of the nearest f32.
pub fn shortest_decimal(number: f32) -> Value {
    json!(number.to_string().parse::<f64>().unwrap_or(f64::from(number)))
}

/// Returns the maximum number of sequences that decode together: `--batch-size`, else the default of the device.
pub fn checked_batch_size(given: Option<usize>, device: &Device) -> Result<usize> {
    match given {
        Some(0) => Err(usage_error("--batch-size", "is 0", "give 1 or more")),
        Some(n) if n > generate::MAX_COMPLETIONS => {
            let most = generate::MAX_COMPLETIONS;
            Err(usage_error("--batch-size", format!("is {n}"), format!("give 1 to {most}")))
        }
        Some(n) => Ok(n),
        None => Ok(model::default_batch_size(device)),
    }
}

/// Returns the message that is printed before a run with `--resume`: the row after which it continues, or that there is
/// no file to continue.
fn describe_resume(file: &PredictionFile, rows: usize, device: &Device) -> String {
    let warning = file.bit_difference_warning(device).map_or(String::new(), |said| format!("\nwarning: {said}"));
    match file.line_count() {
        0 => format!("nothing to resume: starting with the first row{warning}"),
        lines => format!("resuming after row {lines} of {rows}{warning}"),
    }
}

/// Prints on stderr that some rows cannot be used; `first` is the error of the first of them.
pub fn warn_of_unusable_rows(data: &Path, count: usize, rows: usize, first: &Error) {
    let (data, first) = (data.display().to_string(), first.to_string());
    let (data, first) = (escape_controls(&data), escape_controls(&first));
    reel_support::diagnostic::note!(
        "{data}: {count} of {rows} rows cannot be used and get a line with their error; the first: {first}"
    );
}
