//! The asynchronous engine: `cp.async`, bulk and tensor copies, `st.async`, mbarriers, and wgmma products.
//!
//! The life of an asynchronous copy:
//!
//! ```text
//! issue:     check bounds; tell shadow memory which bytes the operation reads and writes;
//!            add it to the operations in flight (or complete it now, as the run's CompletionTiming says)
//! complete:  move the bytes, then signal:
//!            - credit bytes to an mbarrier (bulk load), or arrive at it (cp.async.mbarrier.arrive)
//!            - nothing for cp.async and bulk stores: their groups are completed by wait_group
//! observe:   a thread that waits (mbarrier wait, wait_group) knows the operation complete from then on;
//!            an access to its bytes by a thread that does not know is reported
//! ```
//!
//! The phases of an mbarrier:
//!
//! ```text
//! init(count):   pending = count, bytes = 0, phase = 0
//! arrive:        pending -= 1; the phase collects the thread's vector clock
//! expect_tx(n):  bytes += n          complete_tx(n), credit of a copy: bytes -= n
//! pending == 0 and bytes == 0:  phase += 1, pending = count; waiting warps are woken
//! wait(phase):   once that phase is over, the thread joins the clocks that the phase collected
//! ```

mod bulk;
mod cp_async;
mod effects;
mod mbarrier;
mod mbarrier_access;
mod tensor;
mod tensor_map_update;
mod wgmma;
mod wgmma_compute;
mod wgmma_registers;

use super::context::{Flow, InstructionContext, lanes_of};
use super::grid::GridState;
use super::launch::CompletionTiming;
use super::memory_system::MemorySystem;
use super::state::copies::{CompletionSignal, InFlight};
use super::state::location::LaneGroup;
use super::state::mbarrier::MbarrierLocation;
use super::state::warp::Warp;
use crate::finding::FindingKind;
use crate::matrix::Lanes;
use crate::matrix::wgmma::{SharedOperand, WgmmaTiles};
use crate::program::op::Fence;
use bulk::end_bulk_stores;
use cp_async::end_copies;
use effects::apply;
use std::collections::{HashMap, HashSet, VecDeque};

pub use bulk::{AsyncStore, bulk_commit, bulk_wait};
pub use cp_async::cp_async_commit;
pub use tensor_map_update::{TensorMapReplace, tensormap_copy, tensormap_replace};
pub use wgmma::{report_missing_warps, wgmma_commit, wgmma_fence};
pub use wgmma_registers::access_wgmma_registers;

/// Asynchronous operations in flight, and the state that their instructions share.
#[derive(Debug, Default)]
pub struct AsyncEngine {
    /// Operations that have been issued and signal their completion by an mbarrier.
    in_flight: VecDeque<InFlight>,
    /// mbarriers whose phase has completed and whose waiting warps have not been woken.
    completed_mbarriers: Vec<MbarrierLocation>,
    /// Threads that executed `fence.mbarrier_init`, as agent numbers.
    init_fences: HashSet<u32>,
    /// Byte runs (offset and length) in shared memory of each wgmma operand seen so far.
    operand_runs: HashMap<SharedOperand, Vec<(u64, u64)>>,
    /// Scratch space of wgmma: operands as tiles, and accumulators.
    tiles: Option<Box<WgmmaTiles>>,
    sums: Vec<Lanes>,
    /// Scratch space of `cp.async`: destinations and sources by location.
    copy_groups: (Vec<LaneGroup>, Vec<LaneGroup>),
    /// Scratch space of tensor copies: byte runs (offset and length), and rows of a box (address and length).
    runs: Vec<(u64, u64)>,
    box_rows: Vec<(u64, u32)>,
}

impl AsyncEngine {
    /// Whether no operation is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The mbarriers whose phase has completed since the last call.
    pub fn take_completed_mbarriers(&mut self) -> Vec<MbarrierLocation> {
        std::mem::take(&mut self.completed_mbarriers)
    }

    /// Puts an operation in flight, or completes it where operations complete as early as possible.
    fn start(&mut self, grid: &mut GridState, memory: &mut MemorySystem, operation: InFlight) {
        if grid.context.options.completion == CompletionTiming::Earliest {
            self.complete(grid, memory, operation);
        } else {
            self.in_flight.push_back(operation);
        }
    }

    /// Lets an operation take effect and signals its completion.
    fn complete(&mut self, grid: &mut GridState, memory: &mut MemorySystem, operation: InFlight) {
        apply(grid, memory, &operation.effect);
        match operation.signal {
            CompletionSignal::Credit(credits) => {
                for (at, bytes) in credits {
                    if let (Some(op), Some(o)) = (operation.op, grid.blocks.mbarrier(at)) {
                        memory.ops.mark_observed(op, o.agent, o.phase + 1);
                    }
                    let ops = &memory.ops;
                    let site = operation.op.map(|op| grid.context.site_of_agent(ops.issuer(op), ops.pc(op)));
                    self.credit(grid, at, bytes, site);
                }
            }
            CompletionSignal::Arrive { lanes, ops, at, site, .. } => {
                if let Some(o) = grid.blocks.mbarrier(at) {
                    ops.iter().for_each(|&(op, lanes)| memory.ops.mark_part_observed(op, lanes, o.agent, o.phase + 1));
                }
                self.arrive(grid, at, lanes.count_ones(), None, site);
            }
        }
    }

    /// Completes an operation in flight because no warp can run: the oldest, or with some seeds a random one. Returns whether
    /// there was one.
    pub fn complete_one(&mut self, grid: &mut GridState, memory: &mut MemorySystem) -> bool {
        if self.in_flight.is_empty() {
            return false;
        }
        if grid.context.options.seed & 8 != 0 {
            return self.complete_random(grid, memory);
        }
        self.complete_at(grid, memory, 0)
    }

    /// Completes a random operation in flight; returns whether there was one.
    pub fn complete_random(&mut self, grid: &mut GridState, memory: &mut MemorySystem) -> bool {
        let pick = grid.rng.below(self.in_flight.len() as u32) as usize;
        self.complete_at(grid, memory, pick)
    }

    fn complete_at(&mut self, grid: &mut GridState, memory: &mut MemorySystem, index: usize) -> bool {
        let Some(operation) = self.in_flight.remove(index) else { return false };
        self.complete(grid, memory, operation);
        true
    }

    /// Executes a fence.
    pub fn fence(&mut self, cx: &mut InstructionContext, fence: Fence) -> Flow {
        let (mask, order) = (cx.mask, &mut cx.warp.order);
        match fence {
            Fence::Memory { scope } => order.fence(mask, scope),
            Fence::ProxyAsync { shared, global } => order.fence_proxy(mask, shared, global),
            Fence::MbarrierInit => self.init_fences.extend(lanes_of(mask).map(|lane| order.agent(lane).0)),
            Fence::TensorMap => order.fence_proxy(mask, true, true),
            Fence::Other => {}
        }
        Flow::Next
    }

    /// Ends the copies of a warp whose threads have all exited. They take effect; bulk stores that no thread waited for are
    /// reported.
    pub fn end_warp(&mut self, grid: &mut GridState, memory: &mut MemorySystem, warp: &mut Warp) {
        end_copies(grid, memory, warp);
        end_bulk_stores(grid, memory, warp);
    }

    /// Ends the asynchronous operations of a block whose threads have all exited: completes the copies in flight that use its
    /// shared memory, and reports those copies, products and mbarrier bytes that no thread waited for.
    pub fn end_block(&mut self, grid: &mut GridState, memory: &mut MemorySystem, slot: u32) {
        while let Some(index) = self.in_flight.iter().position(|operation| operation.touches(slot)) {
            report_unfinished(grid, memory, slot, &self.in_flight[index]);
            self.complete_at(grid, memory, index);
        }
        wgmma::report_missing_warps(grid, slot);
        mbarrier::report_excess_bytes(grid, slot);
    }
}

/// Whether an operation with a choice of moments takes effect at its issue; one time in `one_in` for random completion.
fn completes_at_issue(grid: &mut GridState, one_in: u32) -> bool {
    match grid.context.options.completion {
        CompletionTiming::Earliest => true,
        CompletionTiming::Latest => false,
        CompletionTiming::Random => grid.rng.below(one_in) == 0,
    }
}

/// Reports a copy that writes or reads shared memory of a block that exits.
fn report_unfinished(grid: &mut GridState, memory: &MemorySystem, slot: u32, operation: &InFlight) {
    let (Some(op), CompletionSignal::Credit(_)) = (operation.op, &operation.signal) else { return };
    let site = grid.context.site_of_agent(memory.ops.issuer(op), memory.ops.pc(op));
    let rank = grid.blocks.get(slot).map_or(0, |block| block.rank);
    grid.reporter.report(FindingKind::AsyncNotWaited, site, || {
        let verb = if operation.writes(slot) { "write" } else { "read" };
        format!(
            "a copy may still {verb} shared memory of its block (rank {rank} in the cluster) when that exits: no thread waited for it"
        )
    });
}
