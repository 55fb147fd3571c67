//! Operands of asynchronous copies.

use super::{AddressOperand, AddressWindow};
use crate::regs::Slot;
use crate::tensor_map::{ReduceOp, Reduction};

/// A `cp.async` of 4, 8 or 16 bytes.
#[derive(Clone, Debug)]
pub struct CpAsync {
    /// The destination in shared memory.
    pub dst: AddressOperand,
    /// The source in global memory.
    pub src: AddressOperand,
    /// The source window: global or generic.
    pub window: AddressWindow,
    /// Bytes to copy: 4, 8 or 16.
    pub size: u8,
    /// Bytes to read from the source; the rest is filled with zeros.
    pub src_size: Option<Slot>,
    /// The ignore-src predicate, and whether it is negated.
    pub ignore: Option<(u32, bool)>,
}

/// A bulk or tensor copy.
#[derive(Clone, Debug)]
pub struct BulkCopy {
    /// The direction.
    pub kind: BulkCopyKind,
    /// The destination (for prefetches, the source).
    pub dst: AddressOperand,
    /// The destination's window.
    pub dst_window: AddressWindow,
    /// The source.
    pub src: AddressOperand,
    /// The source's window.
    pub src_window: AddressWindow,
    /// Number of bytes; `None` for tensor copies.
    pub size: Option<Slot>,
    /// Coordinates of a tensor copy, innermost first.
    pub coords: Vec<Slot>,
    /// The mbarrier that the copy completes on; `None` for completion through the thread's bulk group.
    pub mbarrier: Option<AddressOperand>,
    /// CTA mask of a multicast.
    pub multicast: Option<Slot>,
    /// The reduction, if the copy combines with the destination.
    pub reduce: Option<BulkReduction>,
}

/// Where a bulk reduction takes its element type from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkReduction {
    /// The instruction names the type.
    Typed(Reduction),
    /// The tensor map has the type.
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
    /// global → L2 only
    Prefetch,
    TensorPrefetch,
}
