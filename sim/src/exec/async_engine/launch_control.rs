//! `clusterlaunchcontrol`: a running cluster cancels the launch of a cluster that has not started, and takes over its
//! work.
//!
//! The response has 16 bytes that the PTX ISA leaves open. Here its words are the coordinates of the cancelled cluster's
//! first block and 1, or zeros if no cluster was left. PTX ISA, "clusterlaunchcontrol".

use super::engine::AsyncEngine;
use super::mbarrier_access::shared_address_in_block;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::grid::GridState;
use crate::exec::grid_context::coordinates_of_index;
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{lane_addresses, lanes_where, lanes_with_undefined_address, set_predicate};
use crate::exec::state::copies::{ByteRangeCopy, CompletionSignal, CopyEffect, InFlightOperation};
use crate::finding::FindingKind;
use crate::layout;
use crate::order::{AccessStrength, AsyncOpKind};
use crate::program::op::{AddressWindow, LaunchControl};
use crate::regs::{Registers, Slot};

/// Bytes of a response.
const RESPONSE_BYTES: u32 = 16;

impl AsyncEngine {
    /// Executes a `clusterlaunchcontrol` instruction.
    pub fn launch_control(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        op: &LaunchControl,
    ) -> NextAction {
        match op {
            LaunchControl::TryCancel { response, mbarrier, generic, multicast } => {
                let regs = cx.regs();
                let [to, mbarriers] = [response, mbarrier].map(|address| lane_addresses(regs, address));
                let undefined =
                    lanes_with_undefined_address(regs, response) | lanes_with_undefined_address(regs, mbarrier);
                cx.drop_lanes_with_undefined_address(undefined);
                let base = if *generic { layout::SHARED_BASE } else { 0 };
                for lane in lanes_in_mask(cx.mask) {
                    let at = [to, mbarriers].map(|addresses| addresses[lane as usize].wrapping_sub(base));
                    self.try_cancel(cx, memory, lane, at, *multicast);
                }
            }
            LaunchControl::IsCanceled { dst, response } => {
                let regs = cx.regs();
                let words = response_words(regs, *response);
                let undefined = regs.undefined[*response as usize] & cx.mask;
                if undefined != 0 {
                    cx.report_undefined(undefined.trailing_zeros(), || {
                        "clusterlaunchcontrol.query_cancel reads an undefined response".into()
                    });
                }
                let mask = cx.mask;
                set_predicate(cx.regs_mut(), *dst, lanes_where(mask, |l| words[l][3] & 1 != 0), mask);
            }
            LaunchControl::FirstBlock { dst, response } => {
                let words = response_words(cx.regs(), *response);
                // The coordinates are undefined if no cluster was cancelled.
                let refused = lanes_where(cx.mask, |l| words[l][3] & 1 == 0);
                for &(register, dimension) in dst {
                    let value = |words: [u32; 4]| if dimension < 3 { words[dimension as usize] } else { 0 };
                    cx.set_register(register, &words.map(value));
                    cx.regs_mut().mark_undefined(register, refused);
                }
            }
        }
        NextAction::Next
    }

    /// Cancels the next cluster that has not started. The response and its mbarrier lie at the addresses of
    /// `.shared::cta` in `[response, mbarrier]`; with multicast, at the same offsets in every block of the cluster.
    fn try_cancel(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        lane: u32,
        [response, mbarrier]: [u64; 2],
        multicast: bool,
    ) -> Option<()> {
        if !response.is_multiple_of(u64::from(RESPONSE_BYTES)) {
            cx.report_access(FindingKind::Misaligned, lane, ("shared", response), || {
                format!("the response of clusterlaunchcontrol at {response:#x} is not at a multiple of 16")
            });
            return None;
        }
        let blocks = cx.block().cluster.len() as u32;
        let ranks: Vec<Option<u32>> = if multicast { (0..blocks).map(Some).collect() } else { vec![None] };
        let mbarriers = self.mbarriers_of_copy(cx, memory, lane, Some(mbarrier), &ranks)?;
        if cx.block().cancel_failed {
            cx.report(FindingKind::LaunchControl, lane, || {
                "clusterlaunchcontrol.try_cancel after an earlier one failed: its behaviour is undefined".into()
            });
        }
        let first_block = take_cluster(cx.grid);
        cx.block_mut().cancel_failed |= first_block.is_none();
        let [x, y, z] = first_block.unwrap_or_default();
        let words = [x, y, z, u32::from(first_block.is_some())];
        let op = memory.ops.start(AsyncOpKind::BulkCopy, &cx.warp.order, 1 << lane, cx.pc);
        let mut pieces = Vec::new();
        for rank in &ranks {
            let (address, bytes) = (shared_address_in_block(response, *rank), u64::from(RESPONSE_BYTES));
            let window = AddressWindow::SharedCluster;
            let (location, offset) = memory.locate_bytes(cx, lane, window, address, bytes)?;
            memory.check_async_runs(cx, (op, lane), location, &[(offset, bytes)], Some(AccessStrength::Weak));
            pieces.push(ByteRangeCopy { to: location, to_offset: offset, from: None, bytes: 0 });
        }
        let bytes = Some(words.iter().flat_map(|word| word.to_le_bytes()).collect());
        let effect = CopyEffect { pieces, bytes, ..CopyEffect::default() };
        let signal = CompletionSignal::CompleteTx(mbarriers.into_iter().map(|at| (at, RESPONSE_BYTES)).collect());
        self.start_operation(cx.grid, memory, InFlightOperation { op: Some(op), effect, signal });
        cx.fragment.backward_branches = 0;
        Some(())
    }
}

/// Returns the four words of a 128-bit register in each lane.
fn response_words(regs: &Registers, slot: Slot) -> [[u32; 4]; 32] {
    let lanes: &[[u32; 4]] = bytemuck::cast_slice(&regs.rows[slot as usize..slot as usize + 4]);
    lanes.try_into().expect("four register rows have 32 lanes of 128 bits")
}

/// Takes the next cluster off the grid, as if it had been started; returns the coordinates of its first block.
fn take_cluster(grid: &mut GridState) -> Option<[u32; 3]> {
    let context = grid.context;
    let counts: [u32; 3] = [0, 1, 2].map(|i| context.launch.grid[i] / context.cluster[i]);
    if u64::from(grid.next_cluster) >= counts.iter().map(|&n| u64::from(n)).product() {
        return None;
    }
    let cluster = coordinates_of_index(grid.next_cluster, counts);
    grid.next_cluster += 1;
    grid.reporter.counters.blocks += u64::from(context.cluster_blocks());
    Some([0, 1, 2].map(|i| cluster[i] * context.cluster[i]))
}
