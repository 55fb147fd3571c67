//! Operands of loads, stores and atomics.

pub use crate::layout::AddressWindow;
use crate::order::{AccessStrength, MemorySemantics};
use crate::regs::Slot;

/// An address operand.
#[derive(Clone, Copy, Debug)]
pub struct AddressOperand {
    /// First register-file row of the base register; `None` if `offset` is the absolute address.
    pub base: Option<Slot>,
    /// True if the base register has 64 bits.
    pub wide: bool,
    /// Bytes added to the base.
    pub offset: i64,
}

/// A parameter of a kernel or function, or a `.param` variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedParam {
    /// The parameter's name in the PTX.
    pub name: Box<str>,
    /// Offset of the parameter's first byte in parameter space.
    pub offset: u32,
    /// The parameter's size in bytes.
    pub size: u32,
}

/// A load or store (`ld`, `st`).
#[derive(Clone, Debug)]
pub struct LoadStore {
    /// The state space that the instruction names.
    pub window: AddressWindow,
    /// The address of the first element.
    pub addr: AddressOperand,
    /// The parameter or `.param` variable that the address names; the access must lie inside it.
    pub param: Option<Box<NamedParam>>,
    /// Bytes of one element: 1, 2, 4, 8 or 16.
    pub width: u8,
    /// True if a load sign-extends the element to the width of its register.
    pub signed: bool,
    /// First register-file row of each data register, in the order of the elements; `None` for `_`, which discards
    /// the element.
    pub regs: Vec<Option<Slot>>,
    /// Number of register-file rows that each data register occupies.
    pub register_rows: u8,
    /// Memory semantics; `None` for a weak load or store.
    pub semantics: Option<MemorySemantics>,
    /// Scope of the memory semantics, for a strong access.
    pub scope: AccessStrength,
    /// True if the instruction only copies memory: a load whose values are only stored again, or a store of such a
    /// value.
    pub copies: bool,
    /// For a load: mask of the loaded bytes whose value matters. The compiler declares the other bytes as padding, or
    /// the function does not use them.
    pub used_bytes: u32,
    /// For a store that changes a bit-field of a word: mask of the bytes outside the bit-field, which are stored with
    /// the value that an earlier load read there.
    pub kept_bytes: u32,
    /// True for a plain load of the first expected value of a compare-and-swap on the same word.
    pub cas_read: bool,
    /// True for a store of a value that floating-point arithmetic made from the results of butterfly shuffles. The
    /// lanes of a warp that store to one address may then have values that differ by rounding.
    pub butterfly: bool,
    /// For a load whose value not all threads use: the indices of the predicates that decide whether a thread uses the
    /// value, and whether they are negated (true: the value is used where the predicate is false). A thread uses the
    /// value if one of them says so; if there are none, every thread does.
    pub used_where: Box<[(u32, bool)]>,
}

/// The arithmetic operation of an atomic instruction, or of an asynchronous copy that reduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

impl AtomicOp {
    /// Returns the operation that one word of an opcode names, for example `add` in `atom.global.add.u32`.
    pub fn from_opcode_word(word: &str) -> Option<AtomicOp> {
        Some(match word {
            "add" => AtomicOp::Add,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "inc" => AtomicOp::Inc,
            "dec" => AtomicOp::Dec,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            "xor" => AtomicOp::Xor,
            "exch" => AtomicOp::Exch,
            "cas" => AtomicOp::Cas,
            _ => return None,
        })
    }

    /// Returns the value that the operation stores, for unsigned integers: `old` is the value in memory.
    pub fn apply_unsigned(self, old: u64, operand: u64) -> u64 {
        match self {
            AtomicOp::Add => old.wrapping_add(operand),
            AtomicOp::Min => old.min(operand),
            AtomicOp::Max => old.max(operand),
            AtomicOp::And => old & operand,
            AtomicOp::Or => old | operand,
            AtomicOp::Xor => old ^ operand,
            AtomicOp::Inc if old >= operand => 0,
            AtomicOp::Inc => old + 1,
            AtomicOp::Dec if old == 0 || old > operand => operand,
            AtomicOp::Dec => old - 1,
            AtomicOp::Exch | AtomicOp::Cas => operand,
        }
    }

    /// Returns the value that the operation stores, for signed integers: `old` is the value in memory. `inc` and
    /// `dec` exist only for unsigned integers.
    pub fn apply_signed(self, old: i64, operand: i64) -> i64 {
        match self {
            AtomicOp::Min => old.min(operand),
            AtomicOp::Max => old.max(operand),
            _ => self.apply_unsigned(old as u64, operand as u64) as i64,
        }
    }
}

/// The operand type of an atomic.
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
    /// Returns the bytes that one register holds.
    pub fn size(self) -> u32 {
        match self {
            AtomicType::B16 | AtomicType::F16 | AtomicType::BF16 => 2,
            AtomicType::B64 | AtomicType::U64 | AtomicType::S64 | AtomicType::F64 => 8,
            AtomicType::B128 => 16,
            _ => 4,
        }
    }

    /// Returns the bytes of one element: of each half of a packed type, else of the whole register.
    pub fn element_size(self) -> u32 {
        match self {
            AtomicType::F16x2 | AtomicType::BF16x2 => 2,
            _ => self.size(),
        }
    }
}

/// An atomic operation (`atom`, `red`).
#[derive(Clone, Debug)]
pub struct Atomic {
    /// The state space that the instruction names.
    pub window: AddressWindow,
    /// The address.
    pub addr: AddressOperand,
    /// The operation.
    pub op: AtomicOp,
    /// The operand type.
    pub ty: AtomicType,
    /// First register-file row of each register that receives an old value, one per element; empty for `red`.
    pub dst: Vec<Option<Slot>>,
    /// The operand, one register per element; for `cas` the value to compare with.
    pub a: Vec<Slot>,
    /// The new value of `cas`.
    pub b: Option<Slot>,
    /// Memory semantics; `.relaxed` if the instruction names none.
    pub semantics: Option<MemorySemantics>,
    /// Scope of the memory semantics.
    pub scope: AccessStrength,
}
