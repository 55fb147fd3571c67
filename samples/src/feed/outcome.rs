//! The outcome of preparing a row, in a form that the processes (ranks) of a run send each other.

use reel_diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::{Result, SampleError, SkipCause};

/// The outcome of preparing a row: whether the row can be used, and its number of tokens. The micro-batches depend
/// only on these outcomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum RowOutcome {
    /// The row can be used and has this number of tokens.
    Usable(usize),
    /// The row cannot be used.
    Failed(RowFailure),
}

/// The error of a row. All ranks handle it in the same way: all skip the row, or all end the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowFailure {
    kind: FailureKind,
    diagnostic: Diagnostic,
}

/// The variants of [`SampleError`] that a row can cause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum FailureKind {
    Data,
    Row,
    TooLong,
    Media { cause: SkipCause, was_read: bool },
    MediaUnavailable,
}

impl RowFailure {
    /// Makes the failure of a row from its error `e`.
    ///
    /// # Errors
    /// Returns `e` if the error is about this process and not about the row, such as a worker that cannot be started.
    pub fn new(e: SampleError) -> Result<Self> {
        let (kind, diagnostic) = match e {
            SampleError::Data(diagnostic) => (FailureKind::Data, diagnostic),
            SampleError::Row(diagnostic) => (FailureKind::Row, diagnostic),
            SampleError::TooLong(diagnostic) => (FailureKind::TooLong, diagnostic),
            SampleError::Media { diagnostic, cause, was_read } => (FailureKind::Media { cause, was_read }, diagnostic),
            SampleError::MediaUnavailable(diagnostic) => (FailureKind::MediaUnavailable, diagnostic),
            other => return Err(other),
        };
        Ok(Self { kind, diagnostic })
    }

    /// The error from which this failure was made.
    pub fn to_error(&self) -> SampleError {
        let diagnostic = self.diagnostic.clone();
        match self.kind {
            FailureKind::Data => SampleError::Data(diagnostic),
            FailureKind::Row => SampleError::Row(diagnostic),
            FailureKind::TooLong => SampleError::TooLong(diagnostic),
            FailureKind::Media { cause, was_read } => SampleError::Media { diagnostic, cause, was_read },
            FailureKind::MediaUnavailable => SampleError::MediaUnavailable(diagnostic),
        }
    }
}
