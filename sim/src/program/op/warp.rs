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
