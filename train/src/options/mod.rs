//! The options of the commands that train, with TRL's names and the recipes' defaults: declared once, for the command
//! line, for configuration files and for `run.json`.

pub mod config_file;
mod grpo;
mod run;
mod sft;

use clap::ValueEnum;
pub use reel_rewards::Recipe;
use reel_runtime::optim::Moments;
use serde::{Deserialize, Serialize};

pub use grpo::{GrpoOptions, ImportanceSamplingLevel, LossType};
pub use run::{RunOptions, TrainingOptions};
pub use sft::SftOptions;

use crate::{Result, TrainError};

/// Which tokens are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelRule {
    /// What the assistant says, with the token that ends it.
    Assistant,
    /// Everything but padding and vision tokens.
    Text,
    /// Everything but padding and image tokens, as the references' code does.
    Videorft,
}

/// The shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LrScheduler {
    /// From the full rate to 0 in a straight line, after the warmup.
    #[default]
    Linear,
    /// From the full rate to 0 along half a cosine, after the warmup.
    Cosine,
    /// The full rate from the first step.
    Constant,
    /// The full rate after the warmup.
    ConstantWithWarmup,
}

/// How the optimiser keeps its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optim {
    /// f32 moments and an exact f32 master copy.
    #[default]
    Adamw,
    /// The same master copy, bf16 moments with stochastic rounding.
    AdamwBf16,
    /// The same master copy, blockwise 8-bit moments.
    #[value(name = "adamw-8bit")]
    #[serde(rename = "adamw-8bit")]
    Adamw8bit,
}

/// Where the curves of a run are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportTo {
    /// TensorBoard's event files in OUT.
    Tensorboard,
    /// A run in OUT/wandb that `wandb sync` uploads.
    Wandb,
    /// Nowhere.
    None,
}

impl Optim {
    /// How the moments are held.
    pub fn moments(self) -> Moments {
        match self {
            Self::Adamw => Moments::F32,
            Self::AdamwBf16 => Moments::Bf16,
            Self::Adamw8bit => Moments::Int8,
        }
    }
}

fn range(flag: &str, value: f64, fits: bool, help: &str) -> Result<()> {
    check(fits && value.is_finite(), flag, format!("is {value}"), help)
}

fn check(fits: bool, flag: &str, what: String, help: &str) -> Result<()> {
    if fits { Ok(()) } else { Err(TrainError::option(flag, what, help)) }
}
