//! Compares what the processes (ranks) of a run have read, because ranks with other data or weights would train a
//! mixture. Options are compared earlier, when the ranks join.

use std::path::Path;

use crate::Result;
use crate::options::TrainingOptions;
use crate::setup::{RunRanks, RunSetup};
use reel_samples::source::DataSource;
use reel_support::files::digest::{self, ModelFiles};
use reel_support::files::fingerprint::bytes_fingerprint;
use reel_support::ranks::Fact;

use super::ValidationRows;
use super::record::code_fingerprints;
use crate::runs::folder::resume::RunState;

/// Checks that all ranks have the same data and model files. `model` is `None` in a check of data, which uses no
/// weights. All ranks call this function.
///
/// # Errors
/// A file differs; the error names the file and the rank.
pub(super) fn check_files<O: TrainingOptions>(
    setup: &RunSetup<O>,
    rows: &impl DataSource,
    model: Option<&ModelFiles>,
) -> Result<()> {
    let Some(run) = setup.control.ranks else { return Ok(()) };
    let options = setup.options.resolved();
    // A file that cannot be read becomes an error where the run reads it.
    let fingerprint = |name: &str| digest::file_fingerprint(Path::new(options.get(name)?.as_str()?)).ok();
    let read = ["quarantine", "rollouts"].into_iter().filter(|name| *name != "quarantine" || !setup.options.check_data);
    let read = read.filter_map(|name| Some((format!("--{name}"), fingerprint(name)?)));
    let mut files: Vec<Fact> = vec![("the rows of --data".into(), rows.fingerprint())];
    match model {
        Some(model) => files.extend(model.iter().map(|(name, hash)| (format!("{name} in --model"), hash.clone()))),
        None => {
            files.push(("the tokenizer files in --model".into(), digest::config_files_fingerprint(setup.data.model)?))
        }
    }
    let facts = files.into_iter().chain(read).chain(code_fingerprints(setup.options));
    let facts: Vec<Fact> = facts.map(|(file, hash)| (format!("fingerprint of {file}"), hash)).collect();
    Ok(run.ranks.check_same("files of the run", &facts)?)
}

/// Checks that all ranks start with the same steps and rows. Returns when all ranks are ready for the first step.
///
/// # Errors
/// The number of steps, the skipped rows or the validation rows differ.
pub(super) fn check_start(
    ranks: Option<RunRanks<'_>>,
    state: &RunState,
    validation: Option<&ValidationRows<'_>>,
) -> Result<()> {
    let Some(run) = ranks else { return Ok(()) };
    let skipped = format!("{:?}", state.position.skipped);
    let facts = [
        ("number of steps", state.steps.to_string()),
        ("number of finished steps", state.step.to_string()),
        ("fingerprint of the skipped rows", bytes_fingerprint(skipped.as_bytes())),
        ("fingerprint of the validation rows", validation.map_or(String::new(), |rows| rows.fingerprint().into())),
    ];
    Ok(run.ranks.check_same("start of the run", &facts.map(|(name, value)| (name.to_string(), value)))?)
}
