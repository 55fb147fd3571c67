//! The syntax tree of a PTX module. Names are resolved to indices and scopes are flattened; opcodes are still text.
//!
//! Source: PTX ISA 9.0, chapters 4 (syntax), 5 (state spaces, types, variables), 7 (functions) and 11 (directives).

use std::sync::Arc;

/// Index of a register in [`Function::registers`].
pub type RegisterIndex = u32;

/// A PTX module (one translation unit).
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`, for example (9, 0).
    pub version: (u32, u32),
    /// `.target`, for example `sm_90a`.
    pub target: String,
    /// `.file` directives: number and name.
    pub files: Vec<(u32, String)>,
    /// Variables at module scope (`.global`, `.const`, `.shared`; the `size` of `extern .shared x[]` is 0).
    pub variables: Vec<Variable>,
    /// Functions with and without a body (`vprintf` and `__assertfail` have none). Each name occurs once: a
    /// definition replaces its declarations. Shared, so that a copy of a module with one changed function is cheap.
    pub functions: Vec<Arc<Function>>,
    /// CUDA source locations, indexed by [`Instruction::location`].
    pub source_locations: Vec<SourceLocation>,
}

/// State spaces of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateSpace {
    /// `.global`
    Global,
    /// `.const`
    Const,
    /// `.shared`
    Shared,
    /// `.local`
    Local,
    /// `.param`
    Param,
}

/// The fundamental types of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
}

impl Type {
    /// Parses a type name without its dot.
    pub fn from_name(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::BF16,
            "bf16x2" => Type::BF16x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    }

    /// Returns true for signed integers: a load into a wider register extends their sign.
    pub fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Returns the number of bits of a value of this type; a predicate has 1.
    pub fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B8 | Type::U8 | Type::S8 => 8,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 16,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::BF16x2 => 32,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
            Type::B128 => 128,
        }
    }
}

/// A variable in memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// The name. It is unique within the module for module-scope variables, and within the function for all others,
    /// because variables of inner scopes are renamed.
    pub name: String,
    /// The state space.
    pub space: StateSpace,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes; 0 for `extern … x[]`.
    pub size: u64,
    /// The initial bytes, empty without an initialiser. The rest of a `.global` or `.const` variable is zero.
    pub init: Vec<u8>,
    /// The addresses of symbols that the initialiser contains.
    pub relocations: Vec<AddressInitializer>,
    /// True for an `.extern` variable that the module does not define: memory of another module, or dynamic shared
    /// memory if `size` is 0.
    pub external: bool,
}

/// An initialiser's element that is the address of a symbol.
#[derive(Clone, Debug)]
pub struct AddressInitializer {
    /// Byte offset in the variable at which the address is stored.
    pub at: u64,
    /// The symbol whose address is stored, little endian.
    pub symbol: String,
    /// Number of the address's bytes that are stored: 8, or fewer if the array's elements are smaller.
    pub width: u8,
    /// Number of bits by which the address is shifted right before it is stored: 8 for `0xFF00(symbol)`, which stores
    /// its bits 8 to 15 (mask operator, section 5.4.4).
    pub shift: u8,
    /// Number that is added to the address.
    pub addend: i64,
    /// True for `generic(symbol)`.
    pub generic: bool,
}

/// A formal parameter or return value.
#[derive(Clone, Debug)]
pub struct Param {
    /// The parameter's name.
    pub name: String,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// The type; `None` for an array or vector.
    pub ty: Option<Type>,
    /// The register of a `.reg` parameter; `None` for a `.param` parameter.
    pub register: Option<RegisterIndex>,
}

/// A kernel (`.entry`) or function (`.func`).
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// The function's symbol.
    pub name: String,
    /// `.entry`
    pub kernel: bool,
    /// True if the module declares the function without defining it.
    pub declaration: bool,
    /// `.noreturn`
    pub noreturn: bool,
    /// Indices in [`Self::body`] of the calls that never return (`.noreturn`), in ascending order.
    pub noreturn_calls: Vec<u32>,
    /// Formal return values.
    pub returns: Vec<Param>,
    /// Formal parameters in order.
    pub params: Vec<Param>,
    /// `.maxntid x, y, z`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid x, y, z`
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm n`
    pub min_blocks: Option<u32>,
    /// `.maxnreg n`
    pub max_registers: Option<u32>,
    /// `.reqnctapercluster x, y, z`
    pub cluster: Option<[u32; 3]>,
    /// `.explicitcluster`
    pub explicit_cluster: bool,
    /// The registers of all scopes, with their types.
    pub registers: Vec<RegisterDecl>,
    /// The `.local`, `.shared` and `.param` variables of all scopes of the function.
    pub variables: Vec<Variable>,
    /// The instructions in order.
    pub body: Vec<Instruction>,
}

/// A declared register.
#[derive(Clone, Debug)]
pub struct RegisterDecl {
    /// The name as written (`%r17`, or `%v.x` for a component of a vector register); several scopes may use the same
    /// name.
    pub name: String,
    /// The register's type.
    pub ty: Type,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The guard `@p` or `@!p`: the register, and whether it is negated.
    pub guard: Option<(RegisterIndex, bool)>,
    /// The dotted opcode as written, for example `ld.global.nc.v4.f32`; for calls, the modifiers such as `.uni` are
    /// included.
    pub opcode: String,
    /// The operands as written, destination first. The operands of `call` are: an [`Operand::List`] of return values
    /// (may be empty), the function (a symbol or a register), a list of arguments, and, if written, the symbol of a
    /// `.callprototype` or the list of symbols of `.calltargets`.
    pub operands: Vec<Operand>,
    /// Index into [`Module::source_locations`]; `None` before the first `.loc`.
    pub location: Option<u32>,
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// For a load: the mask of the loaded bytes whose value matters, if the pragma `used_bytes_mask` before the
    /// instruction declares it. The other bytes are padding.
    pub used_bytes: Option<u32>,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register.
    Register(RegisterIndex),
    /// `!%p`: a negated predicate, as in the combining operand of `setp`.
    Not(RegisterIndex),
    /// A special register with its component, without the `%`: `tid.x`, `laneid`, `clock64`, `cluster_ctarank`.
    Special(String),
    /// A 64-bit integer, from a literal, a constant expression, `WARP_SZ`, `true` or `false`.
    Integer(i64),
    /// `0f3F800000`: the bits of an f32.
    Float32(u32),
    /// `0d…` or a decimal literal with a point or exponent: the bits of an f64.
    Float64(u64),
    /// The name of a variable, parameter or function, with an offset: `mov.u64 %rd1, shared_array+16`.
    Symbol(String, i64),
    /// `[base + offset]`.
    Address(AddressBase, i64),
    /// `[map, {c0, c1}]` of tensor instructions: the map and its coordinates. For other bracketed lists, such as
    /// `[texture, sampler, {…}]`, the operands as written; the vector is an [`Operand::Vector`].
    TensorAddress(AddressBase, i64, Vec<Operand>),
    /// `{a, b, c, d}`.
    Vector(Vec<Operand>),
    /// `p|q`: two destinations.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`
    Sink,
    /// A branch target: index into [`Function::body`], or the body's length for a label at its end.
    Label(u32),
    /// The targets of `brx.idx`, from its `.branchtargets` list.
    Labels(Vec<u32>),
    /// A parenthesised list of a `call`: its return values or its arguments.
    List(Vec<Operand>),
}

/// The base of an address.
#[derive(Clone, Debug, PartialEq)]
pub enum AddressBase {
    /// A register.
    Register(RegisterIndex),
    /// A variable or parameter.
    Symbol(String),
    /// No base register or symbol: the offset is the absolute address.
    Absolute,
}

/// A CUDA source location from `.loc`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceLocation {
    /// The file's number, as in [`Module::files`].
    pub file: u32,
    /// The line, from 1.
    pub line: u32,
    /// The column.
    pub column: u32,
    /// The location at which this one was inlined (`inlined_at` of `.loc`), and the name of the inlined function, if
    /// known.
    pub inlined_at: Option<(Box<SourceLocation>, String)>,
}

/// A syntax error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// What is wrong.
    pub what: String,
}

/// Returns true for `bra` and `brx`.
pub(crate) fn is_branch(opcode: &str) -> bool {
    let base = opcode.split('.').next();
    matches!(base, Some("bra" | "brx"))
}

/// Returns true for `call`.
pub(super) fn is_call(opcode: &str) -> bool {
    opcode == "call" || opcode.starts_with("call.")
}
