//! The error type of this crate. Each variant names the location, what is wrong there, and what to do.

use reel_support::diagnostic::Diagnostic;

/// An error that occurs while completions are scored.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// A row to be scored is malformed.
    #[error("{0}")]
    Row(Diagnostic),
    /// A command line option is invalid.
    #[error("{0}")]
    Option(Diagnostic),
    /// A custom reward (`--reward-command`, `--reward-url`) gave no usable rewards.
    #[error("{0}")]
    Custom(Diagnostic),
    /// The model behind the semantic reward failed.
    #[error(transparent)]
    Semantic(Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a function of this crate.
pub type Result<T, E = RewardError> = std::result::Result<T, E>;

impl RewardError {
    pub(crate) fn bad_row(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Row(Diagnostic::new(location, what, help))
    }

    pub(crate) fn bad_option(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Option(Diagnostic::new(location, what, help))
    }

    /// The error of a custom reward that gave no usable rewards: [`RewardError::Custom`].
    pub fn custom_reward_failed(location: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Custom(Diagnostic::new(location, what, help))
    }

    /// Whether a command-line option is invalid. The program then exits with code 2.
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::Option(_))
    }
}
