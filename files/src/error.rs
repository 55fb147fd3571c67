//! The errors of files that are read back or written.

use std::io;
use std::path::Path;

use reel_diagnostic::{Diagnostic, no_room_help};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file could not be read or written.
    #[error("{0}")]
    Io(Diagnostic),
    /// The file could not be written because the disk is full, or because the file would exceed the limit on file sizes.
    #[error("{diagnostic}")]
    NoRoom {
        /// The file, what is wrong, and what to do.
        diagnostic: Diagnostic,
        /// What makes room ([`no_room_help`]).
        remedy: &'static str,
    },
}

/// The crate's result.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

impl FileError {
    /// The error of a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, &source))
    }

    /// The error of a file or folder that could not be written.
    pub fn cannot_write(path: impl AsRef<Path>, source: io::Error) -> Self {
        let diagnostic = Diagnostic::cannot_write(path, &source);
        match no_room_help(source.kind()) {
            Some(remedy) => Self::NoRoom { diagnostic, remedy },
            None => Self::Io(diagnostic),
        }
    }
}
