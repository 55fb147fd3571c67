//! The error type of this crate.

use reel_eval::EvalError;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;
use reel_train::TrainError;

/// A page could not be made from the output folder of a run.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file of the run is missing, unreadable or empty.
    #[error(transparent)]
    Run(Diagnostic),
    /// Two evaluations cannot be compared.
    #[error(transparent)]
    Evaluation(EvalError),
    /// The run's metrics could not be read.
    #[error(transparent)]
    Metrics(#[from] TrainError),
    /// A log of the run could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ReportError>;
