//! Completes asynchronous operations when a warp or a block ends, and reports those that no thread waited for.

use super::bulk::complete_warp_bulk_stores;
use super::cp_async::complete_warp_copies;
use super::engine::AsyncEngine;
use super::mbarrier::report_excess_bytes;
use super::tcgen05::report_leaked_tensor_memory;
use super::wgmma::report_missing_warps;
use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::copies::{CompletionSignal, InFlightOperation};
use crate::exec::state::warp::Warp;
use crate::finding::FindingKind;

impl AsyncEngine {
    /// Completes the asynchronous copies of a warp whose threads have all exited. Reports bulk stores that no thread
    /// waited for.
    pub fn complete_warp_operations(&mut self, grid: &mut GridState, memory: &mut MemorySystem, warp: &mut Warp) {
        complete_warp_copies(grid, memory, warp);
        complete_warp_bulk_stores(grid, memory, warp);
    }

    /// Completes the copies in flight that use the shared memory of a block whose threads have all exited. Reports
    /// copies, wgmma products and mbarrier bytes of the block that no thread waited for.
    pub fn complete_block_operations(&mut self, grid: &mut GridState, memory: &mut MemorySystem, block_slot: u32) {
        while let Some(index) = self.in_flight.iter().position(|operation| operation.uses_shared_memory_of(block_slot))
        {
            report_unfinished(grid, memory, block_slot, &self.in_flight[index]);
            self.complete_operation_at(grid, memory, index);
        }
        self.complete_pipes_of_block(grid, memory, block_slot);
        report_leaked_tensor_memory(grid, block_slot);
        report_missing_warps(grid, block_slot);
        report_excess_bytes(grid, block_slot);
    }
}

/// Reports a copy that writes or reads shared memory of a block that exits.
fn report_unfinished(grid: &mut GridState, memory: &MemorySystem, slot: u32, operation: &InFlightOperation) {
    let (Some(op), CompletionSignal::CompleteTx(_)) = (operation.op, &operation.signal) else { return };
    let site = grid.context.finding_site_of_agent(memory.ops.issuer(op), memory.ops.pc(op));
    let rank = grid.blocks.get(slot).map_or(0, |block| block.rank);
    grid.reporter.report(FindingKind::AsyncNotWaited, site, || {
        let verb = if operation.writes_shared_memory_of(slot) { "write" } else { "read" };
        format!(
            "a copy may still {verb} shared memory of a block (rank {rank} in the cluster) that exits: no thread waited for the copy"
        )
    });
}
