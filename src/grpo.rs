//! `reel grpo`: group-relative policy optimisation.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_train::{GrpoOptions, grpo};

use crate::common::Common;
use crate::media::{MediaFlags, WorkerFlags};
use crate::training::Resolved;

/// Train a model by what its own answers are worth.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '{\"prompt\": [{\"role\": \"user\", \"content\": \"2 + 2?\"}]}' > rows.jsonl
  echo '{\"row\": 0, \"completions\": [[20], [21]], \"rewards\": [0, 1]}' > r.jsonl
  reel grpo --model tiny --data rows.jsonl --rollouts r.jsonl --out tuned \\
    --num-generations 2 --per-device-train-batch-size 2 --max-steps 5")]
pub struct Grpo {
    #[command(flatten)]
    options: GrpoOptions,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl Grpo {
    /// The options, those of a configuration file among them.
    pub fn resolved(&self, common: &Common, matches: &ArgMatches) -> Result<Resolved<GrpoOptions>> {
        Resolved::new(&self.options, &self.media, &self.worker, common, matches)
    }

    /// Runs to the end, or to Ctrl-C.
    pub fn run(&self, common: &Common, matches: &ArgMatches) -> Result<()> {
        self.resolved(common, matches)?.run(grpo::run, grpo::check)
    }
}
