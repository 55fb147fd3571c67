//! `reel eval`: runs a model or asks a server over video benchmarks (`questions.rs`, `run.rs`, `answerer.rs`), scores
//! predictions (`score_only.rs`), joins the parts of a run (`merge.rs`), compares runs (`compare.rs`), and
//! lists the benchmarks (`tasks.rs`). Several processes may share the questions (`processes.rs`). `results.rs` writes
//! the result files, `page.rs` the HTML page.

mod answerer;
mod compare;
mod merge;
pub mod page;
mod processes;
pub mod questions;
pub mod results;
pub mod run;
mod score_only;
mod shard;
mod tasks;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use reel_eval::predict::RequestVideoFormat;
use reel_eval::{Extraction, Suite, Task};
use reel_input::media::worker::FrameCacheOptions;
use reel_input::sampling::SamplingOptions;
use reel_train::options::{Recipe, ToolOptions};
use shard::Shard;

use crate::common::CommonOptions;
use crate::endpoint::EndpointRequestFlags;
use crate::fail::usage_error;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::model::QuantizeFlag;
use crate::rank_flags::JobFlags;
use crate::ranks;

/// Run a model over video benchmarks under one fixed protocol, and score its answers with 95 % confidence intervals.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  printf '%s' '[{\"video ID\": \"a\", \"Question ID\": 1, \"Question Type\": \"TA\",
    \"Question\": \"Who?\", \"Options\": {\"A\": \"he\", \"B\": \"she\"},
    \"Answer\": \"B\"}]' > test_Video-Holmes.json
  reel eval --model tiny --benchmark videoholmes --data . --out scores \\
    --max-new-tokens 8 --text-only
  reel eval compare scores scores")]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Option<EvalCommand>,
    #[command(flatten)]
    what: EvalBenchmarkFlags,
    #[command(flatten)]
    run: EvalRunFlags,
}

/// Subcommands of `reel eval`.
#[derive(Subcommand, Debug)]
enum EvalCommand {
    /// Compare two runs over the same questions: paired differences with intervals, and McNemar's test
    Compare(compare::CompareArgs),
    /// Join the parts of runs with --shard, and score them
    Merge(merge::MergeArgs),
    /// List the benchmarks, or print the task file of a benchmark
    Tasks(tasks::TasksArgs),
}

/// Which answers are scored, and where the scores go.
#[derive(Args, Clone, Debug)]
pub struct EvalBenchmarkFlags {
    /// Benchmarks, separated by commas: all (vsibench, videommmu, mmvu, mvbench, tempcompass, videomme), other names that
    /// reel eval tasks lists, or a task file (.toml). Without it, --score-only scores predictions of your own rows
    #[arg(long, value_name = "NAME", required_unless_present_any = ["score_only", "suite"])]
    benchmark: Option<String>,
    /// The benchmarks of a paper, beside whose figures the scores are printed: videorft, video-r1 or one-thinker
    #[arg(long, value_name = "NAME", conflicts_with_all = ["benchmark", "score_only", "shard"])]
    suite: Option<String>,
    /// Whose prompt and answer extraction: reel or reference (the harness that a benchmark's task file names)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "WHOSE")]
    protocol: Protocol,
    /// Folder for the results: NAME.jsonl (answers), NAME.json (scores),
    /// report.html (a page with scores and answers). With --score-only, the JSON file for the scores
    #[arg(long, value_name = "OUT", required = true)]
    out: Option<PathBuf>,
    /// How the answer is found in an output: tags (as the scripts of VideoRFT and Video-R1) or lenient
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "RULE")]
    extraction: Extraction,
    /// Score given predictions instead of running a model
    #[arg(long)]
    score_only: bool,
    /// Predictions for --score-only: one JSON object per line with problem_type, solution, category and output
    #[arg(long, value_name = "P.jsonl")]
    predictions: Option<PathBuf>,
}

/// The protocol by which a benchmark is asked and scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// The same prompt and answer extraction for all benchmarks
    #[default]
    Reel,
    /// Those of the benchmark's reference harness ([reference] of the task file)
    Reference,
}

impl EvalBenchmarkFlags {
    /// The benchmarks of --benchmark or --suite.
    fn tasks(&self) -> Result<Vec<Task>> {
        Ok(match &self.suite {
            Some(suite) => Suite::find(suite)?.tasks()?,
            None => Task::from_names(self.benchmark.as_deref().unwrap_or_default())?,
        })
    }

    /// The rule by which answers are found in outputs.
    fn extraction(&self) -> Result<Extraction> {
        match (self.protocol, self.extraction) {
            (Protocol::Reel, extraction) => Ok(extraction),
            (Protocol::Reference, Extraction::Lenient) => {
                let what = "is lenient, but --protocol reference has its own extraction";
                Err(usage_error("--extraction", what, "remove one of the two options"))
            }
            (Protocol::Reference, _) => Ok(Extraction::Reference),
        }
    }
}

/// How a model is run over benchmarks.
#[derive(Args, Clone, Debug)]
#[command(
    mut_arg("max_new_tokens", |a| a.help("Maximum number of tokens of an answer [default: 1024]")),
    mut_arg("temperature", |a| a.help("Sampling temperature; 0 is greedy decoding [default: 0.01; 0.1 with --parity \
        videorft or video-r1]")),
    mut_arg("top_p", |a| a.help("Nucleus sampling: sample from the most likely tokens whose probabilities add up to P \
        [default: 0.001]")),
    mut_arg("top_k", |a| a.help("Sample from the K most likely tokens; 0 and -1 are all [default: 0]")),
    mut_arg("repetition_penalty", |a| a.help("Repetition penalty [default: 1]")),
)]
pub struct EvalRunFlags {
    /// Model folder, Hugging Face model id, or folder of a LoRA adapter that names its base model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Ask a server with OpenAI's API instead: its base URL, such as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "adapter", "quantize", "batch_size", "gpus"])]
    #[arg(conflicts_with_all = ["tools", "tool_command"])]
    endpoint: Option<String>,
    /// Name of the server's model [default: the first model that the server lists]
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    endpoint_model: Option<String>,
    /// How a video is sent: images (an image_url for each frame), vllm (one video_url of JPEG frames) or reel (Qwen's
    /// list of PNG frames with their rate, which reel serve reads)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "FORM")]
    endpoint_video: RequestVideoFormat,
    /// Folder of a LoRA adapter for the model, as reel sft --lora-r or PEFT writes it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    quantize: QuantizeFlag,
    /// Folder with the benchmarks' own files, as published, or Hugging Face data set id; or, for one benchmark, its
    /// file. The files of a benchmark may be in a subfolder with the benchmark's name
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder that the paths of videos are relative to [default: the folder of the benchmark's files]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    /// Continue a run in OUT; the result has the same bytes as that of an uninterrupted run
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Replace the results in OUT
    #[arg(long)]
    overwrite: bool,
    /// Answer only part I of N (I from 0 to N-1), for jobs on several machines; reel eval merge joins the parts
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Start N processes on this machine, which share the questions and write the files of one process (several
    /// machines: docs/cluster.md)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    gpus: Option<u32>,
    #[command(flatten)]
    job: JobFlags,
    /// Answer only the first N questions of each benchmark
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Leave out rows that cannot be used, and count them. Without it, the first row with a wrong column is an error,
    /// and a row whose video is missing counts as wrong
    #[arg(long)]
    skip_bad_rows: bool,
    /// Show only the part of a video that the question is about, where the benchmark names it (MVBench); the papers
    /// show whole videos
    #[arg(long)]
    clips: bool,
    /// Put the subtitles of a video before the question, where the benchmark has them (LongVideoBench, Video-MME,
    /// VideoMathQA, Video-MME-v2)
    #[arg(long)]
    subtitles: bool,
    /// Ask the questions without their videos and images, to measure how much the text alone gives away
    #[arg(long)]
    text_only: bool,
    /// Maximum number of completions that decode together; memory may allow fewer [default: 256 on cuda, else 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Recipe where papers and code differ: paper (temperature 0.01), videorft or video-r1 (0.1, and options formatted
    /// as in their scripts)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "RECIPE")]
    parity: Recipe,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    tool: ToolOptions,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
    #[command(flatten)]
    frame_cache: FrameCacheOptions,
    #[command(flatten)]
    server: EndpointRequestFlags,
    #[command(flatten)]
    page: page::EvaluationPageFlags,
}

impl EvalArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match &self.command {
            Some(EvalCommand::Compare(_)) => ranks::refuse_several_processes("eval compare")?,
            Some(EvalCommand::Merge(_)) => ranks::refuse_several_processes("eval merge")?,
            Some(EvalCommand::Tasks(_)) => ranks::refuse_several_processes("eval tasks")?,
            None if self.what.score_only => ranks::refuse_several_processes("eval --score-only")?,
            None => {}
        }
        match &self.command {
            Some(EvalCommand::Compare(args)) => return args.run(common),
            Some(EvalCommand::Merge(args)) => return args.run(common),
            Some(EvalCommand::Tasks(args)) => return args.run(common),
            None => {}
        }
        match (self.what.score_only, &self.what.predictions) {
            (true, _) => self.refuse_model().and_then(|()| score_only::run(&self.what, common)),
            (false, Some(_)) => {
                Err(usage_error("--predictions", "needs --score-only", "give --score-only, or --model and --data"))
            }
            (false, None) => run::run(&self.what, &self.run, common),
        }
    }

    fn refuse_model(&self) -> Result<()> {
        let given = [
            ("--model", self.run.model.is_some()),
            ("--endpoint", self.run.endpoint.is_some()),
            ("--data", self.run.data.is_some()),
            ("--shard", self.run.shard.is_some()),
            ("--gpus", self.run.gpus.is_some()),
            ("--nodes", self.run.job.nodes.is_some()),
            ("--limit", self.run.limit.is_some()),
            ("--resume", self.run.resume),
            ("--tools", self.run.tool != ToolOptions::default()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                Err(usage_error(option, "has no effect with --score-only", "remove one of the two options"))
            }
            None => Ok(()),
        }
    }
}
