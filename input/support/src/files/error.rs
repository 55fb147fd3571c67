//! The error type of this crate.

use std::io;
use std::path::Path;

use crate::diagnostic::{Diagnostic, disk_full_help};

/// A file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{diagnostic}")]
pub struct FileError {
    /// The file, what is wrong, and what to do.
    pub diagnostic: Diagnostic,
    /// The help text about freeing space ([`disk_full_help`]), if the disk is full or the file would exceed the limit
    /// on file sizes; else `None`.
    pub remedy: Option<&'static str>,
}

/// The result type of this crate.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

impl FileError {
    /// Creates the error for a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: &io::Error) -> Self {
        Self { diagnostic: Diagnostic::cannot_read(path, source), remedy: None }
    }

    /// Creates the error for a file or folder that could not be written.
    pub fn cannot_write(path: impl AsRef<Path>, source: &io::Error) -> Self {
        Self { diagnostic: Diagnostic::cannot_write(path, source), remedy: disk_full_help(source.kind()) }
    }
}
