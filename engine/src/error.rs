//! The error type of the engine.

use reel_device::DeviceError;
use reel_input::InputError;
use reel_model::ModelError;
use reel_runtime::RuntimeError;
use reel_support::diagnostic::Diagnostic;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An error of the model or its inputs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An error of the device or an op.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A request has an invalid field.
    #[error("{0}")]
    Request(Diagnostic),
    /// A request has more tokens than the KV cache holds.
    #[error("{diagnostic}")]
    TooLong {
        /// The number of tokens that the KV cache holds.
        room: usize,
        /// What the request needs, and what to do.
        diagnostic: Diagnostic,
    },
    /// The logits of a sequence are NaN.
    #[error(
        "logits: not a number at generated token {token} of completion {completion}; the weights are damaged, or the dtype overflows: try --dtype f32"
    )]
    NotANumber {
        /// The index of the completion in its request.
        completion: usize,
        /// The index of the generated token within the completion.
        token: usize,
    },
    /// The logits of a prompt's tokens are NaN.
    #[error("logits: not a number within the prompt; the weights are damaged, or the dtype overflows: try --dtype f32")]
    NotANumberInPrompt,
    /// A request was not finished by its deadline.
    #[error("request: reached its time limit before it was complete; give it more time, or ask for fewer tokens")]
    DeadlineExceeded,
    /// The caller's interrupt flag was set.
    #[error("interrupted: generation was stopped before it was complete; run the command again")]
    Interrupted,
}

impl From<InputError> for EngineError {
    fn from(e: InputError) -> Self {
        Self::Model(e.into())
    }
}

impl EngineError {
    /// Whether all processes of a tensor-parallel model get this error for the same request, so that each of them can
    /// drop the request and continue.
    pub(crate) fn is_same_on_all_ranks(&self) -> bool {
        let is_of_input = |e: &ModelError| matches!(e, ModelError::Input(_));
        match self {
            Self::Request(_) | Self::TooLong { .. } | Self::NotANumber { .. } | Self::NotANumberInPrompt => true,
            Self::Model(e) => is_of_input(e),
            Self::Runtime(_) | Self::DeadlineExceeded | Self::Interrupted => false,
        }
    }

    /// Whether an exchange with the other processes of a tensor-parallel model has failed.
    pub fn is_rank_exchange_failure(&self) -> bool {
        matches!(self, Self::Model(ModelError::Rank(_)))
    }

    /// Whether the device had too little free memory.
    pub fn is_out_of_memory(&self) -> bool {
        let (Self::Runtime(cause) | Self::Model(ModelError::Runtime(cause))) = self else { return false };
        matches!(cause, RuntimeError::Device(DeviceError::OutOfMemory { .. }))
    }
}

impl From<DeviceError> for EngineError {
    fn from(e: DeviceError) -> EngineError {
        EngineError::Runtime(e.into())
    }
}

/// The result of a function of this crate.
pub type Result<T> = std::result::Result<T, EngineError>;
