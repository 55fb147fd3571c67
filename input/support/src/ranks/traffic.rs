//! Counts the data that a rank has sent and received.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ranks::call::CallKind;

/// The bytes of data that a rank has sent to other ranks and received from them, by the kind of call. Headers,
/// control messages and a rank's own part of a collective are not counted. Data for several ranks are counted once
/// per rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Data of [`Ranks::broadcast`](crate::ranks::Ranks::broadcast).
    pub broadcast: TrafficVolume,
    /// Data of [`Ranks::all_gather`](crate::ranks::Ranks::all_gather).
    pub all_gather: TrafficVolume,
    /// Data of [`Ranks::all_to_all_into`](crate::ranks::Ranks::all_to_all_into).
    pub all_to_all: TrafficVolume,
}

/// The number of bytes in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficVolume {
    /// The number of bytes sent.
    pub sent: u64,
    /// The number of bytes received.
    pub received: u64,
}

impl Traffic {
    /// The sum over all kinds of calls.
    pub fn total(&self) -> TrafficVolume {
        let all = [self.broadcast, self.all_gather, self.all_to_all];
        let sum = |part: fn(&TrafficVolume) -> u64| all.iter().map(part).sum();
        TrafficVolume { sent: sum(|volume| volume.sent), received: sum(|volume| volume.received) }
    }
}

/// The counters from which [`Traffic`] is read.
#[derive(Debug, Default)]
pub(crate) struct TrafficCounters([[AtomicU64; 2]; CallKind::ALL.len()]);

impl TrafficCounters {
    pub fn add(&self, kind: CallKind, sent: usize, received: usize) {
        let [all_sent, all_received] = &self.0[usize::from(kind.code())];
        all_sent.fetch_add(sent as u64, Ordering::Relaxed);
        all_received.fetch_add(received as u64, Ordering::Relaxed);
    }

    pub fn read(&self) -> Traffic {
        let volume = |kind: CallKind| {
            let [sent, received] = self.0[usize::from(kind.code())].each_ref().map(|n| n.load(Ordering::Relaxed));
            TrafficVolume { sent, received }
        };
        Traffic {
            broadcast: volume(CallKind::Broadcast),
            all_gather: volume(CallKind::AllGather),
            all_to_all: volume(CallKind::AllToAll),
        }
    }
}
