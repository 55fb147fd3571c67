//! Order between threads and what it forbids: clocks that say which accesses happen before a point of a thread
//! ([`Know`], [`WarpOrder`], [`SyncVars`]), the asynchronous operations whose completion has to be observed ([`Ops`]), and
//! shadow memory that holds each access against them ([`Shadow`]).
//!
//! Who acts is an [`Agent`]: a thread, or something that completes work in a block (a phase of an mbarrier). Every *warp*
//! counts epochs; an access is stamped with its lane's agent and the warp's epoch, and each operation that releases (or
//! fences) ends the epoch. So "thread t is known up to epoch e" says exactly which of t's accesses happen before here.
//! Rules are those of the PTX ISA's chapter "Memory Consistency Model" and of "Asynchronous operations" and proxies there.

mod cell;
mod chain;
mod know;
mod memo;
mod operand;
mod ops;
mod seen;
mod shadow;
mod sync;
#[cfg(test)]
mod tests;
mod together;
mod view;
mod warp;

pub use know::Know;
pub use operand::Writers;
pub use ops::{OpId, OpKind, Ops};
pub use shadow::{Access, Conflict, ConflictKind, Cx, Other, Shadow};
pub use sync::{Sem, SyncVars};
pub use warp::{Handed, WarpOrder, barrier};

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
    pub fn of_virtual(block: u32, index: u32) -> Agent {
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
/// `.sys` counts as [`Strength::Gpu`]: there is one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Strength {
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
pub enum Space {
    /// A block's shared memory.
    Shared = 0,
    /// Global memory.
    Global = 1,
}

/// Which blocks form a cluster: a grid's and a cluster's extents in blocks, x first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters {
    /// Blocks of the grid along x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster along x, y, z; all 1 without clusters.
    pub cluster: [u32; 3],
}

impl Clusters {
    /// No clusters: every block is alone.
    pub const NONE: Clusters = Clusters { grid: [u32::MAX, 1, 1], cluster: [1, 1, 1] };

    /// The least scope that holds both blocks (linear indices).
    pub fn between(&self, a: u32, b: u32) -> Strength {
        if a == b {
            Strength::Cta
        } else if self.cluster != [1, 1, 1] && self.of(a) == self.of(b) {
            Strength::Cluster
        } else {
            Strength::Gpu
        }
    }

    fn of(&self, block: u32) -> [u32; 3] {
        let [nx, ny, _] = self.grid.map(|n| n.max(1));
        let at = [block % nx, block / nx % ny, block / nx / ny];
        [0, 1, 2].map(|i| at[i] / self.cluster[i].max(1))
    }
}

/// A warp's (or an operation's) name in cells: an agent's without the lane.
type Key = u32;

/// Keys at and above this name asynchronous operations.
const OP_KEY: Key = 1 << 26;

/// No writer, no reader, or the host.
const NOBODY: u32 = u32::MAX;

/// When and how an access was made: epoch, log2 of the bytes a lane covered (or [`Stamp::RANGE`]), whether it was atomic,
/// strength. Epochs have 26 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
struct Stamp(u32);

impl Stamp {
    /// The width of an operation's range that is no lane's 1 to 16 bytes.
    const RANGE: u32 = 7;

    fn new(epoch: u32, wide: u32, atomic: bool, strength: Strength) -> Stamp {
        Stamp(epoch << 6 | wide << 3 | (atomic as u32) << 2 | strength as u32)
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
    fn strength(self) -> Strength {
        [Strength::Weak, Strength::Cta, Strength::Cluster, Strength::Gpu][(self.0 & 3) as usize]
    }
    /// By how many lanes masks at `offset` are turned, so that neighbours of a coalesced access have the same mask.
    fn turn(self, offset: u64) -> u32 {
        if self.wide() == Stamp::RANGE { 0 } else { (offset >> self.wide()) as u32 & 31 }
    }
}
