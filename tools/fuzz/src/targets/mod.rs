//! The fuzz targets. Each target tests a parser of data from outside the program: it has valid inputs (seeds), words
//! that the parser knows, and the function that gives the parser an input and checks the outcome.

mod data;
mod grammar;
mod media;
mod model;
mod request_body;
mod rows;
mod run;
mod scoring;
mod serve;
mod sim;
mod template;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::mutate::Seed;
use crate::verdict::Verdict;

/// Gives an input to a parser and checks the outcome.
pub type InputRunner = Box<dyn FnMut(&[u8]) -> Verdict>;

/// A fuzz target.
pub struct FuzzTarget {
    /// The name on the command line.
    pub name: &'static str,
    /// Texts that the parser knows, such as field names. Random changes insert these texts into inputs.
    pub words: &'static [&'static str],
    /// Makes the seeds. Each call returns the same seeds.
    pub seeds: fn() -> Result<Vec<Seed>>,
    /// Prepares what all inputs share, such as a folder, and returns the function that tests one input.
    pub open: fn() -> Result<InputRunner>,
}

/// All targets.
pub const ALL_TARGETS: &[FuzzTarget] = &[
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
    data::PARQUET,
    data::ARROW,
    run::RUN_FOLDER,
    run::BENCH_RESULT,
    run::WANDB,
    scoring::PREDICTIONS,
    scoring::REWARDS,
    scoring::REWARD_COMMAND,
    serve::REQUEST,
    grammar::GRAMMAR,
    request_body::REQUEST_BODY,
    template::TEMPLATE_VALUES,
    serve::EVENTS,
    sim::PTX,
    sim::PTX_RUN,
    sim::TENSOR_MAP,
    media::IMAGE,
    #[cfg(feature = "ffmpeg")]
    media::VIDEO,
];

/// The names of all fuzz targets, for messages.
pub fn target_names() -> String {
    ALL_TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
}

/// Reads a file of the repository.
fn repository_file(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    fs::read(&path).with_context(|| path.display().to_string())
}

/// Makes a folder for the files of inputs. The worker process does not delete it; the supervisor deletes the temporary
/// folder that contains it.
fn scratch_folder() -> Result<PathBuf> {
    Ok(tempfile::tempdir()?.keep())
}

/// Returns an input as text, in which U+FFFD replaces bytes that are not UTF-8.
fn text_of(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}
