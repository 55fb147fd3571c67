//! `reel data`: checks, describes, shows and converts data files.

mod check;
mod convert;
mod show;
mod stats;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use reel_input::encode::ModelFolder;
use reel_input::media_loading::MediaOptions;
use reel_samples::dataset::Dataset;
use reel_samples::inspect::{DataInspection, DataStats, TrainingCommand};
use reel_train::options::Recipe;

use crate::common::CommonOptions;
use crate::hub;
use crate::media::{MediaAccessFlags, MediaFlags, WorkerFlags, check_fits_model};
use crate::prompt::find_or_download_model;

/// Check, describe, show and convert data files: JSON, JSONL, Parquet, folders of data sets.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '[{\"messages\": [{\"role\": \"user\", \"content\": \"2 + 2?\"},
    {\"role\": \"assistant\", \"content\": \"4\"}]}]' > rows.json
  reel data check rows.json")]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand, Debug)]
enum DataCommand {
    /// Find rows that cannot be used: wrong fields, missing or damaged media; also rows without an answer and
    /// duplicates
    Check(check::CheckArgs),
    /// Convert between JSON, JSONL and Parquet
    Convert(convert::ConvertArgs),
    /// Show what a row becomes for reel sft or reel grpo: its text, the learned tokens, frames and their times
    Show(Box<show::ShowArgs>),
    /// Count rows by kind, and show video durations and token counts with percentiles
    Stats(stats::StatsArgs),
}

impl DataArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        match &self.command {
            DataCommand::Check(command) => command.run(common),
            DataCommand::Convert(command) => command.run(common),
            DataCommand::Show(command) => command.run(common),
            DataCommand::Stats(command) => command.run(common),
        }
    }
}

/// Options that name rows and say how their media are read.
#[derive(Args, Debug)]
pub struct RowFlags {
    /// Data: JSON, JSONL, Parquet, or folders of data sets (DIR, DIR@split, DIR#config@split; default split: train)
    #[arg(value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Folder that media paths are relative to [default: the folder of the first data file]
    #[arg(long, value_name = "DIR")]
    media_root: Option<PathBuf>,
    /// Recipe (see reel sft --help): paper, videorft or video-r1
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    parity: Recipe,
    #[command(flatten)]
    media: MediaFlags,
    #[command(flatten)]
    access: MediaAccessFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

impl RowFlags {
    /// Returns the data files joined by commas, as `--data` of the training commands takes them.
    fn data(&self) -> PathBuf {
        self.data.iter().map(|path| path.as_os_str()).collect::<Vec<_>>().join(OsStr::new(",")).into()
    }

    /// Returns the options for reading images and videos, with the default profile of the training commands.
    fn media_options(&self, media_root: &Path, common: &CommonOptions) -> Result<MediaOptions> {
        self.media.training_options(&self.access, &self.worker, media_root, common)
    }
}

/// Options of the commands that look at all rows and their media.
#[derive(Args, Debug)]
pub struct InspectFlags {
    #[command(flatten)]
    rows: RowFlags,
    /// Check only that images and videos exist; do not decode them
    #[arg(long)]
    no_decode: bool,
    /// Model folder or Hugging Face model id: also count the tokens of each row, vision tokens included
    #[arg(long, value_name = "MODEL", conflicts_with = "no_decode")]
    model: Option<String>,
}

impl InspectFlags {
    /// Returns the data files joined by commas.
    fn data(&self) -> PathBuf {
        self.rows.data()
    }

    /// Inspects all rows and checks whether they can be used by `command`, or by at least one training command if
    /// `command` is `None`.
    fn inspect(&self, common: &CommonOptions, command: Option<TrainingCommand>) -> Result<DataStats> {
        let data = hub::local_data_path("--data", &self.data())?;
        let media_root = self.rows.media_root.clone().unwrap_or_else(|| reel_input::rows::media_root(&data));
        let media = self.rows.media_options(&media_root, common)?;
        let bundle = match &self.model {
            Some(model) => Some(ModelFolder::open(&find_or_download_model(model)?)?),
            None => None,
        };
        if let Some(bundle) = &bundle {
            check_fits_model(&media, &bundle.config)?;
        }
        let data = Dataset::open(&data)?;
        let inspection = DataInspection {
            media_root: &media_root,
            command,
            recipe: self.rows.parity,
            media: &media,
            decodes: !self.no_decode,
            bundle: bundle.as_ref(),
        };
        Ok(inspection.run(&data)?)
    }
}
