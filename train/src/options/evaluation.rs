//! The options of evaluations during training, with the names of transformers' Trainer where it has them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{check, default_options};
use crate::Result;

/// The metric by which checkpoints are compared to find the best one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BestMetric {
    /// Mean score over the benchmarks of --eval-benchmark
    Eval,
    /// Validation loss (sft); the lowest is the best
    #[value(name = "eval_loss", alias = "loss", alias = "eval-loss")]
    #[serde(rename = "eval_loss", alias = "loss", alias = "eval-loss")]
    EvalLoss,
    /// Mean reward over the steps since the checkpoint before (grpo)
    Reward,
    /// No checkpoint is the best one
    None,
}

/// The options of evaluations during training.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Evaluation options")]
pub struct EvaluationOptions {
    /// Evaluate the model in training after every N steps and after the last one: on benchmarks, as reel eval does, and
    /// on the validation rows of sft; 0 does not evaluate, except for validation rows at each checkpoint
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub eval_steps: u64,
    /// Evaluate before the first step, too
    #[arg(long)]
    pub eval_on_start: bool,
    /// Benchmarks, separated by commas, or a task file (.toml), as --benchmark of reel eval
    #[arg(long, value_name = "NAME")]
    pub eval_benchmark: Option<String>,
    /// Folder with the benchmarks' own files, as published, or Hugging Face data set id; or, for one benchmark, its
    /// file
    #[arg(long, value_name = "DIR")]
    pub eval_data: Option<PathBuf>,
    /// Folder that the paths of the benchmarks' videos are relative to [default: the folder of the benchmark's files]
    #[arg(long, value_name = "DIR")]
    pub eval_media_root: Option<PathBuf>,
    /// Answer only the first N questions of each benchmark
    #[arg(long, value_name = "N")]
    pub eval_limit: Option<usize>,
    /// Leave out rows of benchmarks that cannot be used, and count them
    #[arg(long)]
    pub eval_skip_bad_rows: bool,
    /// Maximum number of tokens of an answer to a benchmark's question
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub eval_max_new_tokens: usize,
    /// Maximum number of answers that decode together; memory may allow fewer [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N")]
    pub eval_batch_size: Option<usize>,
    /// By which number checkpoints are compared: eval (mean score over the benchmarks), eval_loss (validation loss of
    /// sft), reward (mean reward of grpo) or none [default: eval with benchmarks, else eval_loss with validation rows,
    /// else reward]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "METRIC")]
    pub metric_for_best_model: Option<BestMetric>,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        default_options()
    }
}

impl EvaluationOptions {
    /// Whether the run evaluates the model in training on benchmarks.
    pub fn has_benchmarks(&self) -> bool {
        self.eval_steps > 0 && self.eval_benchmark.is_some()
    }

    /// Returns the metric by which checkpoints are compared: `--metric-for-best-model`, or its default. `validates`
    /// says whether the run has validation rows.
    pub(super) fn best_metric(&self, validates: bool) -> BestMetric {
        let default = match (self.has_benchmarks(), validates) {
            (true, _) => BestMetric::Eval,
            (false, true) => BestMetric::EvalLoss,
            (false, false) => BestMetric::Reward,
        };
        self.metric_for_best_model.unwrap_or(default)
    }

    /// Checks the values of the evaluation options. `save_steps` is the value of `--save-steps`; `validates` says
    /// whether the run has validation rows.
    pub(super) fn validate(&self, save_steps: u64, validates: bool) -> Result<()> {
        let metric = self.best_metric(validates);
        let names = self.eval_benchmark.as_deref().is_some_and(|names| !names.is_empty());
        let of_benchmarks = [
            ("--eval-benchmark", self.eval_benchmark.is_some()),
            ("--eval-data", self.eval_data.is_some()),
            ("--eval-media-root", self.eval_media_root.is_some()),
            ("--eval-limit", self.eval_limit.is_some()),
            ("--eval-skip-bad-rows", self.eval_skip_bad_rows),
            ("--eval-batch-size", self.eval_batch_size.is_some()),
            ("--metric-for-best-model eval", metric == BestMetric::Eval),
        ];
        let first_of_benchmarks = of_benchmarks.iter().find(|(_, given)| *given).map_or("", |(flag, _)| flag);
        if self.eval_steps == 0 {
            let first = if self.eval_on_start && !validates { "--eval-on-start" } else { first_of_benchmarks };
            let help = "give --eval-steps N to evaluate after every N steps, or leave this option out";
            return check(first.is_empty(), first, "has no effect without --eval-steps".into(), help);
        }
        if validates && !names {
            let help = "name benchmarks such as mmvu,videomme, or leave this option out";
            check(
                first_of_benchmarks.is_empty(),
                first_of_benchmarks,
                "has no effect without --eval-benchmark".into(),
                help,
            )?;
        } else {
            let given = |flag: &str, is_given: bool, help: &str| {
                check(is_given, flag, "is missing, but --eval-steps is given".into(), help)
            };
            let help = "name benchmarks such as mmvu,videomme, or a task file; sft has --eval-file and --val-size, too";
            given("--eval-benchmark", names, help)?;
            given("--eval-data", self.eval_data.is_some(), "give the folder with the benchmarks' files")?;
        }
        let some = |flag: &str, n: usize| check(n > 0, flag, "is 0".into(), "give 1 or more");
        some("--eval-limit", self.eval_limit.unwrap_or(1))?;
        some("--eval-max-new-tokens", self.eval_max_new_tokens)?;
        some("--eval-batch-size", self.eval_batch_size.unwrap_or(1))?;
        let compares = [BestMetric::Eval, BestMetric::EvalLoss].contains(&metric);
        let has_scores = !compares || save_steps.is_multiple_of(self.eval_steps);
        let what = format!(
            "is {save_steps}, which is not a multiple of --eval-steps {}, so some checkpoints would have no score",
            self.eval_steps
        );
        check(has_scores, "--save-steps", what, "give a multiple, or --metric-for-best-model none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> EvaluationOptions {
        EvaluationOptions {
            eval_steps: 4,
            eval_benchmark: Some("mmvu".into()),
            eval_data: Some("data".into()),
            ..EvaluationOptions::default()
        }
    }

    #[test]
    fn senseless_values_are_refused_by_their_flag() {
        let refused = |o: EvaluationOptions, save_steps: u64, words: [&str; 2]| {
            let e = o.validate(save_steps, false).unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with(words[0]), "{e}");
            assert!(e.to_string().contains(words[1]), "{e}");
        };
        options().validate(0, false).unwrap();
        options().validate(8, false).unwrap();
        EvaluationOptions::default().validate(500, false).unwrap();
        refused(EvaluationOptions { eval_data: None, ..options() }, 8, ["--eval-data: is missing", "folder"]);
        refused(EvaluationOptions { eval_benchmark: None, ..options() }, 8, ["--eval-benchmark: is missing", "mmvu"]);
        refused(EvaluationOptions { eval_limit: Some(0), ..options() }, 8, ["--eval-limit: is 0", "1 or more"]);
        refused(options(), 6, ["--save-steps: is 6", "--eval-steps 4"]);
        EvaluationOptions { metric_for_best_model: Some(BestMetric::None), ..options() }.validate(6, false).unwrap();
        let off = EvaluationOptions { eval_steps: 0, ..options() };
        refused(off, 8, ["--eval-benchmark: has no effect without", "--eval-steps N"]);
        let metric = EvaluationOptions { metric_for_best_model: Some(BestMetric::Eval), ..Default::default() };
        refused(metric, 8, ["--metric-for-best-model eval: has no effect", "--eval-steps N"]);
    }

    #[test]
    fn checkpoints_are_compared_by_the_evaluation_if_there_is_one() {
        assert_eq!((options().best_metric(false), options().best_metric(true)), (BestMetric::Eval, BestMetric::Eval));
        let none = EvaluationOptions::default();
        assert_eq!((none.best_metric(false), none.best_metric(true)), (BestMetric::Reward, BestMetric::EvalLoss));
        let reward = EvaluationOptions { metric_for_best_model: Some(BestMetric::Reward), ..options() };
        assert_eq!(reward.best_metric(true), BestMetric::Reward);
    }

    #[test]
    fn validation_rows_need_no_benchmark() {
        let steps = EvaluationOptions { eval_steps: 4, ..EvaluationOptions::default() };
        steps.validate(8, true).unwrap();
        EvaluationOptions { eval_on_start: true, ..EvaluationOptions::default() }.validate(500, true).unwrap();
        let e = |o: EvaluationOptions| o.validate(8, true).unwrap_err().to_string();
        let without = e(EvaluationOptions { eval_data: Some("data".into()), ..steps.clone() });
        assert!(without.starts_with("--eval-data: has no effect without --eval-benchmark"), "{without}");
        let unequal = e(EvaluationOptions { eval_steps: 3, ..steps });
        assert!(unequal.starts_with("--save-steps: is 8, which is not a multiple of --eval-steps 3"), "{unequal}");
    }
}
