//! Device `sim` runs the CUDA kernels without a GPU. Each launch is compiled to PTX and run by the simulator, which
//! checks every access and knows which bytes were written. Matrix products that cuBLASLt would compute on a real GPU
//! run on the CPU over the same memory.
#![allow(unsafe_code)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_sim::exec::{CompletionTiming, ExecOptions};
use reel_sim::memory::SimMemory;

use crate::backend::{Backend, cpu_only_launch_error};
use crate::capabilities::{Capabilities, Kernels};
use crate::error::{DeviceError, Result};
use crate::launch::Matmul;
use crate::simulate::{self, SimulatedStage};
use crate::{Arch, KernelLaunch, Launch, Team, compile};

/// The options of device `sim`: the simulated GPU, and how often and in which random orders its warps run each launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimOptions {
    /// The architecture of the simulated GPU. Kernels are planned for its limits and compiled for its compute
    /// capability.
    pub arch: Arch,
    /// Number of runs of each launch (at least 1), each with another order of warps. The results of all runs must
    /// have the same bits.
    pub interleavings: u32,
    /// The seed for the random orders of warps.
    pub seed: u64,
    /// CPU threads for matrix products; 0 uses all hardware threads.
    pub threads: usize,
}

impl Default for SimOptions {
    /// The default: an A100, one run of each launch, all hardware threads.
    fn default() -> SimOptions {
        SimOptions { arch: Arch::A100, interleavings: 1, seed: 0, threads: 0 }
    }
}

pub(crate) struct Sim {
    options: SimOptions,
    team: Team,
    memory: Mutex<SimMemory>,
    launches: AtomicU64,
}

impl Sim {
    pub(crate) fn new(options: SimOptions) -> Result<Sim> {
        compile::check_nvrtc().map_err(|e| DeviceError::Failed(e.to_string()))?;
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        let team = Team::new(if options.threads == 0 { all } else { options.threads });
        Ok(Sim { options, team, memory: Mutex::new(SimMemory::new()), launches: AtomicU64::new(0) })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, SimMemory> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs a kernel with access to the buffers of its own arguments only, so an access to any other buffer is a
    /// finding.
    fn kernel(&self, launch: &KernelLaunch) -> Result<()> {
        let mut memory = self.memory();
        check_tables(launch, &memory)?;
        let mut part = memory.split_off(launch.operands().map(|address| address.0));
        let result = self.interleave(launch, &mut part);
        memory.merge(part);
        result
    }

    fn interleave(&self, launch: &KernelLaunch, memory: &mut SimMemory) -> Result<()> {
        // The random orders of warps also depend on the index of the launch, so one forward pass of a model tests
        // many orders.
        let first = self.launches.fetch_add(1, Ordering::Relaxed);
        let runs = u64::from(self.options.interleavings.max(1));
        let before = (runs > 1).then(|| memory.clone());
        self.run(launch, memory, first)?;
        for i in 1..runs {
            let Some(mut other) = before.clone() else { break };
            self.run(launch, &mut other, first.wrapping_add(i))?;
            if let Some(what) = difference(memory, &other) {
                let name = launch.kernel.name;
                return Err(DeviceError::Failed(format!(
                    "{name}: {what}; a barrier is missing, or the result depends on the order of atomics"
                )));
            }
        }
        Ok(())
    }

    fn run(&self, launch: &KernelLaunch, memory: &mut SimMemory, number: u64) -> Result<()> {
        const MOMENTS: [CompletionTiming; 3] =
            [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];
        let options = ExecOptions {
            gpu: simulate::gpu_spec(&self.options.arch),
            seed: self.options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number),
            completion: MOMENTS[(number % 3) as usize],
            ..ExecOptions::default()
        };
        let staged = simulate::run(launch, &self.options.arch, memory, &options);
        check_findings(launch, &staged.map_err(|e| DeviceError::Failed(e.to_string()))?)
    }
}

/// Checks that the tables of addresses in device memory equal the tables that the launch lists. The listed tables
/// determine which buffers the launch may access.
fn check_tables(launch: &KernelLaunch, memory: &SimMemory) -> Result<()> {
    for field in launch.kernel.fields.iter().filter(|f| f.address) {
        let Some(table) = launch.table_of(field).filter(|table| !table.bytes().is_empty()) else { continue };
        let at: u64 = bytemuck::pod_read_unaligned(&launch.params[field.offset..field.offset + 8]);
        if !memory.read(at, table.bytes().len()).is_ok_and(|bytes| bytes == table.bytes()) {
            let (name, param) = (launch.kernel.name, field.name);
            let what = "does not point to the table of this launch; write the table before the launch";
            return Err(DeviceError::Failed(format!("{name}: {param} {what}")));
        }
    }
    Ok(())
}

/// Returns the first finding as an error, with the kernel, the source location, the kind of the finding and the
/// message.
fn check_findings(launch: &KernelLaunch, staged: &[SimulatedStage]) -> Result<()> {
    let mut findings = staged.iter().flat_map(|s| s.findings.iter().map(move |f| (s.stage.symbol, f)));
    let Some((symbol, f)) = findings.next() else { return Ok(()) };
    let name = launch.kernel.name;
    let stage = if symbol == name { String::new() } else { format!(" ({symbol})") };
    let source = launch.kernel.source.name;
    let more = match findings.count() {
        0 => String::new(),
        1 => "; and another finding".to_string(),
        n => format!("; and {n} other findings"),
    };
    Err(DeviceError::Failed(format!(
        "{name}{stage}: {source}/sm80.cu:{}: {}: {}{more}",
        f.line,
        f.kind.name(),
        f.message
    )))
}

/// Describes the first byte that differs between two runs of a launch.
fn difference(a: &SimMemory, b: &SimMemory) -> Option<String> {
    a.iter().zip(b.iter()).find_map(|(a, b)| {
        let at = a.data.iter().zip(&b.data).position(|(a, b)| a != b)?;
        let (base, bytes) = (a.base, a.data.len());
        Some(format!("byte {at} of the buffer of {bytes} bytes at {base:#x} depends on the order of warps"))
    })
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn threads(&self) -> usize {
        self.team.threads()
    }

    fn kernels(&self) -> Kernels {
        Kernels::Cuda
    }

    fn compute_capability(&self) -> u32 {
        self.options.arch.sm
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::SIMULATED_GPU
    }

    fn gpu_of_own_product(&self, product: &Matmul) -> Option<Arch> {
        (product.code.gpu_kernel)(product, &self.options.arch).map(|_| self.options.arch)
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        self.memory().try_alloc_uninitialized(bytes)
    }

    fn free(&self, addr: u64, _bytes: usize) {
        self.memory().free(addr);
    }

    /// Copies the part of the file, because simulated buffers own their bytes.
    fn map(&self, part: &[u8]) -> Result<Option<u64>> {
        let mut memory = self.memory();
        let Some(addr) = memory.try_alloc_uninitialized(part.len()) else { return Ok(None) };
        memory.write(addr, part);
        memory.make_read_only(addr);
        Ok(Some(addr))
    }

    fn unmap(&self, addr: u64, bytes: usize) {
        self.free(addr, bytes);
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        match launch {
            Launch::Kernel(kernel) => self.kernel(kernel),
            Launch::Matmul(product) => match (product.code.gpu_kernel)(product, &self.options.arch) {
                Some(kernel) => self.kernel(&kernel),
                None => simulate::run_matmul(product, &mut self.memory(), &self.team).map_err(DeviceError::Failed),
            },
            Launch::WeightGroups(_) => Err(cpu_only_launch_error(launch)),
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        let inside = self.memory().write(to, from);
        debug_assert!(inside, "`Buffer::upload` checked the range");
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let memory = self.memory();
        let bytes = memory.read(from, to.len()).map_err(|e| {
            DeviceError::Failed(format!(
                "device sim: the host {e}; the op that should have written these bytes did not"
            ))
        })?;
        to.copy_from_slice(bytes);
        Ok(())
    }
}
