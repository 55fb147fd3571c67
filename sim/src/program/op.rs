//! Decoded instructions: what the interpreter runs. OperandResolver are rows of the frame's [`Registers`](crate::regs::Registers);
//! immediates and fixed special registers have rows of their own, so that all look alike.

use crate::alu::{AluOp, OperandSlots};
use crate::matrix::mma::{MmaOp, Product};
use crate::matrix::wgmma::WgmmaOp;
use crate::matrix::wmma::{Fragment, WmmaOp};
use crate::order::{AccessStrength, MemorySemantics};
use crate::regs::Slot;
use crate::tensor_map::{ReduceOp, Reduction};

/// An instruction ready to run.
#[derive(Clone, Debug)]
pub struct DecodedInstruction {
    /// Index of the guarding predicate and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// What it does.
    pub op: Op,
    /// For the counters.
    pub class: InstructionClass,
    /// Where the lanes of a diverging branch meet again.
    pub reconverge: Option<u32>,
}

/// Classes of instructions that the counters keep apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum InstructionClass {
    Integer,
    Float,
    Half,
    Double,
    Special,
    Convert,
    Move,
    Predicate,
    Control,
    Global,
    Shared,
    Local,
    Constant,
    Atomic,
    Shuffle,
    Barrier,
    Async,
    Matrix,
    Other,
}

impl InstructionClass {
    /// All of them, in the order of reports.
    pub const ALL: [InstructionClass; 19] = [
        InstructionClass::Integer,
        InstructionClass::Float,
        InstructionClass::Half,
        InstructionClass::Double,
        InstructionClass::Special,
        InstructionClass::Convert,
        InstructionClass::Move,
        InstructionClass::Predicate,
        InstructionClass::Control,
        InstructionClass::Global,
        InstructionClass::Shared,
        InstructionClass::Local,
        InstructionClass::Constant,
        InstructionClass::Atomic,
        InstructionClass::Shuffle,
        InstructionClass::Barrier,
        InstructionClass::Async,
        InstructionClass::Matrix,
        InstructionClass::Other,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            InstructionClass::Integer => "integer",
            InstructionClass::Float => "float",
            InstructionClass::Half => "half",
            InstructionClass::Double => "double",
            InstructionClass::Special => "special",
            InstructionClass::Convert => "convert",
            InstructionClass::Move => "move",
            InstructionClass::Predicate => "predicate",
            InstructionClass::Control => "control",
            InstructionClass::Global => "global",
            InstructionClass::Shared => "shared",
            InstructionClass::Local => "local",
            InstructionClass::Constant => "constant",
            InstructionClass::Atomic => "atomic",
            InstructionClass::Shuffle => "shuffle",
            InstructionClass::Barrier => "barrier",
            InstructionClass::Async => "async",
            InstructionClass::Matrix => "matrix",
            InstructionClass::Other => "other",
        }
    }
}

/// The state space that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressWindow {
    Generic,
    Global,
    Const,
    Shared,
    SharedCluster,
    Local,
    /// The kernel's own parameters.
    KernelParam,
    /// `.param` variables of a call, or a function's formal parameters: bytes of the frame.
    FrameParam,
}

/// An address operand.
#[derive(Clone, Copy, Debug)]
pub struct AddressOperand {
    /// The row that holds the base; `None`: `offset` is all.
    pub base: Option<Slot>,
    /// The base is a 64-bit register.
    pub wide: bool,
    /// Added to it.
    pub offset: i64,
}

/// `ld` and `st`.
#[derive(Clone, Debug)]
pub struct LoadStore {
    /// Where.
    pub window: AddressWindow,
    /// The address.
    pub addr: AddressOperand,
    /// Bytes of an element: 1, 2, 4, 8 or 16.
    pub width: u8,
    /// Loads: sign-extend into the register.
    pub signed: bool,
    /// Registers, first element first; `None` is `_`.
    pub regs: Vec<Option<Slot>>,
    /// Rows of each register.
    pub register_rows: u8,
    /// `None`: a weak access.
    pub semantics: Option<MemorySemantics>,
    /// The scope of a strong one.
    pub scope: AccessStrength,
}

/// What an atomic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// The type of an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomicType {
    B16,
    B32,
    B64,
    B128,
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16,
    BF16,
    F16x2,
    BF16x2,
}

impl AtomicType {
    /// Bytes.
    pub fn size(self) -> u32 {
        match self {
            AtomicType::B16 | AtomicType::F16 | AtomicType::BF16 => 2,
            AtomicType::B64 | AtomicType::U64 | AtomicType::S64 | AtomicType::F64 => 8,
            AtomicType::B128 => 16,
            _ => 4,
        }
    }
}

/// `atom` and `red`.
#[derive(Clone, Debug)]
pub struct Atomic {
    /// Where.
    pub window: AddressWindow,
    /// The address.
    pub addr: AddressOperand,
    /// What.
    pub op: AtomicOp,
    /// Of which type.
    pub ty: AtomicType,
    /// Old values go there, one register an element; empty for `red`.
    pub dst: Vec<Option<Slot>>,
    /// The operand, one register an element; for `cas` the comparand.
    pub a: Vec<Slot>,
    /// `cas`: the new value.
    pub b: Option<Slot>,
    /// `None`: a weak access.
    pub semantics: Option<MemorySemantics>,
    /// The scope of a strong one.
    pub scope: AccessStrength,
}

/// `shfl.sync` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShuffleMode {
    Idx,
    Up,
    Down,
    Bfly,
}

/// Instructions in which the lanes of a mask exchange registers.
#[derive(Clone, Debug)]
pub struct WarpOp {
    /// Which.
    pub kind: WarpOpKind,
    /// 32-bit or (`match`) 64-bit destination.
    pub dst: Option<Slot>,
    /// Predicate destination.
    pub dst_pred: Option<u32>,
    /// The member mask.
    pub members: Slot,
}

/// The kinds of [`WarpOp`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum WarpOpKind {
    Shfl {
        mode: ShuffleMode,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// all, any, uni: a predicate; ballot: a mask.
    Vote {
        mode: VoteMode,
        p: u32,
        negated: bool,
    },
    Match {
        all: bool,
        wide: bool,
        a: Slot,
    },
    Redux {
        op: AtomicOp,
        signed: bool,
        a: Slot,
    },
    Elect,
    /// `bar.warp.sync`
    Sync,
}

/// `vote.sync` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

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

/// `ldmatrix`, `stmatrix`.
#[derive(Clone, Debug)]
pub struct MatrixTransfer {
    /// Load or store.
    pub store: bool,
    /// The address each lane supplies.
    pub addr: AddressOperand,
    /// Its window.
    pub window: AddressWindow,
    /// `.trans`
    pub trans: bool,
    /// One register a matrix.
    pub regs: Vec<Slot>,
}

/// A matrix product of a warp.
#[derive(Clone, Debug)]
pub struct Mma {
    /// Which.
    pub op: MmaOp,
    /// Registers.
    pub d: Vec<Slot>,
    /// Registers.
    pub a: Vec<Slot>,
    /// Registers.
    pub b: Vec<Slot>,
    /// Registers.
    pub c: Vec<Slot>,
    /// The registers of a [common](MmaOp::is_common) one.
    pub common: Option<Product>,
}

/// `wmma.load`, `wmma.store`
#[derive(Clone, Debug)]
pub struct WmmaTransfer {
    /// Load or store.
    pub store: bool,
    /// The matrix's first element.
    pub addr: AddressOperand,
    /// Elements from one row (column) to the next, if given.
    pub stride: Option<Slot>,
    /// Which lane holds what.
    pub fragment: Fragment,
    /// Columns, not rows, lie side by side.
    pub column_major: bool,
    /// The elements of a register lie side by side.
    pub packed: bool,
    /// Registers.
    pub regs: Vec<Slot>,
    /// Where the lanes' addresses go, two rows.
    pub at: Slot,
    /// Where one element of each lane goes when it moves by itself.
    pub element: Slot,
    /// From `at` to each register, or to `element`.
    pub transfers: Vec<LoadStore>,
}

/// `wmma.mma`
#[derive(Clone, Debug)]
pub struct Wmma {
    /// Which.
    pub op: WmmaOp,
    /// Registers.
    pub d: Vec<Slot>,
    /// Registers.
    pub a: Vec<Slot>,
    /// Registers.
    pub b: Vec<Slot>,
    /// Registers.
    pub c: Vec<Slot>,
}

/// A matrix product of a warpgroup.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// Which.
    pub op: WgmmaOp,
    /// Accumulators, in and out.
    pub d: Vec<Slot>,
    /// A in registers, or empty.
    pub a: Vec<Slot>,
    /// A's descriptor otherwise.
    pub a_desc: Option<Slot>,
    /// B's descriptor.
    pub b_desc: Slot,
    /// The scale-d predicate: false means D = A·B.
    pub scale_d: (u32, bool),
}

/// Special registers that change while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VaryingRegister {
    Clock,
    ClockHi,
    Clock64,
    Globaltimer,
    GlobaltimerLo,
    GlobaltimerHi,
    Activemask,
    /// `%is_explicit_cluster`: the destination is a predicate.
    ExplicitCluster,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whom.
    pub target: CallTarget,
    /// Arguments: frame bytes `(offset, size)` or a register with its rows.
    pub args: Vec<CallArgument>,
    /// Return values, likewise.
    pub returns: Vec<CallArgument>,
}

/// Whom a [`Call`] calls.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum CallTarget {
    Function(u32),
    Indirect(Slot),
    Vprintf,
    AssertFail,
    Malloc,
    Free,
    /// Declared, nowhere defined, not known: index into the names.
    Unknown(u32),
}

/// How a value passes between frames.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum CallArgument {
    Bytes { offset: u32, size: u32 },
    Row { slot: Slot, rows: u8 },
    Predicate(u32),
}

impl Op {
    /// Whether lanes may have to wait at the instruction, or must execute it together.
    pub fn may_wait(&self) -> bool {
        matches!(
            self,
            Op::Warp(_)
                | Op::Barrier(_)
                | Op::ClusterArrive { .. }
                | Op::ClusterWait { .. }
                | Op::Mbarrier(_)
                | Op::MatrixTransfer(_)
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

/// What an instruction does.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Alu {
        op: AluOp,
        slots: Box<OperandSlots>,
    },
    Load(Box<LoadStore>),
    Store(Box<LoadStore>),
    Atomic(Box<Atomic>),
    /// Generic ↔ window: adds or subtracts the window's base. `to`: generic to window.
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
        generic: bool,
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
    /// `nanosleep`, `brkpt`, prefetches, hints: no effect on data.
    Nop,
    /// `nanosleep`: lets others go first.
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
        which: VaryingRegister,
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
        field: &'static str,
        ordinal: u32,
        value: Slot,
        wide: bool,
    },
    TensorMapCopyFence {
        dst: AddressOperand,
        src: AddressOperand,
    },
    MatrixTransfer(Box<MatrixTransfer>),
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
    /// An instruction that is not known; reported when executed.
    Unsupported(Box<str>),
}
