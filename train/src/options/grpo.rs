//! The options of `grpo`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use reel_samples::rewards::{
    AdvantageEstimator, AdvantageRules, AnswerRules, BuiltInReward, EmaRules, OverlongPenalty, RewardAggregation,
    RewardRules, RewardWeights, ScaleRewards, TemporalIou, find_python_function, function_name,
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    BestMetric, ImportanceSamplingLevel, LossType, LossVariants, RunOptions, ToolOptions, TrainingOptions, check,
    range, run,
};
use crate::Result;

/// The special value of `--reward-env` that stands for no variables.
const NO_VARIABLE: &str = "none";

/// The options of `reel grpo`, including those of all training commands.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[command(
    next_help_heading = "GRPO options",
    mut_arg("lr_scheduler_type", |a| a.default_value("cosine")),
    mut_arg("weight_decay", |a| a.default_value("0.01")),
    mut_arg("per_device_train_batch_size", |a| a.default_value("8").help("Micro-batch size in completions: a multiple of --num-generations")),
    mut_arg("gradient_accumulation_steps", |a| a.default_value("1")),
)]
pub struct GrpoOptions {
    /// The options of every run.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunOptions,

    /// Group size: completions sampled for each prompt
    #[arg(long, value_name = "G", default_value_t = 8)]
    pub num_generations: usize,
    /// Training steps on each set of completions
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub num_iterations: u64,
    /// How the loss averages over tokens; cispo is a loss of its own
    #[arg(long, value_enum, default_value_t)]
    pub loss_type: LossType,
    /// Whether importance ratios are per token or per sequence
    #[arg(long, value_enum, default_value_t)]
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// Standard deviation that advantages are divided by: of the group, of the batch, none, or the moving deviation of
    /// the problem_type (EMA-GRPO)
    #[arg(long, value_enum, default_value_t)]
    pub scale_rewards: ScaleRewards,
    /// Baseline of advantages: the mean of the group, or the mean of its other completions (leave-one-out)
    #[arg(long, value_enum, default_value_t)]
    pub advantage_estimator: AdvantageEstimator,
    /// Whether the sum of the rewards is normalized, or each reward in its group and their sum over the step (GDPO)
    #[arg(long, value_enum, default_value_t)]
    pub multi_objective_aggregation: RewardAggregation,
    /// The options of `--scale-rewards ema`.
    #[command(flatten)]
    #[serde(flatten)]
    pub ema: EmaRules,
    /// Clipping range: importance ratios are clipped below 1 - epsilon and above 1 + epsilon
    #[arg(long, value_name = "E", default_value_t = 0.2)]
    pub epsilon: f64,
    /// Upper clipping range: importance ratios are clipped above 1 + E, with --loss-type cispo above E (then 5 is usual)
    /// [default: --epsilon]
    #[arg(long, value_name = "E")]
    pub epsilon_high: Option<f64>,
    /// Weight of the KL divergence from the reference model; 0 needs no copy of the reference weights
    #[arg(long, value_name = "B", default_value_t = 0.04)]
    pub beta: f64,
    /// The options of the loss besides its type.
    #[command(flatten)]
    #[serde(flatten)]
    pub variants: LossVariants,

    /// Maximum tokens of a completion
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub max_completion_length: usize,
    /// Minimum tokens of a completion: until then, end tokens are banned
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub min_completion_length: usize,
    /// Maximum tokens of a prompt; rows with longer prompts are skipped and counted [default: no limit]
    #[arg(long, value_name = "TOKENS")]
    pub max_prompt_length: Option<usize>,
    /// Sampling temperature; also applies to the log-probabilities in the loss
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f64,
    /// Sample from the K most likely tokens; 0 and -1: from all tokens
    #[arg(long, value_name = "K", default_value_t = 0)]
    #[serde(deserialize_with = "top_k")]
    pub top_k: u32,
    /// Exclude completions that reach --max-completion-length from the loss
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub mask_truncated_completions: bool,

    /// Temporal reward (T-GRPO): a bonus if answers to ordered frames are at least as accurate as answers to shuffled
    /// frames, for which half as many more completions are sampled
    #[arg(long)]
    pub temporal: bool,
    /// Semantic reward (VideoRFT): SigLIP model folder; rewards correct answers whose reasoning is similar to the
    /// frames
    #[arg(long, value_name = "DIR")]
    pub siglip: Option<PathBuf>,
    /// Custom reward: a command that reads and writes JSON lines (see `docs/examples/rewards.py`); given several times,
    /// the rewards are summed with --reward-weights
    #[arg(long, value_name = "CMD")]
    #[serde(with = "text_or_list")]
    pub reward_command: Vec<String>,
    /// Custom rewards: Python functions as TRL takes them, FILE.py:NAME or MODULE:NAME. With this option, the rewards
    /// accuracy and format count only if they are named, too
    #[arg(long, value_name = "FUNCTION,…", value_delimiter = ',', num_args = 1.., action = ArgAction::Append)]
    pub reward_funcs: Vec<String>,
    /// Custom reward: a URL that scores completions
    #[arg(long, value_name = "URL")]
    pub reward_url: Option<String>,
    /// Environment variables that --reward-command and --reward-funcs get besides PATH, HOME, USER, SHELL, LANG, LC_ALL
    /// and TMPDIR; none gives them only these [default: they get the whole environment]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub reward_env: Option<Vec<String>>,
    /// Time limit in seconds for scoring the completions of one step with custom rewards; the run ends if it is
    /// exceeded
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    pub reward_timeout: f64,
    /// Weights of the rewards in the sum: NAME=WEIGHT,… for accuracy, format, temporal, semantic, length, structure,
    /// overlong, command (of several: command_1, command_2, …), functions by their names, and url; or, as in TRL, one
    /// number for each --reward-command, name in --reward-funcs, and --reward-url [default: 1 each]
    #[arg(long, value_name = "NAME=W,…")]
    #[serde(deserialize_with = "numbers_or_text")]
    pub reward_weights: Option<String>,
    /// Length reward of correct answers of 320 to 512 tokens [default: true; false with custom rewards]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub len_control: Option<bool>,
    /// How segments of time are compared, for temporal grounding; time-r1 needs the column duration
    #[arg(long, value_enum, default_value_t)]
    pub temporal_iou: TemporalIou,
    /// Structure reward (OneThinker): up to 0.5 for an answer in the required format that is JSON with the fields of
    /// its problem_type
    #[arg(long)]
    pub structure_reward: bool,
    /// Soft overlong penalty (DAPO): down to -1 over the last N tokens before --max-completion-length
    #[arg(long, value_name = "N")]
    pub overlong_cache: Option<usize>,
    /// Dynamic sampling (DAPO): replace groups whose rewards are all equal by groups of further rows
    #[arg(long)]
    pub dynamic_sampling: bool,

    /// The tools that the model may call.
    #[command(flatten)]
    #[serde(flatten)]
    pub tool: ToolOptions,

    /// Train on given completions instead of sampling: a JSON line per group with row, completions, rewards
    #[arg(long, value_name = "FILE")]
    pub rollouts: Option<PathBuf>,
    /// Folder with the recorded rollouts of a run, which `reel replay` uses instead of sampling. This option has no
    /// flag.
    #[arg(skip)]
    #[serde(skip)]
    pub recorded: Option<PathBuf>,
    /// Shared prefix: compute the prompt of a group once per training pass instead of once per completion
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    pub shared_prefix: bool,
}

run::extends_run_options!(GrpoOptions);

/// Serializes a list of texts. An empty list is written as null and a single text as a string, as in `run.json` of
/// earlier versions, which allowed only one text. Reads null, a string or a list.
mod text_or_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a text or a list of texts")]
    enum Texts {
        One(String),
        List(Vec<String>),
    }

    pub fn serialize<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        match texts {
            [] => serializer.serialize_none(),
            [one] => one.serialize(serializer),
            list => list.serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        Ok(match Option::deserialize(deserializer)? {
            None => Vec::new(),
            Some(Texts::One(text)) => vec![text],
            Some(Texts::List(list)) => list,
        })
    }
}

/// Reads `top_k`. The value -1 stands for all tokens in vLLM, like 0 here.
fn top_k<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let unsigned = u32::try_from(if number == -1 { 0 } else { number });
    unsigned.map_err(|_| serde::de::Error::custom("give 0 or more, or -1 for all tokens"))
}

/// Reads reward weights: a text, or a list of numbers as in TRL's configuration files. The list is converted to a
/// text such as `1,0.5`.
fn numbers_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a text or a list of numbers")]
    enum Weights {
        Text(String),
        Numbers(Vec<f64>),
    }
    Ok(Option::deserialize(deserializer)?.map(|weights| match weights {
        Weights::Text(text) => text,
        Weights::Numbers(list) => list.iter().map(f64::to_string).collect::<Vec<_>>().join(","),
    }))
}

impl GrpoOptions {
    /// Number of prompts per step. Each prompt has a group of completions.
    pub fn groups_per_step(&self) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps / self.num_generations.max(1)
    }

    /// Groups per micro-batch.
    pub fn groups_per_micro_batch(&self) -> usize {
        self.per_device_train_batch_size / self.num_generations.max(1)
    }

    /// Returns the weight of each reward. The weight of the length reward is 0 with `--len-control false`.
    ///
    /// # Errors
    /// A name is not a reward or is given twice, a weight is not a number, or the count of numbers differs from the
    /// count of custom rewards.
    pub fn reward_weights(&self) -> Result<RewardWeights> {
        let names = self.weighted_reward_names();
        let given = self.reward_weights.as_deref().map(|text| RewardWeights::parse(text, &names));
        let mut weights = given.transpose()?.unwrap_or_default();
        if !self.reward_funcs.is_empty() {
            let is_named = |name: &&str| self.reward_funcs.iter().any(|named| named == *name);
            weights = weights.with_default_weight_zero(BuiltInReward::listed_names().filter(|name| !is_named(name)));
        }
        Ok(if self.len_control == Some(false) { weights.without_length_reward()? } else { weights })
    }

    /// The rules by which answers are scored.
    pub fn answer_rules(&self) -> AnswerRules {
        AnswerRules { recipe: self.parity, temporal_iou: self.temporal_iou }
    }

    /// The rules by which completions are scored.
    ///
    /// # Errors
    /// A weight or the overlong penalty is invalid.
    pub fn reward_rules(&self) -> Result<RewardRules> {
        let overlong = self.overlong_cache.map(|cache| OverlongPenalty::new(cache, self.max_completion_length));
        Ok(RewardRules {
            answers: self.answer_rules(),
            has_structure_reward: self.structure_reward,
            overlong: overlong.transpose()?,
            weights: self.reward_weights()?,
            scale: self.scale_rewards,
        })
    }

    /// The rules by which rewards become advantages.
    ///
    /// # Errors
    /// A weight is invalid.
    pub fn advantage_rules(&self) -> Result<AdvantageRules> {
        Ok(AdvantageRules {
            scale: self.scale_rewards,
            estimator: self.advantage_estimator,
            aggregation: self.multi_objective_aggregation,
            ema: self.ema,
            weights: self.reward_weights()?,
        })
    }

    /// Whether the user gives a reward command, function or URL.
    pub fn has_custom_reward(&self) -> bool {
        !self.reward_command.is_empty() || self.python_reward_functions().next().is_some() || self.reward_url.is_some()
    }

    /// The Python functions in `--reward-funcs`, without the names of built-in rewards.
    pub fn python_reward_functions(&self) -> impl Iterator<Item = &str> {
        self.reward_funcs
            .iter()
            .map(String::as_str)
            .filter(|name| !BuiltInReward::listed_names().any(|own| own == *name))
    }

    /// The names of the custom rewards: the commands, the functions, then the URL. A single command is `command`;
    /// several are `command_1`, `command_2` and so on. A function has its own name.
    pub fn custom_reward_names(&self) -> Vec<String> {
        self.reward_names(self.python_reward_functions())
    }

    /// The names of the rewards in the order of the numbers of `--reward-weights`.
    fn weighted_reward_names(&self) -> Vec<String> {
        self.reward_names(self.reward_funcs.iter().map(String::as_str))
    }

    fn reward_names<'a>(&self, functions: impl Iterator<Item = &'a str>) -> Vec<String> {
        let commands = match self.reward_command.len() {
            1 => vec!["command".to_string()],
            n => (1..=n).map(|i| format!("command_{i}")).collect(),
        };
        let functions = functions.map(|function| function_name(function).unwrap_or(function).to_string());
        let url = self.reward_url.iter().map(|_| "url".to_string());
        commands.into_iter().chain(functions).chain(url).collect()
    }

    /// The environment variables that the reward command gets in addition to the basic ones; `None` stands for all
    /// variables.
    pub fn reward_environment(&self) -> Option<Vec<String>> {
        let names = self.reward_env.as_ref()?;
        Some(names.iter().filter(|name| *name != NO_VARIABLE).cloned().collect())
    }

    /// Checks that each Python function has a different name from all other rewards of the run.
    fn validate_functions(&self) -> Result<()> {
        let is_used = |reward: &BuiltInReward| match reward {
            BuiltInReward::Accuracy | BuiltInReward::Format => true,
            BuiltInReward::Temporal => self.temporal,
            BuiltInReward::Semantic => self.siglip.is_some(),
            BuiltInReward::Length => self.len_control == Some(false),
            BuiltInReward::Structure => self.structure_reward,
            BuiltInReward::Overlong => self.overlong_cache.is_some(),
        };
        let own = BuiltInReward::ALL.into_iter().filter(is_used);
        let mut names: Vec<String> = own.map(|reward| reward.name().to_string()).collect();
        self.python_reward_functions().try_for_each(|function| function_name(function).map(drop))?;
        for name in self.custom_reward_names() {
            let what = format!("has two rewards with the name {name}");
            check(!names.contains(&name), "--reward-funcs", what, "give the function another name")?;
            names.push(name);
        }
        Ok(())
    }

    /// The upper clipping range of importance ratios: `--epsilon-high` or, without it, `--epsilon`.
    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(self.epsilon)
    }
}

impl TrainingOptions for GrpoOptions {
    const COMMAND: &'static str = "grpo";

    fn code_files(&self) -> Vec<PathBuf> {
        let functions = self.python_reward_functions().chain(self.tool.tools.iter().map(String::as_str));
        let files = functions.filter_map(|function| Some(PathBuf::from(function.rsplit_once(':')?.0)));
        files.filter(|file| file.extension().is_some_and(|end| end == "py")).collect()
    }

    fn tools(&self) -> Option<&ToolOptions> {
        Some(&self.tool)
    }

    fn check_programs(&self) -> Result<()> {
        let environment = self.reward_environment();
        let find = |function| find_python_function(function, environment.as_deref());
        self.python_reward_functions().try_for_each(find)
    }

    fn validate_values(&self) -> Result<()> {
        self.run.validate_values(false)?;
        check(
            self.evaluation.metric_for_best_model != Some(BestMetric::EvalLoss),
            "--metric-for-best-model",
            "is eval_loss, but grpo has no validation loss".into(),
            "give eval, reward or none",
        )?;
        let generations = self.num_generations;
        check(
            generations >= 2,
            "--num-generations",
            format!("is {generations}, but an advantage compares several completions of a group"),
            "give 2 or more",
        )?;
        let batch = self.per_device_train_batch_size;
        check(
            batch.is_multiple_of(generations),
            "--per-device-train-batch-size",
            format!("is {batch}, which is not a multiple of --num-generations {generations}"),
            "give a multiple of the group size: the batch size counts completions, and groups are not split",
        )?;
        check(self.num_iterations > 0, "--num-iterations", "is 0".into(), "give 1 or more")?;
        let at_least_0 = |flag: &str, x: f64| range(flag, x, x >= 0.0, "give a finite number, 0 or more");
        at_least_0("--epsilon", self.epsilon)?;
        at_least_0("--epsilon-high", self.epsilon_high())?;
        check(
            self.loss_type != LossType::Cispo || self.epsilon_high() > 0.0,
            "--epsilon-high",
            "is 0, so --loss-type cispo learns nothing".into(),
            "give the largest importance ratio, such as 5",
        )?;
        self.variants.validate()?;
        at_least_0("--beta", self.beta)?;
        range("--temperature", self.temperature, self.temperature > 0.0, "give a finite number above 0")?;
        range("--top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "give a share above 0, at most 1")?;
        check(self.max_completion_length > 0, "--max-completion-length", "is 0".into(), "give 1 or more")?;
        check(self.max_prompt_length != Some(0), "--max-prompt-length", "is 0".into(), "give 1 or more")?;
        self.validate_functions()?;
        self.reward_rules()?;
        self.advantage_rules()?.validate()?;
        let timeout = self.reward_timeout;
        let names = self.reward_env.as_deref().unwrap_or_default();
        check(
            names.iter().all(|name| !name.is_empty() && !name.contains(['=', '\0'])),
            "--reward-env",
            format!("is {:?}", names.join(",")),
            "give names of environment variables, or none",
        )?;
        check(
            self.reward_env.is_none()
                || !self.reward_command.is_empty()
                || self.python_reward_functions().next().is_some(),
            "--reward-env",
            "is for --reward-command and --reward-funcs, which are not given".into(),
            "give one of them too, or leave --reward-env out",
        )?;
        range("--reward-timeout", timeout, timeout > 0.0 && timeout < 1e9, "give a number of seconds above 0")?;
        let scores_completions = self.temporal
            || self.siglip.is_some()
            || self.has_custom_reward()
            || !self.reward_funcs.is_empty()
            || self.reward_weights.is_some()
            || self.len_control.is_some()
            || self.temporal_iou != TemporalIou::default()
            || self.structure_reward
            || self.overlong_cache.is_some()
            || self.multi_objective_aggregation != RewardAggregation::default()
            || self.dynamic_sampling;
        check(
            self.rollouts.is_none() || !scores_completions,
            "--rollouts",
            "already contains the rewards, so --temporal, --siglip, --reward-command, --reward-funcs, --reward-url, --reward-weights, --len-control, --temporal-iou, --structure-reward, --overlong-cache, --multi-objective-aggregation and --dynamic-sampling have no effect".into(),
            "remove --rollouts or these options",
        )?;
        check(
            self.len_control != Some(true) || !self.has_custom_reward(),
            "--len-control",
            "is true, but custom rewards replace the length reward".into(),
            "leave --len-control out, or compute a length reward in your custom reward",
        )?;
        check(
            !self.temporal || self.parity.temporal_min_ratio().is_some(),
            "--temporal",
            "is a reward that --parity videorft does not have".into(),
            "leave one of the two out",
        )?;
        self.tool.validate()?;
        check(
            !self.tool.are_given() || !self.temporal,
            "--temporal",
            "scores answers to shuffled frames, and tools show frames of the video in their order".into(),
            "leave --temporal or --tools out",
        )?;
        check(
            !self.tool.are_given() || self.rollouts.is_none(),
            "--rollouts",
            "has completions, so no tools are called".into(),
            "leave --rollouts or --tools out",
        )?;
        let (least, most) = (self.min_completion_length, self.max_completion_length);
        check(
            least <= most,
            "--min-completion-length",
            format!("is {least}, more than --max-completion-length {most}"),
            "lower --min-completion-length",
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
    fn defaults_match_the_recipes() {
        let o = GrpoOptions::default();
        assert_eq!((o.learning_rate, o.lr_scheduler_type, o.weight_decay), (1e-6, LrScheduler::Cosine, 0.01));
        assert_eq!((o.max_grad_norm, o.num_generations, o.beta, o.loss_type), (5.0, 8, 0.04, LossType::Grpo));
        assert_eq!((o.temperature, o.top_p, o.top_k, o.max_completion_length), (1.0, 0.95, 0, 1024));
        assert_eq!((o.num_iterations, o.groups_per_step(), o.optim, o.epsilon_high()), (1, 1, Optim::Adamw, 0.2));
        o.validate_values().unwrap();
    }

    #[test]
    fn batch_size_counts_completions() {
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
    fn len_control_switches_the_length_reward() {
        let length = |args: &[&str]| parse(args).reward_weights().unwrap().weight("length");
        assert_eq!(length(&[]), 1.0);
        assert_eq!(length(&["--len-control", "true"]), 1.0);
        assert_eq!(length(&["--len-control", "false"]), 0.0);
        assert_eq!(length(&["--len-control", "false", "--reward-weights", "format=0.5"]), 0.0);
    }

    #[test]
    fn weights_without_names_are_those_of_the_custom_rewards() {
        let two = ["--reward-command", "a", "--reward-command", "b"];
        let weights = |args: &[&str], names: [&str; 3]| {
            let weights = parse(&[&two[..], args].concat()).reward_weights().unwrap();
            names.map(|name| weights.weight(name))
        };
        let names = ["accuracy", "command_1", "command_2"];
        assert_eq!(weights(&[], names), [1.0; 3]);
        assert_eq!(weights(&["--reward-weights", "0.5,-2"], names), [1.0, 0.5, -2.0]);
        assert_eq!(weights(&["--reward-weights", "command_2=3"], names), [1.0, 1.0, 3.0]);
        let with_url = ["--reward-url", "http://x", "--reward-weights", "1,2,3", "--len-control", "false"];
        assert_eq!(weights(&with_url, ["url", "length", "command_2"]), [3.0, 0.0, 2.0]);
        for text in ["1", "1,2,3", "command=1", "1,x"] {
            let e = parse(&[&two[..], &["--reward-weights", text]].concat()).validate_values().unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with("--reward-weights: "), "{text}: {e}");
        }
    }

    /// In `run.json` and configuration files, `reward_command` is null for no command, a string for one and a list
    /// for several. Earlier versions wrote only null or a string.
    #[test]
    fn functions_have_names_and_weights() {
        let o = parse(&["--reward-funcs", "my.py:brevity", "lib.rewards:tone", "--reward-weights", "2,0.5"]);
        o.validate_values().unwrap();
        assert_eq!(
            (o.custom_reward_names(), o.code_files()),
            (vec!["brevity".into(), "tone".into()], vec!["my.py".into()])
        );
        let weights = |args: &[&str]| {
            let weights = parse(args).reward_weights().unwrap();
            ["accuracy", "format", "brevity"].map(|name| weights.weight(name))
        };
        assert_eq!(weights(&["--reward-funcs", "my.py:brevity", "--reward-weights", "2"]), [0.0, 0.0, 2.0]);
        assert_eq!(weights(&["--reward-funcs", "accuracy,my.py:brevity"]), [1.0, 0.0, 1.0]);
        assert_eq!(weights(&["--reward-funcs", "my.py:brevity", "--reward-weights", "format=3"]), [0.0, 3.0, 1.0]);
        assert_eq!(weights(&["--reward-command", "x"]), [1.0, 1.0, 1.0]);
        for (functions, named) in [
            ("cosine", "`cosine` is not the name of a Python function"),
            ("my.py:", "`my.py:` is not"),
            ("a.py:f,b.py:f", "two rewards with the name f"),
            ("a.py:format", "two rewards with the name format"),
        ] {
            let e = parse(&["--reward-funcs", functions]).validate_values().unwrap_err();
            assert!(e.is_usage_error() && e.to_string().contains(named), "{functions}: {e}");
        }
    }

    #[test]
    fn reward_commands_are_null_a_text_or_a_list() {
        for (value, commands) in [("null", &[][..]), ("\"a, b\"", &["a, b"]), ("[\"a\",\"b\"]", &["a", "b"])] {
            let text = format!("{{\"reward_command\":{value},\"reward_weights\":[1.0,0.5]}}");
            let o: GrpoOptions = serde_json::from_str(&text).unwrap();
            assert_eq!(
                (&o.reward_command[..], o.reward_weights.as_deref()),
                (&commands.iter().map(ToString::to_string).collect::<Vec<_>>()[..], Some("1,0.5"))
            );
            assert_eq!(serde_json::to_value(&o).unwrap()["reward_command"].to_string(), value);
        }
    }

    #[test]
    fn invalid_values_are_refused_by_their_flag() {
        let refused: [(&str, &[&str]); 20] = [
            ("--len-control", &["--len-control", "true", "--reward-command", "cat"]),
            ("--reward-weights", &["--len-control", "false", "--reward-weights", "length=1"]),
            ("--temporal", &["--temporal", "--parity", "videorft"]),
            ("--num-generations", &["--num-generations", "1"]),
            ("--per-device-train-batch-size", &["--per-device-train-batch-size", "9"]),
            ("--num-iterations", &["--num-iterations", "0"]),
            ("--epsilon", &["--epsilon=-0.1"]),
            ("--epsilon-high", &["--epsilon-high", "nan"]),
            ("--beta", &["--beta", "inf"]),
            ("--epsilon-high", &["--loss-type", "cispo", "--epsilon", "0"]),
            ("--top-entropy-quantile", &["--top-entropy-quantile", "1.5"]),
            ("--entropy-coef", &["--entropy-coef", "nan"]),
            ("--vllm-importance-sampling-clip-max", &["--vllm-importance-sampling-cap", "inf"]),
            ("--vllm-importance-sampling-clip-max", &["--vllm-importance-sampling-clip-max", "0"]),
            ("--vllm-importance-sampling-clip-min", &["--vllm-importance-sampling-clip-min", "3"]),
            (
                "--vllm-importance-sampling-mode",
                &["--vllm-importance-sampling-mode", "token_mask", "--vllm-importance-sampling-correction", "false"],
            ),
            ("--temperature", &["--temperature", "0"]),
            ("--top-p", &["--top-p", "1.5"]),
            ("--min-completion-length", &["--min-completion-length", "2000"]),
            ("--learning-rate", &["--learning-rate", "nan"]),
        ];
        for (flag, args) in refused {
            let e = parse(args).validate_values().unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with(flag), "{args:?}: {e}");
        }
    }

    #[test]
    fn options_round_trip_through_run_json() {
        let o = parse(&[
            "--loss-type",
            "dr_grpo",
            "--importance-sampling-level",
            "sequence_token",
            "--scale-rewards",
            "none",
            "--entropy-coef",
            "-0.5",
            "--vllm-importance-sampling-mode",
            "token_mask",
        ]);
        let text = serde_json::to_string(&o).unwrap();
        assert_eq!(serde_json::from_str::<GrpoOptions>(&text).unwrap(), o);
        assert!(text.contains("\"importance_sampling_level\":\"sequence_token\""), "{text}");
        assert!(text.contains("\"loss_type\":\"dr_grpo\"") && text.contains("\"scale_rewards\":\"none\""), "{text}");
    }
}
