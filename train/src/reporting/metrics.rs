//! The JSON Lines logs of a run. `metrics.jsonl` gets one line when a step ends, `skipped.jsonl` one line for each
//! unusable row. A resumed run first cuts both back to what its checkpoint recorded, so they become what an
//! uninterrupted run would have written.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use reel_diagnostic::input;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::run_folder::digests::{LogDigest, RunningDigest};
use crate::{Result, TrainError};

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
    /// `tokens / step_seconds`. Depends on the clock.
    pub tokens_per_second: f64,
    /// Seconds from preparing the first row of the step to its updated weights. Depends on the clock.
    pub step_seconds: f64,
    /// Largest number of bytes in the device's buffers since the run began.
    pub peak_bytes: u64,
    /// Fingerprint of the updated weights.
    pub hash: String,
    /// The metrics that only GRPO has; all absent for supervised fine-tuning.
    #[serde(flatten)]
    pub grpo: GrpoMetrics,
}

/// The metrics that a GRPO step has beside those of every step. A field that does not apply to the run is absent from
/// the JSON line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrpoMetrics {
    /// Mean of each reward before its weight is applied. The pair `("accuracy", mean)` is the key `rewards/accuracy`
    /// of the JSON line.
    #[serde(flatten, with = "rewards_by_name")]
    pub rewards: Vec<(String, f64)>,
    /// Frames that SigLIP encoded for this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames_encoded: Option<u64>,
    /// Number of groups that dynamic sampling left out because all their completions had the same reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_groups: Option<u64>,
    /// Seconds of sampling and of the wait for rewards; 0 in further steps on the same completions. Depends on the
    /// clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_seconds: Option<f64>,
    /// Mean weighted reward of the completions that the step trains on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The standard deviation (n − 1) of the rewards within a group, averaged over the groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// Mean over tokens of the k3 estimate of the KL divergence between policy and reference model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Mean tokens of a completion, the end token included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_length: Option<f64>,
    /// Share of tokens whose importance ratio was clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_ratio: Option<f64>,
    /// Mean entropy of the next-token distribution in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Largest difference between the log-probability of a token when it was sampled and in the training forward
    /// pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_drift: Option<f64>,
    /// Seconds of the forward passes, the reference model's included, the backward pass and the update. Depends on the
    /// clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_seconds: Option<f64>,
}

/// Writes and reads the rewards of a step as the keys `rewards/NAME` of its JSON line.
mod rewards_by_name {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    const PREFIX: &str = "rewards/";

    pub fn serialize<S: Serializer>(rewards: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(rewards.iter().map(|(name, mean)| (format!("{PREFIX}{name}"), mean)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, f64)>, D::Error> {
        let fields = Map::<String, Value>::deserialize(deserializer)?;
        let reward = |(key, value): (&String, &Value)| Some((key.strip_prefix(PREFIX)?.to_string(), value.as_f64()?));
        Ok(fields.iter().filter_map(reward).collect())
    }
}

impl StepMetrics {
    /// The numbers that TensorBoard and Weights & Biases get for the step, each with its name `train/KEY`: all
    /// numbers of the JSON line except `step`, `tokens` and `step_seconds`.
    pub fn named_metric_values(&self) -> Vec<(String, f64)> {
        const NOT_SHOWN: [&str; 3] = ["step", "tokens", "step_seconds"];
        let Ok(Value::Object(line)) = serde_json::to_value(self) else { return Vec::new() };
        let shown = line.iter().filter(|(name, _)| !NOT_SHOWN.contains(&name.as_str()));
        shown.filter_map(|(name, value)| Some((format!("train/{name}"), value.as_f64()?))).collect()
    }
}

/// A row that could not be used: one line of `skipped.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// The row, counted from 0.
    pub row: usize,
    /// The line of this row in the data file, counted from 1.
    pub line: usize,
    /// The kind of the error; `None` in lists of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<SkipCause>,
    /// The error that made the row unusable.
    pub reason: String,
}

/// Why a row is skipped. Rows of one cause are usually mended in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipCause {
    /// The row is not JSON, or its fields are wrong.
    Malformed,
    /// The row has more tokens than the limit.
    TooLong,
    /// An image or a video cannot be read.
    Media,
    /// Decoding a video took longer than `--media-timeout`, also when it was tried again.
    DecoderTimeout,
    /// The process that decodes a video was killed by a signal, also when it was tried again.
    DecoderKilled,
    /// Anything else, such as a row without a token to learn.
    Other,
}

impl SkipCause {
    /// The cause in a message: `2 decoder timeout`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too long",
            Self::Media => "unreadable media",
            Self::DecoderTimeout => "decoder timeout",
            Self::DecoderKilled => "decoder killed",
            Self::Other => "other",
        }
    }
}

impl SkippedRow {
    /// The row `row` at line `line` of the data file, which cannot be used because of `e`.
    pub fn new(row: usize, line: usize, e: &TrainError) -> Self {
        Self { row, line, cause: Some(e.skip_cause()), reason: e.to_string() }
    }
}

/// A JSON Lines file that lines are appended to.
#[derive(Debug)]
pub struct JsonlLog {
    path: PathBuf,
    file: File,
    digest: RunningDigest,
}

impl JsonlLog {
    /// Creates the file, replacing an existing one.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| TrainError::cannot_write(path, e))?;
        Ok(Self { path: path.to_path_buf(), file, digest: RunningDigest::default() })
    }

    /// Continues a log: replaces its file by one with `lines`, to which further lines are appended. The new file is
    /// complete before it replaces the old one, so that an interruption loses no line.
    pub fn resume(path: &Path, lines: &[String]) -> Result<Self> {
        let part = path.with_file_name(format!(".{}.part", path.file_name().unwrap_or_default().to_string_lossy()));
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        let failed = |e| TrainError::cannot_write(path, e);
        File::create(&part)
            .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
            .map_err(failed)?;
        std::fs::rename(&part, path).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, digest: RunningDigest::of(text.as_bytes()) })
    }

    /// Length and fingerprint of the lines so far.
    pub fn digest(&self) -> LogDigest {
        self.digest.digest()
    }

    /// Appends a line. It is written to the file, but not synced to the disk, when this returns.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let failed = |e| TrainError::cannot_write(&self.path, e);
        let mut line = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        self.digest.update(&line);
        Ok(())
    }

    /// Waits until all lines are on the disk (fsync).
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| TrainError::cannot_write(&self.path, e))
    }
}

/// Reads a log and returns its lines for which `keep` is true. Stops at the first damaged line, because a killed run
/// may leave half a line. A missing file has no lines.
pub fn read_matching_lines<T: DeserializeOwned>(path: &Path, keep: impl Fn(&T) -> bool) -> Result<Vec<String>> {
    let file = match input::open_regular_file(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(TrainError::cannot_read(path, e)),
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| TrainError::cannot_read(path, e))?;
        let Ok(text) = String::from_utf8(line) else { break };
        let Ok(record) = serde_json::from_str::<T>(&text) else { break };
        if keep(&record) {
            lines.push(text);
        }
    }
    Ok(lines)
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
            grpo: GrpoMetrics::default(),
        }
    }

    #[test]
    fn resumed_log_equals_uninterrupted_log() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        let mut log = JsonlLog::create(&whole).unwrap();
        (1..=5).for_each(|n| log.append(&line(n)).unwrap());
        let mut log = JsonlLog::create(&broken).unwrap();
        (1..=4).for_each(|n| log.append(&line(n)).unwrap());
        let bytes = std::fs::read(&broken).unwrap();
        for cut in [bytes.len(), bytes.len() - 1, bytes.len() - 20, bytes.len() / 4 * 3 + 1] {
            std::fs::write(&broken, &bytes[..cut]).unwrap();
            let kept = read_matching_lines(&broken, |m: &StepMetrics| m.step <= 2).unwrap();
            assert_eq!(kept.len(), 2);
            let mut log = JsonlLog::resume(&broken, &kept).unwrap();
            (3..=5).for_each(|n| log.append(&line(n)).unwrap());
            log.sync().unwrap();
            assert_eq!(std::fs::read(&broken).unwrap(), std::fs::read(&whole).unwrap());
        }
    }

    #[test]
    fn a_device_in_place_of_a_log_is_refused() {
        let error = read_matching_lines(Path::new("/dev/zero"), |_: &StepMetrics| true).unwrap_err().to_string();
        assert!(error.starts_with("/dev/zero: is not a regular file"), "{error}");
    }

    #[test]
    fn json_keys_keep_their_order() {
        let text = serde_json::to_string(&line(1)).unwrap();
        let want = r#"{"step":1,"loss":1.5,"grad_norm":0.25,"learning_rate":1e-6,"tokens":10,"tokens_per_second":5.0,"step_seconds":2.0,"peak_bytes":7,"hash":"00"}"#;
        assert_eq!(text, want);
        let grpo = GrpoMetrics {
            rewards: vec![("format".into(), 0.5), ("accuracy".into(), 1.0)],
            frames_encoded: Some(16),
            rollout_seconds: Some(0.0),
            reward: Some(1.5),
            rollout_drift: Some(f64::from(0.1f32)),
            train_seconds: Some(2.0),
            ..GrpoMetrics::default()
        };
        let step = StepMetrics { grpo, ..line(1) };
        let text = serde_json::to_string(&step).unwrap();
        let end = r#","rewards/format":0.5,"rewards/accuracy":1.0,"frames_encoded":16,"rollout_seconds":0.0,"reward":1.5,"rollout_drift":0.10000000149011612,"train_seconds":2.0}"#;
        assert_eq!(text, format!("{}{end}", want.trim_end_matches('}')));
        assert_eq!(serde_json::from_str::<StepMetrics>(&text).unwrap(), step);
        let names: Vec<String> = step.named_metric_values().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"]);
        assert_eq!(names[4..7], ["train/peak_bytes", "train/rewards/format", "train/rewards/accuracy"]);
    }

    #[test]
    fn missing_log_is_empty_and_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_matching_lines(&dir.path().join("x"), |_: &SkippedRow| true).unwrap().is_empty());
        let e = JsonlLog::create(&dir.path().join("no/x")).unwrap_err().to_string();
        assert!(e.contains("no/x: cannot be written: the folder ") && e.contains(" does not exist; "), "{e}");
    }
}
