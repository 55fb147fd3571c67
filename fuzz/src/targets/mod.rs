//! The targets: for each parser of data from outside, valid inputs (seeds), words that mean something to it, and the
//! function that gives it an input and looks at the outcome.

mod media;
mod model;
mod rows;
mod run;
mod scoring;
mod sim;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::mutate::Seed;
use crate::verdict::Verdict;

/// Gives an input to a parser.
pub type Judge = Box<dyn FnMut(&[u8]) -> Verdict>;

/// A fuzz target.
pub struct Target {
    /// The name on the command line.
    pub name: &'static str,
    /// Texts that changes insert.
    pub words: &'static [&'static str],
    /// Makes the seeds, always the same ones.
    pub seeds: fn() -> Result<Vec<Seed>>,
    /// Prepares what all inputs share and returns the judge.
    pub open: fn() -> Result<Judge>,
}

/// All targets.
pub const ALL: &[Target] = &[
    model::SAFETENSORS,
    model::SHARDS,
    model::CONFIG,
    model::ADAPTER,
    model::TOKENIZER,
    model::CHAT_TEMPLATE,
    rows::MESSAGES,
    rows::URLS,
    rows::ROWS,
    rows::RUN_CONFIG,
    rows::QUARANTINE,
    run::RUN_FOLDER,
    run::BENCH_RESULT,
    run::WANDB,
    scoring::PREDICTIONS,
    scoring::REWARDS,
    scoring::REWARD_COMMAND,
    sim::PTX,
    sim::PTX_RUN,
    sim::TENSOR_MAP,
    media::IMAGE,
    #[cfg(feature = "ffmpeg")]
    media::VIDEO,
];

/// The names of all targets, for messages.
pub fn names() -> String {
    ALL.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
}

/// A file of the repository.
fn repository_file(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read(&path).with_context(|| path.display().to_string())
}

/// A folder for the files of an input, which exists as long as the process.
fn scratch_folder() -> Result<PathBuf> {
    Ok(tempfile::tempdir()?.keep())
}

/// The text of an input; bytes that are not UTF-8 are replaced, as by code that reads text leniently.
fn text_of(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}
