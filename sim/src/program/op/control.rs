//! Operands of calls, and special registers whose value changes.

use crate::regs::Slot;

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
