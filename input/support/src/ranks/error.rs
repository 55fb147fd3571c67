//! The error type of this crate.

use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

/// The reason why a process cannot join its job, or why the job has failed. All ranks of a failed job get the same
/// error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{diagnostic}")]
pub struct RankError {
    /// The rank, environment variable or file, what is wrong with it, and what to do.
    pub diagnostic: Diagnostic,
    /// The rank that caused the job to fail, such as a killed one. `None` if no single rank is the cause.
    pub rank: Option<usize>,
}

/// The result type of this crate.
pub type Result<T, E = RankError> = std::result::Result<T, E>;

impl From<Diagnostic> for RankError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { diagnostic, rank: None }
    }
}

impl From<RankError> for crate::error::Error {
    fn from(e: RankError) -> Self {
        crate::error::Kind::Rank.error(e.diagnostic)
    }
}

/// Formats ranks as `3, 5`. Of more than ten, shows the first eight and the number of others.
pub(crate) fn format_rank_list(ranks: &[usize]) -> String {
    let shown = if ranks.len() > 10 { 8 } else { ranks.len() };
    let mut text = ranks[..shown].iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    if shown < ranks.len() {
        text += &format!(" and {} others", ranks.len() - shown);
    }
    text
}

/// Formats ranks as `rank 3` or `ranks 3, 5`.
pub(crate) fn format_ranks(ranks: &[usize]) -> String {
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, format_rank_list(ranks))
}
