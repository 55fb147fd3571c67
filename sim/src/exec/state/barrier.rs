//! State of the 16 barriers of a block (`bar`, `barrier`) and of the barrier of a cluster.

use crate::order::{BarrierFenceState, VectorClock};
use crate::program::op::BarrierKind;
use std::collections::BTreeMap;

/// One of the 16 barriers of a block.
#[derive(Clone, Debug, Default)]
pub struct BlockBarrier {
    /// Number of threads that have arrived. If the barrier instruction gives a thread count, each arriving warp counts
    /// as 32 threads, even if some of them have exited.
    pub arrived: u32,
    /// The thread count that the barrier instruction gave; `None`: all live threads of the block.
    pub expected: Option<u32>,
    /// Whether the first arriving thread executed a reduction (`bar.red`).
    pub reduces: bool,
    /// Mask of the lanes that have arrived, by the index of their warp.
    pub lanes: BTreeMap<u32, u32>,
    /// For each warp, by its index: the barrier instruction that the first arriving lanes of the warp executed.
    pub first_pcs: BTreeMap<u32, u32>,
    /// Joined vector clocks of the threads that have arrived.
    pub clock: Option<VectorClock>,
    /// Fences and observed vector clocks of the threads that have arrived. The waiting threads receive them.
    pub handoff: BarrierFenceState,
    /// `bar.red.popc`: number of true predicates so far.
    pub popc: u32,
    /// `bar.red.and`: whether all predicates so far are true.
    pub all: bool,
    /// `bar.red.or`: whether any predicate so far is true.
    pub any: bool,
    /// Reductions (`bar.red`) whose results are written to registers when the barrier completes.
    pub reductions: Vec<BarrierReduction>,
    /// Index of the barrier instruction that the first arriving thread executed.
    pub pc: u32,
}

/// Where a `bar.red` of some lanes of a warp writes its result.
#[derive(Clone, Debug)]
pub struct BarrierReduction {
    /// Index of the warp in its block.
    pub warp: u32,
    /// Index of the call frame whose registers receive the result.
    pub frame: u32,
    /// Mask of the lanes.
    pub lanes: u32,
    /// The reduction and its destination register.
    pub kind: BarrierKind,
}

impl BlockBarrier {
    /// Describes for messages how many threads have arrived. `live_threads` is the number of live threads in the
    /// block.
    pub fn describe_arrivals(&self, live_threads: u32) -> String {
        let expected = self.expected.unwrap_or(live_threads);
        format!("{} of {expected} threads have arrived", self.arrived)
    }

    /// Returns whether enough threads have arrived. `live_threads` is the number of live threads in the block.
    pub fn is_complete(&self, live_threads: u32) -> bool {
        self.arrived >= self.expected.unwrap_or(live_threads)
    }
}

/// The barrier of a cluster. The block of rank 0 holds it for its cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterBarrier {
    /// Number of phases that are complete.
    pub phase: u64,
    /// Number of threads that have arrived in the current phase.
    pub arrived: u32,
    /// Joined vector clocks of the threads that arrived with release.
    pub clock: Option<VectorClock>,
    /// The vector clock that waiting threads acquire from the last complete phase.
    pub released: Option<VectorClock>,
    /// For each warp, as (block slot, index in the block): the mask of the lanes that have arrived, and the phase in
    /// which they arrived.
    pub lanes: BTreeMap<(u32, u32), (u32, u64)>,
}

impl ClusterBarrier {
    /// Completes the phase if all live threads of the cluster have arrived; returns whether it did.
    pub fn try_complete_phase(&mut self, live_threads: u32) -> bool {
        if self.arrived == 0 || self.arrived < live_threads {
            return false;
        }
        self.arrived = 0;
        self.phase += 1;
        self.released = self.clock.take();
        true
    }
}
