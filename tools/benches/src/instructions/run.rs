//! Runs a case on the simulator or on a GPU.
#![allow(unsafe_code)]

use reel_device::cuda::{CudaError, Gpu};
use reel_sim::exec::{self, ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;

use super::{InstructionCase, KERNEL_NAME, THREADS_PER_BLOCK};

/// Bytes of scratch memory per lane.
const SCRATCH: usize = 16;

/// Runs a case on the simulator and returns its output. The error says why the module cannot run, or lists findings of
/// the simulator (for example races) that the case does not expect.
pub fn run_on_simulator(case: &InstructionCase, input: &[u8]) -> Result<Vec<u8>, String> {
    let program = Program::parse(&case.ptx).map_err(|e| e.to_string())?;
    let kernel = program.kernel(KERNEL_NAME).map_err(|e| e.to_string())?;
    let mut memory = SimMemory::new();
    let addresses = [
        memory.alloc(input.to_vec()),
        memory.alloc(vec![0; case.output_bytes()]),
        memory.alloc(vec![0; SCRATCH * case.lanes]),
    ];
    let launch = LaunchConfig {
        grid: [(case.lanes / THREADS_PER_BLOCK) as u32, 1, 1],
        block: [THREADS_PER_BLOCK as u32, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 0,
        params: addresses.iter().flat_map(|a| a.to_le_bytes()).collect(),
    };
    let outcome =
        exec::run(&program, &kernel, &launch, &mut memory, &ExecOptions::default()).map_err(|e| e.to_string())?;
    let findings = outcome.findings.into_list();
    let expected =
        findings.iter().all(|f| Some(f.kind) == case.finding) && findings.is_empty() == case.finding.is_none();
    if !expected {
        let all: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.kind.name(), f.message)).collect();
        let missing = if findings.is_empty() { "the expected finding is missing" } else { "" };
        return Err(format!("{missing}{}", all.join("; ")));
    }
    Ok(memory.buffer_bytes(addresses[1]).expect("the output is allocated").to_vec())
}

/// Runs a case on a GPU and returns its output.
pub fn run_on_gpu(gpu: &Gpu, case: &InstructionCase) -> Result<Vec<u8>, CudaError> {
    let kernel = gpu.load_ptx(&case.ptx, KERNEL_NAME)?;
    let (input, output) = (gpu.alloc(case.input.len())?, gpu.alloc(case.output_bytes())?);
    let scratch = gpu.alloc(SCRATCH * case.lanes)?;
    gpu.upload(&input, 0, &case.input)?;
    gpu.fill(&output, 0)?;
    gpu.fill(&scratch, 0)?;
    let addresses = [&input, &output, &scratch].map(|b| b.address().to_le_bytes());
    let arguments = addresses.each_ref().map(|a| a.as_slice());
    let grid = [(case.lanes / THREADS_PER_BLOCK) as u32, 1, 1];
    // SAFETY: the kernel's parameters are these three addresses. Each lane accesses only its own part of the buffers,
    // which the simulator has checked on the same case. The download waits for the kernel, so the buffers outlive it.
    unsafe { kernel.launch(grid, [THREADS_PER_BLOCK as u32, 1, 1], 0, &arguments)? };
    let mut bytes = vec![0; case.output_bytes()];
    gpu.download(&output, 0, &mut bytes)?;
    Ok(bytes)
}
