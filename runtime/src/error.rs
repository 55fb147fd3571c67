//! The error type of this crate.

use reel_device::{DType, DeviceError};
use reel_support::error::{Error, Kind};

/// An error of a device, a tensor or the tape.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// An op was called with shapes or dtypes that it does not accept.
    #[error("{op}: {what}")]
    Shape {
        /// The name of the op, such as `linear`.
        op: &'static str,
        /// The argument, its expected and actual shape or dtype, and a likely cause.
        what: String,
    },
    /// A trained parameter was used in the forward pass but received no gradient, because an op has no backward rule.
    #[error(
        "{0}: used in the forward pass, but no gradient reached it; an op between it and the loss has no backward rule"
    )]
    NoGradient(String),
    /// The backward pass was started from a result that does not depend on any trained parameter.
    #[error("backward: the loss does not depend on any trained parameter; check which parameters are frozen")]
    NothingToTrain,
    /// A tensor was read with a dtype that it does not have.
    #[error("a tensor of dtype {got} was read as {want}; cast it first")]
    DType {
        /// The dtype of the tensor.
        got: DType,
        /// The dtype that the caller wanted.
        want: DType,
    },
    /// The device is not available, or it failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The work that [`Cx::recompute`](crate::Cx::recompute) runs, or an exchange of weights, failed.
    #[error(transparent)]
    Work(Error),
}

impl From<Error> for RuntimeError {
    fn from(e: Error) -> Self {
        match e.kind {
            Kind::Device | Kind::OutOfMemory => Self::Work(e),
            _ => DeviceError::Failed(e.to_string()).into(),
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(e: RuntimeError) -> Self {
        match e {
            RuntimeError::Work(e) => e,
            RuntimeError::Device(e) => e.into(),
            RuntimeError::NothingToTrain => Error { kind: Kind::NothingToTrain, ..Error::device(e.to_string()) },
            e => Error::device(e.to_string()),
        }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// The error of an op that was called with shapes or dtypes that it does not accept.
pub(crate) fn shape_error(op: &'static str, what: impl Into<String>) -> RuntimeError {
    RuntimeError::Shape { op, what: what.into() }
}
