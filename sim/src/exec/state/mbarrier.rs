//! An mbarrier object: its counts, its phase, and the vector clock that its phases release.

use crate::finding::Site;
use crate::order::{Agent, VectorClock};

/// An mbarrier object in shared memory.
#[derive(Clone, Debug)]
pub struct MbarrierObject {
    /// Arrivals that complete a phase.
    pub expected: u32,
    /// Arrivals missing in the current phase.
    pub pending: u32,
    /// Bytes that the current phase expects and that copies have not delivered; negative if they delivered more.
    pub pending_bytes: i64,
    /// Number of the current phase; the first is 0.
    pub phase: u32,
    /// The virtual agent in whose name the phases release.
    pub agent: Agent,
    /// Joined vector clocks of the threads that arrived in the current phase.
    pub clock: Option<VectorClock>,
    /// Joined vector clocks of all complete phases.
    pub released: Option<VectorClock>,
    /// The thread that initialised the object, and its epoch then.
    pub init: (Agent, u32),
    /// The copy that delivered bytes last.
    pub credited: Option<Site>,
}

impl MbarrierObject {
    /// Describes the current phase, for deadlock findings.
    pub fn describe(&self) -> String {
        format!(
            "phase {}, {} of {} arrivals and {} bytes missing",
            self.phase, self.pending, self.expected, self.pending_bytes
        )
    }

    /// Whether the current phase has begun and cannot end: some arrivals or bytes are missing, or too many bytes came.
    pub fn is_short(&self) -> bool {
        self.pending < self.expected || self.pending_bytes != 0
    }

    /// Begins the next phase if no arrival and no byte is missing; returns whether it did.
    pub fn complete_phase(&mut self) -> bool {
        if self.pending != 0 || self.pending_bytes != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.expected;
        if let Some(clock) = self.clock.take() {
            join_clock(&mut self.released, clock);
        }
        true
    }
}

/// Where an mbarrier object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MbarrierLocation {
    /// Slot of the block whose shared memory holds the object.
    pub slot: u32,
    /// Shared address in that block.
    pub address: u32,
}

/// Joins a vector clock into an optional one.
pub fn join_clock(clock: &mut Option<VectorClock>, other: VectorClock) {
    match clock {
        Some(clock) => clock.join(&other),
        none => *none = Some(other),
    }
}
