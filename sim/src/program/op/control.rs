//! Operands of calls, and special registers whose value changes while a warp runs.

use crate::regs::Slot;

/// A special register whose value changes while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VaryingSpecialRegister {
    Clock,
    ClockHi,
    Clock64,
    Globaltimer,
    GlobaltimerLo,
    GlobaltimerHi,
    Activemask,
    /// `%is_explicit_cluster`, which is read into a predicate.
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
    /// A function that the module declares but does not define, and that is not built in: an index into
    /// [`Kernel::unknown`](crate::program::Kernel::unknown).
    Unknown(u32),
}

/// Where a call frame stores an argument or return value: in the bytes of its parameters, in register-file rows, or
/// in a predicate.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum CallArgument {
    Bytes { offset: u32, size: u32 },
    Row { slot: Slot, rows: u8 },
    Predicate(u32),
}
