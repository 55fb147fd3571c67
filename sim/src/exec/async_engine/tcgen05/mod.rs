//! `tcgen05`: tensor memory, its loads and stores, and products of the tensor core.
//!
//! ```text
//! mma:      check that the operands are ordered before the product; queue it in the pipe of its thread
//! commit:   queue an arrival behind the thread's products
//! pipe:     executes its products in order, at a moment that the run's CompletionTiming decides;
//!           the arrival at the mbarrier observes the completion of the products before it
//! ld, st:   executed at once; `wait::ld` and `wait::st` make them complete for other accesses
//! ```
//!
//! [`crate::order::TensorCells`] has the ordering rules. PTX ISA, "TensorCore 5th Generation Family Instructions".

mod allocation;
mod mma;
mod pipe;
pub(super) mod queue;
mod report;
mod transfer;

use super::engine::AsyncEngine;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::memory_system::MemorySystem;
use crate::finding::FindingKind;
use crate::order::TensorAccessId;
use crate::program::op::{Op, Tcgen05};

pub use allocation::report_leaked_tensor_memory;

impl AsyncEngine {
    /// Executes a `tcgen05` instruction.
    pub fn tcgen05(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, op: &Tcgen05) -> NextAction {
        match op {
            Tcgen05::Mma(m) => self.tensor_mma(cx, memory, m),
            Tcgen05::Commit { group, mbarrier, generic, multicast } => {
                self.tensor_commit(cx, memory, *group, mbarrier, *generic, *multicast)
            }
            Tcgen05::Fence { after } => {
                let mask = cx.mask;
                if *after {
                    cx.warp.order.fence_tensor_memory_after_sync(mask);
                } else {
                    self.publish_products(cx, mask);
                    let epoch = cx.warp.order.epoch();
                    cx.warp.tensor.fence(&mut cx.grid.tensor_accesses, epoch);
                    cx.warp.order.fence_tensor_memory_before_sync(mask);
                }
                NextAction::Next
            }
            // All other instructions are `.sync.aligned`.
            _ if !cx.gather_lanes(u32::MAX) => NextAction::Stop,
            Tcgen05::Alloc { group, columns, store } => self.tensor_alloc(cx, memory, *group, *columns, store),
            Tcgen05::Dealloc { group, address, columns } => self.tensor_dealloc(cx, memory, *group, *address, *columns),
            Tcgen05::RelinquishAllocPermit { group } => {
                check_group(cx, *group);
                let pc = cx.pc;
                cx.block_mut().tensor.get_or_insert_default().relinquished.get_or_insert(pc);
                NextAction::Next
            }
            Tcgen05::Transfer(t) => self.tensor_transfer(cx, memory, t),
            Tcgen05::Wait { stores } => {
                let epoch = cx.warp.order.epoch();
                let (state, accesses) = (&mut cx.warp.tensor, &mut cx.grid.tensor_accesses);
                let done: Vec<TensorAccessId> = match *stores {
                    true => state.stores.drain(..).collect(),
                    false => state.loads.drain(..).map(|load| load.id).collect(),
                };
                state.complete(accesses, &done, epoch);
                NextAction::Next
            }
        }
    }

    /// Publishes the products of `lanes`: other threads that synchronise with these lanes from now on may issue
    /// products after them.
    fn publish_products(&mut self, cx: &mut InstructionContext, lanes: u32) {
        let epoch = cx.warp.order.epoch();
        for products in cx.warp.tensor.products.iter_mut().filter(|products| lanes >> products.lane & 1 != 0) {
            products.unpublished.drain(..).for_each(|id| cx.grid.tensor_accesses.release(id, epoch));
        }
    }

    /// Whether the kernel has `tcgen05.fence` instructions.
    fn kernel_has_tensor_fences(&mut self, cx: &InstructionContext) -> bool {
        *self.tensor.has_fences.get_or_insert_with(|| {
            let is_fence = |op: &Op| matches!(op, Op::Tcgen05(t) if matches!(**t, Tcgen05::Fence { .. }));
            cx.grid.context.kernel.functions.iter().any(|code| code.instrs.iter().any(|i| is_fence(&i.op)))
        })
    }
}

/// Checks that all `tcgen05` instructions of a block have the same `.cta_group`.
fn check_group(cx: &mut InstructionContext, group: u32) {
    let (lane, pc) = (cx.first_lane(), cx.pc);
    let (first, other) = *cx.block_mut().tensor.get_or_insert_default().group.get_or_insert((group, pc));
    if first != group {
        let line = cx.grid.context.source_line(other);
        cx.report(FindingKind::Tcgen05, lane, || {
            format!(
                "cta_group::{group}, but line {line} has cta_group::{first}: all tcgen05 instructions of a kernel must have the same cta_group"
            )
        });
    }
}

/// Returns the slots of the blocks of an instruction's `.cta_group`, by rank. Reports a group that does not exist.
fn blocks_of_group(cx: &mut InstructionContext, group: u32) -> Option<Vec<u32>> {
    if group == 1 {
        return Some(vec![cx.warp.slot]);
    }
    let (block, lane) = (cx.block(), cx.first_lane());
    let pair = block.cluster.chunks_exact(2).nth(block.rank as usize / 2).map(<[u32]>::to_vec);
    let is_active = |slot: &u32| cx.grid.blocks.get(*slot).is_some_and(|block| !block.ended);
    let reason = match &pair {
        None => "the block has no partner: the cluster needs an even number of blocks",
        Some(pair) if !pair.iter().all(is_active) => "the other block of the pair has exited",
        _ => return pair,
    };
    cx.report(FindingKind::Tcgen05, lane, || format!("cta_group::2, but {reason}"));
    None
}

/// Returns the lane that executes an instruction that one thread must issue. Reports further lanes.
fn issuing_lane(cx: &mut InstructionContext, name: &str) -> u32 {
    let (lane, count) = (cx.first_lane(), lanes_in_mask(cx.mask).count());
    if count > 1 {
        cx.report(FindingKind::Tcgen05, lane, || {
            format!("{count} lanes of a warp execute {name}, which one thread must issue: choose it by elect.sync")
        });
    }
    lane
}
