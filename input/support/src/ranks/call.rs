//! The calls of [`Ranks`](crate::ranks::Ranks), and the activity that a rank reports about itself.

use std::fmt;

use crate::diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::ranks::error::RankError;

/// The maximum length of a call's name in bytes. Longer names are cut.
pub(crate) const MAX_NAME_BYTES: usize = 256;

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CallKind {
    Barrier,
    Broadcast,
    AllGather,
    AllToAll,
    Leave,
}

impl CallKind {
    pub const ALL: [Self; 5] = [Self::Barrier, Self::Broadcast, Self::AllGather, Self::AllToAll, Self::Leave];

    /// The code of this kind in message headers.
    pub fn code(self) -> u8 {
        self as u8
    }

    fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Leave => "leave",
        }
    }
}

/// A call of a rank. Prints as `barrier 'step 5'`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub kind: CallKind,
    /// The name that the caller has given to the call.
    pub name: String,
    /// The number of this call among the collectives of the job.
    pub sequence: u64,
}

impl Call {
    pub fn new(kind: CallKind, name: &str, sequence: u64) -> Self {
        let mut end = name.len().min(MAX_NAME_BYTES);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        Self { kind, name: name[..end].to_string(), sequence }
    }

    /// Whether all ranks make this call.
    pub fn is_collective(&self) -> bool {
        self.kind != CallKind::Leave
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if !self.name.is_empty() {
            write!(f, " '{}'", self.name)?;
        }
        Ok(())
    }
}

/// The activity of a rank, which its heartbeats report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RankActivity {
    /// The last call of the rank.
    pub call: Option<Call>,
    /// Milliseconds since this call last sent or received a byte, or since it began. `None` if the call has returned.
    pub waiting_ms: Option<u64>,
    /// The number of collectives that the rank has begun.
    pub collectives: u64,
}

/// The help text of errors about ranks that make different calls.
pub(crate) const SAME_CALLS_HELP: &str =
    "all ranks must make the same calls: start them with the same program, options and data";

/// Returns the error about two ranks whose calls do not match.
pub(crate) fn mismatched_calls(first: (usize, &Call), second: (usize, &Call)) -> RankError {
    let named = |call: &Call, other: &Call| {
        let text = call.to_string();
        if text == other.to_string() { format!("{text} (call {})", call.sequence) } else { text }
    };
    let (one, two) = (named(first.1, second.1), named(second.1, first.1));
    let what = format!("is in {one}, but rank {} is in {two}", second.0);
    RankError { diagnostic: Diagnostic::new(format!("rank {}", first.0), what, SAME_CALLS_HELP), rank: None }
}
