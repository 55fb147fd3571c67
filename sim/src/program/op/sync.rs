//! Operands of barriers, mbarriers and fences.

use super::{AddressOperand, AddressWindow};
use crate::order::AccessStrength;
use crate::regs::Slot;

/// `barrier` and `bar`.
#[derive(Clone, Debug)]
pub struct Barrier {
    /// Which of the 16.
    pub id: Slot,
    /// Participating threads, if given.
    pub count: Option<Slot>,
    /// What the instruction does there.
    pub kind: BarrierKind,
    /// All threads of the warp must execute it together.
    pub aligned: bool,
}

/// What a barrier instruction does.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum BarrierKind {
    Sync,
    Arrive,
    /// Counts the true predicates.
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

/// `mbarrier` operations.
#[derive(Clone, Debug)]
pub struct Mbarrier {
    /// The object.
    pub addr: AddressOperand,
    /// Shared or generic or shared::cluster.
    pub window: AddressWindow,
    /// What.
    pub kind: MbarrierKind,
    /// `.release`/`.acquire` (the default) or `.relaxed`.
    pub ordered: bool,
    /// Scope of the order.
    pub scope: AccessStrength,
}

/// The kinds of [`Mbarrier`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum MbarrierKind {
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
    /// test_wait / try_wait on a state or a parity.
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

/// Fences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fence {
    /// `membar`, `fence.acq_rel`, `fence.sc`
    Memory { scope: AccessStrength },
    /// `fence.proxy.async` of shared and/or global memory.
    ProxyAsync { shared: bool, global: bool },
    /// `fence.mbarrier_init`
    MbarrierInit,
    /// `fence.proxy.alias`, `fence.proxy.tensormap` and others that order what is not modelled apart.
    Other,
    /// `fence.proxy.tensormap::generic.acquire` and its release twin.
    TensorMap,
}
