//! The crate's error.

use reel_diagnostic::Diagnostic;
use reel_engine::EngineError;
use reel_kernels::cuda::CudaError;
use reel_model::ModelError;
use reel_runtime::RuntimeError;
use reel_train::TrainError;

/// A measurement failed, or two results could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// An option asks for something that cannot be measured.
    #[error(transparent)]
    Option(Diagnostic),
    /// The measured work failed, or a result file is malformed.
    #[error(transparent)]
    Failed(Diagnostic),
    /// The GPU's driver or its matrix product library failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A device or an op failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A model folder could not be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Generation failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A training step failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl MeasureError {
    /// Whether the command line is wrong; otherwise the work failed.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, MeasureError>;

/// An error of an option: `location: what; help`.
pub(crate) fn bad_option(location: &str, what: impl Into<String>, help: impl Into<String>) -> MeasureError {
    MeasureError::Option(Diagnostic::new(location, what, help))
}

/// An error of the work or of a file: `location: what; help`.
pub(crate) fn failed(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> MeasureError {
    MeasureError::Failed(Diagnostic::new(location, what, help))
}
