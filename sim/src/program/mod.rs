//! A module made ready to run: per kernel the functions it reaches, registers as rows, variables at addresses.

mod decode;
mod kernel;
pub mod op;
mod operands;
mod rows;
mod symbols;
pub mod uses;
mod volatile;

use crate::ptx::ast::{Module, ParseError, SourceLocation};
use crate::regs::{Row, Slot};
use op::DecodedInstruction;

/// A parsed module.
#[derive(Clone, Debug)]
pub struct Program {
    /// The syntax tree.
    pub module: Module,
    /// `.global` and `.const` variables: name, address, bytes, initial bytes, constant.
    pub variables: Vec<ModuleVariable>,
}

/// A variable of the module in memory.
#[derive(Clone, Debug)]
pub struct ModuleVariable {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Its bytes at the start.
    pub bytes: Vec<u8>,
    /// `.const`: may not be written.
    pub constant: bool,
}

/// A kernel and the functions that it reaches.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its symbol.
    pub name: String,
    /// Function 0 is the kernel.
    pub functions: Vec<FunctionCode>,
    /// Bytes of its parameters.
    pub param_bytes: u32,
    /// Offset and size of each parameter.
    pub params: Vec<(u32, u32)>,
    /// Static shared memory in bytes, as a multiprocessor would lay it out, without gaps.
    pub static_shared: u32,
    /// Where dynamic shared memory begins.
    pub dynamic_shared: u32,
    /// Addresses at which each static shared variable starts and ends, ascending. There are gaps between them, so that
    /// accesses beyond one are told from accesses to the next.
    pub shared_variables: Vec<(u32, u32)>,
    /// The scratch of cooperative groups of several warps, one of these: zero when a block starts.
    pub group_scratch: Option<(u32, u32)>,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`
    pub min_blocks: Option<u32>,
    /// `.reqnctapercluster`
    pub cluster: Option<[u32; 3]>,
    /// `.maxnreg`
    pub max_registers: Option<u32>,
    /// Names of functions that are declared and not defined.
    pub unknown: Vec<String>,
    /// Whether anything in it needs the order of asynchronous operations.
    pub target: u32,
}

/// A special register that stays the same for a warp's whole life: filled in when its frame is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FixedRegister {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    ClusterId(u8),
    NclusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    DynamicSmem,
    TotalSmem,
    ReservedSmem(u8),
    Zero,
}

/// Rows that a new frame gets beside the constants.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Relocation {
    Special {
        slot: Slot,
        which: FixedRegister,
        wide: bool,
    },
    /// Local address of a `.local` variable: the frame's base plus this.
    Local {
        slot: Slot,
        offset: u32,
    },
}

/// A function's code.
#[derive(Clone, Debug, Default)]
pub struct FunctionCode {
    /// Its symbol.
    pub name: String,
    /// The instructions.
    pub instrs: Vec<DecodedInstruction>,
    /// Index of the first instruction in the kernel-wide numbering that counters and findings use.
    pub first: u32,
    /// For each instruction its line in the PTX text and its place in the source.
    pub lines: Vec<(u32, Option<u32>)>,
    /// The text of each instruction's opcode.
    pub opcodes: Vec<Box<str>>,
    /// Rows of a new frame: zero, constants filled in.
    pub template: Vec<Row>,
    /// Rows below this are registers: undefined at first.
    pub register_rows: u32,
    /// Predicates of a frame.
    pub predicates: u32,
    /// Predicates below this are undefined at first; the values of all.
    pub predicate_template: Vec<u32>,
    /// Predicates below this are registers.
    pub register_predicates: u32,
    /// Special registers and local addresses.
    pub relocations: Vec<Relocation>,
    /// Bytes of `.local` variables.
    pub local_bytes: u32,
    /// Bytes of `.param` variables and formal parameters.
    pub param_bytes: u32,
    /// What each instruction touches of wgmma's registers; empty without wgmma.
    pub wgmma_uses: Vec<uses::WgmmaRegisterUse>,
    /// Formal parameters.
    pub formals: Vec<op::CallArgument>,
    /// Formal return values.
    pub returns: Vec<op::CallArgument>,
}

/// Why a program cannot be made ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The text is not PTX.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// There is no such kernel.
    #[error("{name}: no such kernel; the module has {kernels}")]
    NoKernel {
        /// What was asked for.
        name: String,
        /// What there is.
        kernels: String,
    },
    /// An operand does not fit its instruction.
    #[error("line {line}: {what}")]
    Operand {
        /// Line in the PTX text.
        line: u32,
        /// What is wrong.
        what: String,
    },
}

impl Program {
    /// Parses PTX.
    pub fn parse(text: &str) -> Result<Program, ProgramError> {
        Program::from_module(crate::ptx::parse(text)?)
    }

    /// Of a parsed (or changed) module.
    pub fn from_module(module: Module) -> Result<Program, ProgramError> {
        let variables = symbols::module_variables(&module)?;
        Ok(Program { module, variables })
    }

    /// The names of the kernels in the module.
    pub fn kernels(&self) -> Vec<&str> {
        self.module.functions.iter().filter(|f| f.kernel && !f.declaration).map(|f| f.name.as_str()).collect()
    }

    /// A kernel, decoded with all that it reaches.
    pub fn kernel(&self, name: &str) -> Result<Kernel, ProgramError> {
        kernel::decode_kernel(self, name)
    }

    /// The place in the source of an instruction.
    pub fn source_location(&self, index: u32) -> &SourceLocation {
        &self.module.source_locations[index as usize]
    }
}

impl Kernel {
    /// The function and the offset of an instruction given by its kernel-wide number.
    pub fn locate(&self, pc: u32) -> (&FunctionCode, usize) {
        let i = self.functions.partition_point(|f| f.first <= pc).saturating_sub(1);
        let code = &self.functions[i];
        (code, (pc - code.first) as usize)
    }

    /// Instructions of all functions.
    pub fn instructions(&self) -> usize {
        self.functions.last().map_or(0, |f| f.first as usize + f.instrs.len())
    }
}
