//! The error type of this crate.

use crate::report::ReportError;
use reel_eval::EvalError;
use reel_input::media::MediaError;
use reel_model::ModelError;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;

/// The demo failed.
#[derive(Debug, thiserror::Error)]
pub enum ShowcaseError {
    /// The output folder or a file in it cannot be used.
    #[error(transparent)]
    Output(Diagnostic),
    /// A model folder could not be made or used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An answer of the evaluation could not be read.
    #[error(transparent)]
    Evaluation(#[from] EvalError),
    /// A clip could not be encoded.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The page of the GRPO run could not be made.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl From<FileError> for ShowcaseError {
    fn from(e: FileError) -> Self {
        Self::Output(e.diagnostic)
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ShowcaseError>;
