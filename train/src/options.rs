//! The options of `sft`, with TRL's names and defaults of the recipes: declared once, for the command line, for
//! configuration files and for `run.json`.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, ValueEnum};
pub use reel_rewards::Parity;
use reel_runtime::optim::Moments;
use serde::{Deserialize, Serialize};

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
pub enum Scheduler {
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

/// Options of supervised fine-tuning. Rates are a step, lengths in tokens.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Training options")]
pub struct SftOptions {
    /// The model folder (or hub id) to start from
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    pub model: String,
    /// The rows to train on, JSON or JSONL
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true, value_parser = path_or_none())]
    pub data: PathBuf,
    /// The folder that media paths of the rows are relative to [default: the data file's]
    #[arg(long, value_name = "DIR")]
    pub media_root: Option<PathBuf>,
    /// The folder to write: the trained model, checkpoints, metrics
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true, value_parser = path_or_none())]
    pub out: PathBuf,
    /// A TOML file that holds any of these options; a flag wins over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Whose rules to follow where a reference's code and its paper differ
    #[arg(long, value_enum, default_value_t)]
    pub parity: Parity,
    /// Which tokens are learned [default: assistant; videorft under --parity videorft or video-r1]
    #[arg(long, value_enum)]
    pub labels: Option<LabelRule>,

    /// The highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-6)]
    pub learning_rate: f64,
    /// The highest learning rate of the vision tower, without its merger [default: --learning-rate]
    #[arg(long, value_name = "RATE")]
    pub learning_rate_vision: Option<f64>,
    /// The highest learning rate of the merger between vision tower and decoder [default: --learning-rate]
    #[arg(long, value_name = "RATE")]
    pub learning_rate_merger: Option<f64>,
    /// Leave the vision tower and its merger as they are
    #[arg(long)]
    pub freeze_vision: bool,
    /// The shape of the learning rate over the run
    #[arg(long, value_enum, default_value_t)]
    pub lr_scheduler_type: Scheduler,
    /// Steps over which the learning rate rises from 0; above 0 it wins over --warmup-ratio
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup_steps: u64,
    /// The same as a share of all steps, rounded up
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub warmup_ratio: f64,
    /// AdamW's weight decay
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Decay no norm's weight (by default only names with layernorm or rmsnorm, and biases, are spared)
    #[arg(long)]
    pub no_decay_norms: bool,
    /// AdamW's decay of the first moment
    #[arg(long, value_name = "B", default_value_t = 0.9)]
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment
    #[arg(long, value_name = "B", default_value_t = 0.999)]
    pub adam_beta2: f64,
    /// AdamW's epsilon
    #[arg(long, value_name = "E", default_value_t = 1e-8)]
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm
    #[arg(long, value_name = "NORM", default_value_t = 5.0)]
    pub max_grad_norm: f64,
    /// How the optimiser keeps its state
    #[arg(long, value_enum, default_value_t)]
    pub optim: Optim,

    /// Rows of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub per_device_train_batch_size: usize,
    /// Micro-batches of a step
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub gradient_accumulation_steps: usize,
    /// Fill each micro-batch with whole rows up to --max-length tokens, instead of counting rows
    #[arg(long)]
    pub packing: bool,
    /// Rows with more tokens are skipped and counted
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Times to go through the data
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub num_train_epochs: f64,
    /// Steps to do, whatever the number of rows [default: as many as the epochs need]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_steps: Option<i64>,
    /// Take the rows in the file's order
    #[arg(long)]
    pub no_shuffle: bool,
    /// Recompute activations in the backward pass instead of keeping them
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    pub gradient_checkpointing: bool,

    /// Steps between checkpoints, and one at the end; 0 writes none
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub save_steps: u64,
    /// Keep only this many checkpoints, the newest
    #[arg(long, value_name = "N")]
    pub save_total_limit: Option<usize>,
    /// Steps between lines on the terminal and points in TensorBoard; metrics.jsonl has every step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub logging_steps: u64,
    /// Go on from a checkpoint folder, or from the last one in --out
    #[arg(long, value_name = "DIR|last", num_args = 0..=1, default_missing_value = "last")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
    /// Replace what is in --out
    #[arg(long)]
    #[serde(skip)]
    pub overwrite: bool,

    /// Stop at the first row that cannot be trained on, instead of skipping it
    #[arg(long)]
    pub strict: bool,
    /// Read every row with its media before the first step
    #[arg(long)]
    pub check_data: bool,
}

/// Paths that may be absent from the command line, since a configuration file may have them.
fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

impl Default for SftOptions {
    /// What an empty command line means.
    fn default() -> Self {
        use clap::FromArgMatches;
        let matches = Self::augment_args(clap::Command::new("sft")).try_get_matches_from(["sft"]);
        matches.and_then(|m| Self::from_arg_matches(&m)).expect("every option has a default, as a test sees")
    }
}

impl SftOptions {
    /// The label rule: the one that was asked for, or the one that `parity` means.
    pub fn label_rule(&self) -> LabelRule {
        self.labels.unwrap_or(match self.parity {
            Parity::Paper => LabelRule::Assistant,
            Parity::Videorft | Parity::VideoR1 => LabelRule::Videorft,
        })
    }

    /// The folder that media paths are relative to.
    pub fn media_root(&self) -> PathBuf {
        match &self.media_root {
            Some(root) => root.clone(),
            None => self.data.parent().map(PathBuf::from).unwrap_or_default(),
        }
    }

    /// Steps that were asked for outright; 0 and below mean "as many as the epochs need", as in TRL.
    pub fn asked_steps(&self) -> Option<u64> {
        self.max_steps.and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0)
    }

    /// Steps of warmup in a run of `steps`.
    pub fn warmup(&self, steps: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (self.warmup_ratio * steps as f64).ceil() as u64 }
    }

    /// Refuses values that make no sense; the first one found, by its flag.
    pub fn validate(&self) -> Result<()> {
        let given = |flag: &str, empty: bool, cure: &str| check(!empty, flag, "is missing".into(), cure);
        given("--model", self.model.is_empty(), "give the folder to start from")?;
        given("--data", self.data.as_os_str().is_empty(), "give a JSON or JSONL file of rows")?;
        given("--out", self.out.as_os_str().is_empty(), "give the folder to write")?;
        self.validate_values()
    }

    /// [`Self::validate`] for the numbers alone: all that a plan needs.
    pub fn validate_values(&self) -> Result<()> {
        let rate = |flag: &str, value: f64| range(flag, value, value >= 0.0, "give a number that is 0 or more");
        rate("--learning-rate", self.learning_rate)?;
        rate("--learning-rate-vision", self.learning_rate_vision.unwrap_or(0.0))?;
        rate("--learning-rate-merger", self.learning_rate_merger.unwrap_or(0.0))?;
        rate("--weight-decay", self.weight_decay)?;
        let beta =
            |flag: &str, value: f64| range(flag, value, (0.0..1.0).contains(&value), "give a number from 0 to below 1");
        beta("--adam-beta1", self.adam_beta1)?;
        beta("--adam-beta2", self.adam_beta2)?;
        let positive = |flag: &str, value: f64| range(flag, value, value > 0.0, "give a number above 0");
        positive("--adam-epsilon", self.adam_epsilon)?;
        positive("--max-grad-norm", self.max_grad_norm)?;
        positive("--num-train-epochs", self.num_train_epochs)?;
        range(
            "--warmup-ratio",
            self.warmup_ratio,
            (0.0..=1.0).contains(&self.warmup_ratio),
            "give a share from 0 to 1",
        )?;
        let some = |flag: &str, n: u64| check(n > 0, flag, "is 0".into(), "give 1 or more");
        some("--per-device-train-batch-size", self.per_device_train_batch_size as u64)?;
        some("--gradient-accumulation-steps", self.gradient_accumulation_steps as u64)?;
        some("--logging-steps", self.logging_steps)?;
        some("--max-length", self.max_length.unwrap_or(1) as u64)?;
        some("--save-total-limit", self.save_total_limit.unwrap_or(1) as u64)?;
        check(
            !self.packing || self.max_length.is_some(),
            "--packing",
            "has no limit to fill micro-batches up to".into(),
            "give --max-length too",
        )?;
        check(
            !self.freeze_vision || (self.learning_rate_vision.is_none() && self.learning_rate_merger.is_none()),
            "--freeze-vision",
            "contradicts a learning rate for the vision tower or its merger".into(),
            "give one of the two",
        )
    }
}

fn range(flag: &str, value: f64, fits: bool, cure: &str) -> Result<()> {
    check(fits && value.is_finite(), flag, format!("is {value}"), cure)
}

fn check(fits: bool, flag: &str, what: String, cure: &str) -> Result<()> {
    if fits { Ok(()) } else { Err(TrainError::option(flag, what, cure)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parse(args: &[&str]) -> std::result::Result<SftOptions, clap::Error> {
        let command = SftOptions::augment_args(clap::Command::new("sft"));
        SftOptions::from_arg_matches(&command.try_get_matches_from([&["sft"], args].concat())?)
    }

    #[test]
    fn defaults_are_the_recipes() {
        let o = SftOptions::default();
        assert_eq!(
            (o.learning_rate, o.lr_scheduler_type, o.warmup(100), o.weight_decay),
            (1e-6, Scheduler::Linear, 0, 0.0)
        );
        assert_eq!((o.max_grad_norm, o.per_device_train_batch_size, o.gradient_accumulation_steps), (5.0, 1, 2));
        assert_eq!((o.num_train_epochs, o.asked_steps(), o.gradient_checkpointing), (1.0, None, true));
        assert_eq!((o.adam_beta1, o.adam_beta2, o.adam_epsilon), (0.9, 0.999, 1e-8));
        assert_eq!((o.label_rule(), o.save_steps, o.save_total_limit), (LabelRule::Assistant, 500, None));
    }

    #[test]
    fn parity_chooses_labels_and_a_flag_wins() {
        let rule = |args: &[&str]| parse(args).unwrap().label_rule();
        assert_eq!(rule(&["--parity", "videorft"]), LabelRule::Videorft);
        assert_eq!(rule(&["--parity", "video-r1"]), LabelRule::Videorft);
        assert_eq!(rule(&["--parity", "paper"]), LabelRule::Assistant);
        assert_eq!(rule(&["--parity", "videorft", "--labels", "text"]), LabelRule::Text);
    }

    #[test]
    fn spellings_of_trl_are_taken() {
        let o = parse(&[
            "--gradient-checkpointing",
            "false",
            "--lr-scheduler-type",
            "constant_with_warmup",
            "--max-steps",
            "-1",
        ])
        .unwrap();
        assert_eq!(
            (o.gradient_checkpointing, o.lr_scheduler_type, o.asked_steps()),
            (false, Scheduler::ConstantWithWarmup, None)
        );
        assert!(parse(&["--gradient-checkpointing"]).unwrap().gradient_checkpointing);
        let optim = |name: &str| parse(&["--optim", name]).map(|o| o.optim.moments()).ok();
        let known = ["adamw", "adamw-bf16", "adamw-8bit"].map(optim);
        assert_eq!(known, [Moments::F32, Moments::Bf16, Moments::Int8].map(Some));
        assert_eq!(optim("sgd"), None);
        let resume = |args: &[&str]| parse(args).unwrap().resume_from_checkpoint;
        assert_eq!(resume(&["--resume-from-checkpoint"]).as_deref(), Some("last"));
        assert_eq!(resume(&["--resume-from-checkpoint", "x/checkpoint-3"]).as_deref(), Some("x/checkpoint-3"));
        assert_eq!(resume(&[]), None);
    }

    #[test]
    fn warmup_steps_win_over_the_ratio_which_is_rounded_up() {
        let o = SftOptions { warmup_ratio: 0.03, ..Default::default() };
        assert_eq!((o.warmup(100), o.warmup(101), o.warmup(1)), (3, 4, 1));
        assert_eq!(SftOptions { warmup_steps: 2, ..o }.warmup(100), 2);
    }

    #[test]
    fn senseless_values_are_refused_by_their_flag() {
        let refused: [(&str, &[&str]); 14] = [
            ("--learning-rate", &["--learning-rate", "nan"]),
            ("--learning-rate", &["--learning-rate=-1"]),
            ("--weight-decay", &["--weight-decay", "inf"]),
            ("--adam-beta1", &["--adam-beta1", "1"]),
            ("--adam-beta2", &["--adam-beta2", "1.5"]),
            ("--adam-epsilon", &["--adam-epsilon", "0"]),
            ("--max-grad-norm", &["--max-grad-norm", "0"]),
            ("--num-train-epochs", &["--num-train-epochs", "0"]),
            ("--warmup-ratio", &["--warmup-ratio", "1.1"]),
            ("--per-device-train-batch-size", &["--per-device-train-batch-size", "0"]),
            ("--gradient-accumulation-steps", &["--gradient-accumulation-steps", "0"]),
            ("--max-length", &["--max-length", "0"]),
            ("--packing", &["--packing"]),
            ("--freeze-vision", &["--freeze-vision", "--learning-rate-vision", "1e-5"]),
        ];
        for (flag, args) in refused {
            let e = parse(args).unwrap().validate_values().unwrap_err();
            assert!(e.is_usage() && e.to_string().starts_with(flag), "{args:?}: {e}");
        }
        let e = parse(&["--model", "m"]).unwrap().validate().unwrap_err().to_string();
        assert!(e.starts_with("--data: is missing; "), "{e}");
        parse(&["--model", "m", "--data", "d", "--out", "o", "--packing", "--max-length", "9"])
            .unwrap()
            .validate()
            .unwrap();
    }

    #[test]
    fn options_survive_run_json() {
        let o =
            parse(&["--labels", "text", "--max-steps", "7", "--parity", "video-r1", "--optim", "adamw-8bit"]).unwrap();
        let text = serde_json::to_string(&o).unwrap();
        assert_eq!(serde_json::from_str::<SftOptions>(&text).unwrap(), o);
        assert!(text.contains("\"labels\":\"text\"") && text.contains("\"parity\":\"video-r1\""), "{text}");
        assert!(text.contains("\"optim\":\"adamw-8bit\""), "{text}");
    }
}
