//! Waking: makes waiting fragments ready and adds their warps to the runnable warps.

use super::Scheduler;
use crate::exec::grid::GridState;
use crate::exec::interpreter::Interpreter;
use crate::exec::state::warp::{FragmentState, Warp};

impl Scheduler {
    /// Adds a warp to the runnable warps.
    pub(super) fn enqueue_warp(&mut self, block_slot: u32, warp: u32) {
        if let Some(queued) = self.queued[block_slot as usize].get_mut(warp as usize)
            && !*queued
        {
            *queued = true;
            self.runnable.push((block_slot, warp));
        }
    }

    /// Calls `wake` with each warp of a block and makes runnable the warps for which `wake` returns true. Returns
    /// whether there was such a warp.
    fn wake_warps(&mut self, grid: &mut GridState, slot: u32, wake: impl Fn(&mut Warp) -> bool) -> bool {
        let Some(block) = grid.blocks.get_mut(slot) else { return false };
        let mut any = false;
        for (w, warp) in block.warps.iter_mut().enumerate() {
            if let Some(warp) = warp
                && wake(warp)
            {
                self.enqueue_warp(slot, w as u32);
                any = true;
            }
        }
        any
    }

    /// Makes those warp fragments of a block ready whose state satisfies `which`. Returns whether any fragment was
    /// made ready.
    fn wake_in_block(&mut self, grid: &mut GridState, slot: u32, which: impl Fn(&FragmentState) -> bool) -> bool {
        self.wake_warps(grid, slot, |warp| {
            let mut any = false;
            for fragment in warp.fragments.iter_mut().filter(|f| which(&f.state)) {
                fragment.state = FragmentState::Ready;
                any = true;
            }
            any
        })
    }

    /// Makes those warp fragments of all blocks ready whose state satisfies `which`. Returns whether any fragment was
    /// made ready.
    fn wake_everywhere(&mut self, grid: &mut GridState, which: impl Fn(&FragmentState) -> bool) -> bool {
        let mut any = false;
        for slot in 0..grid.blocks.slot_count() {
            any |= self.wake_in_block(grid, slot, &which);
        }
        any
    }

    /// Ends the waits by parity that are late: the phase that the warp should have seen next is over, and so is the one
    /// after it. Returns whether there were any. On a GPU such a warp waits forever, but only if it pauses for the time
    /// of two phases; the warps of a block run side by side there.
    pub(super) fn end_late_waits(&mut self, grid: &mut GridState) -> bool {
        let mut any = false;
        for slot in 0..grid.blocks.slot_count() {
            any |= self.wake_warps(grid, slot, |warp| {
                let is_late = |state: &FragmentState| match *state {
                    FragmentState::Mbarrier { slot, address, phase, by_parity } => {
                        by_parity && warp.is_late((slot, address), phase)
                    }
                    _ => false,
                };
                let Some(index) = warp.fragments.iter().position(|fragment| is_late(&fragment.state)) else {
                    return false;
                };
                warp.fragments[index].state = FragmentState::Ready;
                warp.passes_late_wait = true;
                true
            });
        }
        any
    }

    /// Wakes loops that wait for a memory change, if memory has changed since their last iteration. Returns whether any
    /// loop was woken.
    pub(super) fn wake_spinning_loops(&mut self, grid: &mut GridState) -> bool {
        let changes = grid.progress.changes;
        self.wake_everywhere(grid, |state| matches!(state, FragmentState::Spin { progress: seen } if *seen != changes))
    }

    /// Wakes warp fragments that wait at `griddepcontrol.wait`.
    pub(super) fn wake_waiters_for_primary_grid(&mut self, grid: &mut GridState) {
        self.wake_everywhere(grid, |state| *state == FragmentState::GridDependency);
    }

    /// Wakes the warp fragments that wait at a block barrier, because the barrier is complete.
    pub(super) fn wake_waiters_at_block_barrier(&mut self, grid: &mut GridState, block_slot: u32, id: u32) {
        self.wake_in_block(grid, block_slot, |state| *state == FragmentState::BlockBarrier { id });
    }

    /// Wakes warp fragments in the cluster of the block in `block_slot` that wait for a cluster barrier phase that is
    /// complete.
    pub(super) fn wake_waiters_at_cluster_barrier(&mut self, grid: &mut GridState, block_slot: u32) {
        let Some(block) = grid.blocks.get(block_slot) else { return };
        let Some(owner) = grid.blocks.get(block.cluster_barrier_slot()) else { return };
        let now = owner.cluster_barrier.phase;
        if now == 0 {
            return;
        }
        for s in block.cluster.clone() {
            let over = |state: &FragmentState| matches!(state, FragmentState::ClusterBarrier { phase } if *phase < now);
            self.wake_in_block(grid, s, over);
        }
    }

    /// Wakes the warp fragments that wait at mbarriers for a phase that has completed since the last call.
    pub(super) fn wake_waiters_at_mbarriers(&mut self, interpreter: &mut Interpreter) {
        for at in interpreter.async_engine.take_completed_mbarriers() {
            let grid = &mut interpreter.grid;
            let Some(now) = grid.blocks.mbarrier(at).map(|object| object.phase) else { continue };
            self.wake_in_block(grid, at.slot, |state| {
                matches!(state, FragmentState::Mbarrier { address, phase, .. } if *address == at.address && *phase != now)
            });
        }
    }

    /// Wakes warp fragments that wait for registers or for a wgmma product. Does so if a warp of their block has freed
    /// registers or issued the product in this turn. Also wakes warps of the cluster that wait for tensor memory.
    pub(super) fn wake_waiters_for_registers_and_wgmma(&mut self, grid: &mut GridState, block_slot: u32) {
        let Some(block) = grid.blocks.get_mut(block_slot) else { return };
        let (pool_grew, wgmma_issued) = (std::mem::take(&mut block.pool_grew), std::mem::take(&mut block.wgmma_issued));
        if pool_grew {
            for slot in grid.blocks[block_slot].cluster.clone() {
                self.wake_in_block(grid, slot, |state| {
                    matches!(state, FragmentState::Registers | FragmentState::TensorMemory)
                });
            }
        }
        if wgmma_issued {
            self.wake_in_block(grid, block_slot, |state| *state == FragmentState::Wgmma);
        }
    }

    /// Lets lanes that wait at a reconvergence point (join) continue alone, because the missing lanes may in turn wait
    /// for these lanes. Returns whether any lane waited at a reconvergence point.
    pub(super) fn give_up_reconvergence(&mut self, grid: &mut GridState) -> bool {
        let mut any = false;
        for slot in 0..grid.blocks.slot_count() {
            any |= self.wake_warps(grid, slot, |warp| warp.give_up_reconvergence(|_| true));
        }
        any
    }

    /// Lets warp fragments that wait in an mbarrier `try_wait` continue with the result false, which PTX allows at any
    /// time. Does so at most once per memory change, so that the loop around the instruction does not run for ever.
    /// Returns whether any fragment waited.
    pub(super) fn let_try_waits_return_false(&mut self, grid: &mut GridState) -> bool {
        let mark = grid.progress.changes.wrapping_mul(2) | 1;
        let mut any = false;
        for slot in 0..grid.blocks.slot_count() {
            any |= self.wake_warps(grid, slot, |warp| {
                let mut woken = false;
                for f in &mut warp.fragments {
                    if matches!(f.state, FragmentState::Mbarrier { .. }) && f.spin_hash != mark {
                        f.spin_hash = mark;
                        f.gathered = true;
                        f.state = FragmentState::Ready;
                        woken = true;
                    }
                }
                woken
            });
        }
        any
    }
}
