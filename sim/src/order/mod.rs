//! The happens-before check: decides for every memory access whether it is ordered after the earlier accesses to the
//! same bytes.
//!
//! Three parts work together: vector clocks ([`VectorClock`], [`WarpVectorClocks`], [`ReleasedClocksByLocation`]) hold which accesses
//! happen before the present point of a thread; [`AsyncOperationTable`] holds which threads have observed the completion of an
//! asynchronous operation; [`ShadowMemory`] stores the last accesses to every few bytes and compares each new access
//! with them.
//!
//! Every *warp* counts epochs, and each release or fence ends an epoch. An access is stamped with its lane's
//! [`Agent`] and the warp's epoch. A clock maps each agent to the last epoch that happens before:
//!
//! ```text
//! access(agent a, epoch e)  happens before  point p   iff   clock(p)[a] >= e
//!
//! warp 0: epoch 1   st [x]           x: writer (warp 0, epoch 1)
//!         bar.sync  release: clock = {warp 0: 1}, epoch becomes 2
//! warp 1: bar.sync  acquire: clock = {warp 0: 1}
//!         ld [x]    writer's epoch 1 <= clock[warp 0] = 1: ordered, no finding
//!         st [y]    y was read by warp 0 in epoch 2 > 1: a race
//! ```
//!
//! The rules are those of the PTX ISA's chapter "Memory Consistency Model", including asynchronous operations and
//! proxies.

mod access_check;
mod access_lists;
mod cell;
mod clock;
mod conflict;
mod lane_cache;
mod matrix_rows;
mod ops;
mod shadow;
mod sync;
mod tensor_memory;
#[cfg(test)]
mod tests;
mod transition_cache;
mod warp;
mod wgmma_operand;

pub use clock::{FenceCoverage, VectorClock};
pub use conflict::{AccessKind, Conflict, ConflictKind, EarlierAccess, RaceCheckContext};
pub use ops::{AsyncOpId, AsyncOpKind, AsyncOperationTable};
pub use shadow::ShadowMemory;
pub use sync::{MemorySemantics, ReleasedClocksByLocation};
pub use tensor_memory::{
    NewTensorAccess, TensorAccess, TensorAccessId, TensorAccessKind, TensorAccesses, TensorCells, TensorOrder,
};
pub use warp::{BarrierFenceState, MemoryFence, WarpVectorClocks};
pub use wgmma_operand::OperandWriters;

/// Maximum number of blocks: block indices in an [`Agent`] are below this number.
pub const MAX_BLOCKS: u32 = 1 << 20;

/// Number of lanes of a warp.
const LANES: usize = 32;

/// A thread or a virtual agent that accesses memory, encoded as `block << 11 | index`. An index below 1024 is a
/// thread of the block (its linear index); other indices are virtual agents, such as mbarriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Agent(pub u32);

impl Agent {
    /// The host, and everything before the launch; happens before every access of the launch.
    pub const HOST: Agent = Agent(u32::MAX);

    /// Returns the agent of thread `thread` (linear index, below 1024) of `block`.
    pub fn thread(block: u32, thread: u32) -> Agent {
        debug_assert!(block < MAX_BLOCKS && thread < 1024);
        Agent(block << 11 | thread)
    }

    /// Returns virtual agent `index` (below 1024) of `block`.
    pub fn virtual_agent(block: u32, index: u32) -> Agent {
        debug_assert!(block < MAX_BLOCKS && index < 1024);
        Agent(block << 11 | 1024 | index)
    }

    /// Returns the agent's block.
    pub fn block(self) -> u32 {
        self.0 >> 11
    }

    /// Returns the thread's linear index in its block; `None` for virtual agents and the host.
    pub fn thread_index(self) -> Option<u32> {
        (self.0 & 1024 == 0).then_some(self.0 & 1023)
    }
}

/// Strength and scope of an access in the PTX memory model: weak, or strong (relaxed, acquire, release, volatile,
/// atomic) at a scope. `.sys` counts as [`AccessStrength::Gpu`], because one device is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum AccessStrength {
    /// Weak: ordinary loads and stores.
    Weak = 0,
    /// Strong at `.cta` scope.
    Cta = 1,
    /// Strong at `.cluster` scope.
    Cluster = 2,
    /// Strong at `.gpu` or `.sys` scope.
    Gpu = 3,
}

/// The state space of an allocation or a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemorySpace {
    /// A block's shared memory.
    Shared = 0,
    /// Global memory.
    Global = 1,
}

/// Which blocks form a cluster: the extents of the grid and of a cluster in blocks, x first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterLayout {
    /// Blocks of the grid along x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster along x, y, z; all 1 without clusters.
    pub cluster: [u32; 3],
}

impl ClusterLayout {
    /// No clusters: every block is a cluster of its own.
    pub const NONE: ClusterLayout = ClusterLayout { grid: [u32::MAX, 1, 1], cluster: [1, 1, 1] };

    /// Returns the smallest scope that contains both blocks, which are given by linear index.
    pub fn common_scope(&self, block_a: u32, block_b: u32) -> AccessStrength {
        if block_a == block_b {
            AccessStrength::Cta
        } else if self.cluster != [1, 1, 1] && self.cluster_of(block_a) == self.cluster_of(block_b) {
            AccessStrength::Cluster
        } else {
            AccessStrength::Gpu
        }
    }

    fn cluster_of(&self, block: u32) -> [u32; 3] {
        let [nx, ny, _] = self.grid.map(|n| n.max(1));
        let at = [block % nx, block / nx % ny, block / nx / ny];
        [0, 1, 2].map(|i| at[i] / self.cluster[i].max(1))
    }
}

/// The owner of an access, without the lane: a warp (agent >> 5, which is equal for all its lanes), a group of 32
/// virtual agents, or an asynchronous operation.
type OwnerKey = u32;

/// Owner keys from this value on are asynchronous operations.
const FIRST_OP_KEY: OwnerKey = 1 << 26;

/// The value that stands for the host, and for "none" in a shadow cell without a writer or reader.
const NO_AGENT: u32 = u32::MAX;

/// Packed description of an access: epoch (26 bits), log2 of the bytes per lane (or [`AccessStamp::RANGE`]), whether
/// it is atomic, and its strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
struct AccessStamp(u32);

impl AccessStamp {
    /// Width code of an asynchronous operation's byte range, which has no width per lane.
    const RANGE: u32 = 7;

    fn new(epoch: u32, wide: u32, atomic: bool, strength: AccessStrength) -> AccessStamp {
        AccessStamp(epoch << 6 | wide << 3 | (atomic as u32) << 2 | strength as u32)
    }
    #[inline(always)]
    fn epoch(self) -> u32 {
        self.0 >> 6
    }
    fn wide(self) -> u32 {
        self.0 >> 3 & 7
    }
    fn atomic(self) -> bool {
        self.0 & 4 != 0
    }
    #[inline(always)]
    fn strength(self) -> AccessStrength {
        [AccessStrength::Weak, AccessStrength::Cta, AccessStrength::Cluster, AccessStrength::Gpu][(self.0 & 3) as usize]
    }
    /// Returns by how many lanes the masks of accesses at `offset` are rotated in access lists. Because of this
    /// rotation, neighbouring shadow cells of a coalesced access have equal masks.
    fn mask_rotation(self, offset: u64) -> u32 {
        if self.wide() == AccessStamp::RANGE { 0 } else { (offset >> self.wide()) as u32 & 31 }
    }
}

#[cfg(test)]
thread_local! {
    /// Set by tests that check that results do not depend on the caches.
    static CACHES_DISABLED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Returns true if a test has disabled the caches.
#[inline(always)]
fn caches_disabled() -> bool {
    #[cfg(test)]
    return CACHES_DISABLED.get();
    #[cfg(not(test))]
    false
}
