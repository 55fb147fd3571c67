//! Operands of barriers, mbarriers and fences.

use super::{AddressOperand, AddressWindow};
use crate::order::{AccessStrength, MemoryFence};
use crate::regs::Slot;

/// A block barrier (`barrier`, `bar`).
#[derive(Clone, Debug)]
pub struct Barrier {
    /// Index of the barrier, 0 to 15.
    pub id: Slot,
    /// Number of participating threads, if the instruction names it.
    pub count: Option<Slot>,
    /// What the instruction does at the barrier.
    pub kind: BarrierKind,
    /// True if all threads of the warp must execute the instruction together (`.aligned`).
    pub aligned: bool,
}

/// What a barrier instruction does at its barrier.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum BarrierKind {
    Sync,
    Arrive,
    /// Counts the threads whose predicate is true (`.red.popc`).
    Popc {
        dst: Slot,
        p: u32,
        negated: bool,
    },
    And {
        dst: u32,
        p: u32,
        negated: bool,
    },
    Or {
        dst: u32,
        p: u32,
        negated: bool,
    },
}

/// An `mbarrier` operation.
#[derive(Clone, Debug)]
pub struct Mbarrier {
    /// Address of the mbarrier object.
    pub addr: AddressOperand,
    /// The state space of the address: shared, shared::cluster or generic.
    pub window: AddressWindow,
    /// The operation.
    pub kind: MbarrierOperationKind,
    /// True for `.release`/`.acquire` (the default), false for `.relaxed`.
    pub ordered: bool,
    /// Scope of the ordering. An instruction without a scope counts as `.cluster`.
    pub scope: AccessStrength,
}

/// The operations that an [`Mbarrier`] instruction can perform.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum MbarrierOperationKind {
    Init {
        count: Slot,
    },
    Inval,
    Arrive {
        state: Option<Slot>,
        count: Option<Slot>,
        expect: Option<Slot>,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx {
        bytes: Slot,
    },
    CompleteTx {
        bytes: Slot,
    },
    /// `test_wait` or `try_wait` for the phase that a state or a parity names.
    Wait {
        dst: u32,
        operand: Slot,
        parity: bool,
        blocking: bool,
    },
    PendingCount {
        dst: Slot,
        state: Slot,
    },
    /// `cp.async.mbarrier.arrive`
    CpAsyncArrive {
        noinc: bool,
    },
}

/// The kinds of fences.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Fence {
    /// `membar`, `fence.acq_rel`, `fence.acquire`, `fence.release`, `fence.sc`, and the release fence of the tensormap
    /// proxy.
    Memory(MemoryFence),
    /// `fence.proxy.async` of shared and/or global memory.
    ProxyAsync { shared: bool, global: bool },
    /// `fence.proxy.async::generic` with `.sync_restrict`: a proxy fence of shared memory with an acquire or release.
    ProxyAsyncShared(MemoryFence),
    /// `fence.proxy.tensormap::generic.acquire` of the tensor map at `addr`.
    AcquireTensorMap { addr: AddressOperand, scope: AccessStrength },
    /// `fence.mbarrier_init`
    MbarrierInit,
    /// `fence.proxy.alias` and other fences whose ordering the simulator does not model.
    Other,
}
