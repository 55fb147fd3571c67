//! The options of `sft`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reel_samples::labels::LabelRule;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{BestMetric, LossMean, Recipe, RunOptions, TrainingOptions, check, run};
use crate::Result;

/// What happens to a row that is longer than `--max-length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationStrategy {
    /// The row is skipped and counted
    #[default]
    Delete,
    /// The tokens after --max-length are left out; a row whose images or videos do not fit is skipped
    Right,
}

/// The options of `reel sft`, including those of all training commands.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "SFT options")]
pub struct SftOptions {
    /// The options of every run.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunOptions,

    /// Tokens that count in the loss [default: assistant; videorft with --parity videorft or video-r1]
    #[arg(long, value_enum)]
    pub labels: Option<LabelRule>,
    /// The loss of a step: the mean over its micro-batches, or over all its learned tokens
    #[arg(long, value_enum, default_value_t)]
    pub loss_mean: LossMean,
    /// Packing: fill each micro-batch with whole rows up to --max-length tokens
    #[arg(long)]
    pub packing: bool,
    /// Maximum tokens of a row; longer rows are skipped and counted, or cut with --truncation-strategy right [default:
    /// no limit]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// What happens to a row with more tokens than --max-length
    #[arg(long, value_enum, default_value_t)]
    pub truncation_strategy: TruncationStrategy,

    /// Validation rows, in the forms of --data: their loss is computed after every --eval-steps steps, or at each
    /// checkpoint. Relative media paths refer to --media-root, or to the folder of the first file
    #[arg(long, value_name = "FILE", help_heading = "Evaluation options")]
    pub eval_file: Option<PathBuf>,
    /// Validation rows taken from --data, which are then not trained: a share of its rows below 1, or a number of rows
    #[arg(long, value_name = "SIZE", help_heading = "Evaluation options")]
    pub val_size: Option<f64>,
}

run::extends_run_options!(SftOptions);

impl SftOptions {
    /// The rule that selects the learned tokens: `--labels`, or the default of `--parity`.
    pub fn label_rule(&self) -> LabelRule {
        self.labels.unwrap_or(match self.parity {
            Recipe::Paper | Recipe::OneThinker => LabelRule::Assistant,
            Recipe::Videorft | Recipe::VideoR1 => LabelRule::Videorft,
        })
    }

    /// The size of the validation set that is held back from `--data`: a share below 1, or a number of rows. `None`
    /// if no rows are held back, as with the value 0.
    pub fn held_out_size(&self) -> Option<f64> {
        self.val_size.filter(|&size| size > 0.0)
    }

    fn validate_validation(&self) -> Result<()> {
        let size = self.val_size.unwrap_or(0.0);
        let fits = size >= 0.0 && size.is_finite() && (size < 1.0 || size.fract() == 0.0);
        check(fits, "--val-size", format!("is {size}"), "give a share below 1, or a whole number of rows")?;
        let what = "is given together with --eval-file, but a run has only one set of validation rows";
        check(self.eval_file.is_none() || size == 0.0, "--val-size", what.into(), "give one of the two")?;
        let is_empty = self.eval_file.as_ref().is_some_and(|file| file.as_os_str().is_empty());
        check(!is_empty, "--eval-file", "is empty".into(), "give a data file, or the folder of a data set")?;
        check(
            self.metric_for_best_model_is_known(),
            "--metric-for-best-model eval_loss",
            "needs validation rows".into(),
            "give --eval-file or --val-size",
        )
    }

    fn metric_for_best_model_is_known(&self) -> bool {
        self.evaluation.metric_for_best_model != Some(BestMetric::EvalLoss) || self.has_validation_rows()
    }
}

impl TrainingOptions for SftOptions {
    const COMMAND: &'static str = "sft";

    fn resolved(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut map)) = serde_json::to_value(self) else { return Map::new() };
        map.insert("labels".into(), json!(self.label_rule()));
        map.insert("val_size".into(), json!(self.held_out_size()));
        map
    }

    fn loss_mean(&self) -> LossMean {
        self.loss_mean
    }

    fn has_validation_rows(&self) -> bool {
        self.eval_file.is_some() || self.held_out_size().is_some()
    }

    fn validate_values(&self) -> Result<()> {
        self.validate_validation()?;
        self.run.validate_values(self.has_validation_rows())?;
        check(
            self.evaluation.metric_for_best_model != Some(BestMetric::Reward),
            "--metric-for-best-model",
            "is reward, but sft has no rewards".into(),
            "give eval with --eval-benchmark, eval_loss with validation rows, or none",
        )?;
        check(
            self.truncation_strategy == TruncationStrategy::Delete || self.max_length.is_some(),
            "--truncation-strategy",
            "needs a maximum number of tokens of a row".into(),
            "give --max-length too",
        )?;
        check(self.max_length != Some(0), "--max-length", "is 0".into(), "give 1 or more")?;
        check(
            !self.packing || self.max_length.is_some(),
            "--packing",
            "needs a maximum number of tokens per micro-batch".into(),
            "give --max-length too",
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::options::GradientCheckpointing::{self, Auto, Full, Selective};
    use crate::options::{LrScheduler, MomentFormat};

    fn parse(args: &[&str]) -> std::result::Result<SftOptions, clap::Error> {
        let command = SftOptions::augment_args(clap::Command::new("sft"));
        SftOptions::from_arg_matches(&command.try_get_matches_from([&["sft"], args].concat())?)
    }

    #[test]
    fn defaults_are_the_recipes() {
        let o = SftOptions::default();
        assert_eq!(
            (o.learning_rate, o.lr_scheduler_type, o.warmup_step_count(100), o.weight_decay),
            (1e-6, LrScheduler::Linear, 0, 0.0)
        );
        assert_eq!((o.max_grad_norm, o.per_device_train_batch_size, o.gradient_accumulation_steps), (5.0, 1, 2));
        assert_eq!((o.num_train_epochs, o.requested_step_count(), o.gradient_checkpointing), (1.0, None, Auto));
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
            (o.gradient_checkpointing, o.lr_scheduler_type, o.requested_step_count()),
            (GradientCheckpointing::None, LrScheduler::ConstantWithWarmup, None)
        );
        let checkpointing = |args: &[&str]| parse(args).map(|o| o.gradient_checkpointing).ok();
        assert_eq!(checkpointing(&["--gradient-checkpointing"]), Some(Full));
        let named = ["true", "full", "false", "none", "selective", "auto", "yes"];
        let parsed = named.map(|name| checkpointing(&["--gradient-checkpointing", name]));
        let none = Some(GradientCheckpointing::None);
        assert_eq!(parsed, [Some(Full), Some(Full), none, none, Some(Selective), Some(Auto), None]);
        let optim = |name: &str| parse(&["--optim", name]).map(|o| o.optim.moment_format()).ok();
        let known = ["adamw", "adamw-bf16", "adamw-8bit"].map(optim);
        assert_eq!(known, [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::Int8].map(Some));
        assert_eq!(optim("sgd"), None);
        let resume = |args: &[&str]| parse(args).unwrap().run.resume_from_checkpoint;
        assert_eq!(resume(&["--resume-from-checkpoint"]).as_deref(), Some("last"));
        assert_eq!(resume(&["--resume-from-checkpoint", "x/checkpoint-3"]).as_deref(), Some("x/checkpoint-3"));
        assert_eq!(resume(&[]), None);
    }

    #[test]
    fn evaluations_are_due_after_every_nth_and_the_last_step() {
        let due = |args: &[&str]| {
            let options = parse(args).unwrap();
            (0..=10).filter(|&step| options.is_evaluation_due(step, 10)).collect::<Vec<u64>>()
        };
        assert_eq!(due(&["--eval-steps", "4"]), [4, 8, 10]);
        assert_eq!(due(&["--eval-steps", "4", "--eval-on-start"]), [0, 4, 8, 10]);
        assert_eq!(due(&[]), [0; 0]);
        // Validation rows are evaluated at each checkpoint if --eval-steps is not given.
        assert_eq!(due(&["--val-size", "0.5", "--save-steps", "3"]), [3, 6, 9, 10]);
        assert_eq!(due(&["--val-size", "0.5", "--save-steps", "0"]), [10]);
        assert_eq!(due(&["--val-size", "0"]), [0; 0]);
    }

    #[test]
    fn warmup_steps_win_over_the_ratio_which_is_rounded_up() {
        let o = RunOptions { warmup_ratio: 0.03, ..Default::default() };
        assert_eq!((o.warmup_step_count(100), o.warmup_step_count(101), o.warmup_step_count(1)), (3, 4, 1));
        assert_eq!(RunOptions { warmup_steps: 2, ..o }.warmup_step_count(100), 2);
    }

    #[test]
    fn senseless_values_are_refused_by_their_flag() {
        let refused: [(&str, &[&str]); 20] = [
            ("--val-size", &["--val-size", "nan"]),
            ("--val-size", &["--val-size", "1.5"]),
            ("--val-size", &["--val-size=-1"]),
            ("--val-size", &["--val-size", "0.1", "--eval-file", "e.jsonl"]),
            ("--metric-for-best-model eval_loss", &["--metric-for-best-model", "eval_loss"]),
            ("--learning-rate", &["--learning-rate", "nan"]),
            ("--learning-rate", &["--learning-rate=-1"]),
            ("--weight-decay", &["--weight-decay", "inf"]),
            ("--adam-beta1", &["--adam-beta1", "1"]),
            ("--adam-beta2", &["--adam-beta2", "1.5"]),
            ("--adam-epsilon", &["--adam-epsilon", "0"]),
            ("--max-grad-norm", &["--max-grad-norm=-1"]),
            ("--max-grad-norm", &["--max-grad-norm", "inf"]),
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
            assert!(e.is_usage_error() && e.to_string().starts_with(flag), "{args:?}: {e}");
        }
        let e = parse(&["--model", "m"]).unwrap().validate().unwrap_err().to_string();
        assert!(e.starts_with("--data: is missing; "), "{e}");
        parse(&["--model", "m", "--data", "d", "--out", "o", "--packing", "--max-length", "9"])
            .unwrap()
            .validate()
            .unwrap();
    }

    /// In transformers a norm of 0 clips nothing, and a limit of checkpoints of 0 or less keeps all.
    #[test]
    fn limits_of_0_are_none_as_in_transformers() {
        let limits = |args: &[&str]| {
            let o = parse(args).unwrap();
            o.validate_values().unwrap();
            (o.gradient_norm_limit(), o.checkpoint_limit())
        };
        assert_eq!(limits(&[]), (5.0, None));
        assert_eq!(limits(&["--max-grad-norm", "0", "--save-total-limit", "0"]), (f32::MAX, None));
        assert_eq!(limits(&["--max-grad-norm", "0.5", "--save-total-limit=-1"]), (0.5, None));
        assert_eq!(limits(&["--save-total-limit", "3"]), (5.0, Some(3)));
        let infinite = parse(&["--learning-rate", "1e400"]).unwrap().validate_values().unwrap_err().to_string();
        assert_eq!(infinite, "--learning-rate: is inf; give a finite number, 0 or more");
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
