//! `reel sft`: supervised fine-tuning.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_runs::sft;
use reel_train::SftOptions;

use crate::common::CommonOptions;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::training::ResolvedOptions;

/// Supervised fine-tuning (SFT) of all weights or of a LoRA adapter (--lora-r), on conversations about videos, images
/// or text alone.
///
/// The output folder has the trained model, metrics.jsonl (a line per step), run.json (every option) and checkpoints. A
/// run that continues with --resume-from-checkpoint ends with the same bits as an uninterrupted run.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel sft --model tiny --data rows.json --out tuned --max-steps 5")]
pub struct SftArgs {
    #[command(flatten)]
    options: SftOptions,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl SftArgs {
    /// Merges the command line's options with those of the configuration file, if there is one.
    pub fn resolved(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<ResolvedOptions<SftOptions>> {
        ResolvedOptions::new(&self.options, &self.media, &self.access, &self.worker, common, matches)
    }

    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        self.resolved(common, matches)?.run(sft::run, sft::check_data)
    }
}
