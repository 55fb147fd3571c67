//! Operands of matrix instructions.

use super::{AddressOperand, AddressWindow, LoadStore};
use crate::matrix::mma::{MmaOp, MmaRegisters};
use crate::matrix::wgmma::WgmmaOp;
use crate::matrix::wmma::{Fragment, WmmaOp};
use crate::regs::Slot;

/// An `ldmatrix` or `stmatrix`.
#[derive(Clone, Debug)]
pub struct MatrixTransfer {
    /// True for a store, false for a load.
    pub store: bool,
    /// The address of a matrix row, one per lane.
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
    /// The same registers in arrays of fixed size, for forms that [can be batched](MmaOp::is_m16n8k16_half).
    pub batched: Option<MmaRegisters>,
}

/// A `wmma.load` or `wmma.store`.
#[derive(Clone, Debug)]
pub struct WmmaTransfer {
    /// True for a store, false for a load.
    pub store: bool,
    /// The address of the matrix's first element.
    pub addr: AddressOperand,
    /// Number of elements from one row (or column) to the next, if the instruction names it.
    pub stride: Option<Slot>,
    /// Which lane holds which element of the matrix.
    pub fragment: Fragment,
    /// True if columns, not rows, are contiguous in memory.
    pub column_major: bool,
    /// True if the elements of a register are contiguous in memory.
    pub packed: bool,
    /// The registers of the fragment.
    pub regs: Vec<Slot>,
    /// Two rows in which the interpreter stores each lane's 64-bit address.
    pub at: Slot,
    /// The row that holds one element per lane when elements are transferred one by one.
    pub element: Slot,
    /// Loads or stores between the memory at the addresses in `at` and the registers, or the row `element`.
    pub transfers: Vec<LoadStore>,
}

/// A `wmma.mma`.
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
    /// The scale-d predicate, and whether it is negated. If it is false, D = A·B, else D = A·B + D.
    pub scale_d: (u32, bool),
}
