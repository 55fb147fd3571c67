//! The crate's error: every variant names the place, what is wrong there, and what to do.

/// What can go wrong between a completion and its reward.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// A row to be scored is malformed.
    #[error("{place}: {what}; {cure}")]
    Row {
        /// The field, or "the line".
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// An option makes no sense.
    #[error("{place}: {what}; {cure}")]
    Option {
        /// The flag.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A user's own reward gave no usable answer.
    #[error("{place}: {what}; {cure}")]
    Custom {
        /// The flag, with the command or address.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
    /// The model behind the semantic reward failed; its error says the rest.
    #[error(transparent)]
    Semantic(Box<dyn std::error::Error + Send + Sync>),
}

/// This crate's results.
pub type Result<T, E = RewardError> = std::result::Result<T, E>;

impl RewardError {
    pub(crate) fn row(place: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Row { place: place.into(), what: what.into(), cure: cure.into() }
    }

    pub(crate) fn option(place: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Option { place: place.into(), what: what.into(), cure: cure.into() }
    }

    pub(crate) fn custom(place: &str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Custom { place: place.into(), what: what.into(), cure: cure.into() }
    }

    /// Whether the command line, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Option { .. })
    }
}
