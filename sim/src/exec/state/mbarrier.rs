//! An mbarrier object: its counts, its phase, and the vector clock that waiting threads acquire.

use crate::finding::FindingSite;
use crate::order::{Agent, VectorClock};

/// An mbarrier object in shared memory.
#[derive(Clone, Debug)]
pub struct MbarrierObject {
    /// Number of arrivals that complete a phase.
    pub expected: u32,
    /// Number of arrivals that are missing in the current phase.
    pub pending: u32,
    /// Number of bytes that the current phase expects and that copies have not delivered; negative if they delivered
    /// more.
    pub pending_bytes: i64,
    /// Number of the current phase; the first is 0.
    pub phase: u32,
    /// The virtual agent that stands for this mbarrier in vector clocks.
    pub agent: Agent,
    /// Vector clocks of the threads that arrived in the current phase.
    pub arrived: ArrivalClocks,
    /// Vector clocks of the threads that arrived in all complete phases.
    pub released: ArrivalClocks,
    /// The thread that initialised the mbarrier, and that thread's epoch in vector clocks at the time.
    pub init: (Agent, u32),
    /// The thread and the instruction of the copy that last delivered bytes.
    pub last_copy: Option<FindingSite>,
}

impl MbarrierObject {
    /// Describes the current phase for deadlock findings.
    pub fn describe_phase(&self) -> String {
        format!(
            "in phase {}, {} of {} arrivals and {} bytes are missing",
            self.phase, self.pending, self.expected, self.pending_bytes
        )
    }

    /// Returns whether the current phase has begun but cannot complete: arrivals or bytes are missing, or too many
    /// bytes came.
    pub fn is_incomplete(&self) -> bool {
        self.pending < self.expected || self.pending_bytes != 0
    }

    /// Begins the next phase if neither arrivals nor bytes are missing; returns whether it did.
    pub fn try_complete_phase(&mut self) -> bool {
        if self.pending != 0 || self.pending_bytes != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.expected;
        self.released.join(std::mem::take(&mut self.arrived));
        true
    }
}

/// Joined vector clocks of the threads that arrived at an mbarrier. A wait at `.cta` scope acquires only the clocks of
/// threads of the mbarrier's own block.
#[derive(Clone, Debug, Default)]
pub struct ArrivalClocks {
    /// Arrivals of threads of the mbarrier's block.
    pub own_block: Option<VectorClock>,
    /// Arrivals of threads of other blocks, at `.cluster` scope.
    pub other_blocks: Option<VectorClock>,
}

impl ArrivalClocks {
    /// Adds the clocks of `other`.
    pub fn join(&mut self, other: ArrivalClocks) {
        other.own_block.into_iter().for_each(|clock| join_clock(&mut self.own_block, clock));
        other.other_blocks.into_iter().for_each(|clock| join_clock(&mut self.other_blocks, clock));
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

/// Joins `other` into `clock`, or stores it there if `clock` is `None`.
pub fn join_clock(clock: &mut Option<VectorClock>, other: VectorClock) {
    match clock {
        Some(clock) => clock.join(&other),
        none => *none = Some(other),
    }
}
