//! What can go wrong while generating.

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model or its inputs.
    #[error(transparent)]
    Model(#[from] reel_model::ModelError),
    /// The device or an op.
    #[error(transparent)]
    Runtime(#[from] reel_runtime::RuntimeError),
    /// A request that can't be served.
    #[error("{field}: {what}")]
    Request {
        /// The option.
        field: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
    /// The logits of a row are not numbers.
    #[error(
        "logits: not a number at generated token {step} of completion {row}; the weights are damaged, or the dtype overflows: try --dtype f32"
    )]
    NotANumber {
        /// Which completion.
        row: usize,
        /// Which of its tokens, from 0.
        step: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted: generation was stopped before it was done; run it again to finish it")]
    Interrupted,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, EngineError>;
