//! `tcgen05.alloc` and `tcgen05.dealloc`.

use super::{blocks_of_group, check_group};
use crate::exec::async_engine::AsyncEngine;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::tensor_memory::ALLOCATION_UNIT;
use crate::exec::state::warp::FragmentState;
use crate::finding::FindingKind;
use crate::matrix::tcgen05::COLUMNS;
use crate::order::{TensorAccess, TensorAccessKind};
use crate::program::op::LoadStore;
use crate::regs::Slot;

impl AsyncEngine {
    /// Executes `tcgen05.alloc`: waits until the columns are free, allocates them, and stores their address.
    pub(super) fn tensor_alloc(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        group: u32,
        columns: Slot,
        store: &LoadStore,
    ) -> NextAction {
        let lane = cx.first_lane();
        let columns = cx.regs().get(columns)[lane as usize];
        check_group(cx, group);
        let site = cx.finding_site(lane);
        let tensor = cx.block_mut().tensor.get_or_insert_default();
        let (relinquished, last) = (tensor.relinquished, tensor.last_columns);
        if !columns.is_power_of_two() || !(ALLOCATION_UNIT..=COLUMNS as u32).contains(&columns) {
            cx.report(FindingKind::Tcgen05, lane, || {
                format!("tcgen05.alloc of {columns} columns: the number must be a power of 2 from 32 to 512")
            });
            return NextAction::Next;
        }
        if tensor.unconfirmed.is_none() && tensor.allocate(columns, site).is_some() {
            cx.block_mut().pool_grew = true;
            cx.grid.count_memory_or_barrier_change();
            report_permit(cx, columns, relinquished, last);
        }
        // The blocks of a pair allocate together: the first one waits for the other.
        let pair = blocks_of_group(cx, group).unwrap_or_default();
        let count = |slot: &u32| cx.grid.blocks.get(*slot).and_then(|b| Some(b.tensor.as_ref()?.allocation_count));
        let count_here = count(&cx.warp.slot);
        let is_complete = pair.iter().all(|slot| count(slot) >= count_here);
        let unconfirmed = &mut cx.block_mut().tensor.get_or_insert_default().unconfirmed;
        let Some(first) = unconfirmed.take_if(|_| is_complete) else {
            cx.fragment.gathered = true;
            cx.fragment.state = FragmentState::TensorMemory;
            return NextAction::Stop;
        };
        let (mask, data) = (cx.mask, store.regs[0].expect("alloc stores a register"));
        cx.set_register(data, &[first; 32]);
        cx.mask = 1 << lane;
        memory.store(cx, store);
        cx.mask = mask;
        NextAction::Next
    }

    /// Executes `tcgen05.dealloc`.
    pub(super) fn tensor_dealloc(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        group: u32,
        address: Slot,
        columns: Slot,
    ) -> NextAction {
        let lane = cx.first_lane();
        let [address, columns] = [address, columns].map(|slot| cx.regs().get(slot)[lane as usize]);
        check_group(cx, group);
        let tensor = cx.block_mut().tensor.get_or_insert_default();
        let range = address..address.saturating_add(columns);
        let Some(at) = tensor.allocations.iter().position(|a| a.columns == range) else {
            cx.report_access(FindingKind::Tcgen05, lane, ("tensor", address.into()), || {
                format!(
                    "tcgen05.dealloc of {columns} columns at {address:#x}, which are not an allocation of this block"
                )
            });
            return NextAction::Next;
        };
        tensor.allocations.remove(at);
        let agent = cx.warp.order.agent(0);
        let access =
            TensorAccess { kind: TensorAccessKind::Free, agent, pc: cx.pc, op: None, released: Some(0), fenced: None };
        let id = cx.grid.tensor_accesses.add(access);
        let slot = cx.warp.slot;
        self.check_tensor_access(cx, memory, (id, lane), slot, &(0xff, range.clone()), (false, true));
        let block = cx.block_mut();
        block.tensor.get_or_insert_default().cells.clear(range);
        block.pool_grew = true;
        cx.grid.count_memory_or_barrier_change();
        NextAction::Next
    }
}

/// Reports an allocation after the block gave up its permit at the instruction `relinquished`, or of more columns than
/// the allocation before it.
fn report_permit(cx: &mut InstructionContext, columns: u32, relinquished: Option<u32>, last: Option<u32>) {
    let lane = cx.first_lane();
    if let Some(pc) = relinquished {
        let line = cx.grid.context.source_line(pc);
        cx.report(FindingKind::Tcgen05, lane, || {
            format!("tcgen05.alloc after the block gave up its permit to allocate at line {line}")
        });
    }
    if let Some(last) = last.filter(|last| *last < columns) {
        cx.report(FindingKind::Tcgen05, lane, || {
            format!(
                "tcgen05.alloc of {columns} columns after one of {last}: later allocations of a block must not be larger"
            )
        });
    }
}

/// Reports the tensor memory of an exiting block that was not freed.
pub fn report_leaked_tensor_memory(grid: &mut GridState, block_slot: u32) {
    let Some(tensor) = grid.blocks.get_mut(block_slot).and_then(|block| block.tensor.as_mut()) else { return };
    for allocation in std::mem::take(&mut tensor.allocations) {
        let columns = allocation.columns.len();
        grid.reporter.report(FindingKind::Tcgen05, allocation.site, || {
            format!("{columns} columns of tensor memory are not freed by tcgen05.dealloc before the block exits")
        });
    }
}
