//! `reel sft`: supervised fine-tuning.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_train::{SftOptions, sft};

use crate::common::Common;
use crate::media::{MediaFlags, WorkerFlags};
use crate::training::Resolved;

/// Fine-tune a model on conversations about films, pictures or neither.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out tuned --max-steps 5")]
pub struct Sft {
    #[command(flatten)]
    options: SftOptions,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl Sft {
    /// The options, those of a configuration file among them.
    pub fn resolved(&self, common: &Common, matches: &ArgMatches) -> Result<Resolved<SftOptions>> {
        Resolved::new(&self.options, &self.media, &self.worker, common, matches)
    }

    /// Runs to the end, or to Ctrl-C.
    pub fn run(&self, common: &Common, matches: &ArgMatches) -> Result<()> {
        self.resolved(common, matches)?.run(sft::run, sft::check)
    }
}
