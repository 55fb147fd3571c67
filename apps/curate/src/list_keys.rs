//! Which videos and questions the list of a curation has: a table may also have answers about those of earlier lists.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use reel_diagnostic::input;
use serde::{Deserialize, Serialize};

use crate::recipe::StageName;
use crate::{CurateError, Result};

/// The file in OUT.
const FILE: &str = "list-keys.json";
/// Number of characters of a key, a SHA-256 in hexadecimal digits, that are kept. With a million keys, the probability
/// that two of them are equal is below 1e-7.
const KEPT: usize = 16;

/// The beginnings of the keys of the list's videos and questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListKeys {
    media: BTreeSet<String>,
    questions: BTreeSet<String>,
}

impl ListKeys {
    /// Adds a question about a video or an image.
    pub(crate) fn add(&mut self, media: &str, question: &str) {
        self.media.insert(beginning(media).to_string());
        self.questions.insert(beginning(question).to_string());
    }

    /// Number of keys about which a stage asks.
    pub fn count(&self, stage: StageName) -> usize {
        self.of(stage).len()
    }

    /// Whether a stage asks about `key`.
    pub(crate) fn has(&self, stage: StageName, key: &str) -> bool {
        self.of(stage).contains(beginning(key))
    }

    fn of(&self, stage: StageName) -> &BTreeSet<String> {
        match stage {
            StageName::Caption => &self.media,
            StageName::Reason | StageName::Revise | StageName::Answer => &self.questions,
        }
    }

    /// Writes the keys into the folder `out`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self, out: &Path) -> Result<()> {
        crate::complete_file::write_json(&out.join(FILE), self)
    }

    /// Reads the keys of the last list in the folder `out`.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn open(out: &Path) -> Result<Self> {
        let file = out.join(FILE);
        let unusable = |what: String| {
            CurateError::output(file.display().to_string(), what, "run reel curate on the folder again with --resume")
        };
        let text = input::read_file(&file, input::MAX_ROWS_BYTES).map_err(|e| match e.kind() {
            // An earlier version of reel wrote none.
            ErrorKind::NotFound => unusable("is missing".into()),
            _ => CurateError::cannot_read(&file, &e),
        })?;
        serde_json::from_slice(&text).map_err(|e| unusable(format!("is damaged: {e}")))
    }
}

fn beginning(key: &str) -> &str {
    key.get(..KEPT).unwrap_or(key)
}
