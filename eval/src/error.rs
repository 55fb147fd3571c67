//! The crate's error: every variant names the place, what is wrong there, and what to do.

/// What can go wrong between predictions and their scores.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// There is no benchmark of this name.
    #[error("--benchmark: there is no benchmark `{name}`; use one of {known}")]
    Benchmark {
        /// The name that was given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A row of predictions is malformed.
    #[error("{place}: {what}; {cure}")]
    Row {
        /// The field, or "the line".
        place: String,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: String,
    },
}

/// This crate's results.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

impl EvalError {
    pub(crate) fn row(place: &str, what: impl Into<String>, cure: &str) -> Self {
        Self::Row { place: place.into(), what: what.into(), cure: cure.into() }
    }

    /// Whether the command line, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Benchmark { .. })
    }
}
