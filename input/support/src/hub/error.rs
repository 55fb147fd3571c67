//! The error type of this crate.

use std::io;
use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::files::FileError;

/// A model or a data set could not be found, downloaded or unpacked. The diagnostic has its name, what is wrong, and
/// what to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct HubError(pub Diagnostic);

/// The result type of this crate.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

impl HubError {
    pub(crate) fn new(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self(Diagnostic::new(location, what, help))
    }

    pub(crate) fn cannot_read(path: &Path, source: &io::Error) -> Self {
        Self(Diagnostic::cannot_read(path, source))
    }

    pub(crate) fn cannot_write(path: &Path, source: &io::Error) -> Self {
        Self(Diagnostic::cannot_write(path, source))
    }
}

impl From<FileError> for HubError {
    fn from(error: FileError) -> Self {
        Self(error.diagnostic)
    }
}
