//! Operands of calls, and special registers whose value changes.

use crate::regs::Slot;

/// A special register whose value changes while a warp runs.
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

/// A function call.
#[derive(Clone, Debug)]
pub struct Call {
    /// The callee.
    pub target: CallTarget,
    /// The arguments.
    pub args: Vec<CallArgument>,
    /// The return values.
    pub returns: Vec<CallArgument>,
}

/// The callee of a [`Call`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum CallTarget {
    Function(u32),
    Indirect(Slot),
    Vprintf,
    AssertFail,
    Malloc,
    Free,
    /// A function that is declared but not defined and not built in: index into
    /// [`Kernel::unknown`](crate::program::Kernel::unknown).
    Unknown(u32),
}

/// How a value is passed between frames: as bytes of the frame, as a register's rows, or as a predicate.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum CallArgument {
    Bytes { offset: u32, size: u32 },
    Row { slot: Slot, rows: u8 },
    Predicate(u32),
}
