//! The check of one kernel from its source to its report: what the programs, the Python package and Rust callers share.
//!
//! A [`KernelCheck`] names the source (PTX or CUDA C++), the launch, the arguments and the settings.
//! [`KernelCheck::prepare`] compiles the source, selects the kernel (`entry.rs`), allocates the arguments (`bind.rs`)
//! and describes the launch; [`PreparedLaunch::check`] runs it and returns a [`KernelReport`]. All errors are
//! [`InputError`]s of one line.
//!
//! ```
//! use reel_sim::kernel_check::{KernelCheck, Source, argument::NamedArgument};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two threads read what their neighbours store, with no barrier in between.
//! let text = ".version 8.0 .target sm_80 .address_size 64
//!     .entry shift(.param .u64 x) { .reg .u64 %p; .reg .u32 %t, %a, %v; .shared .u32 tile[2];
//!         ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; shl.b32 %t, %t, 2; mov.u32 %a, tile; add.u32 %a, %a, %t;
//!         st.shared.u32 [%a], 7; xor.b32 %a, %a, 4; ld.shared.u32 %v, [%a]; st.global.u32 [%p], %v; ret; }";
//! let source = Source::Text { name: "shift".into(), text: text.into() };
//! let output = NamedArgument::bytes("x", vec![0; 4]);
//! let check = KernelCheck { block: [2, 1, 1], arguments: vec![output], ..KernelCheck::new(source) };
//! let prepared = check.prepare()?;
//! let report = prepared.check()?;
//! let race = report.findings().next().expect("a race");
//! assert_eq!((race.kind.name(), race.position.ptx_line), ("race", 4));
//! assert!(report.buffer("x").is_some());
//! # Ok(())
//! # }
//! ```

pub mod argument;
mod bind;
mod causes;
mod entry;
mod error;
mod file;
mod limits;
mod parameters;
mod prepared;
mod remarks;
mod report;
mod sarif;
mod source;
mod speedscope;
mod wording;

use crate::compile;
use crate::exec::{ExecOptions, GpuSpec, LaunchConfig};
use crate::program::op::Op;
use crate::program::{Kernel, Program, ProgramError};
use anyhow::Result;

use argument::NamedArgument;
pub use causes::{FindingGroup, first_clause, group_by_cause};
pub use entry::{demangle_symbols, demangled_signature};
pub use error::{InputError, failed};
pub use file::{read_file, write_file};
pub use limits::Limits;
pub use prepared::PreparedLaunch;
pub use remarks::{Remark, remarks};
pub use report::KernelReport;
pub use sarif::sarif;
pub use source::{CompilerSettings, PtxSource, Source};
pub use speedscope::speedscope;
pub use wording::Wording;

/// A kernel to check: source, launch, arguments and settings.
#[derive(Clone, Debug)]
pub struct KernelCheck {
    /// The code.
    pub source: Source,
    /// The kernel: its symbol, its name in the source, or a part of that name; `None`: the only kernel.
    pub entry: Option<String>,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y and z; `None`: what the kernel requires, else no clusters.
    pub cluster: Option<[u32; 3]>,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The architecture to compile for, and whose limits apply, such as `sm_90a`; `None`: that of the PTX, `sm_90a` for
    /// CUDA C++.
    pub arch: Option<String>,
    /// The arguments, in the order of the parameters, and after them the buffers to which only other arguments refer.
    pub arguments: Vec<NamedArgument>,
    /// Number of runs, each with another order of warps, blocks and asynchronous copies.
    pub interleavings: u32,
    /// Only counts, in one run, without checking the order of accesses.
    pub count_only: bool,
    /// Whether the missing proxy fences of [`ExecOptions::strict_proxy`] are findings.
    pub strict_proxy: bool,
    /// Number of host threads; the report does not depend on it.
    pub threads: usize,
    /// The seed of random buffers and of all interleavings.
    pub seed: u64,
    /// How to compile CUDA C++.
    pub compiler: CompilerSettings,
    /// Limits for kernels that do not end or need too much memory.
    pub limits: Limits,
    /// How errors name the settings.
    pub wording: Wording,
}

impl KernelCheck {
    /// Makes a check of one block of one thread without arguments, with eight interleavings on all processors.
    pub fn new(source: Source) -> KernelCheck {
        KernelCheck {
            source,
            entry: None,
            grid: [1; 3],
            block: [1; 3],
            cluster: None,
            shared: 0,
            arch: None,
            arguments: Vec::new(),
            interleavings: 8,
            count_only: false,
            strict_proxy: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            seed: 0,
            compiler: CompilerSettings::default(),
            limits: Limits::default(),
            wording: Wording::Program,
        }
    }

    /// Compiles the source, allocates the arguments and describes the launch.
    ///
    /// # Errors
    /// An [`InputError`] if the source cannot be read, compiled or parsed, has no such kernel, or if the arguments do
    /// not match its parameters.
    pub fn prepare(&self) -> Result<PreparedLaunch> {
        let PtxSource { ptx, cuda_source } = self.source.read_or_compile(&self.compiler, self.arch.as_deref())?;
        let location = self.source.name();
        let refused = |e: ProgramError| {
            let help = match &e {
                ProgramError::Target { needed, .. } => format!("compile it for {needed}"),
                _ => "give complete PTX, as nvcc or NVRTC writes it".to_string(),
            };
            failed(&location, e, help)
        };
        let program = Program::parse(&ptx).map_err(refused)?;
        let symbol =
            entry::select_kernel_symbol(self.entry.as_deref(), &program.kernel_names(), &location, self.wording)?;
        let kernel = program.kernel(symbol).map_err(refused)?;
        let options = ExecOptions {
            gpu: self.gpu(&program)?,
            seed: self.seed,
            count_only: self.count_only,
            strict_proxy: self.strict_proxy,
            cuda_source,
            registers: registers(&ptx, &kernel, &self.compiler.nvcc),
            patience: PATIENCE,
            limits: self.limits.from_now(),
            ..ExecOptions::default()
        };
        let bound = bind::bind_arguments(&program, &kernel, self)?;
        let launch = LaunchConfig {
            grid: self.grid,
            block: self.block,
            cluster: self.cluster.unwrap_or([1; 3]),
            dynamic_shared: self.shared,
            params: bound.params.clone(),
        };
        let interleavings = if self.count_only { 1 } else { self.interleavings };
        Ok(PreparedLaunch {
            source: self.source.clone(),
            ptx,
            program,
            kernel,
            bound,
            launch,
            options,
            interleavings,
            threads: self.threads,
            limits: self.limits,
            wording: self.wording,
        })
    }

    /// Returns the GPU model whose limits apply to the launch: the GPU of `arch`, else of the PTX's target.
    fn gpu(&self, program: &Program) -> Result<GpuSpec> {
        let target = number(&program.module.target).unwrap_or(80);
        let Some(arch) = &self.arch else { return Ok(GpuSpec::for_sm(target)) };
        let name = self.wording.option("arch");
        if !ARCHITECTURES.contains(&arch.as_str()) {
            return Err(failed(&name, format!("{arch}: not simulated"), ARCHITECTURES_HELP));
        }
        let sm = number(arch).unwrap_or(target);
        if sm < target {
            let what = format!("GPUs of {arch} cannot run PTX for {}", program.module.target);
            return Err(failed(&name, what, format!("give {} or none", program.module.target)));
        }
        Ok(GpuSpec::for_sm(sm))
    }
}

/// The names of the architectures that are simulated.
pub const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_90", "sm_90a", "sm_100", "sm_100a"];

/// Which architectures are simulated, for messages.
pub const ARCHITECTURES_HELP: &str =
    "the simulator models sm_80 (A100), sm_90a (H100, H200) and parts of sm_100a; use one of them";

/// Number of warp instructions without a memory change after which a run counts as a deadlock. It is lower than the
/// simulator's default, so that a kernel that polls for ever ends within seconds.
const PATIENCE: u64 = 10_000_000;

/// Returns the registers per thread that ptxas assigns with the options among those of nvcc that limit them
/// (`maxrregcount`). The rules of `setmaxnreg` depend on them. Returns `None` if the kernel has no `setmaxnreg` or ptxas
/// is not installed.
fn registers(ptx: &str, kernel: &Kernel, nvcc: &[String]) -> Option<u32> {
    let limits = |option: &&String| option.trim_start_matches('-').starts_with("maxrregcount=");
    let options: Vec<String> = nvcc.iter().filter(limits).cloned().collect();
    let uses_setmaxnreg =
        kernel.functions.iter().flat_map(|code| &code.instrs).any(|i| matches!(i.op, Op::SetMaxNReg { .. }));
    if uses_setmaxnreg { compile::registers_of_kernel(ptx, &kernel.name, &options) } else { None }
}

/// Returns the number in an architecture name: 90 for `sm_90a`.
fn number(arch: &str) -> Option<u32> {
    let digits = arch.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    digits.parse().ok().filter(|n| (50..=200).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_numbers() {
        assert_eq!(["sm_80", "sm_90a", "sm_9", "80", "sm_"].map(number), [Some(80), Some(90), None, None, None]);
    }
}
