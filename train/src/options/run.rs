//! The options that `sft` and `grpo` share: model, data, output folder, learning rates, length, checkpoints, reports.

use std::ops::Deref;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use reel_input::media::worker::FrameCacheOptions;
use reel_model::lora::{ALL_LINEAR, DECODER_LINEAR_LAYERS, LoraSpec};
use reel_model::quantization::{LoadFormat, Quantization};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    BestMetric, EvaluationOptions, FolderFormatName, GradientCheckpointing, LossMean, LrScheduler, Optim,
    QuantizeFormat, Recipe, ReportTo, StepRange, ToolOptions, check, default_options, range,
};
use crate::Result;
use crate::file_names::QUARANTINE_FILE;

/// The options of a training command (`sft` or `grpo`).
pub trait TrainingOptions: Default + Serialize + Deref<Target = RunOptions> {
    /// The name of the command: `sft` or `grpo`.
    const COMMAND: &'static str;

    /// Checks the values of all options. The error names the flag of the first invalid option.
    fn validate_values(&self) -> Result<()>;

    /// All options by field name; options that were not given have their default values.
    fn resolved(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }

    /// Files with program code that the run uses, such as Python files with reward functions.
    fn code_files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The tools that the model may call, also in evaluations in training.
    fn tools(&self) -> Option<&ToolOptions> {
        None
    }

    /// Checks the programs that the run uses, as far as this is possible without running them.
    ///
    /// # Errors
    /// A Python function that computes a reward does not exist.
    fn check_programs(&self) -> Result<()> {
        Ok(())
    }

    /// Whether the run has validation rows, on which it computes a validation loss.
    fn has_validation_rows(&self) -> bool {
        false
    }

    /// Over what the loss of a step of SFT is a mean.
    fn loss_mean(&self) -> LossMean {
        LossMean::default()
    }

    /// The number of steps between two evaluations of the model in training: `--eval-steps`, or `--save-steps` if the
    /// run has validation rows but no `--eval-steps`. 0 if the run does not evaluate the model.
    fn evaluation_interval(&self) -> u64 {
        match (self.evaluation.eval_steps, self.has_validation_rows()) {
            (0, true) if self.save_steps == 0 => u64::MAX,
            (0, true) => self.save_steps,
            (steps, _) => steps,
        }
    }

    /// Whether the model is evaluated after step `step` of a run of `steps` steps.
    fn is_evaluation_due(&self, step: u64, steps: u64) -> bool {
        match (self.evaluation_interval(), step) {
            (0, _) => false,
            (_, 0) => self.evaluation.eval_on_start,
            (every, step) => step.is_multiple_of(every) || step == steps,
        }
    }

    /// The metric by which checkpoints are compared: `--metric-for-best-model`, or its default.
    fn best_metric(&self) -> BestMetric {
        self.evaluation.best_metric(self.has_validation_rows())
    }

    /// Checks that the required options are given and all values are valid.
    fn validate(&self) -> Result<()> {
        let given = |flag: &str, empty: bool, help: &str| check(!empty, flag, "is missing".into(), help);
        given("--model", self.model.is_empty(), "give the model folder to start from")?;
        given(
            "--data",
            self.data.as_os_str().is_empty(),
            "give a data file (JSON, JSONL, Parquet) or the folder of a data set",
        )?;
        given("--out", self.out.as_os_str().is_empty() && !self.is_check_only(), "give the output folder")?;
        let unnamed = self.is_check_only() && self.quarantine.is_none();
        given(
            "--quarantine",
            unnamed,
            "give a file name for the list of unusable rows, or give --out to train after the check",
        )?;
        self.validate_values()
    }
}

/// Maximum rank of a LoRA adapter.
const MAX_RANK: usize = 1 << 14;

/// Options of every training run.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Training options")]
pub struct RunOptions {
    /// Model to train: model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    pub model: String,
    /// Start N processes on this machine, which share the micro-batches of each step (several machines:
    /// docs/cluster.md)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    #[serde(skip)]
    pub gpus: Option<u32>,
    /// What several processes divide: 2 divides gradients and optimizer state (ZeRO-2); 3 also divides the weights and
    /// gathers those of a layer when it computes (ZeRO-3). Results have the same bits; with one process, 3 is the same
    /// as 2
    #[arg(long, value_name = "STAGE", default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub zero_stage: u8,
    /// Training data: JSON, JSON lines, Parquet, or the folder of a data set (DIR, DIR@split, DIR#config@split;
    /// default split: train). Several are divided by commas and may have weights: a.parquet:0.7,b.jsonl:0.3
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true, value_parser = path_or_none())]
    pub data: PathBuf,
    /// Use only the first N rows of each file or data set of --data
    #[arg(long, value_name = "N")]
    pub max_samples: Option<usize>,
    /// Folder that media paths in the data are relative to [default: the folder of the first data file]
    #[arg(long, value_name = "DIR")]
    pub media_root: Option<PathBuf>,
    /// Cache of the frames of videos.
    #[command(flatten)]
    #[serde(flatten)]
    pub frame_cache: FrameCacheOptions,
    /// Output folder: trained model, checkpoints, metrics
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true, value_parser = path_or_none())]
    pub out: PathBuf,
    /// Configuration file with any of these options, in TOML, YAML (.yaml) or JSON (.json); flags override it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Recipe to follow where a paper and its reference code differ
    #[arg(long, value_enum, default_value_t)]
    pub parity: Recipe,

    /// Peak learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-6)]
    pub learning_rate: f64,
    /// Peak learning rate of the vision tower without its merger [default: --learning-rate]
    #[arg(long, value_name = "RATE")]
    pub learning_rate_vision: Option<f64>,
    /// Peak learning rate of the merger between vision tower and decoder [default: --learning-rate]
    #[arg(long, value_name = "RATE")]
    pub learning_rate_merger: Option<f64>,
    /// LoRA rank: train an adapter and freeze the weights; 0 trains all weights
    #[arg(long, value_name = "R", default_value_t = 0)]
    pub lora_r: usize,
    /// LoRA alpha: the adapter is scaled by alpha / rank [default: twice the rank]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<f64>,
    /// Layers that get a LoRA adapter, by the ends of their names, or all-linear [default:
    /// q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj of the decoder]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub lora_target_modules: Option<Vec<String>>,
    /// Quantise the frozen weights of the decoder's linear layers while loading them (QLoRA): they stay quantised in
    /// memory. The output layer, the vision tower, embeddings and norms keep their dtype
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub quantize: Option<QuantizeFormat>,
    /// Freeze the vision tower and its merger (--freeze-merger false: the tower alone)
    #[arg(long)]
    pub freeze_vision: bool,
    /// Freeze the merger between vision tower and decoder, in Qwen3-VL with the DeepStack mergers [default: as
    /// --freeze-vision]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub freeze_merger: Option<bool>,
    /// Freeze the decoder with its embeddings: train the vision tower and its merger
    #[arg(long)]
    pub freeze_llm: bool,
    /// Learning rate schedule
    #[arg(long, value_enum, default_value_t)]
    pub lr_scheduler_type: LrScheduler,
    /// Warmup steps, over which the learning rate rises from 0; a number above 0 overrides --warmup-ratio
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup_steps: u64,
    /// Warmup steps as a share of all steps (0 to 1), rounded up
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub warmup_ratio: f64,
    /// Weight decay of AdamW
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Exclude all norm weights from weight decay [default: exclude biases, and names with layernorm or rmsnorm; in
    /// Qwen3-VL all norms]
    #[arg(long)]
    pub no_decay_norms: bool,
    /// Beta 1 of AdamW: decay rate of the first moment
    #[arg(long, value_name = "B", default_value_t = 0.9)]
    pub adam_beta1: f64,
    /// Beta 2 of AdamW: decay rate of the second moment
    #[arg(long, value_name = "B", default_value_t = 0.999)]
    pub adam_beta2: f64,
    /// Epsilon of AdamW
    #[arg(long, value_name = "E", default_value_t = 1e-8)]
    pub adam_epsilon: f64,
    /// Gradient clipping: maximum norm of all gradients; 0 does not clip
    #[arg(long, value_name = "NORM", default_value_t = 5.0)]
    pub max_grad_norm: f64,
    /// Optimizer: AdamW, with one of three ways to store its state
    #[arg(long, value_enum, default_value_t)]
    pub optim: Optim,

    /// Micro-batch size: rows of one forward and backward pass
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub per_device_train_batch_size: usize,
    /// Gradient accumulation: micro-batches per step
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub gradient_accumulation_steps: usize,
    /// Epochs: passes over the data
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub num_train_epochs: f64,
    /// Number of training steps, instead of epochs; 0 and -1 set no limit, as in TRL [default: as many as
    /// --num-train-epochs needs]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_steps: Option<i64>,
    /// Do not shuffle: use the rows in the order of the file
    #[arg(long)]
    pub no_shuffle: bool,
    /// What the backward pass computes again instead of keeping it; results have the same bits. The values true and
    /// false of TRL mean full and none
    #[arg(long, value_enum, num_args = 0..=1, default_value_t, default_missing_value = "full")]
    pub gradient_checkpointing: GradientCheckpointing,

    /// Write a checkpoint every N steps and at the end; 0 writes none
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub save_steps: u64,
    /// Keep only the N newest checkpoints; 0 and -1 keep all, as in transformers [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub save_total_limit: Option<i64>,
    /// Version of transformers whose layout the trained model and its checkpoints get: config.json, chat template and
    /// processor files [default: as in --model]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub folder_format: Option<FolderFormatName>,
    /// Print and report metrics every N steps; metrics.jsonl has every step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub logging_steps: u64,
    /// Report metrics and rollouts to TensorBoard (event files in OUT), to Weights & Biases (OUT/wandb, for `wandb
    /// sync`), or to none
    #[arg(long, value_enum, value_name = "NAME,…", value_delimiter = ',', default_value = "tensorboard")]
    pub report_to: Vec<ReportTo>,
    /// Shell command that gets the metrics of each reported step on its standard input, one JSON object a line (see
    /// docs/examples/report.py)
    #[arg(long, value_name = "CMD")]
    pub report_command: Option<String>,
    /// Run name in Weights & Biases [default: $WANDB_NAME, else the name of OUT]
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,
    /// Project in Weights & Biases [default: $WANDB_PROJECT, else uncategorized]
    #[arg(long, value_name = "NAME")]
    pub wandb_project: Option<String>,
    /// Trace steps A to B, counted from 1, into OUT/trace-A-B.json or the file of --trace; on cuda a profiler that
    /// waits for cuProfilerStart collects these steps
    #[arg(long, value_name = "A-B")]
    #[serde(skip)]
    pub profile_steps: Option<StepRange>,
    /// Resume from a checkpoint folder, or from the last checkpoint in --out
    #[arg(long, value_name = "DIR|last", num_args = 0..=1, default_missing_value = "last")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
    /// Replace an earlier run in --out, which stays until the first step of the new run is done
    #[arg(long)]
    #[serde(skip)]
    pub overwrite: bool,

    /// Stop at the first row that cannot be used, instead of skipping it
    #[arg(long)]
    pub strict: bool,
    /// Check every row and its media before the first step, and list the rows that cannot be used; without --out, only
    /// check
    #[arg(long)]
    pub check_data: bool,
    /// List of rows to exclude, as --check-data writes it; with --check-data, the list to write [default:
    /// OUT/quarantine.jsonl]
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,

    /// Evaluations of the model in training.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationOptions,
}

/// Parses a path that may be empty. An empty path means "not given on the command line"; a configuration file may give
/// the path instead. (clap's path parser rejects an empty path.)
fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Implements two traits for the options of a training command: `Deref` to the shared options in the field `run`, and
/// `Default` with the values of an empty command line.
macro_rules! extends_run_options {
    ($options:ty) => {
        impl std::ops::Deref for $options {
            type Target = RunOptions;

            fn deref(&self) -> &RunOptions {
                &self.run
            }
        }

        impl std::ops::DerefMut for $options {
            fn deref_mut(&mut self) -> &mut RunOptions {
                &mut self.run
            }
        }

        impl Default for $options {
            fn default() -> Self {
                super::default_options()
            }
        }
    };
}
pub(super) use extends_run_options;

impl Default for RunOptions {
    fn default() -> Self {
        default_options()
    }
}

/// Maximum number of rows per micro-batch, and of micro-batches per step. It is limited because all rows of a step
/// are in memory.
const MAX_ROWS: usize = 1 << 16;

impl RunOptions {
    /// The folder to which media paths in the data are relative.
    pub fn media_root(&self) -> PathBuf {
        match &self.media_root {
            Some(root) => root.clone(),
            None => reel_input::rows::media_root(&self.data),
        }
    }

    /// Whether `--report-to` names `reporter`.
    pub fn reports_to(&self, reporter: ReportTo) -> bool {
        self.report_to.contains(&reporter)
    }

    /// The project in Weights & Biases, by the rule of the W&B client: `--wandb-project`, else the environment
    /// variable `WANDB_PROJECT`, else `uncategorized`.
    pub fn wandb_project(&self) -> String {
        let given = self.wandb_project.clone().or_else(|| std::env::var("WANDB_PROJECT").ok());
        given.filter(|name| !name.is_empty()).unwrap_or_else(|| "uncategorized".into())
    }

    /// Whether the command only checks the data: `--check-data` without `--out`.
    pub fn is_check_only(&self) -> bool {
        self.check_data && self.out.as_os_str().is_empty()
    }

    /// The path of the list of unusable rows, which `--check-data` writes and other runs read.
    pub fn quarantine_list_path(&self) -> PathBuf {
        self.quarantine.clone().unwrap_or_else(|| self.out.join(QUARANTINE_FILE))
    }

    /// The value of `--max-steps`. `None` if the option is not given, 0 or negative: the number of epochs then
    /// determines the number of steps, as in TRL.
    pub fn requested_step_count(&self) -> Option<u64> {
        self.max_steps.and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0)
    }

    /// The maximum norm of all gradients together, to which they are clipped. If `--max-grad-norm` is 0, it is
    /// `f32::MAX`, which clips nothing, as in transformers.
    pub fn gradient_norm_limit(&self) -> f32 {
        if self.max_grad_norm == 0.0 { f32::MAX } else { self.max_grad_norm as f32 }
    }

    /// The number of newest checkpoints to keep. `None` keeps all, as in transformers: if `--save-total-limit` is not
    /// given, 0 or negative.
    pub fn checkpoint_limit(&self) -> Option<usize> {
        self.save_total_limit.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
    }

    /// The LoRA adapter to train; `None` if the run trains the weights themselves.
    pub fn lora_spec(&self) -> Option<LoraSpec> {
        let decoder = || DECODER_LINEAR_LAYERS.map(str::to_string).to_vec();
        (self.lora_r > 0).then(|| LoraSpec {
            r: self.lora_r,
            alpha: self.lora_alpha.unwrap_or(2.0 * self.lora_r as f64),
            targets: self.lora_target_modules.clone().unwrap_or_else(decoder),
            vision: self.lora_target_modules.is_some() && !self.freeze_vision,
        })
    }

    /// How the weights of the decoder's linear layers are kept.
    pub fn quantization(&self) -> Quantization {
        match self.quantize {
            None => Quantization::OfFiles,
            Some(QuantizeFormat::Nf4) => Quantization::AtLoad(LoadFormat::Nf4),
            Some(QuantizeFormat::Fp8) => Quantization::AtLoad(LoadFormat::Fp8),
        }
    }

    /// Whether the merger between vision tower and decoder is frozen.
    pub fn is_merger_frozen(&self) -> bool {
        self.freeze_merger.unwrap_or(self.freeze_vision)
    }

    /// Number of rows that the run uses in all epochs, if the data file has `rows` rows; `None` if `--max-steps` is
    /// given.
    pub fn rows_in_all_epochs(&self, rows: usize) -> Option<u64> {
        match self.requested_step_count() {
            Some(_) => None,
            None => Some((self.num_train_epochs * rows as f64).ceil() as u64),
        }
    }

    /// Number of learning-rate warmup steps in a run of `steps` steps.
    pub fn warmup_step_count(&self, steps: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (self.warmup_ratio * steps as f64).ceil() as u64 }
    }

    /// Checks the values of these options. The error names the flag of the first invalid option. `validates` says
    /// whether the run has validation rows.
    pub fn validate_values(&self, validates: bool) -> Result<()> {
        let rate = |flag: &str, value: f64| range(flag, value, value >= 0.0, "give a finite number, 0 or more");
        rate("--learning-rate", self.learning_rate)?;
        rate("--learning-rate-vision", self.learning_rate_vision.unwrap_or(0.0))?;
        rate("--learning-rate-merger", self.learning_rate_merger.unwrap_or(0.0))?;
        rate("--weight-decay", self.weight_decay)?;
        let beta =
            |flag: &str, value: f64| range(flag, value, (0.0..1.0).contains(&value), "give a number from 0 to below 1");
        beta("--adam-beta1", self.adam_beta1)?;
        beta("--adam-beta2", self.adam_beta2)?;
        let positive = |flag: &str, value: f64| range(flag, value, value > 0.0, "give a finite number above 0");
        positive("--adam-epsilon", self.adam_epsilon)?;
        let norm = self.max_grad_norm;
        range("--max-grad-norm", norm, norm >= 0.0, "give a finite number above 0, or 0 for no clipping")?;
        positive("--num-train-epochs", self.num_train_epochs)?;
        range(
            "--warmup-ratio",
            self.warmup_ratio,
            (0.0..=1.0).contains(&self.warmup_ratio),
            "give a share from 0 to 1",
        )?;
        let some = |flag: &str, n: u64| check(n > 0, flag, "is 0".into(), "give 1 or more");
        for (flag, n) in [
            ("--per-device-train-batch-size", self.per_device_train_batch_size),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
        ] {
            check((1..=MAX_ROWS).contains(&n), flag, format!("is {n}"), &format!("give 1 to {MAX_ROWS}"))?;
        }
        let gpus = self.gpus.unwrap_or(1);
        check((1..=1024).contains(&gpus), "--gpus", format!("is {gpus}"), "give 1 to 1024")?;
        let stage = self.zero_stage;
        check((2..=3).contains(&stage), "--zero-stage", format!("is {stage}"), "give 2 or 3")?;
        some("--logging-steps", self.logging_steps)?;
        let frozen_rate = self.freeze_vision && self.learning_rate_vision.is_some()
            || self.is_merger_frozen() && self.learning_rate_merger.is_some();
        check(
            !frozen_rate,
            if self.freeze_vision { "--freeze-vision" } else { "--freeze-merger" },
            "is given together with a learning rate for the frozen vision tower or its merger".into(),
            "give one of the two",
        )?;
        check(
            !(self.freeze_vision && self.is_merger_frozen() && self.freeze_llm),
            "--freeze-llm",
            "leaves nothing to train: the vision tower and its merger are frozen, too".into(),
            "train one of them",
        )?;
        some("--max-samples", self.max_samples.unwrap_or(1) as u64)?;
        self.evaluation.validate(self.save_steps, validates)?;
        self.validate_reports()?;
        self.validate_lora()
    }

    fn validate_reports(&self) -> Result<()> {
        let command = self.report_command.as_deref();
        let is_command = command.is_none_or(|command| !command.trim().is_empty() && !command.contains('\0'));
        check(is_command, "--report-command", "is empty or contains a zero byte".into(), "give a command for `sh -c`")?;
        let places = &self.report_to;
        let alone = places.len() == 1 || !places.contains(&ReportTo::None);
        let help = "give either none alone, or the names of reporters";
        check(alone && !places.is_empty(), "--report-to", "is empty, or combines none with reporters".into(), help)?;
        if !self.reports_to(ReportTo::Wandb) {
            return Ok(());
        }
        // The W&B client accepts only project names that pass this check (`wandb_settings.py`).
        let project = self.wandb_project();
        let location = if self.wandb_project.is_some() { "--wandb-project" } else { "WANDB_PROJECT" };
        let fits = project.chars().count() <= 128 && !project.contains(['/', '\\', '#', '?', '%', ':']);
        check(fits, location, format!("is {project:?}"), "give up to 128 characters, none of them / \\ # ? % :")
    }

    fn validate_lora(&self) -> Result<()> {
        let r = self.lora_r;
        check(r <= MAX_RANK, "--lora-r", format!("is {r}"), &format!("give a rank up to {MAX_RANK}"))?;
        let for_one = [
            ("--lora-alpha", self.lora_alpha.is_some()),
            ("--lora-target-modules", self.lora_target_modules.is_some()),
            ("--quantize", self.quantize.is_some()),
        ];
        for (flag, given) in for_one {
            check(r > 0 || !given, flag, "is for LoRA, but --lora-r is 0".into(), "give --lora-r too")?;
        }
        for (flag, given) in [("--freeze-llm", self.freeze_llm), ("--freeze-merger", self.freeze_merger.is_some())] {
            let what =
                "is for training of the weights themselves, but --lora-r trains an adapter beside frozen weights";
            let help = "leave this option out, or name the layers that get an adapter in --lora-target-modules";
            check(r == 0 || !given, flag, what.into(), help)?;
        }
        let alpha = self.lora_alpha.unwrap_or(1.0);
        range("--lora-alpha", alpha, alpha > 0.0, "give a finite number above 0")?;
        let targets = self.lora_target_modules.as_deref().unwrap_or_default();
        let unclear = match &self.lora_target_modules {
            None => None,
            Some(_) if targets.is_empty() || targets.iter().any(String::is_empty) => Some("has an empty name"),
            Some(_) if targets.len() > 1 && targets.iter().any(|t| t == ALL_LINEAR) => {
                Some("combines all-linear with names of layers")
            }
            Some(_) => None,
        };
        let help = "give names of layers such as q_proj,v_proj, or all-linear alone";
        check(unclear.is_none(), "--lora-target-modules", unclear.unwrap_or_default().into(), help)?;
        let vision_rate = self.learning_rate_vision.is_some() || self.learning_rate_merger.is_some();
        check(
            r == 0 || self.lora_target_modules.is_some() || !vision_rate,
            "--lora-r",
            "trains no layer of the vision tower or merger, but a learning rate is given for them".into(),
            "name their layers in --lora-target-modules, or remove the learning rate",
        )
    }
}
