//! A PTX module prepared for execution: functions are decoded, each register is assigned to rows of the simulated
//! register file (a row holds 32 bits for each of the 32 lanes), variables have addresses.
//!
//! [`Program::parse`] reads PTX text, [`Program::kernel`] decodes one kernel. [`op`] defines the decoded
//! instructions, `decode` produces them.

mod butterfly;
mod data_flow;
mod decode;
mod demanded_bits;
mod kernel;
pub mod op;
mod operands;
mod rows;
mod speculation;
mod stored_loads;
mod symbols;
mod target;
pub mod uses;
mod values;
mod volatile;

use crate::ptx::ast::{Module, ParseError, SourceLocation};
use crate::regs::{RegisterRow, Slot};
use op::DecodedInstruction;
pub use target::Target;

/// A parsed PTX module with addresses for its variables.
#[derive(Clone, Debug)]
pub struct Program {
    /// The syntax tree.
    pub module: Module,
    /// The module's `.global` and `.const` variables.
    pub variables: Vec<ModuleVariable>,
}

/// A variable at module scope, in global or constant memory.
#[derive(Clone, Debug)]
pub struct ModuleVariable {
    /// The variable's name.
    pub name: String,
    /// The variable's address.
    pub address: u64,
    /// The variable's size in bytes.
    pub size: u64,
    /// The variable's first bytes, from its initialiser; the others are zero.
    pub init: Vec<u8>,
    /// True for `.const` variables, which a kernel must not write.
    pub constant: bool,
}

/// A decoded kernel and the functions that it may call.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel's symbol.
    pub name: String,
    /// The decoded functions; function 0 is the kernel itself.
    pub functions: Vec<FunctionCode>,
    /// Bytes of the kernel's parameters.
    pub param_bytes: u32,
    /// Byte offset and size of each kernel parameter.
    pub params: Vec<(u32, u32)>,
    /// Static shared memory in bytes, without the gaps that the simulator inserts.
    pub static_shared: u32,
    /// Shared address of the first byte of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Whether the kernel declares dynamic shared memory (`extern __shared__`).
    pub uses_dynamic_shared: bool,
    /// Start and end address of each static shared variable, ascending. The simulator leaves gaps between the
    /// variables, so that an access past the end of one is not taken for an access to the next.
    pub shared_variables: Vec<(u32, u32)>,
    /// Start and end address of the shared memory that cooperative groups of several warps use internally; zero at
    /// the start of every block. `shared_variables` contains this range, too.
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
    /// Names of called functions that the module declares but does not define.
    pub unknown: Vec<String>,
    /// The architecture of `.target`, for example 90 for `sm_90a`.
    pub target: u32,
}

/// A special register whose value is constant while a warp runs. The value is written to a register-file row when a
/// call frame is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ConstantSpecialRegister {
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

/// A value that differs between warps and is therefore written to a register-file row when a call frame is created.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum PerWarpValue {
    Special {
        slot: Slot,
        which: ConstantSpecialRegister,
        wide: bool,
    },
    /// The address of a `.shared` variable, to which the rank of the block in its cluster is added.
    Shared {
        slot: Slot,
        address: u32,
        wide: bool,
    },
    /// The address of a `.local` variable: the base of the call frame's local memory plus `offset`.
    Local {
        slot: Slot,
        offset: u32,
    },
}

/// The decoded code of a function.
#[derive(Clone, Debug, Default)]
pub struct FunctionCode {
    /// The function's symbol.
    pub name: String,
    /// The decoded instructions in order.
    pub instrs: Vec<DecodedInstruction>,
    /// Kernel-wide index (`pc`) of the first instruction; counters and findings use kernel-wide indices.
    pub first: u32,
    /// For each instruction, its line in the PTX text and, if known, the index of its CUDA source line in
    /// [`Module::source_locations`].
    pub lines: Vec<(u32, Option<u32>)>,
    /// The opcode text of each instruction.
    pub opcodes: Vec<Box<str>>,
    /// The initial register-file rows of a call frame: rows of constants hold their values, all other rows are zero.
    pub template: Vec<RegisterRow>,
    /// Register-file rows below this index belong to PTX registers, which start undefined; all other rows start with
    /// a value, such as a constant.
    pub register_rows: u32,
    /// Number of predicates in a call frame.
    pub predicates: u32,
    /// Initial values of all predicates.
    pub predicate_template: Vec<u32>,
    /// Predicates below this index are PTX registers, which start undefined; the others hold constants.
    pub register_predicates: u32,
    /// Special registers and addresses of local variables, whose values each warp fills in.
    pub per_warp_values: Vec<PerWarpValue>,
    /// Bytes of `.local` variables per thread.
    pub local_bytes: u32,
    /// Bytes of a call frame's `.param` variables and formal parameters.
    pub param_bytes: u32,
    /// For each instruction, the wgmma registers that it reads and writes; empty in a function without wgmma.
    pub wgmma_uses: Vec<uses::WgmmaRegisterUse>,
    /// The function's formal parameters.
    pub formals: Vec<op::CallArgument>,
    /// The function's formal return values.
    pub returns: Vec<op::CallArgument>,
}

/// The reason why a module or a kernel cannot be prepared for execution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The text is not valid PTX.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// The module has no kernel of this name.
    #[error("{name}: no such kernel; the module has {kernels}")]
    NoKernel {
        /// The requested name.
        name: String,
        /// The names of the module's kernels.
        kernels: String,
    },
    /// An instruction needs a later GPU architecture than the module's `.target`.
    #[error("line {line}: {what} needs {needed}, but the module's .target is {target}")]
    Target {
        /// Line in the PTX text.
        line: u32,
        /// The instruction or special register.
        what: String,
        /// The first target that has the instruction or special register.
        needed: Target,
        /// The module's target.
        target: Target,
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

    /// Prepares a parsed (or mutated) module.
    pub fn from_module(module: Module) -> Result<Program, ProgramError> {
        let variables = symbols::place_module_variables(&module)?;
        Ok(Program { module, variables })
    }

    /// Returns the names of the kernels in the module.
    pub fn kernel_names(&self) -> Vec<&str> {
        self.module.functions.iter().filter(|f| f.kernel && !f.declaration).map(|f| f.name.as_str()).collect()
    }

    /// Decodes a kernel and every function that it may call.
    pub fn kernel(&self, name: &str) -> Result<Kernel, ProgramError> {
        kernel::decode_kernel(self, name)
    }

    /// Returns the CUDA source location with this index.
    pub fn source_location(&self, index: u32) -> &SourceLocation {
        &self.module.source_locations[index as usize]
    }
}

impl Kernel {
    /// Returns the function that contains the instruction with kernel-wide index `pc`, and the instruction's index
    /// within that function.
    pub fn function_and_instruction_index(&self, pc: u32) -> (&FunctionCode, usize) {
        let i = self.functions.partition_point(|f| f.first <= pc).saturating_sub(1);
        let code = &self.functions[i];
        (code, (pc - code.first) as usize)
    }

    /// Returns the number of instructions of the kernel and its functions.
    pub fn instruction_count(&self) -> usize {
        self.functions.last().map_or(0, |f| f.first as usize + f.instrs.len())
    }
}
