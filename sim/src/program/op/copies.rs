//! Operands of asynchronous copies.

use super::{AddressOperand, AddressWindow};
use crate::regs::Slot;
use crate::tensor_map::{ReduceOp, Reduction};

/// `cp.async` of 4, 8 or 16 bytes.
#[derive(Clone, Debug)]
pub struct CpAsync {
    /// Shared destination.
    pub dst: AddressOperand,
    /// Global source.
    pub src: AddressOperand,
    /// The source window: global or generic.
    pub window: AddressWindow,
    /// 4, 8 or 16.
    pub size: u8,
    /// Bytes taken of the source; the rest is zero.
    pub src_size: Option<Slot>,
    /// The ignore-src predicate and its negation.
    pub ignore: Option<(u32, bool)>,
}

/// BulkCopy and tensor copies.
#[derive(Clone, Debug)]
pub struct BulkCopy {
    /// Which way.
    pub kind: BulkCopyKind,
    /// Destination (or, for prefetches, the source).
    pub dst: AddressOperand,
    /// The destination's window.
    pub dst_window: AddressWindow,
    /// Source.
    pub src: AddressOperand,
    /// The source's window.
    pub src_window: AddressWindow,
    /// Non-tensor copies: bytes.
    pub size: Option<Slot>,
    /// Tensor copies: coordinates, innermost first.
    pub coords: Vec<Slot>,
    /// Completion through an mbarrier, else through the thread's bulk group.
    pub mbarrier: Option<AddressOperand>,
    /// CTA mask of a multicast.
    pub multicast: Option<Slot>,
    /// Reduction.
    pub reduce: Option<BulkReduction>,
}

/// How a bulk copy combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkReduction {
    /// With the type of the instruction.
    Typed(Reduction),
    /// With the type of the tensor map.
    Mapped(ReduceOp),
}

/// Directions of [`BulkCopy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BulkCopyKind {
    /// global → shared
    Load,
    /// shared → global
    Store,
    /// shared → shared of a peer
    SharedToShared,
    /// tensor, global → shared
    TensorLoad,
    /// tensor, shared → global
    TensorStore,
    /// to L2 only
    Prefetch,
    TensorPrefetch,
}
