//! The file of `--rollouts`: completions and rewards to train on instead of sampling. Each line is the JSON of one
//! group, `{"row": R, "completions": [[ids], …], "rewards": [numbers]}`, where R is the row of the data file, counted
//! from 0. A reward may be `null`: the completion has none.

use std::path::{Path, PathBuf};

use reel_input::TokenId;
use reel_input::config::ModelConfig;
use reel_support::diagnostic::input;
use reel_support::files::fingerprint::bytes_fingerprint;
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::options::GrpoOptions;

/// One line of a `--rollouts` file: the completions of one prompt (a group) with their rewards.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct RolloutLine {
    /// The row of the data file that has the prompt, counted from 0.
    pub row: usize,
    /// The token ids of each completion.
    pub completions: Vec<Vec<TokenId>>,
    /// The reward of each completion; NaN, in the file null, if it has none.
    #[serde(deserialize_with = "nan_for_null")]
    pub rewards: Vec<f32>,
    /// Whether the line is the record of completions in which tools have written tokens.
    #[serde(default, rename = "turns", deserialize_with = "is_given")]
    pub has_tool_turns: bool,
}

fn is_given<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Reads a list of numbers, in which null stands for NaN, as in the JSON that `serde_json` writes.
pub fn nan_for_null<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<f32>, D::Error> {
    let numbers = Vec::<Option<f32>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|number| number.unwrap_or(f32::NAN)).collect())
}

/// The checked lines of a `--rollouts` file.
#[derive(Debug)]
pub struct RolloutFile {
    path: PathBuf,
    hash: String,
    /// The groups, each with the number of its line in the file, counted from 1.
    lines: Vec<(usize, RolloutLine)>,
}

/// Help text of errors about a line. It shows the format of a line.
const FORM: &str = "write one {\"row\": 0, \"completions\": [[ids], …], \"rewards\": [numbers]} per line";

impl RolloutFile {
    /// Reads a file and checks each line against the options, the number of data rows and the vocabulary.
    pub fn open(path: &Path, options: &GrpoOptions, rows: usize, config: &ModelConfig) -> Result<Self> {
        let text = input::read_text(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, e))?;
        let mut lines = Vec::new();
        for (number, text) in (1..).zip(text.split('\n')).filter(|(_, text)| !text.trim().is_empty()) {
            let location = format!("{}:{number}", path.display());
            let line: RolloutLine = serde_json::from_str(text)
                .map_err(|e| Error::data(&location, format!("is not a group of completions: {e}"), FORM))?;
            line.check(&location, options, rows, config)?;
            lines.push((number, line));
        }
        if lines.is_empty() {
            return Err(Error::data(path.display().to_string(), "has no completions", FORM));
        }
        Ok(Self { path: path.to_path_buf(), hash: bytes_fingerprint(text.as_bytes()), lines })
    }

    /// The number of groups in the file.
    pub fn group_count(&self) -> usize {
        self.lines.len()
    }

    /// Returns the line of the group at `index`.
    pub fn line(&self, index: usize) -> &RolloutLine {
        &self.lines[index].1
    }

    /// The line number in the file, counted from 1, of the group at `index`.
    pub fn line_number(&self, index: usize) -> usize {
        self.lines[index].0
    }

    /// File and line number of the group at `index`, for messages.
    pub fn location(&self, index: usize) -> String {
        format!("{}:{}", self.path.display(), self.line_number(index))
    }

    /// The fingerprint of the file.
    pub fn fingerprint(&self) -> &str {
        &self.hash
    }
}

impl RolloutLine {
    fn check(&self, location: &str, options: &GrpoOptions, rows: usize, config: &ModelConfig) -> Result<()> {
        let vocab = config.text.vocab_size;
        let wrong =
            |field: &str, what: String, help: String| Err(Error::data(format!("{location}: {field}"), what, help));
        if self.row >= rows {
            return wrong("row", format!("is {}, but the data has {rows} rows", self.row), "count them from 0".into());
        }
        let (groups, wanted) = (self.completions.len(), options.num_generations);
        if groups != wanted {
            let help = format!("give {wanted}, or --num-generations {groups}");
            return wrong("completions", format!("has {groups} completions, but --num-generations is {wanted}"), help);
        }
        if self.has_tool_turns {
            let what = "is the record of a run with tools, whose answers must not be learned".to_string();
            return wrong("turns", what, "give completions that were sampled without tools".into());
        }
        if self.rewards.len() != groups {
            return wrong(
                "rewards",
                format!("has {} rewards, but there are {groups} completions", self.rewards.len()),
                "give one reward per completion".into(),
            );
        }
        if let Some(bad) = self.rewards.iter().find(|r| r.is_infinite()) {
            return wrong("rewards", format!("contain {bad}"), "give finite numbers, or null".into());
        }
        let ids = || self.completions.iter().flatten();
        if let Some(bad) = ids().find(|&&id| id as usize >= vocab) {
            let what = format!("contain token id {bad}, but the vocabulary has {vocab} tokens");
            return wrong("completions", what, "use the tokenizer of this model".into());
        }
        let pads = [config.tokens.image, config.tokens.video];
        if let Some(pad) = ids().find(|&&id| pads.contains(&id)) {
            let what = format!("contain token id {pad}, the pad token of an image or video, but no media belong to it");
            return wrong("completions", what, "remove this token: the model never samples pad tokens".into());
        }
        let (longest, max) = (self.completions.iter().map(Vec::len).max().unwrap_or(0), options.max_completion_length);
        if longest > max {
            let what = format!("have {longest} tokens, more than --max-completion-length {max}");
            return wrong("completions", what, "raise --max-completion-length, or shorten the completions".into());
        }
        Ok(())
    }

    /// Returns an error if all completions of the group are empty; the run then skips the group's row.
    pub fn check_not_empty(&self, location: &str) -> Result<()> {
        if self.completions.iter().all(Vec::is_empty) {
            let help = "give completions with at least an end token";
            return Err(Error::row(location, "has completions without any token", help));
        }
        Ok(())
    }
}
