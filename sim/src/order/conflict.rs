//! The result of an access check (a conflict), and what the check needs to know about the launch.

use super::{Agent, AsyncOpId, AsyncOperationTable, ClusterLayout};

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
}

/// The kind of the earlier access in a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EarlierAccess {
    /// There is no earlier access.
    None,
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
    /// An asynchronous operation.
    Async(AsyncOpId),
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConflictKind {
    /// The access reads uninitialised bytes.
    Uninitialized,
    /// A data race: the access is not ordered after an earlier one, and at least one of them writes.
    Race {
        /// True if both accesses are plain stores and no thread read the bytes between the two stores; if the stored
        /// values are equal, the race is harmless.
        two_stores: bool,
        /// Whether both accesses are strong at a common scope and race only because they overlap in part: their sizes
        /// differ.
        mixed_sizes: bool,
    },
    /// The accessing thread has not observed the completion of this asynchronous operation.
    NotWaited(AsyncOpId),
    /// An access through the async proxy to bytes whose generic write is ordered before it but was not made visible
    /// by `fence.proxy.async`.
    Proxy,
    /// A tensor copy reads a tensor map in global memory whose generic write is ordered before it but was not made
    /// visible by `fence.proxy.tensormap::generic.acquire`.
    TensorMapProxy,
    /// A write through the async proxy to bytes that were read through the generic proxy: the read is ordered before
    /// the write, but no proxy fence lies between them.
    ProxyRead,
}

/// A conflict of one lane's access with an earlier access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is wrong.
    pub kind: ConflictKind,
    /// Byte offset, in the allocation, of the shadow cell with the conflict; its bytes (at most 128) were always
    /// accessed together.
    pub offset: u64,
    /// The lane that made the access or issued the asynchronous operation.
    pub lane: u32,
    /// Agent ([`Agent::HOST`] if there is none) and instruction index of the earlier access.
    pub earlier: (Agent, u32),
    /// The kind of the earlier access.
    pub earlier_kind: EarlierAccess,
}

/// What an access check needs to know besides the accessing warp.
#[derive(Clone, Copy, Debug)]
pub struct RaceCheckContext<'a> {
    /// The asynchronous operations of the launch.
    pub ops: &'a AsyncOperationTable,
    /// Which blocks of the grid form clusters.
    pub clusters: &'a ClusterLayout,
}
