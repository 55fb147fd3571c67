//! The inputs of a run. The program that starts a run may attach a server for the model in training ([`LiveServer`])
//! and an evaluator that is called between steps ([`PolicyEvaluator`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_device::{DType, Device};
use reel_input::MediaOptions;
use reel_model::qwen_vl::QwenVl;
use reel_support::ranks::Ranks;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::options::{GrpoOptions, SftOptions, TrainingOptions};

/// The inputs of a training run, by the part of the run that uses them.
#[derive(Debug)]
pub struct RunSetup<'a, O> {
    /// The options of the command.
    pub options: &'a O,
    /// How the rows of the data become training samples.
    pub data: DataSetup<'a>,
    /// Where and how the trainer computes.
    pub trainer: TrainerSetup<'a>,
    /// What the run reports.
    pub reports: ReportSetup<'a>,
    /// When the run stops or saves, and the other processes.
    pub control: RunControl<'a>,
}

/// The inputs from which training samples are made, besides the options of the command.
#[derive(Clone, Copy, Debug)]
pub struct DataSetup<'a> {
    /// The local folder of the model in `options.model`. The trainer reads the weights from it.
    pub model: &'a Path,
    /// Options for reading images and videos, such as pixel limits. One of them is replaced: `options.parity` decides
    /// whether M-RoPE uses the true seconds between frames.
    pub media: &'a MediaOptions,
    /// Seed of the row order and of all random numbers.
    pub seed: u64,
}

/// The inputs of the trainer, besides the options of the command.
#[derive(Clone, Copy, Debug)]
pub struct TrainerSetup<'a> {
    /// The device on which the run computes.
    pub device: &'a Device,
    /// Dtype of weights and activations, F32 or BF16.
    pub dtype: DType,
    /// The profiler of some of the steps (`--profile-steps`), if any.
    pub profiler: Option<&'a dyn StepProfiler>,
    /// Peak operations per second of the device for `dtype` by its data sheet, if known. MFU is relative to this
    /// rate.
    pub peak_flops_per_second: Option<f64>,
}

impl<'a> TrainerSetup<'a> {
    /// The inputs of a trainer without profiler and without MFU.
    pub fn new(device: &'a Device, dtype: DType) -> Self {
        Self { device, dtype, profiler: None, peak_flops_per_second: None }
    }
}

/// The inputs of reports and records.
#[derive(Clone, Copy, Debug)]
pub struct ReportSetup<'a> {
    /// All options as a JSON object, for `run.json`.
    pub resolved: &'a Value,
    /// Whether only errors are printed.
    pub quiet: bool,
    /// Whether the output of reward programs is also printed.
    pub verbose: bool,
    /// The evaluator of the model in training (`--eval-steps`), if any.
    pub evaluator: Option<&'a dyn PolicyEvaluator>,
}

impl<'a> ReportSetup<'a> {
    /// The inputs of a run that prints only errors and evaluates nothing.
    pub fn quiet(resolved: &'a Value) -> Self {
        Self { resolved, quiet: true, verbose: false, evaluator: None }
    }
}

/// The flags by which a run is told to stop or to save, and the other processes of the run.
#[derive(Clone, Copy, Debug)]
pub struct RunControl<'a> {
    /// Set to true, by Ctrl-C, when the run must stop.
    pub stop: &'a AtomicBool,
    /// Set to true, by SIGUSR1, when the run must write a checkpoint after the current step and continue.
    pub save: Option<&'a AtomicBool>,
    /// The other processes of the run, if there are several.
    pub ranks: Option<RunRanks<'a>>,
}

impl<'a> RunControl<'a> {
    /// The control of a run in one process that only `stop` stops.
    pub fn one_process(stop: &'a AtomicBool) -> Self {
        Self { stop, save: None, ranks: None }
    }

    /// The flag that stops work outside of steps, and the ranks that share this work. It is the flag of this process,
    /// because ranks agree on `stop` only between two steps.
    pub fn stop_and_ranks(&self) -> (&'a AtomicBool, Option<&'a Ranks>) {
        self.ranks.map_or((self.stop, None), |run| (run.interrupted, Some(&**run.ranks)))
    }

    /// Number of processes of the run.
    pub fn processes(&self) -> usize {
        self.ranks.map_or(1, |run| run.ranks.size())
    }

    /// Whether this process writes the files of the run.
    pub fn is_rank_0(&self) -> bool {
        self.ranks.is_none_or(|run| run.is_rank_0())
    }
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
    /// Set to true, by Ctrl-C, on this rank. The ranks then agree on [`RunControl::stop`], so that all stop before the
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

impl<O: TrainingOptions> RunSetup<'_, O> {
    /// The output folder that the command names. In `options.out`, ranks other than 0 have a folder of their own.
    pub fn shared_out(&self) -> &Path {
        self.control.ranks.map_or(&self.options.out, |run| run.out)
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
    pub model: &'a QwenVl,
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
