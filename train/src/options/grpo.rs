//! The options of `grpo`.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use reel_rewards::{RewardWeights, ScaleRewards};
use serde::{Deserialize, Serialize};

use super::{RunOptions, TrainingOptions, check, range, run};
use crate::Result;

/// What kind of mean over tokens the loss is; `reel_kernels::grpo_loss` has the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LossType {
    /// Of each completion's tokens, then of the completions.
    #[default]
    Grpo,
    /// Of all tokens of a micro-batch.
    Bnpo,
    /// Of completions, each over the longest that is allowed.
    DrGrpo,
    /// Of all tokens of a step.
    Dapo,
}

/// What the importance ratio is a ratio of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSamplingLevel {
    /// Each token's probabilities.
    #[default]
    Token,
    /// The geometric mean of those of a completion (GSPO).
    Sequence,
}

/// Options of group-relative policy optimisation; those of any run are read as if they stood here.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(
    next_help_heading = "Options of reinforcement learning",
    mut_arg("lr_scheduler_type", |a| a.default_value("cosine")),
    mut_arg("weight_decay", |a| a.default_value("0.01")),
    mut_arg("per_device_train_batch_size", |a| a.default_value("8").help("Completions of a micro-batch: a multiple of --num-generations")),
    mut_arg("gradient_accumulation_steps", |a| a.default_value("1")),
)]
pub struct GrpoOptions {
    /// Those of any run.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunOptions,

    /// Completions of a prompt
    #[arg(long, value_name = "G", default_value_t = 8)]
    pub num_generations: usize,
    /// Steps on one set of completions
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub num_iterations: u64,
    /// What kind of mean over tokens the loss is
    #[arg(long, value_enum, default_value_t)]
    pub loss_type: LossType,
    /// What the importance ratio is a ratio of
    #[arg(long, value_enum, default_value_t)]
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// What advantages are divided by
    #[arg(long, value_enum, default_value_t)]
    pub scale_rewards: ScaleRewards,
    /// How far below 1, and above it without --epsilon-high, the importance ratio counts
    #[arg(long, value_name = "E", default_value_t = 0.2)]
    pub epsilon: f64,
    /// How far above 1 the importance ratio counts [default: --epsilon]
    #[arg(long, value_name = "E")]
    pub epsilon_high: Option<f64>,
    /// Weight of the distance from the first weights; 0 needs no copy of them
    #[arg(long, value_name = "B", default_value_t = 0.04)]
    pub beta: f64,

    /// Tokens of a completion at most
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub max_completion_length: usize,
    /// Tokens of a completion at least: no end token is drawn before
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub min_completion_length: usize,
    /// Rows whose prompt has more tokens are skipped and counted
    #[arg(long, value_name = "TOKENS")]
    pub max_prompt_length: Option<usize>,
    /// Softens or sharpens the distribution that completions are drawn from, and that log-probabilities are of
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Draw from the likeliest tokens up to this share of the probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f64,
    /// Draw from this many of the likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: u32,
    /// Completions that reach --max-completion-length without an end do not count
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub mask_truncated_completions: bool,

    /// Reward answers to films that do better with their frames in order than in a random one (T-GRPO); half as many more completions are
    /// drawn to find out
    #[arg(long)]
    pub temporal: bool,
    /// A SigLIP folder: reward right answers whose thoughts agree with what the frames show (VideoRFT's semantic consistency)
    #[arg(long, value_name = "DIR")]
    pub siglip: Option<PathBuf>,
    /// A command that rewards completions, asked line by line (see `examples/rewards.py`)
    #[arg(long, value_name = "CMD")]
    pub reward_command: Option<String>,
    /// An address that rewards completions
    #[arg(long, value_name = "URL")]
    pub reward_url: Option<String>,
    /// Seconds that an own reward may take for a step
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    pub reward_timeout: f64,
    /// How much each reward counts in the sum: accuracy, format, temporal, semantic, length, command, url [default: 1 each]
    #[arg(long, value_name = "NAME=W,…")]
    pub reward_weights: Option<String>,
    /// Draw again, from further rows, for groups whose rewards are all the same
    #[arg(long)]
    pub dynamic_sampling: bool,

    /// Train on the completions and rewards of this file instead of drawing any, a JSON line a group: row, completions, rewards
    #[arg(long, value_name = "FILE")]
    pub rollouts: Option<PathBuf>,
    /// The folder of what a run drew, to take completions and rewards from: `reel replay` sets it
    #[arg(skip)]
    #[serde(skip)]
    pub recorded: Option<PathBuf>,
    /// Compute the prompt of a group once instead of once a completion, in the passes that train
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    pub shared_prefix: bool,
}

impl Deref for GrpoOptions {
    type Target = RunOptions;

    fn deref(&self) -> &RunOptions {
        &self.run
    }
}

impl DerefMut for GrpoOptions {
    fn deref_mut(&mut self) -> &mut RunOptions {
        &mut self.run
    }
}

impl Default for GrpoOptions {
    fn default() -> Self {
        run::defaults()
    }
}

impl GrpoOptions {
    /// Prompts of a step: a group of completions each.
    pub fn groups_per_step(&self) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps / self.num_generations.max(1)
    }

    /// Groups of a micro-batch.
    pub fn groups_per_micro_batch(&self) -> usize {
        self.per_device_train_batch_size / self.num_generations.max(1)
    }

    /// How much each reward counts.
    ///
    /// # Errors
    /// Names that are no reward's, weights that are no numbers.
    pub fn weights(&self) -> Result<RewardWeights> {
        Ok(self.reward_weights.as_deref().map(RewardWeights::parse).transpose()?.unwrap_or_default())
    }

    /// Whether there is a reward of the user's own.
    pub fn has_own_reward(&self) -> bool {
        self.reward_command.is_some() || self.reward_url.is_some()
    }

    /// How far above 1 the importance ratio counts.
    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(self.epsilon)
    }
}

impl TrainingOptions for GrpoOptions {
    const COMMAND: &'static str = "grpo";

    fn validate_values(&self) -> Result<()> {
        self.run.validate_values()?;
        let generations = self.num_generations;
        check(
            generations >= 2,
            "--num-generations",
            format!("is {generations}, and an advantage compares completions"),
            "give 2 or more",
        )?;
        let batch = self.per_device_train_batch_size;
        check(
            batch.is_multiple_of(generations),
            "--per-device-train-batch-size",
            format!("is {batch}, no multiple of --num-generations {generations}"),
            "it counts completions: give whole groups",
        )?;
        check(self.num_iterations > 0, "--num-iterations", "is 0".into(), "give 1 or more")?;
        let at_least_0 = |flag: &str, x: f64| range(flag, x, x >= 0.0, "give a number that is 0 or more");
        at_least_0("--epsilon", self.epsilon)?;
        at_least_0("--epsilon-high", self.epsilon_high())?;
        at_least_0("--beta", self.beta)?;
        range("--temperature", self.temperature, self.temperature > 0.0, "give a number above 0")?;
        range("--top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "give a share above 0, at most 1")?;
        check(self.max_completion_length > 0, "--max-completion-length", "is 0".into(), "give 1 or more")?;
        check(self.max_prompt_length != Some(0), "--max-prompt-length", "is 0".into(), "give 1 or more")?;
        self.weights()?;
        let timeout = self.reward_timeout;
        range("--reward-timeout", timeout, timeout > 0.0 && timeout < 1e9, "give a number of seconds above 0")?;
        let judged = self.temporal
            || self.siglip.is_some()
            || self.has_own_reward()
            || self.reward_weights.is_some()
            || self.dynamic_sampling;
        check(
            self.rollouts.is_none() || !judged,
            "--rollouts",
            "brings rewards, so that --temporal, --siglip, --reward-command, --reward-url, --reward-weights and --dynamic-sampling have nothing to do".into(),
            "leave it or them out",
        )?;
        check(
            !self.temporal || self.parity.temporal_min_ratio().is_some(),
            "--temporal",
            "is a reward that --parity videorft does not have".into(),
            "leave one of the two out",
        )?;
        let (least, most) = (self.min_completion_length, self.max_completion_length);
        check(
            least <= most,
            "--min-completion-length",
            format!("is {least}, more than --max-completion-length {most}"),
            "lower it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{LrScheduler, Optim};
    use clap::FromArgMatches;

    fn parse(args: &[&str]) -> GrpoOptions {
        let command = GrpoOptions::augment_args(clap::Command::new("grpo"));
        GrpoOptions::from_arg_matches(&command.try_get_matches_from([&["grpo"], args].concat()).unwrap()).unwrap()
    }

    #[test]
    fn defaults_are_the_recipes() {
        let o = GrpoOptions::default();
        assert_eq!((o.learning_rate, o.lr_scheduler_type, o.weight_decay), (1e-6, LrScheduler::Cosine, 0.01));
        assert_eq!((o.max_grad_norm, o.num_generations, o.beta, o.loss_type), (5.0, 8, 0.04, LossType::Grpo));
        assert_eq!((o.temperature, o.top_p, o.top_k, o.max_completion_length), (1.0, 0.95, 0, 1024));
        assert_eq!((o.num_iterations, o.groups_per_step(), o.optim, o.epsilon_high()), (1, 1, Optim::Adamw, 0.2));
        o.validate_values().unwrap();
    }

    #[test]
    fn batches_count_completions() {
        let o = parse(&[
            "--num-generations",
            "4",
            "--per-device-train-batch-size",
            "8",
            "--gradient-accumulation-steps",
            "3",
        ]);
        assert_eq!((o.groups_per_step(), o.groups_per_micro_batch()), (6, 2));
    }

    #[test]
    fn senseless_values_are_refused_by_their_flag() {
        let refused: [(&str, &[&str]); 11] = [
            ("--temporal", &["--temporal", "--parity", "videorft"]),
            ("--num-generations", &["--num-generations", "1"]),
            ("--per-device-train-batch-size", &["--per-device-train-batch-size", "9"]),
            ("--num-iterations", &["--num-iterations", "0"]),
            ("--epsilon", &["--epsilon=-0.1"]),
            ("--epsilon-high", &["--epsilon-high", "nan"]),
            ("--beta", &["--beta", "inf"]),
            ("--temperature", &["--temperature", "0"]),
            ("--top-p", &["--top-p", "1.5"]),
            ("--min-completion-length", &["--min-completion-length", "2000"]),
            ("--learning-rate", &["--learning-rate", "nan"]),
        ];
        for (flag, args) in refused {
            let e = parse(args).validate_values().unwrap_err();
            assert!(e.is_usage() && e.to_string().starts_with(flag), "{args:?}: {e}");
        }
    }

    #[test]
    fn options_survive_run_json() {
        let o =
            parse(&["--loss-type", "dr_grpo", "--importance-sampling-level", "sequence", "--scale-rewards", "none"]);
        let text = serde_json::to_string(&o).unwrap();
        assert_eq!(serde_json::from_str::<GrpoOptions>(&text).unwrap(), o);
        assert!(text.contains("\"loss_type\":\"dr_grpo\"") && text.contains("\"scale_rewards\":\"none\""), "{text}");
    }
}
