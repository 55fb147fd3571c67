//! What the check of an access reports, and what it needs to know about the launch.

use super::{Agent, AsyncOpId, AsyncOps, ClusterLayout};

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

/// The kind of the earlier access of a conflict.
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
    /// It reads uninitialised bytes.
    Uninitialized,
    /// A data race: the access is not ordered after an earlier one, and one of them writes. With `two_stores`, storing
    /// equal values would be harmless.
    Race {
        /// Both are plain stores, and no thread read the bytes in between.
        two_stores: bool,
    },
    /// The accessing thread has not observed the completion of this asynchronous operation.
    NotWaited(AsyncOpId),
    /// An access through the async proxy to bytes whose generic write is ordered before it, but was not made visible by
    /// `fence.proxy.async`.
    Proxy,
    /// The async proxy overwrites bytes that were read through the generic proxy before, in order, but without a proxy
    /// fence.
    ProxyRead,
}

/// A conflict of one lane's access with an earlier access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is wrong.
    pub kind: ConflictKind,
    /// Byte offset, in the allocation, of the cell with the conflict: bytes (at most 128) that were always accessed
    /// together.
    pub offset: u64,
    /// The accessing (or issuing) lane.
    pub lane: u32,
    /// Agent ([`Agent::HOST`] if there is none) and `pc` of the earlier access.
    pub earlier: (Agent, u32),
    /// The kind of the earlier access.
    pub earlier_kind: EarlierAccess,
}

/// What a check needs to know besides the accessing warp.
#[derive(Clone, Copy, Debug)]
pub struct CheckContext<'a> {
    /// The asynchronous operations of the launch.
    pub ops: &'a AsyncOps,
    /// Which blocks form clusters.
    pub clusters: &'a ClusterLayout,
}
