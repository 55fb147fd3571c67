//! `reel sft`: supervised fine-tuning.

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use reel_media::profile::Profile;
use reel_model::input::{MediaOptions, SecondPerGrid};
use reel_train::config_file;
use reel_train::options::Options;
use reel_train::sft::{self, Setup};
use reel_train::{SftOptions, TrainError};
use serde::{Deserialize, Serialize};

use crate::common::Common;
use crate::media::{MediaFlags, WorkerFlags};
use crate::{interrupt, model, output, prompt, trace};

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

/// Every option of a run, as a configuration file may hold them and run.json records them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    #[serde(flatten)]
    pub options: SftOptions,
    #[serde(flatten)]
    pub media: MediaFlags,
    #[serde(flatten)]
    pub worker: WorkerFlags,
    #[serde(flatten)]
    pub common: Common,
}

impl Resolved {
    /// The command line over the file that its `--config` names, if it names one.
    pub fn new(flags: &Sft, common: &Common, matches: &ArgMatches) -> Result<Self> {
        let parsed = Self {
            options: flags.options.clone(),
            media: flags.media.clone(),
            worker: flags.worker.clone(),
            common: common.clone(),
        };
        let mut resolved = match &flags.options.config {
            None => parsed,
            Some(file) => {
                let given = |field: &str| matches.value_source(field) == Some(ValueSource::CommandLine);
                config_file::apply(&parsed, file, given)?
            }
        };
        // What a file cannot hold: how to treat a folder that exists, and how to talk.
        resolved.options.config.clone_from(&flags.options.config);
        resolved.options.resume_from_checkpoint.clone_from(&flags.options.resume_from_checkpoint);
        resolved.options.overwrite = flags.options.overwrite;
        let Common { json, quiet, verbose, .. } = *common;
        resolved.common = Common { json, quiet, verbose, trace: common.trace.clone(), ..resolved.common };
        resolved.media.profile = Some(resolved.media.profile(Profile::VideorftTrain)?.name().to_string());
        Ok(resolved)
    }

    /// How media are read.
    pub fn media(&self) -> Result<MediaOptions> {
        Ok(MediaOptions {
            profile: self.media.profile(Profile::VideorftTrain)?,
            overrides: self.media.overrides(),
            decoder: self.worker.decoder(&self.common)?,
            second_per_grid: SecondPerGrid::default(),
        })
    }
}

impl Sft {
    /// Runs to the end, or to Ctrl-C.
    pub fn run(&self, common: &Common, matches: &ArgMatches) -> Result<()> {
        let resolved = Resolved::new(self, common, matches)?;
        resolved.options.validate()?;
        let folder = prompt::folder(&resolved.options.model)?;
        let device = model::device(&resolved.common)?;
        trace::record_launches(&device, model::dtype(&resolved.common));
        let stop = interrupt::flag();
        let summary = sft::run(&Setup {
            options: &resolved.options,
            model: &folder,
            device: &device,
            dtype: model::dtype(&resolved.common),
            seed: resolved.common.seed(),
            media: &resolved.media()?,
            resolved: &serde_json::to_value(&resolved)?,
            quiet: resolved.common.quiet || resolved.common.json,
            stop: &stop,
        })?;
        let out = resolved.options.out.display();
        let last = summary.last.as_ref();
        if resolved.common.json {
            return output::json(&serde_json::json!({
                "out": resolved.options.out, "steps": summary.steps, "resumed_after": summary.resumed_after,
                "skipped": summary.skipped, "last": last,
            }));
        }
        let loss = last.map_or(String::new(), |l| format!(", last loss {:.4}", l.loss));
        let skipped = match summary.skipped {
            0 => String::new(),
            n => format!(", {n} rows skipped (see {out}/skipped.jsonl)"),
        };
        output::line(format!("{out}: {} steps{loss}{skipped}", summary.steps))
    }
}

/// Whether an error is a mistake in the command line or in a configuration file.
pub fn is_usage(e: &anyhow::Error) -> bool {
    e.downcast_ref::<TrainError>().is_some_and(TrainError::is_usage)
}
