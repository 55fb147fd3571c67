//! Decoded instructions, which the interpreter executes.
//!
//! An operand is an index of a row of the call frame's [`Registers`](crate::regs::Registers); a row holds 32 bits for
//! each lane. Immediates and constant special registers have rows of their own, so all sources are read in the same
//! way. Operand types are in one file per instruction class.

mod class;
mod control;
mod copies;
mod matrix;
mod memory;
mod sync;
mod tcgen05;
mod warp;

pub use class::InstructionClass;
pub use control::{Call, CallArgument, CallTarget, VaryingSpecialRegister};
pub use copies::{BulkCopy, BulkCopyKind, BulkReduction, CpAsync};
pub use matrix::{LdStMatrix, Mma, Wgmma, Wmma, WmmaTransfer};
pub use memory::{AddressOperand, AddressWindow, Atomic, AtomicOp, AtomicType, LoadStore, NamedParam};
pub use sync::{Barrier, BarrierKind, Fence, Mbarrier, MbarrierOperationKind};
pub use tcgen05::{LaunchControl, Tcgen05, TensorMma, TensorOperand, TensorTransfer};
pub use warp::{ReduxNumber, ShuffleMode, VoteMode, WarpOp, WarpOpKind};

use crate::alu::{AluOp, OperandSlots};
use crate::order::AccessStrength;
use crate::regs::Slot;
use crate::tensor_map::{MapField, Reduction};

/// A decoded instruction.
#[derive(Clone, Debug)]
pub struct DecodedInstruction {
    /// Index of the guard predicate (`@p`), and whether it is negated (`@!p`).
    pub guard: Option<(u32, bool)>,
    /// The operation.
    pub op: Op,
    /// The class under which the execution counters count the instruction.
    pub class: InstructionClass,
    /// For a branch at which lanes may diverge: index of the instruction at which they reconverge.
    pub reconverge: Option<u32>,
}

/// The operation of an instruction, with its operands.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Alu {
        op: AluOp,
        slots: Box<OperandSlots>,
    },
    Load(Box<LoadStore>),
    Store(Box<LoadStore>),
    /// A `mov` of a value that a load has copied from memory; keeps track of the value's undefined bytes.
    CopyRegister {
        dst: Slot,
        src: Slot,
        rows: u8,
    },
    Atomic(Box<Atomic>),
    /// Converts an address. If `to` is true: from a generic address to an address in state space `window`; otherwise
    /// the reverse.
    Cvta {
        dst: Slot,
        src: Slot,
        wide: bool,
        window: AddressWindow,
        to: bool,
    },
    Isspacep {
        dst: u32,
        src: Slot,
        window: AddressWindow,
    },
    Mapa {
        dst: Slot,
        src: Slot,
        rank: Slot,
        wide: bool,
        generic: bool,
    },
    GetCtaRank {
        dst: Slot,
        src: Slot,
        wide: bool,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: Slot,
        targets: Box<[u32]>,
    },
    Call(Box<Call>),
    Ret,
    Exit,
    Trap,
    /// An instruction without effect on data, such as `brkpt` or a cache hint.
    Nop,
    /// `nanosleep`: lets other warps run first.
    Yield,
    Prefetch {
        addr: AddressOperand,
        window: AddressWindow,
    },
    CreatePolicy {
        dst: Slot,
    },
    ReadSpecial {
        dst: Slot,
        which: VaryingSpecialRegister,
    },
    Warp(Box<WarpOp>),
    Barrier(Box<Barrier>),
    ClusterArrive {
        release: bool,
        aligned: bool,
    },
    ClusterWait {
        aligned: bool,
    },
    Fence(Fence),
    Mbarrier(Box<Mbarrier>),
    CpAsync(Box<CpAsync>),
    CpAsyncCommit,
    CpAsyncWait {
        groups: Option<u32>,
    },
    BulkCopy(Box<BulkCopy>),
    BulkCommit,
    BulkWait {
        groups: u32,
        read: bool,
    },
    StAsync {
        addr: AddressOperand,
        width: u8,
        regs: Vec<Slot>,
        mbarrier: AddressOperand,
        reduce: Option<Reduction>,
    },
    TensorMapReplace {
        addr: AddressOperand,
        window: AddressWindow,
        field: MapField,
        ordinal: u32,
        value: Slot,
        wide: bool,
    },
    TensorMapCopyFence {
        dst: AddressOperand,
        src: AddressOperand,
        scope: AccessStrength,
    },
    LdStMatrix(Box<LdStMatrix>),
    MovMatrix {
        dst: Slot,
        src: Slot,
    },
    Mma(Box<Mma>),
    Wmma(Box<Wmma>),
    WmmaTransfer(Box<WmmaTransfer>),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        groups: u32,
    },
    Tcgen05(Box<Tcgen05>),
    LaunchControl(Box<LaunchControl>),
    SetMaxNReg {
        count: u32,
        increase: bool,
    },
    GridDepWait,
    GridDepLaunch,
    Alloca {
        dst: Slot,
        size: Slot,
    },
    StackSave {
        dst: Slot,
        wide: bool,
    },
    StackRestore {
        src: Slot,
        wide: bool,
    },
    /// An instruction that the simulator does not support; it is reported when it is executed.
    Unsupported(Box<str>),
}

impl Op {
    /// Returns true if lanes may have to wait at the instruction, or must execute it together.
    pub fn may_wait(&self) -> bool {
        if let Op::Tcgen05(op) = self {
            return !matches!(**op, Tcgen05::Mma(_) | Tcgen05::Commit { .. } | Tcgen05::Fence { .. });
        }
        matches!(
            self,
            Op::Warp(_)
                | Op::Barrier(_)
                | Op::ClusterArrive { .. }
                | Op::ClusterWait { .. }
                | Op::Mbarrier(_)
                | Op::LdStMatrix(_)
                | Op::MovMatrix { .. }
                | Op::Mma(_)
                | Op::Wmma(_)
                | Op::WmmaTransfer(_)
                | Op::Wgmma(_)
                | Op::WgmmaFence
                | Op::WgmmaCommit
                | Op::WgmmaWait { .. }
                | Op::SetMaxNReg { .. }
                | Op::GridDepWait
        )
    }
}
