//! The struct of the asynchronous engine: operations in flight, their completion, and fences.

use super::descriptor_rank::LeadingOffsets;
use super::effects::apply_copy_effect;
use super::tcgen05::queue::TensorCore;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid::GridState;
use crate::exec::launch::CompletionTiming;
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address};
use crate::exec::state::copies::{CompletionSignal, InFlightOperation};
use crate::exec::state::location::LaneGroup;
use crate::exec::state::mbarrier::{ArrivalClocks, MbarrierLocation};
use crate::matrix::Lanes;
use crate::matrix::wgmma::{SharedOperand, WgmmaTiles};
use crate::program::op::Fence;
use std::collections::{HashMap, VecDeque};

/// Asynchronous operations in flight, and the state that their instructions share.
#[derive(Debug, Default)]
pub struct AsyncEngine {
    /// Operations that were issued and have not completed; each signals its completion on an mbarrier.
    pub(super) in_flight: VecDeque<InFlightOperation>,
    /// mbarriers that have completed a phase and whose waiting warps are still to be woken.
    pub(super) completed_mbarriers: Vec<MbarrierLocation>,
    /// Cache: the byte ranges (offset, length) in shared memory of each wgmma operand seen so far.
    pub(super) operand_runs: HashMap<SharedOperand, Vec<(u64, u64)>>,
    /// The leading byte offsets of the descriptors of wgmma so far.
    pub(super) leading_offsets: LeadingOffsets,
    /// Scratch space of wgmma: the operands, rearranged into tiles, and the accumulators.
    pub(super) tiles: Option<Box<WgmmaTiles>>,
    pub(super) sums: Vec<Lanes>,
    /// Scratch space of `cp.async`: lanes grouped by destination, lanes grouped by source.
    pub(super) copy_groups: (Vec<LaneGroup>, Vec<LaneGroup>),
    /// The state of `tcgen05` instructions.
    pub(super) tensor: TensorCore,
    /// Scratch space of tensor copies. `runs`: byte ranges in shared memory (offset, length). `box_rows`: the rows of
    /// a box in global memory (address, length).
    pub(super) runs: Vec<(u64, u64)>,
    pub(super) box_rows: Vec<(u64, u32)>,
}

impl AsyncEngine {
    /// Whether no operation is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.tensor.pipes.is_empty()
    }

    /// Returns the mbarriers that have completed a phase since the last call.
    pub fn take_completed_mbarriers(&mut self) -> Vec<MbarrierLocation> {
        std::mem::take(&mut self.completed_mbarriers)
    }

    /// Adds an operation to those in flight; with [`CompletionTiming::Earliest`] completes it at once instead.
    pub(super) fn start_operation(
        &mut self,
        grid: &mut GridState,
        memory: &mut MemorySystem,
        operation: InFlightOperation,
    ) {
        if grid.context.options.completion == CompletionTiming::Earliest {
            self.complete_operation(grid, memory, operation);
        } else {
            self.in_flight.push_back(operation);
        }
    }

    /// Moves the bytes of an operation and signals its completion.
    pub(super) fn complete_operation(
        &mut self,
        grid: &mut GridState,
        memory: &mut MemorySystem,
        operation: InFlightOperation,
    ) {
        apply_copy_effect(grid, memory, &operation.effect);
        match operation.signal {
            CompletionSignal::CompleteTx(transactions) => {
                for (at, bytes) in transactions {
                    if let (Some(op), Some(o)) = (operation.op, grid.blocks.mbarrier(at)) {
                        memory.ops.mark_observed(op, o.agent, o.phase + 1);
                    }
                    let ops = &memory.ops;
                    let site = operation.op.map(|op| grid.context.finding_site_of_agent(ops.issuer(op), ops.pc(op)));
                    self.complete_tx(grid, at, bytes, site);
                }
            }
            CompletionSignal::Arrive { lanes, ops, at, site, .. } => {
                if let Some(o) = grid.blocks.mbarrier(at) {
                    ops.iter()
                        .for_each(|&(op, lanes)| memory.ops.mark_shares_observed(op, lanes, o.agent, o.phase + 1));
                }
                self.count_arrivals(grid, at, lanes.count_ones(), ArrivalClocks::default(), site);
            }
        }
    }

    /// Completes an operation in flight because no warp can run: the oldest, or with some seeds a random one. Returns
    /// false if no operation was in flight.
    pub fn complete_one_operation(&mut self, grid: &mut GridState, memory: &mut MemorySystem) -> bool {
        if self.is_idle() {
            return false;
        }
        if grid.context.options.seed & 8 != 0 {
            return self.complete_random_operation(grid, memory);
        }
        self.complete_operation_at(grid, memory, 0)
    }

    /// Completes a random operation in flight; returns false if no operation was in flight.
    pub fn complete_random_operation(&mut self, grid: &mut GridState, memory: &mut MemorySystem) -> bool {
        let pick = grid.rng.draw_below((self.in_flight.len() + self.tensor.pipes.len()) as u32) as usize;
        self.complete_operation_at(grid, memory, pick)
    }

    /// Completes operation number `index` of those in flight, or executes a pipe of `tcgen05`; the pipes come after the
    /// operations. Returns false if there is none.
    pub(super) fn complete_operation_at(
        &mut self,
        grid: &mut GridState,
        memory: &mut MemorySystem,
        index: usize,
    ) -> bool {
        match self.in_flight.remove(index) {
            Some(operation) => self.complete_operation(grid, memory, operation),
            None => match index.checked_sub(self.in_flight.len()).filter(|at| *at < self.tensor.pipes.len()) {
                Some(pipe) => self.advance_pipe(grid, memory, pipe),
                None => return false,
            },
        }
        true
    }

    pub fn execute_fence(&mut self, cx: &mut InstructionContext, fence: &Fence) -> NextAction {
        let mask = cx.mask;
        let order = &mut cx.warp.order;
        match fence {
            Fence::Memory(fence) => order.fence(mask, *fence),
            Fence::ProxyAsync { shared, global } => order.fence_proxy(mask, *shared, *global),
            // The instruction combines a proxy fence with an acquire or a release. The proxy fence takes effect after
            // the acquire or before the release.
            Fence::ProxyAsyncShared(fence) if fence.acquires => {
                order.fence(mask, *fence);
                order.fence_proxy(mask, true, false);
            }
            Fence::ProxyAsyncShared(fence) => {
                order.fence_proxy(mask, true, false);
                order.fence(mask, *fence);
            }
            Fence::AcquireTensorMap { addr, scope } => {
                let undefined = lanes_with_undefined_address(cx.regs(), addr);
                cx.drop_lanes_with_undefined_address(undefined);
                let addresses = lane_addresses(cx.regs(), addr);
                let mut left = cx.mask;
                while left != 0 {
                    let address = addresses[left.trailing_zeros() as usize];
                    let same = lanes_where(left, |l| addresses[l] == address);
                    left &= !same;
                    cx.warp.order.acquire_tensor_map(same, address, *scope);
                }
            }
            Fence::MbarrierInit => order.fence_mbarrier_inits(mask),
            Fence::Other => {}
        }
        NextAction::Next
    }
}

/// Decides, by the run's completion timing, whether an operation takes effect when it is issued: always (`Earliest`),
/// never (`Latest`), or with a probability of 1 / `random_one_in` (`Random`).
pub(super) fn completes_at_issue(grid: &mut GridState, random_one_in: u32) -> bool {
    match grid.context.options.completion {
        CompletionTiming::Earliest => true,
        CompletionTiming::Latest => false,
        CompletionTiming::Random => grid.rng.draw_below(random_one_in) == 0,
    }
}
