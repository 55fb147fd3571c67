//! The errors of data files.

use std::io;
use std::path::Path;

use reel_support::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

/// The reason why a data file or one of its rows cannot be read.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum DataError {
    /// The file, or one of its rows, is malformed.
    #[error("{0}")]
    Data(Diagnostic),
    /// The file could not be read or written.
    #[error("{0}")]
    Io(Diagnostic),
}

/// The result type of this crate.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

impl DataError {
    /// Creates the error of a malformed file or row from its location, the problem and the help.
    pub fn malformed(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Data(Diagnostic::new(location, what, help))
    }

    /// Creates the error for a file or folder that could not be read.
    pub fn cannot_read(path: impl AsRef<Path>, source: &io::Error) -> Self {
        Self::Io(Diagnostic::cannot_read(path, source))
    }

    /// The error as a diagnostic: location, problem and help.
    pub fn diagnostic(&self) -> &Diagnostic {
        match self {
            Self::Data(diagnostic) | Self::Io(diagnostic) => diagnostic,
        }
    }

    /// The error as a diagnostic: location, problem and help.
    pub fn into_diagnostic(self) -> Diagnostic {
        match self {
            Self::Data(diagnostic) | Self::Io(diagnostic) => diagnostic,
        }
    }
}
