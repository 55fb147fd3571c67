//! The inputs of a run. The program that starts a run may attach a server for the model in training ([`LiveServer`])
//! and an evaluator that is called between steps ([`PolicyEvaluator`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_device::{DType, Device};
use reel_input::MediaOptions;
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_support::ranks::Ranks;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::options::{GrpoOptions, SftOptions, TrainingOptions};

/// The inputs of a training run.
#[derive(Debug)]
pub struct RunSetup<'a, O> {
    /// The options of the command.
    pub options: &'a O,
    /// The local folder of the model in `options.model`.
    pub model: &'a Path,
    /// The device on which the run computes.
    pub device: &'a Device,
    /// Dtype of weights and activations, F32 or BF16.
    pub dtype: DType,
    /// Seed of the row order and of all random numbers.
    pub seed: u64,
    /// Options for reading images and videos, such as pixel limits. One of them is replaced: `options.parity` decides
    /// whether M-RoPE uses the true seconds between frames.
    pub media: &'a MediaOptions,
    /// All options as a JSON object, for `run.json`.
    pub resolved: &'a Value,
    /// Whether only errors are printed.
    pub quiet: bool,
    /// Whether the output of reward programs is also printed.
    pub verbose: bool,
    /// Set to true, by Ctrl-C, when the run must stop.
    pub stop: &'a AtomicBool,
    /// Set to true, by SIGUSR1, when the run must write a checkpoint after the current step and continue.
    pub save: Option<&'a AtomicBool>,
    /// The evaluator of the model in training (`--eval-steps`), if any.
    pub evaluator: Option<&'a dyn PolicyEvaluator>,
    /// The profiler of some of the steps (`--profile-steps`), if any.
    pub profiler: Option<&'a dyn StepProfiler>,
    /// The other processes of the run, if there are several.
    pub ranks: Option<RunRanks<'a>>,
    /// Peak operations per second of the device for `dtype` by its data sheet, if known. MFU is relative to this
    /// rate.
    pub peak_flops_per_second: Option<f64>,
}

/// Profiles some steps of a run.
pub trait StepProfiler: std::fmt::Debug {
    /// Called before step `n` begins.
    ///
    /// # Errors
    /// A launch in flight has failed.
    fn before_step(&self, n: u64) -> Result<()>;
    /// Called after step `n`, its evaluation and its checkpoint.
    ///
    /// # Errors
    /// A launch in flight has failed; the profile cannot be written.
    fn after_step(&self, n: u64) -> Result<()>;
}

/// The processes (ranks) of a run. Rank 0 writes OUT.
#[derive(Clone, Copy, Debug)]
pub struct RunRanks<'a> {
    /// The communication with all ranks of the run.
    pub ranks: &'a Arc<Ranks>,
    /// The output folder of rank 0, in which all ranks write checkpoints together.
    pub out: &'a Path,
    /// Set to true, by Ctrl-C, on this rank. The ranks then agree on [`RunSetup::stop`], so that all stop before the
    /// same step.
    pub interrupted: &'a AtomicBool,
}

impl RunRanks<'_> {
    /// Whether this is rank 0, which writes the files of the run.
    pub fn is_rank_0(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Returns the value of rank 0 on all ranks. Rank 0 passes `Some`, the other ranks pass `None`.
    ///
    /// # Errors
    /// Another rank has failed, or rank 0 runs another version of the program.
    pub fn broadcast<T: Serialize + DeserializeOwned>(&self, name: &str, value: Option<T>) -> Result<T> {
        let bytes = value.as_ref().map(|value| serde_json::to_vec(value).unwrap_or_default());
        let bytes = self.ranks.broadcast(name, 0, bytes)?;
        // Rank 0 returns its own value, because the last bit of a number may change when it is written and read.
        value.map_or_else(|| Self::parse_message_of_rank(0, &bytes), Ok)
    }

    /// Parses a value that rank `rank` has sent as JSON.
    ///
    /// # Errors
    /// The rank runs another version of the program.
    pub fn parse_message_of_rank<T: DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|e| {
            let help = "start all ranks with the same version of the program";
            Error::failed(format!("rank {rank}"), format!("sent data that this rank cannot read: {e}"), help)
        })
    }
}

impl<'a, O> RunSetup<'a, O> {
    /// Makes the inputs for work on the rows of a run that trains nothing and prints nothing: a plan, or showing a row.
    /// The fields have the same meaning as in [`RunSetup`].
    pub fn without_training(
        options: &'a O,
        model: &'a Path,
        device: &'a Device,
        dtype: DType,
        media: &'a MediaOptions,
        seed: u64,
    ) -> Self {
        static NOTHING: Value = Value::Null;
        static NEVER: AtomicBool = AtomicBool::new(false);
        RunSetup {
            options,
            model,
            device,
            dtype,
            seed,
            media,
            resolved: &NOTHING,
            quiet: true,
            verbose: false,
            stop: &NEVER,
            save: None,
            evaluator: None,
            profiler: None,
            ranks: None,
            peak_flops_per_second: None,
        }
    }
}

impl<O: TrainingOptions> RunSetup<'_, O> {
    /// The output folder that the command names. In `options.out`, ranks other than 0 have a folder of their own.
    pub fn shared_out(&self) -> &Path {
        self.ranks.map_or(&self.options.out, |run| run.out)
    }
}

impl<O> Clone for RunSetup<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for RunSetup<'_, O> {}

/// The options, model and device of a supervised fine-tuning run.
pub type SftSetup<'a> = RunSetup<'a, SftOptions>;

/// The options, model and device of a GRPO run.
pub type GrpoSetup<'a> = RunSetup<'a, GrpoOptions>;

/// Evaluates the model in training.
pub trait PolicyEvaluator: std::fmt::Debug {
    /// The names of the benchmarks.
    fn benchmarks(&self) -> Vec<String>;
    /// Answers and scores the questions of all benchmarks. Writes answers and scores into `folder`, which is created
    /// if it does not exist. An unfinished evaluation in `folder` is continued if it has the same weights and
    /// options, else replaced. Returns the scores by benchmark. All ranks call it together: each answers its share of
    /// the questions, and rank 0 writes the files.
    ///
    /// # Errors
    /// [`Kind::Stopped`](crate::error::Kind::Stopped) when `policy.stop` becomes true; a file cannot be
    /// written; a logit is NaN.
    fn evaluate(&self, policy: &EvaluatedPolicy<'_>, folder: &Path) -> Result<BTreeMap<String, BenchmarkScore>>;
}

/// The score of one benchmark, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkScore {
    /// Number of rows of the benchmark.
    pub n: usize,
    /// Mean score of all rows.
    pub score: f64,
    /// 95 % confidence interval of `score`.
    pub ci95: [f64; 2],
    /// Number of rows with an error instead of an answer. These rows score 0.
    pub errors: usize,
    /// Number of rows whose answer was truncated at `--eval-max-new-tokens`.
    pub truncated: usize,
    /// Number of generated tokens of all answers.
    pub completion_tokens: u64,
}

/// The model in training, between two steps.
#[derive(Clone, Copy, Debug)]
pub struct EvaluatedPolicy<'a> {
    /// The model, with its adapter if one is trained.
    pub model: &'a Qwen25Vl,
    /// The device on which the weights are.
    pub device: &'a Device,
    /// Dtype of weights and activations.
    pub dtype: DType,
    /// The last finished step; 0 before the first one.
    pub step: u64,
    /// Fingerprint of the trained weights.
    pub hash: &'a str,
    /// Set to true, by Ctrl-C, when the run must stop.
    pub stop: &'a AtomicBool,
    /// The other processes of the run, if there are several.
    pub ranks: Option<RunRanks<'a>>,
}
