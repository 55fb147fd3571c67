//! `reel curate`: builds a data set of chains of thought with models behind HTTP endpoints or in local folders.
//! `run.rs` runs the stages, `endpoints.rs` has the options for the models, `local_server.rs` serves a local model,
//! `status.rs` shows the progress of a curation.

mod endpoints;
mod local_server;
mod run;
mod stage_value;
mod status;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_tools::curate::{CurationRecipe, ResponseFormat, RowLayout, StageName};

use crate::common::CommonOptions;
use crate::media::WorkerFlags;
use endpoints::CurationEndpointFlags;
use stage_value::StageValue;

/// Build a data set of chains of thought: models describe videos, reason, revise; filters keep the correct chains.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
A model is the URL of an endpoint with OpenAI's API (it ends in /v1), a model
folder or a Hugging Face model id. Options with [STAGE=] take a value for one
of the stages caption, reason, revise and answer, or for all of them, and may
be given several times.

Example:
  reel init --preset tiny --out tiny
  printf '%s' '{\"problem\": \"Is it red?\", \"data_type\": \"image\",
    \"problem_type\": \"free-form\", \"solution\": \"<answer>no</answer>\",
    \"path\": \"a.png\"}' | tr -d '\\n' > list.jsonl
  echo iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCB\\
  d81ytgAAAABJRU5ErkJggg== | tr -d ' \\n' | base64 -d > a.png
  reel curate --videos list.jsonl --recipe video-r1 --model tiny \\
    --no-similarity --out curated --dry-run")]
pub struct CurateArgs {
    #[command(subcommand)]
    command: Option<CurateCommand>,
    #[command(flatten)]
    run: CurateRunFlags,
}

#[derive(Subcommand, Debug)]
enum CurateCommand {
    /// Show the progress of a curation: answers, failures, tokens and cost by stage
    Status(status::StatusArgs),
}

/// The options of a curation.
#[derive(Args, Clone, Debug)]
pub struct CurateRunFlags {
    /// Questions: a data file with VideoRFT's fields (problem, data_type, problem_type, options, solution, path), one
    /// row per question
    #[arg(long, value_name = "LIST", required = true)]
    videos: Option<PathBuf>,
    /// Folder for the data set (dataset.jsonl), rejected.jsonl, failed.jsonl, report.html, and a table of answers for
    /// each stage
    #[arg(long, value_name = "OUT", required = true)]
    out: Option<PathBuf>,
    /// How chains are made: videorft (describe, reason without seeing the video, revise) or video-r1 (one model
    /// answers)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "RECIPE")]
    recipe: CurationRecipe,
    /// Folder that media paths are relative to [default: the folder of LIST]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    /// Continue a curation in OUT: ask again wherever there is no accepted answer yet, including failed rows
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Start a curation in OUT again; all its answers are lost
    #[arg(long)]
    overwrite: bool,
    /// With --resume: ask again in this stage and all later ones; the earlier answers of these stages are lost
    #[arg(long, value_name = "STAGE", requires = "resume", value_parser = parse_stage)]
    redo: Option<StageName>,
    /// With --resume: keep answers of other models or prompts beside new ones
    #[arg(long, requires = "resume")]
    accept_changes: bool,
    /// Reject rows that cannot be used, such as rows whose video is missing; without it, the first such row is an error
    #[arg(long)]
    skip_bad_rows: bool,
    /// Use only the first N rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print how many requests each stage would send and the maximum cost; send none
    #[arg(long)]
    dry_run: bool,
    /// Write paths as LIST has them, for use with the same --media-root; without it they are absolute
    #[arg(long)]
    keep_paths: bool,
    /// Fields of the data set's rows: problem (VideoRFT's; training adds its prompt) or chat (messages with the
    /// question as it is and the chain as answer)
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "LAYOUT")]
    layout: RowLayout,
    #[command(flatten)]
    endpoints: CurationEndpointFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    filters: FilterFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

/// Sampling options of the models.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Request options")]
struct SamplingFlags {
    /// Sampling temperature [default: caption 0, reason 0.6, revise 0, answer 1]
    #[arg(long, value_name = "[STAGE=]T")]
    temperature: Vec<StageValue<f64>>,
    /// Nucleus sampling [default: caption 1, reason 0.95, revise 1, answer 0.95]
    #[arg(long, value_name = "[STAGE=]P")]
    top_p: Vec<StageValue<f64>>,
    /// Maximum number of tokens of an answer [default: caption 6144, reason 4096, revise 4096, answer 512]
    #[arg(long, value_name = "[STAGE=]N")]
    max_tokens: Vec<StageValue<u32>>,
    /// How endpoints are asked to give descriptions as JSON: schema (a JSON schema), json (any JSON) or none, for
    /// endpoints that refuse the other two
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "FORM")]
    response_format: ResponseFormat,
    /// Frames per second of video that models are shown
    #[arg(long, value_name = "RATE", default_value_t = 1.0)]
    fps: f64,
    /// Maximum number of frames of a video; a longer video gets as many, evenly spaced
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=4096))]
    max_frames: u32,
    /// Maximum pixels (height x width) of a frame or image
    #[arg(long, value_name = "N", default_value_t = 512 * 512, value_parser = clap::value_parser!(u64).range(784..=1 << 26))]
    max_pixels: u64,
}

/// Options of the filters that decide which chains are kept.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Filter options")]
struct FilterFlags {
    /// Keep chains whose answer has an accuracy reward above this number
    #[arg(long, value_name = "R", default_value_t = 0.6)]
    min_accuracy: f32,
    /// SigLIP model folder (so400m-patch14-384), which measures how similar the chains of free-form questions are to
    /// the frames
    #[arg(long, value_name = "DIR")]
    siglip: Option<PathBuf>,
    /// Minimum similarity of the chain of a free-form question to its frames, 0 to 1 (the semantic reward of VideoRFT)
    #[arg(long, value_name = "S", default_value_t = 0.1)]
    min_similarity: f32,
    /// Keep free-form rows without comparing their chains with the frames
    #[arg(long, conflicts_with = "siglip")]
    no_similarity: bool,
    /// Minimum number of words of a chain
    #[arg(long, value_name = "N", default_value_t = 20)]
    min_words: usize,
    /// Maximum number of words of a chain
    #[arg(long, value_name = "N", default_value_t = 1500)]
    max_words: usize,
    /// Reject a chain if its runs of three words overlap by more than this share with those of an earlier chain with
    /// the same answer; 1 keeps copies, for data with short chains
    #[arg(long, value_name = "PART", default_value_t = 0.8)]
    max_overlap: f64,
}

fn parse_stage(name: &str) -> Result<StageName, String> {
    StageName::parse(name).ok_or_else(|| "give caption, reason, revise or answer".into())
}

impl CurateArgs {
    /// Runs the curation, or shows its status with `reel curate status`.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match &self.command {
            Some(CurateCommand::Status(status)) => status.run(common),
            None => run::run(&self.run, common),
        }
    }
}
