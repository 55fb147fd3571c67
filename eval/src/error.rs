//! The error type of this crate. Each variant names the location, what is wrong there, and what to do.

use reel_support::diagnostic::Diagnostic;

/// An error in options, task files, data files or predictions.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A command line option is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// A row of predictions is malformed.
    #[error("{0}")]
    Row(Diagnostic),
    /// A task file is invalid or cannot be read.
    #[error("{0}")]
    Task(Diagnostic),
    /// A data file of a benchmark is invalid or cannot be read.
    #[error("{0}")]
    Data(Diagnostic),
}

/// The result of a function of this crate.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

impl EvalError {
    /// The error for a malformed row of predictions at `location`.
    pub(crate) fn malformed_row(location: &str, what: impl Into<String>, help: &str) -> Self {
        Self::Row(Diagnostic::new(location, what, help))
    }

    /// Whether an invalid command line caused the error; the program then exits with code 2.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }
}
