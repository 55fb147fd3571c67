//! Operands of loads, stores and atomics.

pub use crate::layout::AddressWindow;
use crate::order::{AccessStrength, MemorySemantics};
use crate::regs::Slot;

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
