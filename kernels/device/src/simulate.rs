//! Runs kernels on the simulator: compiles a launch's CUDA source to PTX, interprets it and reports findings.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use reel_sim::counters::Counters;
use reel_sim::exec::{self, ExecOptions, GpuSpec, LaunchError};
use reel_sim::finding::Finding;
use reel_sim::memory::SimMemory;
use reel_sim::program::{self, Program, ProgramError};
use reel_sim::tensor_map::InvalidTensorMap;

use crate::compile::{self, CompileError};
use crate::launch::{Arch, KernelLaunch, Matmul, Stage, TensorMapError};
use crate::{Addr, DType, Team};

/// Why a launch could not be simulated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SimulateError {
    /// The source does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The simulator cannot parse the PTX.
    #[error("{symbol}: {error}")]
    Program {
        /// Symbol of the kernel, or name of the source.
        symbol: &'static str,
        /// The parser's error.
        error: ProgramError,
    },
    /// The stage's grid, block, cluster or shared memory is outside the limits of the kernel or of the GPU.
    #[error("{symbol}: {error}")]
    Launch {
        /// Symbol of the kernel.
        symbol: &'static str,
        /// The limit that the stage exceeds.
        error: LaunchError,
    },
    /// A tensor map of the plan is invalid, or its slot is misaligned or not in the parameters.
    #[error(transparent)]
    Map(#[from] TensorMapError),
    /// The simulator cannot encode a tensor map.
    #[error(transparent)]
    Encoding(InvalidTensorMap),
}

/// The result of one simulated stage of a launch.
#[derive(Clone, Debug)]
pub struct SimulatedStage {
    /// The stage that ran.
    pub stage: Stage,
    /// Defects that the simulator found.
    pub findings: Vec<Finding>,
    /// Counts of the instructions and memory accesses that the stage executed.
    pub counters: Counters,
}

/// A parsed PTX module; each kernel is decoded when it is first used.
pub struct PtxModule {
    program: Program,
    kernels: Mutex<HashMap<&'static str, Arc<program::Kernel>>>,
}

impl PtxModule {
    /// Wraps a parsed PTX program.
    pub fn new(program: Program) -> PtxModule {
        PtxModule { program, kernels: Mutex::default() }
    }

    /// Compiles a CUDA source for compute capability `sm` / 10 and parses the PTX. Each pair of source and `sm` is
    /// compiled once per process.
    pub fn of_source(source: &'static crate::Source, sm: u32) -> Result<Arc<PtxModule>, SimulateError> {
        type Units = Mutex<HashMap<(&'static str, u32), Arc<PtxModule>>>;
        static UNITS: OnceLock<Units> = OnceLock::new();
        let units = UNITS.get_or_init(Default::default);
        let key = (source.name, sm);
        if let Some(found) = units.lock().expect("no thread panics while it holds the lock").get(&key) {
            return Ok(found.clone());
        }
        let suffix = if sm >= 90 && source.has_warpgroup_products() { "a" } else { "" };
        let ptx = compile::compile_to_ptx(source, &format!("sm_{sm}{suffix}"))?;
        let program = Program::parse(&ptx).map_err(|error| SimulateError::Program { symbol: source.name, error })?;
        let unit = Arc::new(PtxModule::new(program));
        units.lock().expect("no thread panics while it holds the lock").insert(key, unit.clone());
        Ok(unit)
    }

    /// The parsed PTX program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the kernel with this symbol, decoding it at the first call.
    pub fn kernel(&self, symbol: &'static str) -> Result<Arc<program::Kernel>, SimulateError> {
        let mut kernels = self.kernels.lock().expect("no thread panics while it holds the lock");
        if let Some(found) = kernels.get(symbol) {
            return Ok(found.clone());
        }
        let kernel = self.program.kernel(symbol).map_err(|error| SimulateError::Program { symbol, error })?;
        let kernel = Arc::new(kernel);
        kernels.insert(symbol, kernel.clone());
        Ok(kernel)
    }

    /// Runs all stages of a launch on `memory`, which holds buffers at the addresses in the launch's parameters. This
    /// module must contain the kernels of all stages.
    pub fn run(
        &self,
        launch: &KernelLaunch,
        arch: &Arch,
        memory: &mut SimMemory,
        options: &ExecOptions,
    ) -> Result<Vec<SimulatedStage>, SimulateError> {
        let mut out = Vec::new();
        for stage in (launch.kernel.plan)(&launch.params, arch) {
            let symbol = stage.symbol;
            let kernel = self.kernel(symbol)?;
            let grid = exec::LaunchConfig {
                grid: stage.grid,
                block: stage.block,
                cluster: stage.cluster,
                dynamic_shared: stage.shared,
                params: stage
                    .with_tensor_maps(&launch.params, |map| map.encode().map_err(SimulateError::Encoding))?
                    .into_owned(),
            };
            let outcome = exec::run(&self.program, &kernel, &grid, memory, options)
                .map_err(|error| SimulateError::Launch { symbol, error })?;
            out.push(SimulatedStage { stage, findings: outcome.findings.into_list(), counters: outcome.counters });
            if options.until_finding && out.iter().any(|s| !s.findings.is_empty()) {
                break;
            }
        }
        Ok(out)
    }
}

/// Returns the limits of a GPU of this architecture, which a simulated run checks.
pub fn gpu_spec(arch: &Arch) -> GpuSpec {
    GpuSpec {
        shared_per_block: arch.shared_per_block,
        multiprocessors: arch.multiprocessors,
        ..GpuSpec::for_sm(arch.sm)
    }
}

/// Runs all stages of a launch on `memory`, which holds buffers at the addresses in the launch's parameters.
pub fn run(
    launch: &KernelLaunch,
    arch: &Arch,
    memory: &mut SimMemory,
    options: &ExecOptions,
) -> Result<Vec<SimulatedStage>, SimulateError> {
    if (launch.kernel.plan)(&launch.params, arch).is_empty() {
        return Ok(Vec::new());
    }
    PtxModule::of_source(launch.kernel.source, arch.sm)?.run(launch, arch, memory, options)
}

/// Computes a matrix product on copies of its operands in host memory: simulated memory need not be aligned for host
/// code, and the simulator does not check accesses by host code.
///
/// # Errors
/// One line that names the operand that is missing, was never written or may not be written.
pub fn run_matmul(m: &Matmul, memory: &mut SimMemory, team: &Team) -> Result<(), String> {
    let read = |what: &str, at: Addr, dtype: DType, count: usize| {
        let bytes = memory.read(at.0, count * dtype.size());
        bytes
            .map(aligned)
            .map_err(|e| format!("{}: {what}: {e}; this operand of the matrix product cannot be read", m.name()))
    };
    if m.m == 0 || m.n == 0 {
        return Ok(());
    }
    let count = m.m * m.n;
    let a = if m.k == 0 { Vec::new() } else { read("a", m.a.addr, m.a.dtype, m.m * m.k)? };
    let b = if m.k == 0 { Vec::new() } else { read("b", m.b.addr, m.b.dtype, m.elements_of_b())? };
    let b_scale = if m.b_scale.is_null() { Vec::new() } else { read("b_scale", m.b_scale, DType::F32, m.n)? };
    let bias = if m.bias.is_null() { Vec::new() } else { read("bias", m.bias, m.c_dtype, m.n)? };
    let bytes = count * m.c_dtype.size();
    let mut c = if m.accumulate { read("c", m.c, m.c_dtype, count)? } else { vec![0; bytes.div_ceil(8)] };
    let here = |words: &[u64]| if words.is_empty() { Addr::NULL } else { Addr(words.as_ptr() as u64) };
    let mut copy = *m;
    (copy.a.addr, copy.b.addr, copy.bias, copy.b_scale) = (here(&a), here(&b), here(&bias), here(&b_scale));
    copy.c = Addr(c.as_mut_ptr() as u64);
    // SAFETY: the operands are live copies of the sizes that the product has, and no other thread uses `c`.
    unsafe { (copy.code.simulated)(&copy, team) };
    let writable = memory.buffer_index(m.c.0).is_some_and(|i| memory.buffer(i).writable);
    if writable && memory.write(m.c.0, &bytemuck::cast_slice(&c)[..bytes]) {
        return Ok(());
    }
    let what = if writable { "is larger than its buffer" } else { "is not in a writable buffer" };
    Err(format!("{}: c: {what}; [{}, {}] of {} at {:#x}", m.name(), m.m, m.n, m.c_dtype, m.c.0))
}

/// Copies bytes into an array whose start is aligned for every element type.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}
