//! The report of a training step: its metrics (a line of `metrics.jsonl`) and a preview of its rollouts.

use reel_input::media::strip::PngImage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::hardware_metrics::HardwareMetrics;

/// The metrics of one finished step: one line of `metrics.jsonl`, with the keys in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean loss of the micro-batches.
    pub loss: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the decoder in this step.
    pub learning_rate: f64,
    /// Number of tokens in the forward and backward passes of the step, learned or not.
    pub tokens: u64,
    /// `tokens / step_seconds`. The value depends on the clock, so it differs between equal runs.
    pub tokens_per_second: f64,
    /// Seconds from preparing the step's first row to the updated weights. The value depends on the clock.
    pub step_seconds: f64,
    /// Largest number of bytes in the device's buffers since the run began.
    pub peak_bytes: u64,
    /// Fingerprint of the updated weights.
    pub hash: String,
    /// The state of the machine during the step; the values differ between equal runs.
    #[serde(flatten)]
    pub hardware: HardwareMetrics,
    /// The metrics that only a GRPO step has; they are all absent for supervised fine-tuning.
    #[serde(flatten)]
    pub grpo: GrpoMetrics,
    /// The validation loss after the step; its fields are absent if it was not computed.
    #[serde(flatten)]
    pub validation: Option<ValidationLoss>,
}

/// The metrics that only a GRPO step has. A field that does not apply to the run is absent from the JSON line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrpoMetrics {
    /// Mean of each reward before its weight is applied, `("rewards/accuracy", mean)`, and of each metric that a reward
    /// function logs, `("logged/NAME", mean)`; counts `("malformed/REASON", n)` and means `("tools/NAME", mean)`. The
    /// names are keys of the JSON line, and the only ones with `/`.
    #[serde(flatten, with = "rewards_by_name")]
    pub rewards: Vec<(String, f64)>,
    /// Number of rewards of this step that were NaN, which counts as None.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nan_rewards: Option<u64>,
    /// Number of completions that the step trains on without a reward: no reward function applies to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completions_without_reward: Option<u64>,
    /// Number of frames that SigLIP encoded for this step. Only frames that are not in the cache of a process are
    /// encoded, so the number differs in a resumed run or with another number of processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames_encoded: Option<u64>,
    /// Number of groups that dynamic sampling left out because all their completions had the same reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_groups: Option<u64>,
    /// Seconds of sampling completions and of waiting for their rewards. 0 in further steps on the same completions.
    /// The value depends on the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_seconds: Option<f64>,
    /// Mean weighted reward of the completions that the step trains on and that have a reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The standard deviation (n − 1) of the rewards within a group, averaged over the groups with several rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// Share of the groups that the step trains on whose rewards are all equal, or which have fewer than two rewards:
    /// their advantages are 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frac_reward_zero_std: Option<f64>,
    /// Mean over tokens of the k3 estimate of the KL divergence between policy and reference model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Mean number of tokens of a completion, including the end token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_length: Option<f64>,
    /// Share of tokens whose importance ratio was clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_ratio: Option<f64>,
    /// Mean entropy of the next-token distribution in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Largest difference between the log-probabilities of a token in sampling and in the forward pass of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_drift: Option<f64>,
    /// Seconds of the forward passes (including the reference model's), the backward passes and the weight update.
    /// The value depends on the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_seconds: Option<f64>,
}

/// The loss of a set of validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationLoss {
    /// The mean negative log-probability of all learned tokens of all rows.
    pub eval_loss: f64,
    /// Number of learned tokens in the validation rows.
    pub eval_tokens: u64,
    /// Number of validation rows whose loss was computed.
    pub eval_rows: usize,
    /// Number of rows that could not be used, in addition to the rows of the loss.
    pub eval_skipped: usize,
    /// Fingerprint of the set of rows. Losses of different sets are not comparable.
    pub eval_data_hash: String,
}

/// Writes and reads the rewards and logged metrics of a step as keys of its JSON line.
mod rewards_by_name {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    pub fn serialize<S: Serializer>(rewards: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(rewards.iter().map(|(key, mean)| (key, mean)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, f64)>, D::Error> {
        let fields = Map::<String, Value>::deserialize(deserializer)?;
        // Only these keys have a group and a name: rewards/accuracy, logged/…, malformed/…, tools/….
        let number = |(key, value): (String, Value)| Some((key, value.as_f64()?));
        Ok(fields.into_iter().filter(|(key, _)| key.contains('/')).filter_map(number).collect())
    }
}

impl StepMetrics {
    /// Returns the numbers that are reported to TensorBoard and Weights & Biases, each with its name `train/KEY`.
    /// These are all numbers of the JSON line except `step`, `tokens`, `step_seconds` and the numbers of an
    /// evaluation, which have other names.
    pub fn named_metric_values(&self) -> Vec<(String, f64)> {
        const NOT_SHOWN: [&str; 3] = ["step", "tokens", "step_seconds"];
        let Ok(Value::Object(line)) = serde_json::to_value(self) else { return Vec::new() };
        let is_shown = |name: &str| !NOT_SHOWN.contains(&name) && !name.starts_with("eval_");
        let shown = line.iter().filter(|(name, _)| is_shown(name));
        shown.filter_map(|(name, value)| Some((format!("train/{name}"), value.as_f64()?))).collect()
    }
}

/// Some of the rollouts of a step, to show in TensorBoard and Weights & Biases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutPreview {
    /// The rewards of all completions of the step.
    pub rewards: Vec<f32>,
    /// The first prompt's completions with their rewards, as Markdown.
    pub text: String,
    /// Frames of the first prompt's video side by side, or the prompt's image.
    pub strip: Option<PngImage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.5,
            grad_norm: 0.25,
            learning_rate: 1e-6,
            tokens: 10,
            tokens_per_second: 5.0,
            step_seconds: 2.0,
            peak_bytes: 7,
            hash: "00".into(),
            hardware: HardwareMetrics::default(),
            grpo: GrpoMetrics::default(),
            validation: None,
        }
    }

    #[test]
    fn validation_loss_is_part_of_its_step() {
        let loss = ValidationLoss {
            eval_loss: 0.5,
            eval_tokens: 9,
            eval_rows: 2,
            eval_skipped: 0,
            eval_data_hash: "01".into(),
        };
        let step = StepMetrics { validation: Some(loss), ..line(1) };
        let text = serde_json::to_string(&step).unwrap();
        let end = r#","eval_loss":0.5,"eval_tokens":9,"eval_rows":2,"eval_skipped":0,"eval_data_hash":"01"}"#;
        assert!(text.ends_with(end), "{text}");
        assert_eq!(serde_json::from_str::<StepMetrics>(&text).unwrap(), step);
        assert_eq!(step.named_metric_values(), line(1).named_metric_values());
    }

    #[test]
    fn json_keys_keep_their_order() {
        let text = serde_json::to_string(&line(1)).unwrap();
        let want = r#"{"step":1,"loss":1.5,"grad_norm":0.25,"learning_rate":1e-6,"tokens":10,"tokens_per_second":5.0,"step_seconds":2.0,"peak_bytes":7,"hash":"00"}"#;
        assert_eq!(text, want);
        let grpo = GrpoMetrics {
            rewards: vec![("rewards/format".into(), 0.5), ("logged/accuracy".into(), 1.0)],
            frames_encoded: Some(16),
            rollout_seconds: Some(0.0),
            reward: Some(1.5),
            rollout_drift: Some(f64::from(0.1f32)),
            train_seconds: Some(2.0),
            ..GrpoMetrics::default()
        };
        let step = StepMetrics { grpo, ..line(1) };
        let text = serde_json::to_string(&step).unwrap();
        let end = r#","rewards/format":0.5,"logged/accuracy":1.0,"frames_encoded":16,"rollout_seconds":0.0,"reward":1.5,"rollout_drift":0.10000000149011612,"train_seconds":2.0}"#;
        assert_eq!(text, format!("{}{end}", want.trim_end_matches('}')));
        assert_eq!(serde_json::from_str::<StepMetrics>(&text).unwrap(), step);
        let names: Vec<String> = step.named_metric_values().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"]);
        assert_eq!(names[4..7], ["train/peak_bytes", "train/rewards/format", "train/logged/accuracy"]);
    }
}
