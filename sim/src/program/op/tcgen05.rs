//! Operands of the tensor-core instructions of sm_100 (`tcgen05`) and of `clusterlaunchcontrol`.

use super::{AddressOperand, LoadStore};
use crate::matrix::tcgen05::{MmaKind, TransferShape};
use crate::regs::Slot;

/// A `tcgen05` instruction.
#[derive(Clone, Debug)]
pub enum Tcgen05 {
    /// `tcgen05.alloc`: allocates columns of tensor memory and stores their address.
    Alloc {
        /// Number of blocks in the instruction's `.cta_group`: 1 or 2.
        group: u32,
        /// Number of columns.
        columns: Slot,
        /// The store of the address. Its data register is used by no other instruction.
        store: Box<LoadStore>,
    },
    /// `tcgen05.dealloc`: frees an allocation.
    Dealloc {
        /// Number of blocks in the instruction's `.cta_group`: 1 or 2.
        group: u32,
        /// Address of the allocation in tensor memory.
        address: Slot,
        /// Number of columns of the allocation.
        columns: Slot,
    },
    /// `tcgen05.relinquish_alloc_permit`: the block allocates no more tensor memory.
    RelinquishAllocPermit {
        /// Number of blocks in the instruction's `.cta_group`: 1 or 2.
        group: u32,
    },
    /// `tcgen05.ld` or `tcgen05.st`.
    Transfer(Box<TensorTransfer>),
    /// `tcgen05.wait::ld` (false) or `tcgen05.wait::st` (true).
    Wait {
        /// Whether the instruction waits for stores.
        stores: bool,
    },
    /// `tcgen05.mma`.
    Mma(Box<TensorMma>),
    /// `tcgen05.commit`: an mbarrier receives an arrival once the thread's earlier products are complete.
    Commit {
        /// Number of blocks in the instruction's `.cta_group`: 1 or 2.
        group: u32,
        /// Address of the mbarrier.
        mbarrier: AddressOperand,
        /// Whether the address is generic; if not, it is an address of `.shared::cluster`.
        generic: bool,
        /// Mask of the cluster's blocks whose mbarriers at the same offset receive an arrival.
        multicast: Option<Slot>,
    },
    /// `tcgen05.fence::before_thread_sync` (false) or `tcgen05.fence::after_thread_sync` (true).
    Fence {
        /// Whether this is the fence after the synchronisation.
        after: bool,
    },
}

/// A `tcgen05.ld` or `tcgen05.st`.
#[derive(Clone, Debug)]
pub struct TensorTransfer {
    /// Whether registers are stored to tensor memory.
    pub store: bool,
    /// The lanes and columns of each register.
    pub shape: TransferShape,
    /// Address in tensor memory.
    pub address: AddressOperand,
    /// First register-file row of each register.
    pub registers: Vec<Slot>,
}

/// A `tcgen05.mma`.
#[derive(Clone, Debug)]
pub struct TensorMma {
    /// `.kind`: the formats of the elements.
    pub kind: MmaKind,
    /// Number of blocks in the instruction's `.cta_group`: 1 or 2.
    pub group: u32,
    /// Address of D in tensor memory.
    pub d: AddressOperand,
    /// Operand A.
    pub a: TensorOperand,
    /// Descriptor of B in shared memory.
    pub b: Slot,
    /// The instruction descriptor.
    pub descriptor: Slot,
    /// `disable-output-lane`: masks of lanes of D that are not written; empty, or four masks per block.
    pub disabled_lanes: Vec<Slot>,
    /// Index of the predicate `enable-input-d`, and whether it is negated.
    pub accumulate: (u32, bool),
    /// `scale-input-d`: the old D is multiplied by 2 to the power of minus this number.
    pub scale_d: u32,
}

/// Operand A of a `tcgen05.mma`.
#[derive(Clone, Copy, Debug)]
pub enum TensorOperand {
    /// In shared memory: the descriptor.
    Shared(Slot),
    /// In tensor memory: the address.
    Tensor(AddressOperand),
}

/// A `clusterlaunchcontrol` instruction.
#[derive(Clone, Debug)]
pub enum LaunchControl {
    /// `clusterlaunchcontrol.try_cancel`: takes over the work of a cluster that has not started.
    TryCancel {
        /// Address of the 16 bytes of the response.
        response: AddressOperand,
        /// The mbarrier that receives the bytes.
        mbarrier: AddressOperand,
        /// Whether the addresses are generic; if not, they are addresses of `.shared::cta`.
        generic: bool,
        /// Whether every block of the cluster receives the response.
        multicast: bool,
    },
    /// `clusterlaunchcontrol.query_cancel.is_canceled`: whether a cluster was cancelled.
    IsCanceled {
        /// Index of the predicate that receives the answer.
        dst: u32,
        /// The response, a 128-bit register.
        response: Slot,
    },
    /// `clusterlaunchcontrol.query_cancel.get_first_ctaid`: coordinates of the first block of the cancelled cluster.
    FirstBlock {
        /// For each register, its first row and the dimension that it receives (0 to 3).
        dst: Vec<(Slot, u32)>,
        /// The response, a 128-bit register.
        response: Slot,
    },
}
