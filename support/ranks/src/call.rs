//! The calls of [`Ranks`](crate::Ranks), and the activity that a rank reports about itself.

use std::fmt;

use reel_diagnostic::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::error::RankError;

/// The maximum length of a call's name in bytes. Longer names are cut.
pub(crate) const MAX_NAME_BYTES: usize = 256;

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CallKind {
    Barrier,
    Broadcast,
    AllGather,
    AllToAll,
    Send,
    Receive,
    Leave,
}

impl CallKind {
    pub const ALL: [Self; 7] =
        [Self::Barrier, Self::Broadcast, Self::AllGather, Self::AllToAll, Self::Send, Self::Receive, Self::Leave];

    /// Returns the kind of call by which the other rank sends its messages: a receive needs a send, every other kind
    /// needs itself.
    pub fn matching_sender_kind(self) -> Self {
        if self == Self::Receive { Self::Send } else { self }
    }

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
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Leave => "leave",
        }
    }
}

/// A call of a rank. Prints as `barrier 'step 5'` or `send 'samples' to rank 2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub kind: CallKind,
    /// The name that the caller has given to the call.
    pub name: String,
    /// The number of this call: collectives are counted in the whole job, sends and receives per pair of sender and
    /// receiver.
    pub sequence: u64,
    /// The other rank of a send or receive.
    pub peer: Option<usize>,
}

impl Call {
    pub fn new(kind: CallKind, name: &str, sequence: u64, peer: Option<usize>) -> Self {
        let mut end = name.len().min(MAX_NAME_BYTES);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        Self { kind, name: name[..end].to_string(), sequence, peer }
    }

    /// Whether all ranks make this call.
    pub fn is_collective(&self) -> bool {
        self.peer.is_none() && self.kind != CallKind::Leave
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if !self.name.is_empty() {
            write!(f, " '{}'", self.name)?;
        }
        match (self.kind, self.peer) {
            (CallKind::Send, Some(peer)) => write!(f, " to rank {peer}"),
            (_, Some(peer)) => write!(f, " from rank {peer}"),
            (_, None) => Ok(()),
        }
    }
}

/// Assigns numbers to the calls of a rank. Matching calls have the same number on all ranks.
#[derive(Debug)]
pub(crate) struct CallCounters {
    /// The number of collectives.
    collectives: u64,
    /// By rank: the number of [`CallKind::Send`] calls to that rank.
    sent: Vec<u64>,
    /// By rank: the number of [`CallKind::Receive`] calls from that rank.
    received: Vec<u64>,
}

impl CallCounters {
    /// Creates the counters for a job of `size` ranks.
    pub fn new(size: usize) -> Self {
        Self { collectives: 0, sent: vec![0; size], received: vec![0; size] }
    }

    /// Returns the next call of this kind, with its number.
    pub fn next_call(&mut self, kind: CallKind, name: &str, peer: Option<usize>) -> Call {
        let count = match (kind, peer) {
            (CallKind::Send, Some(peer)) => &mut self.sent[peer],
            (CallKind::Receive, Some(peer)) => &mut self.received[peer],
            _ => &mut self.collectives,
        };
        *count += 1;
        Call::new(kind, name, *count - 1, peer)
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
