//! The error of this crate.

use std::io;
use std::path::Path;

use reel_diagnostic::{Diagnostic, no_room_help};

/// A file or folder could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{diagnostic}")]
pub struct WriteError {
    /// The file, what is wrong, and what to do.
    pub diagnostic: Diagnostic,
    /// What makes room ([`no_room_help`]) if the disk is full, or the file would exceed the limit on file sizes; else
    /// `None`.
    pub remedy: Option<&'static str>,
}

impl WriteError {
    /// The error of writing to `path`, which failed with `source`.
    pub fn new(path: impl AsRef<Path>, source: &io::Error) -> Self {
        Self { diagnostic: Diagnostic::cannot_write(path, source), remedy: no_room_help(source.kind()) }
    }
}
