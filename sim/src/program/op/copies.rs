//! Operands of asynchronous copies.

use super::{AddressOperand, AddressWindow, AtomicOp};
use crate::regs::Slot;
use crate::tensor_map::Reduction;

/// A `cp.async` of 4, 8 or 16 bytes.
#[derive(Clone, Debug)]
pub struct CpAsync {
    /// The destination in shared memory.
    pub dst: AddressOperand,
    /// The source in global memory.
    pub src: AddressOperand,
    /// The state space of the source: global or generic.
    pub window: AddressWindow,
    /// Bytes to copy: 4, 8 or 16.
    pub size: u8,
    /// Number of bytes to read from the source, if the instruction names it; the rest of the destination is filled
    /// with zeros.
    pub src_size: Option<Slot>,
    /// Index of the `ignore-src` predicate, and whether the instruction negates the predicate. If the predicate, after
    /// the negation, is true, the copy writes only zeros.
    pub ignore: Option<(u32, bool)>,
}

/// A bulk or tensor copy.
#[derive(Clone, Debug)]
pub struct BulkCopy {
    /// The direction of the copy.
    pub kind: BulkCopyKind,
    /// The destination; for a prefetch, which has no destination, the source.
    pub dst: AddressOperand,
    /// The state space of the destination.
    pub dst_window: AddressWindow,
    /// The source.
    pub src: AddressOperand,
    /// The state space of the source.
    pub src_window: AddressWindow,
    /// Number of bytes to copy; `None` for tensor copies, whose size follows from the tensor map.
    pub size: Option<Slot>,
    /// Coordinates of a tensor copy, innermost first.
    pub coords: Vec<Slot>,
    /// The mbarrier on which the copy completes; `None` if it completes through the thread's bulk group.
    pub mbarrier: Option<AddressOperand>,
    /// Mask of the cluster's blocks that receive a multicast.
    pub multicast: Option<Slot>,
    /// Whether the mbarrier may lie in the other block of the destination's pair (`.cta_group::2`): a multicast then
    /// signals, for each destination, the block of its pair that has the parity of the mbarrier's block.
    pub pair_signal: bool,
    /// The reduction, if the copy combines its source with the destination.
    pub reduce: Option<BulkReduction>,
}

/// The reduction of a bulk copy, with or without an element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkReduction {
    /// The instruction names both the operation and the element type.
    Typed(Reduction),
    /// The instruction names only the operation; the element type is that of the tensor map.
    Mapped(AtomicOp),
}

/// Directions of [`BulkCopy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BulkCopyKind {
    /// From global to shared memory.
    Load,
    /// From shared to global memory.
    Store,
    /// From shared memory to the shared memory of another block of the cluster.
    SharedToShared,
    /// A tensor copy from global to shared memory.
    TensorLoad,
    /// A tensor copy from shared to global memory.
    TensorStore,
    /// A prefetch from global memory to L2 only.
    Prefetch,
    TensorPrefetch,
}
