//! Operands of matrix instructions.

use super::{AddressOperand, AddressWindow, LoadStore};
use crate::matrix::mma::{MmaOp, MmaRegisters};
use crate::matrix::wgmma::WgmmaOp;
use crate::matrix::wmma::{Fragment, WmmaOp};
use crate::regs::Slot;

/// An `ldmatrix` or `stmatrix`.
#[derive(Clone, Debug)]
pub struct LdStMatrix {
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
    /// The shape and the element types of the product.
    pub op: MmaOp,
    /// Registers of D.
    pub d: Vec<Slot>,
    /// Registers of A.
    pub a: Vec<Slot>,
    /// Registers of B.
    pub b: Vec<Slot>,
    /// Registers of C.
    pub c: Vec<Slot>,
    /// The registers of A, B, C and D in arrays of fixed size; only for the [form](MmaOp::is_m16n8k16_f16_or_bf16) that the
    /// interpreter executes in batches.
    pub batched: Option<MmaRegisters>,
}

/// A `wmma.load` or `wmma.store`.
#[derive(Clone, Debug)]
pub struct WmmaTransfer {
    /// True for a store, false for a load.
    pub store: bool,
    /// The address of the matrix's first element.
    pub addr: AddressOperand,
    /// Distance in elements between matrix rows (columns, if column-major), if the instruction names it.
    pub stride: Option<Slot>,
    /// Which lane holds which element of the matrix.
    pub fragment: Fragment,
    /// True if columns, not rows, are contiguous in memory.
    pub column_major: bool,
    /// True if all elements that one register holds are contiguous in memory.
    pub packed: bool,
    /// The registers of the fragment.
    pub regs: Vec<Slot>,
    /// First of two scratch register-file rows in which the interpreter stores each lane's 64-bit address.
    pub at: Slot,
    /// A scratch register-file row that holds one element per lane while elements are transferred one by one.
    pub element: Slot,
    /// The loads or stores to execute: their addresses are in the rows `at`, their data in the fragment's registers
    /// or, one element at a time, in the row `element`.
    pub transfers: Vec<LoadStore>,
}

/// A `wmma.mma`.
#[derive(Clone, Debug)]
pub struct Wmma {
    /// The shape and the element types of the product.
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
    /// The shape and the element types of the product.
    pub op: WgmmaOp,
    /// Registers of D.
    pub d: Vec<Slot>,
    /// Registers of A; empty if A is in shared memory.
    pub a: Vec<Slot>,
    /// The descriptor of A in shared memory.
    pub a_desc: Option<Slot>,
    /// The descriptor of B in shared memory.
    pub b_desc: Slot,
    /// Index of the scale-d predicate, and whether the instruction negates the predicate. If the predicate, after the
    /// negation, is false, D = A·B, else D = A·B + D.
    pub scale_d: (u32, bool),
}
