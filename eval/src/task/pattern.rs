//! Regular expressions in task files.

use std::ops::Deref;

use regex::Regex;
use serde::{Deserialize, Deserializer};

/// A regular expression of a task file.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Deref for Pattern {
    type Target = Regex;

    fn deref(&self) -> &Regex {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Regex::new(&String::deserialize(from)?).map(Self).map_err(|e| {
            // The last line of the regex error says what is wrong; the preceding lines show the position.
            serde::de::Error::custom(e.to_string().lines().last().unwrap_or_default().trim())
        })
    }
}
