//! Operands of matrix instructions.

use super::{AddressOperand, AddressWindow, LoadStore};
use crate::matrix::mma::{MmaOp, Product};
use crate::matrix::wgmma::WgmmaOp;
use crate::matrix::wmma::{Fragment, WmmaOp};
use crate::regs::Slot;

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
