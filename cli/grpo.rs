//! `reel grpo`: group relative policy optimization.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_train::GrpoOptions;
use reel_train::runs::grpo;

use crate::common::CommonOptions;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::rank_flags::JobFlags;
use crate::training::ResolvedOptions;

/// Reinforcement learning from rewards (GRPO; T-GRPO with --temporal).
///
/// Each step samples a group of completions for each prompt, scores them with the reward functions, and raises the
/// probability of completions whose reward is above the average of their group. The output folder has the same files
/// as that of `reel sft`, and rollouts/ with every completion and its rewards.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '{\"prompt\": [{\"role\": \"user\", \"content\": \"2 + 2?\"}]}' > rows.jsonl
  echo '{\"row\": 0, \"completions\": [[20], [21]], \"rewards\": [0, 1]}' > r.jsonl
  reel grpo --model tiny --data rows.jsonl --rollouts r.jsonl --out tuned \\
    --num-generations 2 --per-device-train-batch-size 2 --max-steps 5")]
pub struct GrpoArgs {
    #[command(flatten)]
    options: GrpoOptions,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
    #[command(flatten)]
    job: JobFlags,
}

impl GrpoArgs {
    /// Merges the options of the command line with those of the configuration file. The command line wins.
    pub fn resolved(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<ResolvedOptions<GrpoOptions>> {
        ResolvedOptions::new(&self.options, &self.media, &self.access, &self.worker, &self.job, common, matches)
    }

    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        self.resolved(common, matches)?.run(grpo::run, grpo::check_data)
    }
}
