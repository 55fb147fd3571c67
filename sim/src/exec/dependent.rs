//! Programmatic dependent launch: a secondary grid that may start before its primary grid has ended. PTX ISA,
//! "griddepcontrol".
//!
//! Accesses that a thread of the secondary grid makes before `griddepcontrol.wait` are not ordered after the primary
//! grid. The simulator runs this part of the secondary grid first and the primary grid afterwards, so that race checks
//! of the primary grid find every conflict:
//!
//! ```text
//! run the secondary grid until its resident blocks wait at griddepcontrol.wait (or end)
//! run the primary grid on the same memory; conflicts with the secondary grid are the secondary grid's findings
//! wake the secondary grid and run it to its end
//! ```

use super::launch::{
    ExecOptions, LaunchError, SimLaunch, SimOutcome, check_launch, check_memory, map_global_variables,
};
use super::machine::Machine;
use super::reporter::DependentGrid;
use crate::finding::Findings;
use crate::memory::SimMemory;
use crate::order::MAX_BLOCKS;

/// Runs `primary`, and `secondary` as its programmatic dependent launch. Accesses of `secondary` before its
/// `griddepcontrol.wait` that conflict with `primary` are races; a `secondary` without that instruction never waits.
/// Returns the outcomes of `primary` and `secondary`.
///
/// # Errors
/// Returns an error if a launch is outside of the limits of its kernel or of the GPU.
pub fn run_with_dependent_launch(
    primary: SimLaunch,
    secondary: SimLaunch,
    memory: &mut SimMemory,
    options: &ExecOptions,
) -> Result<(SimOutcome, SimOutcome), LaunchError> {
    check_launch(primary.kernel, primary.launch, options)?;
    check_launch(secondary.kernel, secondary.launch, options)?;
    for grid in [primary, secondary] {
        check_memory(grid.program, grid.kernel, grid.launch, memory, &options.limits)?;
    }
    map_global_variables(primary.program, memory);
    map_global_variables(secondary.program, memory);
    let blocks = |launch: SimLaunch| launch.launch.grid.iter().product::<u32>();
    // Vector clocks number the blocks of `secondary` after those of `primary`. The first number is a multiple of the
    // number of blocks of `secondary`, so that a block's number modulo this count still tells the block's cluster.
    let first_block = blocks(primary).next_multiple_of(blocks(secondary));
    let end = first_block + blocks(secondary);
    if end > MAX_BLOCKS {
        let problem = format!("{end} blocks in both grids are more than the {MAX_BLOCKS} that can be simulated");
        return Err(LaunchError::NotSimulated { what: "grid", problem });
    }
    let mut late = Machine::new(secondary, std::mem::take(memory), options, first_block);
    late.interpreter.grid.primary_runs = true;
    late.run();
    let buffers = std::mem::take(&mut late.interpreter.memory.buffers);
    let mut early = Machine::new(primary, buffers, options, 0);
    let findings = Findings::default();
    early.interpreter.grid.reporter.dependent = Some(DependentGrid { launch: secondary, first_block, findings });
    // Shadow memory records the asynchronous operations of both grids by id, so both grids must use the same table of
    // operations.
    let memories = (&mut early.interpreter.memory, &mut late.interpreter.memory);
    std::mem::swap(&mut memories.0.ops, &mut memories.1.ops);
    std::mem::swap(&mut memories.0.sync_vars, &mut memories.1.sync_vars);
    early.run();
    std::mem::swap(&mut early.interpreter.memory.ops, &mut late.interpreter.memory.ops);
    if let Some(dependent) = early.interpreter.grid.reporter.dependent.take() {
        late.interpreter.grid.reporter.merge_findings(dependent.findings);
    }
    let (outcome, mut buffers) = early.finish();
    buffers.end_launch();
    late.interpreter.memory.buffers = buffers;
    late.scheduler.resume_after_primary_grid(&mut late.interpreter.grid);
    late.run();
    let (dependent, back) = late.finish();
    *memory = back;
    memory.end_launch();
    Ok((outcome, dependent))
}
