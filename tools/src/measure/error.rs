//! The error type of this crate.

use reel_device::DeviceError;
use reel_device::cuda::CudaError;
use reel_engine::EngineError;
use reel_input::InputError;
use reel_model::ModelError;
use reel_runtime::RuntimeError;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::FileError;
use reel_train::TrainError;

/// A measurement failed, or two results could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// An option has a wrong value, or names something that cannot be measured.
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

impl From<DeviceError> for MeasureError {
    fn from(e: DeviceError) -> MeasureError {
        MeasureError::Runtime(e.into())
    }
}

impl MeasureError {
    /// Returns true if the command line is wrong, and false if the measured work failed.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }
}

impl From<FileError> for MeasureError {
    fn from(e: FileError) -> Self {
        Self::Failed(e.diagnostic)
    }
}

impl From<InputError> for MeasureError {
    fn from(e: InputError) -> Self {
        Self::Model(e.into())
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, MeasureError>;

/// Returns the error of an option. It prints as `location: what; help`; `location` is the option or its value.
pub(crate) fn option_error(location: &str, what: impl Into<String>, help: impl Into<String>) -> MeasureError {
    MeasureError::Option(Diagnostic::new(location, what, help))
}

/// Returns the error of measured work or of a file. It prints as `location: what; help`.
pub(crate) fn measurement_error(
    location: impl Into<String>,
    what: impl Into<String>,
    help: impl Into<String>,
) -> MeasureError {
    MeasureError::Failed(Diagnostic::new(location, what, help))
}
