//! Operands of matrix instructions.

use super::{AddressOperand, AddressWindow, LoadStore};
use crate::matrix::mma::{MmaOp, MmaRegisters};
use crate::matrix::wgmma::WgmmaOp;
use crate::matrix::wmma::{Fragment, WmmaOp};
use crate::regs::Slot;

/// `ldmatrix`, `stmatrix`.
#[derive(Clone, Debug)]
pub struct MatrixTransfer {
    /// True for a store, false for a load.
    pub store: bool,
    /// The address: one per lane for `ldmatrix`/`stmatrix`, the first element for `wmma`.
    pub addr: AddressOperand,
    /// The state space of the address.
    pub window: AddressWindow,
    /// `.trans`
    pub trans: bool,
    /// The registers of the fragment.
    pub regs: Vec<Slot>,
}

/// `mma.sync`: a matrix product of one warp.
#[derive(Clone, Debug)]
pub struct Mma {
    /// The decoded form.
    pub op: MmaOp,
    /// Registers of D.
    pub d: Vec<Slot>,
    /// Registers of A.
    pub a: Vec<Slot>,
    /// Registers of B.
    pub b: Vec<Slot>,
    /// Registers of C.
    pub c: Vec<Slot>,
    /// The registers, if the form [can be batched](MmaOp::is_m16n8k16_half).
    pub batched: Option<MmaRegisters>,
}

/// `wmma.load`, `wmma.store`
#[derive(Clone, Debug)]
pub struct WmmaTransfer {
    /// True for a store, false for a load.
    pub store: bool,
    /// The address: one per lane for `ldmatrix`/`stmatrix`, the first element for `wmma`.
    pub addr: AddressOperand,
    /// Elements from one row (or column) to the next, if given.
    pub stride: Option<Slot>,
    /// Which lane holds which element.
    pub fragment: Fragment,
    /// True if columns, not rows, are contiguous in memory.
    pub column_major: bool,
    /// True if the elements of a register are contiguous in memory.
    pub packed: bool,
    /// The registers of the fragment.
    pub regs: Vec<Slot>,
    /// Two rows for the lanes' addresses.
    pub at: Slot,
    /// The row of one element per lane, when elements move one by one.
    pub element: Slot,
    /// The transfers between memory at `at` and each register, or `element`.
    pub transfers: Vec<LoadStore>,
}

/// `wmma.mma`
#[derive(Clone, Debug)]
pub struct Wmma {
    /// The decoded form.
    pub op: WmmaOp,
    /// Registers of D.
    pub d: Vec<Slot>,
    /// Registers of A.
    pub a: Vec<Slot>,
    /// Registers of B.
    pub b: Vec<Slot>,
    /// Registers of C.
    pub c: Vec<Slot>,
}

/// `wgmma.mma_async`: a matrix product of a warpgroup of four warps.
#[derive(Clone, Debug)]
pub struct Wgmma {
    /// The decoded form.
    pub op: WgmmaOp,
    /// Registers of D.
    pub d: Vec<Slot>,
    /// Registers of A; empty if A is in shared memory.
    pub a: Vec<Slot>,
    /// The descriptor of A in shared memory.
    pub a_desc: Option<Slot>,
    /// The descriptor of B in shared memory.
    pub b_desc: Slot,
    /// The scale-d predicate and its negation: false computes D = A·B, true D = A·B + D.
    pub scale_d: (u32, bool),
}
