//! Operands of instructions in which the lanes of a warp exchange registers: shuffle, vote, match, redux, elect.

use super::AtomicOp;
use crate::regs::Slot;

/// `shfl.sync` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShuffleMode {
    Idx,
    Up,
    Down,
    Bfly,
}

/// An instruction in which the lanes of `members` exchange registers.
#[derive(Clone, Debug)]
pub struct WarpOp {
    /// The operation.
    pub kind: WarpOpKind,
    /// The destination register: 32 bits, or 64 bits for `match`.
    pub dst: Option<Slot>,
    /// The predicate destination.
    pub dst_pred: Option<u32>,
    /// The mask of participating lanes.
    pub members: Slot,
}

/// The operations of a [`WarpOp`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum WarpOpKind {
    Shfl {
        mode: ShuffleMode,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `vote.all`, `.any` and `.uni` write the predicate; `vote.ballot` writes a lane mask.
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
        number: ReduxNumber,
        a: Slot,
    },
    Elect,
    /// `bar.warp.sync`
    Sync,
}

/// The numbers that `redux.sync` reduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduxNumber {
    /// Unsigned integers, or bits.
    Unsigned,
    /// Signed integers.
    Signed,
    /// f32: with `abs` their absolute values; with `nan` (`.NaN`) any NaN makes the result NaN.
    F32 {
        /// `.abs`
        abs: bool,
        /// `.NaN`
        nan: bool,
    },
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
