//! The options of the training commands, with TRL's names and the recipes' defaults. Each option is declared once, for
//! the command line, for configuration files and for `run.json`.

mod evaluation;
mod grpo;
mod loss;
mod run;
mod sft;
mod step_range;
mod tools;

use clap::{Args, ValueEnum};
use reel_model::save::FolderFormat;
use reel_runtime::Checkpointing;
use reel_runtime::optim::MomentFormat;
pub use reel_samples::rewards::Recipe;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use evaluation::{BestMetric, EvaluationOptions};
pub use grpo::GrpoOptions;
pub use loss::{CorrectionMode, ImportanceSamplingLevel, LossType, LossVariants};
pub use run::{RunOptions, TrainingOptions};
pub use sft::{SftOptions, TruncationStrategy};
pub use step_range::StepRange;
pub use tools::ToolOptions;

/// The version of transformers whose layout a written model folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum FolderFormatName {
    /// preprocessor_config.json, chat_template.json, and config.json with rope_scaling (Qwen2.5-VL: without
    /// text_config)
    #[value(name = "transformers-4")]
    #[serde(rename = "transformers-4")]
    Transformers4,
    /// config.json with text_config and rope_parameters, processor_config.json, chat_template.jinja
    #[value(name = "transformers-5")]
    #[serde(rename = "transformers-5")]
    Transformers5,
}

impl FolderFormatName {
    /// The format of this name.
    pub fn format(self) -> FolderFormat {
        match self {
            Self::Transformers4 => FolderFormat::Transformers4,
            Self::Transformers5 => FolderFormat::Transformers5,
        }
    }
}

/// The learning-rate schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Linear decay to 0 after the warmup
    #[default]
    Linear,
    /// Cosine decay to 0 after the warmup
    Cosine,
    /// Constant from the first step
    Constant,
    /// Constant after the warmup
    ConstantWithWarmup,
}

/// How the optimizer stores its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optim {
    /// f32 moments, f32 master weights
    #[default]
    #[value(alias = "adamw_torch", alias = "adamw_torch_fused", alias = "adamw_hf")]
    #[serde(alias = "adamw_torch", alias = "adamw_torch_fused", alias = "adamw_hf")]
    Adamw,
    /// bf16 moments with stochastic rounding, f32 master weights
    AdamwBf16,
    /// Blockwise 8-bit moments, f32 master weights
    #[value(name = "adamw-8bit", alias = "adamw_8bit", alias = "adamw_bnb_8bit")]
    #[serde(rename = "adamw-8bit", alias = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
}

/// The format to which a training run quantises the weights of the decoder's linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizeFormat {
    /// 4.5 bits for each weight, with the values of bitsandbytes (NF4, double quantisation)
    Nf4,
    /// 8-bit floats (e4m3) with a scale for each block of 128 x 128 weights
    Fp8,
}

/// Which activations of a layer the backward pass computes again instead of keeping them. Results have the same bits.
/// TRL's flag and files have a boolean instead: true means `full`, false means `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GradientCheckpointing {
    /// For each micro-batch, the first of none, selective and full that fits the memory
    #[default]
    Auto,
    /// Nothing: all activations are kept
    #[value(alias = "false")]
    #[serde(alias = "false")]
    None,
    /// The outputs of norms and of SwiGLU, which take much memory and few operations
    Selective,
    /// Every layer, from its input
    #[value(alias = "true")]
    #[serde(alias = "true")]
    Full,
}

impl From<Checkpointing> for GradientCheckpointing {
    fn from(chosen: Checkpointing) -> Self {
        match chosen {
            Checkpointing::None => Self::None,
            Checkpointing::Selective => Self::Selective,
            Checkpointing::Full => Self::Full,
        }
    }
}

impl std::fmt::Display for GradientCheckpointing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Over what the loss of a step of SFT is a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossMean {
    /// Over its micro-batches, whose losses are means over their learned tokens: each micro-batch counts the same
    #[default]
    MicroBatch,
    /// Over all its learned tokens: each token counts the same, however the rows are divided into micro-batches
    Step,
}

/// Where the metrics of a run are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportTo {
    /// TensorBoard event files in OUT
    Tensorboard,
    /// A Weights & Biases run in OUT/wandb that `wandb sync` uploads
    Wandb,
    /// No reports
    None,
}

impl Optim {
    /// How the optimizer stores its moments.
    pub fn moment_format(self) -> MomentFormat {
        match self {
            Self::Adamw => MomentFormat::F32,
            Self::AdamwBf16 => MomentFormat::Bf16,
            Self::Adamw8bit => MomentFormat::Int8,
        }
    }
}

fn range(flag: &str, value: f64, fits: bool, help: &str) -> Result<()> {
    check(fits && value.is_finite(), flag, format!("is {value}"), help)
}

fn check(fits: bool, flag: &str, what: String, help: &str) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::usage(flag, what, help)) }
}

/// Returns the options with their default values, as an empty command line gives them.
fn default_options<T: Args>() -> T {
    let matches = T::augment_args(clap::Command::new("options")).try_get_matches_from(["options"]);
    matches.and_then(|m| T::from_arg_matches(&m)).expect("every option has a default, which a test checks")
}
