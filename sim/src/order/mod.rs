//! Order between threads and what it forbids: clocks that say which accesses happen before a point of a thread
//! ([`VectorClock`], [`WarpClocks`], [`SyncLocations`]), the asynchronous operations whose completion has to be observed ([`AsyncOps`]), and
//! shadow memory that holds each access against them ([`ShadowMemory`]).
//!
//! Who acts is an [`Agent`]: a thread, or something that completes work in a block (a phase of an mbarrier). Every *warp*
//! counts epochs; an access is stamped with its lane's agent and the warp's epoch, and each operation that releases (or
//! fences) ends the epoch. So "thread t is known up to epoch e" says exactly which of t's accesses happen before here.
//! Rules are those of the PTX ISA's chapter "Memory Consistency Model" and of "Asynchronous operations" and proxies there.

mod access_check;
mod access_lists;
mod cell;
mod clock;
mod lane_cache;
mod matrix_rows;
mod ops;
mod shadow;
mod sync;
#[cfg(test)]
mod tests;
mod transition_cache;
mod warp;
mod wgmma_operand;

pub use clock::VectorClock;
pub use ops::{AsyncOpId, AsyncOpKind, AsyncOps};
pub use shadow::{AccessKind, CheckContext, Conflict, ConflictKind, EarlierAccess, ShadowMemory};
pub use sync::{MemorySemantics, SyncLocations};
pub use warp::{FenceHandoff, WarpClocks, barrier};
pub use wgmma_operand::OperandWriters;

/// Blocks that can be told apart: indices below this.
pub const MAX_BLOCKS: u32 = 1 << 20;

/// Lanes of a warp.
const LANES: usize = 32;

/// Who acts: `block << 11 | index`; an index below 1024 is a thread of the block (linear), the others are virtual agents
/// (an mbarrier's phases, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Agent(pub u32);

impl Agent {
    /// The host and everything before the launch: ordered before every access.
    pub const HOST: Agent = Agent(u32::MAX);

    /// Thread `thread` (linear index, below 1024) of `block`.
    pub fn thread(block: u32, thread: u32) -> Agent {
        debug_assert!(block < MAX_BLOCKS && thread < 1024);
        Agent(block << 11 | thread)
    }

    /// The `index`-th (below 1024) virtual agent of `block`.
    pub fn virtual_agent(block: u32, index: u32) -> Agent {
        debug_assert!(block < MAX_BLOCKS && index < 1024);
        Agent(block << 11 | 1024 | index)
    }

    /// The block it belongs to.
    pub fn block(self) -> u32 {
        self.0 >> 11
    }

    /// Its thread's linear index in the block; none for virtual agents and the host.
    pub fn thread_index(self) -> Option<u32> {
        (self.0 & 1024 == 0).then_some(self.0 & 1023)
    }
}

/// How strong an access is and for whom: weak, or strong (relaxed, acquire, release, volatile, atomic) at a scope.
/// `.sys` counts as [`AccessStrength::Gpu`]: there is one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum AccessStrength {
    /// Ordinary accesses.
    Weak = 0,
    /// Strong, `.cta`.
    Cta = 1,
    /// Strong, `.cluster`.
    Cluster = 2,
    /// Strong, `.gpu` and `.sys`.
    Gpu = 3,
}

/// Which memory an allocation or a fence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemorySpace {
    /// A block's shared memory.
    Shared = 0,
    /// Global memory.
    Global = 1,
}

/// Which blocks form a cluster: a grid's and a cluster's extents in blocks, x first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterLayout {
    /// Blocks of the grid along x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster along x, y, z; all 1 without clusters.
    pub cluster: [u32; 3],
}

impl ClusterLayout {
    /// No clusters: every block is alone.
    pub const NONE: ClusterLayout = ClusterLayout { grid: [u32::MAX, 1, 1], cluster: [1, 1, 1] };

    /// The least scope that holds both blocks (linear indices).
    pub fn common_scope(&self, a: u32, b: u32) -> AccessStrength {
        if a == b {
            AccessStrength::Cta
        } else if self.cluster != [1, 1, 1] && self.of(a) == self.of(b) {
            AccessStrength::Cluster
        } else {
            AccessStrength::Gpu
        }
    }

    fn of(&self, block: u32) -> [u32; 3] {
        let [nx, ny, _] = self.grid.map(|n| n.max(1));
        let at = [block % nx, block / nx % ny, block / nx / ny];
        [0, 1, 2].map(|i| at[i] / self.cluster[i].max(1))
    }
}

/// A warp's (or an operation's) name in cells: an agent's without the lane.
type OwnerKey = u32;

/// Keys at and above this name asynchronous operations.
const FIRST_OP_KEY: OwnerKey = 1 << 26;

/// No writer, no reader, or the host.
const NO_AGENT: u32 = u32::MAX;

/// When and how an access was made: epoch, log2 of the bytes a lane covered (or [`AccessStamp::RANGE`]), whether it was atomic,
/// strength. Epochs have 26 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
struct AccessStamp(u32);

impl AccessStamp {
    /// The width of an operation's range that is no lane's 1 to 16 bytes.
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
    /// By how many lanes masks at `offset` are turned, so that neighbours of a coalesced access have the same mask.
    fn turn(self, offset: u64) -> u32 {
        if self.wide() == AccessStamp::RANGE { 0 } else { (offset >> self.wide()) as u32 & 31 }
    }
}
