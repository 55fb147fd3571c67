//! Runs a kernel launch on the simulated GPU.
//!
//! ```text
//! run(program, kernel, launch, memory, options):
//!     check the launch, map the module's variables
//!     Machine = Scheduler (which warp runs next) + Interpreter (executes its instructions)
//!         Interpreter = GridState    (the launch, resident blocks, the reporter)
//!                     + MemorySystem (global and shared memory, race checks)
//!                     + AsyncEngine  (asynchronous copies, mbarriers, wgmma)
//!     until every block has ended or none can continue: one warp runs for one turn
//!     return findings, notes, counters and printed text
//! ```
//!
//! Start reading at `launch` (what goes in and out), `scheduler`, and `interpreter`.

mod async_engine;
mod context;
mod dependent;
mod gpu;
mod grid;
mod grid_context;
mod interpreter;
mod launch;
mod limits;
mod machine;
mod memory_system;
mod operands;
mod reporter;
mod residency;
mod rng;
mod scheduler;
mod state;
mod sync;

pub use dependent::run_with_dependent_launch;
pub use gpu::GpuSpec;
pub use launch::{CompletionTiming, ExecOptions, LaunchConfig, LaunchError, SimLaunch, SimOutcome};
pub use limits::{EarlyStop, RunLimits, StopCause};
pub use residency::resident_blocks;
pub use rng::SeededRng;

use crate::memory::SimMemory;
use crate::program::{Kernel, Program};
use launch::{check_launch, check_memory, map_global_variables};
use machine::Machine;

/// Runs a kernel on the buffers of `memory`, which hold the results afterwards.
///
/// # Errors
/// Returns an error if the launch is outside of the limits of the kernel or of the GPU.
pub fn run(
    program: &Program,
    kernel: &Kernel,
    launch: &LaunchConfig,
    memory: &mut SimMemory,
    options: &ExecOptions,
) -> Result<SimOutcome, LaunchError> {
    check_launch(kernel, launch, options)?;
    check_memory(program, kernel, launch, memory, &options.limits)?;
    map_global_variables(program, memory);
    let launch = SimLaunch { program, kernel, launch };
    let mut machine = Machine::new(launch, std::mem::take(memory), options, 0);
    machine.run();
    let (outcome, back) = machine.finish();
    *memory = back;
    memory.end_launch();
    Ok(outcome)
}
