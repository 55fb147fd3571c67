//! The keys of the videos and questions in a curation's list. They tell which answers in a stage's table belong to
//! the current list, because the table may also hold answers for earlier lists.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use reel_support::diagnostic::input;
use serde::{Deserialize, Serialize};

use crate::curate::recipe::StageName;
use crate::error::{Error, Result};

/// The file in OUT with the keys of the last list.
pub(crate) const LIST_KEYS_FILE: &str = "list-keys.json";
/// Number of leading characters of a key (a SHA-256 in hexadecimal) that are stored. Among a million keys, the
/// probability that any two have the same beginning is below 1e-7.
const KEPT: usize = 16;

/// The first characters of the keys of the list's videos and questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListKeys {
    media: BTreeSet<String>,
    questions: BTreeSet<String>,
}

impl ListKeys {
    /// Adds the keys of a question and of its video or image.
    pub(crate) fn add(&mut self, media: &str, question: &str) {
        self.media.insert(beginning(media).to_string());
        self.questions.insert(beginning(question).to_string());
    }

    /// Number of keys for which a stage sends a request.
    pub fn key_count(&self, stage: StageName) -> usize {
        self.of(stage).len()
    }

    /// Whether a stage sends a request for `key`.
    pub(crate) fn contains(&self, stage: StageName, key: &str) -> bool {
        self.of(stage).contains(beginning(key))
    }

    fn of(&self, stage: StageName) -> &BTreeSet<String> {
        match stage {
            StageName::Caption => &self.media,
            StageName::Reason | StageName::Revise | StageName::Answer => &self.questions,
        }
    }

    /// Writes the keys of the list into the folder `out`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self, out: &Path) -> Result<()> {
        crate::curate::complete_file::write_json(&out.join(LIST_KEYS_FILE), self)
    }

    /// Reads the keys of the last list in the folder `out`.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn open(out: &Path) -> Result<Self> {
        let file = out.join(LIST_KEYS_FILE);
        let unusable = |what: String| {
            Error::failed(file.display().to_string(), what, "run reel curate on the folder again with --resume")
        };
        let text = input::read_file(&file, input::MAX_ROWS_BYTES).map_err(|e| match e.kind() {
            // An earlier version of reel did not write this file.
            ErrorKind::NotFound => unusable("is missing".into()),
            _ => Error::cannot_read(&file, &e),
        })?;
        serde_json::from_slice(&text).map_err(|e| unusable(format!("is damaged: {e}")))
    }
}

fn beginning(key: &str) -> &str {
    key.get(..KEPT).unwrap_or(key)
}
