//! `reel sft`: supervised fine-tuning.

use anyhow::Result;
use clap::{ArgMatches, Args};
use reel_train::SftOptions;
use reel_train::runs::sft;

use crate::common::CommonOptions;
use crate::hub;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags};
use crate::rank_flags::JobFlags;
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
    #[command(flatten)]
    job: JobFlags,
}

impl SftArgs {
    /// Merges the options of the command line with those of the configuration file. The command line wins.
    pub fn resolved(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<ResolvedOptions<SftOptions>> {
        let (options, access) = (&self.options, &self.access);
        let mut resolved =
            ResolvedOptions::new(options, &self.media, access, &self.worker, &self.job, common, matches)?;
        if let Some(file) = &mut resolved.options.eval_file {
            *file = hub::local_data_path("--eval-file", file)?;
        }
        Ok(resolved)
    }

    pub fn run(&self, common: &CommonOptions, matches: &ArgMatches) -> Result<()> {
        self.resolved(common, matches)?.run(sft::run, sft::check_data)
    }
}
