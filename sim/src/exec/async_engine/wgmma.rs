//! `wgmma.mma_async` and its fence, commit and wait: products of the four warps of a warpgroup.
//!
//! ```text
//! issue:   each of the four warps issues the product; shadow memory records that it reads its operands
//! compute: once all four warps have issued it and earlier products are computed (at the latest when a warp waits)
//! wait:    wgmma.wait_group completes the product for the whole warpgroup: each of its warps may then let other
//!          threads overwrite the operands' memory
//! ```
//!
//! PTX ISA, "Asynchronous warpgroup level matrix instructions".

use super::engine::{AsyncEngine, completes_at_issue};
use super::wgmma_deferred::write_deferred_sums;
use super::wgmma_registers::check_registers_at_issue;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::lanes_with_undefined_register;
use crate::exec::state::location::MemoryLocation;
use crate::exec::state::warp::FragmentState;
use crate::exec::state::wgmma::{ALL_WARPS, IssuedProduct, Warpgroup, WarpgroupProduct};
use crate::finding::FindingKind;
use crate::layout;
use crate::matrix::wgmma::{DescriptorError, SharedOperand};
use crate::order::{AccessKind, AsyncOpKind, OperandWriters};
use crate::program::op::{Op, Wgmma};

impl AsyncEngine {
    /// Executes `wgmma.mma_async` in one warp; once all four warps of the warpgroup have executed it, the product can
    /// be computed.
    pub fn wgmma(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, w: &Wgmma) -> NextAction {
        if !cx.gather_lanes(u32::MAX) {
            return NextAction::Stop;
        }
        let (group, quarter) = ((cx.warp.index / 4) as usize, cx.warp.index % 4);
        let (lane, mask, pc) = (cx.first_lane(), cx.mask, cx.pc);
        let warps = cx.block().warps.len();
        if group * 4 + 4 > warps {
            let n = warps - group * 4;
            cx.report(FindingKind::Wgmma, lane, || format!("wgmma in a warpgroup of {n} warps: wgmma needs four"));
            return NextAction::Next;
        }
        if quarter == 0 {
            cx.grid.reporter.counts(pc).matrix_flops += w.op.flops();
        }
        check_registers_at_issue(cx, w);
        write_deferred_sums(cx.grid, cx.warp, &w.a);
        let first = lane as usize;
        let regs = cx.regs();
        let differs = |values: &[u64; 32]| (0..32).any(|l| mask >> l & 1 != 0 && values[l] != values[first]);
        let (a_desc, b_desc) = (w.a_desc.map(|s| regs.get64(s)), regs.get64(w.b_desc));
        let undefined_desc = lanes_with_undefined_register(regs, w.a_desc.iter().chain([&w.b_desc])) & mask != 0;
        let bad_desc = undefined_desc || a_desc.as_ref().is_some_and(differs) || differs(&b_desc);
        let descriptors = (a_desc.map(|a| a[first]), b_desc[first]);
        let (p, negated) = w.scale_d;
        let scale_d = (regs.predicates[p as usize] >> first & 1 != 0) != negated;
        let undefined_inputs = lanes_with_undefined_register(regs, &w.a) & mask != 0
            || scale_d && lanes_with_undefined_register(regs, &w.d) & mask != 0;
        let a_rows = (!w.a.is_empty()).then(|| Box::new(std::array::from_fn(|i| regs.get(w.a[i]))));
        if bad_desc {
            cx.report(FindingKind::Wgmma, lane, || "a wgmma descriptor differs between lanes or is undefined".into());
        }
        let number = cx.warp.wgmma.next_product_number();
        let block = cx.block_mut();
        block.warpgroups.resize_with(warps / 4, Warpgroup::default);
        let index = (number - block.warpgroups[group].first) as usize;
        let begun = block.warpgroups[group].products.get(index);
        let begun = begun.filter(|p| p.descriptors == descriptors && p.pc == pc).map(|p| (p.a, p.b));
        cx.fragment.backward_branches = 0;
        let operands = match begun {
            Some(operands) => Ok(operands),
            None => self.decode_operands(cx.block().shared.len(), w, descriptors),
        };
        let (a, b) = match operands {
            Ok(operands) => operands,
            Err(e) => {
                cx.report(FindingKind::Wgmma, lane, || e.to_string());
                return NextAction::Next;
            }
        };
        if begun.is_none() && cx.grid.context.cluster_blocks() > 1 {
            self.leading_offsets.check(cx, a.as_ref(), &b);
        }
        if undefined_inputs {
            cx.report_undefined(lane, || "wgmma reads undefined registers".into());
        }
        let products = &mut cx.grid.blocks[cx.warp.slot].warpgroups[group].products;
        if index == products.len() {
            let op = memory.ops.start(AsyncOpKind::Wgmma, &cx.warp.order, mask, pc);
            let writers = OperandWriters::default();
            let (issued, waited, computed) = (0, 0, false);
            products.push_back(WarpgroupProduct { pc, op, descriptors, a, b, writers, issued, waited, computed });
        }
        let product = &mut products[index];
        product.issued |= 1 << quarter;
        let (other, differs, complete) = (product.pc, product.descriptors != descriptors, product.issued == ALL_WARPS);
        if other != pc {
            let (line, site) = (cx.grid.context.source_line(other), cx.finding_site(lane));
            cx.grid.reporter.report_with_details(FindingKind::Wgmma, site, Some(other.into()), None, || {
                format!(
                    "a warp executes this wgmma while other warps of its warpgroup execute the wgmma at line {line}"
                )
            });
        } else if differs {
            cx.report(FindingKind::Wgmma, lane, || {
                "a wgmma descriptor differs between the warps of the warpgroup".into()
            });
        }
        self.check_operands(cx, memory, (group, index), (a, b));
        let function = cx.warp.frame(cx.fragment.frame).function;
        // Once the product is issued, its accumulators count as defined. Accesses to them before the product is
        // complete are reported as hazards.
        let regs = cx.regs_mut();
        w.d.iter().for_each(|&s| regs.undefined[s as usize] &= !mask);
        cx.warp.wgmma.issued.push_back(IssuedProduct {
            function,
            index: pc - cx.grid.context.kernel.functions[function as usize].first,
            pc,
            frame: cx.fragment.frame,
            mask,
            scale_d,
            a: a_rows,
            copies: Vec::new(),
        });
        if complete {
            cx.grid.count_memory_or_barrier_change();
            cx.block_mut().wgmma_issued = true;
            if completes_at_issue(cx.grid, 2) {
                self.compute_products(cx.grid, cx.warp, number + 1);
            }
        }
        NextAction::Next
    }

    /// Decodes the two operand descriptors and checks that the operands lie in the block's shared memory.
    fn decode_operands(
        &mut self,
        shared_bytes: usize,
        w: &Wgmma,
        descriptors: (Option<u64>, u64),
    ) -> Result<(Option<SharedOperand>, SharedOperand), DescriptorError> {
        let a = descriptors.0.map(|bits| w.op.operand_a(bits)).transpose()?;
        let b = w.op.operand_b(descriptors.1)?;
        for operand in a.iter().chain(Some(&b)) {
            self.remember_runs(shared_bytes, operand)?;
        }
        Ok((a, b))
    }

    /// Checks that an operand lies in a block's shared memory of `shared_bytes` bytes, and remembers its byte ranges.
    pub(super) fn remember_runs(
        &mut self,
        shared_bytes: usize,
        operand: &SharedOperand,
    ) -> Result<(), DescriptorError> {
        if !self.operand_runs.contains_key(operand) {
            let start = layout::FIRST_SHARED_ADDRESS;
            operand.check_within_shared_memory(start, start + shared_bytes as u32)?;
            let mut runs = Vec::new();
            operand.for_each_contiguous_part(|at, n| runs.push(((at - start) as u64, n as u64)));
            self.operand_runs.insert(*operand, runs);
        }
        Ok(())
    }

    /// Checks that synchronisation orders the writes of a product's operands before this warp's `wgmma.mma_async`.
    fn check_operands(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        (group, index): (usize, usize),
        (a, b): (Option<SharedOperand>, SharedOperand),
    ) {
        if cx.grid.context.options.count_only {
            return;
        }
        let (lane, pc, slot) = (cx.first_lane(), cx.pc, cx.warp.slot);
        let product = &mut cx.block_mut().warpgroups[group].products[index];
        // The first warp of the warpgroup collects the writers of all operand bytes; the other warps check only those
        // writers.
        let known = (a, b) == (product.a, product.b) && product.issued.count_ones() > 1;
        let (op, mut writers) = (product.op, std::mem::take(&mut product.writers));
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        if !known {
            for operand in a.iter().chain(Some(&b)) {
                runs.extend_from_slice(self.operand_runs.get(operand).map_or(&[], Vec::as_slice));
            }
        }
        memory.check_shadow(cx, MemoryLocation::Shared(slot), AccessKind::Read, None, |shadow, warp, order, found| {
            if known {
                shadow.check_against_operand_writers(&writers, op, warp, lane, pc, order, found);
            } else {
                shadow.check_wgmma_operand_read(&runs, op, warp, lane, pc, order, &mut writers, found);
            }
        });
        self.runs = runs;
        let misplaced = a.iter().chain(Some(&b)).find_map(|operand| operand.check_pattern().err());
        match misplaced.filter(|_| !known) {
            Some(e) if writers.were_written_by_tensor_copies(&memory.ops) => cx.grid.reporter.add_note(
                pc,
                &format!("{e}; the product is right here, because tensor copies swizzle the bytes by their addresses"),
            ),
            Some(e) => cx.report(FindingKind::Wgmma, lane, || e.to_string()),
            None => {}
        }
        cx.block_mut().warpgroups[group].products[index].writers = writers;
    }

    /// Executes `wgmma.wait_group`: waits until all but the last `groups` committed groups are complete.
    pub fn wgmma_wait(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, groups: u32) -> NextAction {
        if !cx.gather_lanes(u32::MAX) {
            return NextAction::Stop;
        }
        let state = &cx.warp.wgmma;
        let over = state.groups.len().saturating_sub(groups as usize);
        let Some(&end) = over.checked_sub(1).and_then(|last| state.groups.get(last)) else { return NextAction::Next };
        let (group, from) = ((cx.warp.index / 4) as usize, state.waited);
        let range = |here: &Warpgroup| (from - here.first) as usize..(end - here.first) as usize;
        if let Some(here) = cx.block().warpgroups.get(group)
            && here.products.range(range(here)).any(|p| p.issued != ALL_WARPS)
        {
            cx.fragment.gathered = true;
            cx.fragment.state = FragmentState::Wgmma;
            return NextAction::Stop;
        }
        self.compute_products(cx.grid, cx.warp, end);
        if let Some(here) = cx.grid.blocks[cx.warp.slot].warpgroups.get_mut(group) {
            for product in here.products.range_mut(range(here)) {
                product.waited |= 1 << (cx.warp.index % 4);
                memory.ops.mark_observed_by_warp(product.op, &cx.warp.order);
            }
            while here.products.front().is_some_and(|p| p.waited == ALL_WARPS) {
                here.products.pop_front();
                here.first += 1;
            }
        }
        let state = &mut cx.warp.wgmma;
        state.groups.drain(..over);
        state.issued.drain(..(end - from) as usize);
        state.waited = end;
        NextAction::Next
    }
}

pub fn wgmma_fence(cx: &mut InstructionContext) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    cx.warp.wgmma.execute_fence();
    cx.warp.order.order_completed_loads();
    NextAction::Next
}

/// Executes `wgmma.commit_group`.
pub fn wgmma_commit(cx: &mut InstructionContext) -> NextAction {
    if !cx.gather_lanes(u32::MAX) {
        return NextAction::Stop;
    }
    cx.warp.wgmma.commit_group();
    NextAction::Next
}

/// Reports, in a block that ends or is stuck, each wgmma and each `setmaxnreg` that only some warps of a warpgroup
/// have executed.
pub fn report_missing_warps(grid: &mut GridState, block_slot: u32) {
    let Some(block) = grid.blocks.get_mut(block_slot) else { return };
    let warpgroups = std::mem::take(&mut block.warpgroups);
    let lists: Vec<Vec<u32>> =
        block.warps.iter().flatten().map(|w| w.setmaxnreg.iter().map(|s| s.pc).collect()).collect();
    for (group, here) in warpgroups.into_iter().enumerate() {
        for p in here.products.iter().filter(|p| p.issued != ALL_WARPS) {
            let (issued, missing): (Vec<usize>, Vec<usize>) =
                (4 * group..4 * group + 4).partition(|warp| p.issued >> (warp % 4) & 1 != 0);
            let site = grid.finding_site(block_slot, issued.first().map_or(0, |&warp| warp as u32), 0, p.pc);
            grid.reporter.report(FindingKind::Wgmma, site, || {
                format!("warps {missing:?} of the warpgroup do not execute this wgmma")
            });
        }
    }
    for (group, four) in lists.chunks(4).enumerate() {
        let longest = four.iter().max_by_key(|l| l.len()).expect("a chunk is not empty");
        // The warps may execute different instructions, but these must set the same numbers of registers.
        let set = |pc: &u32| {
            let (code, index) = grid.context.kernel.function_and_instruction_index(*pc);
            match code.instrs.get(index).map(|i| &i.op) {
                Some(Op::SetMaxNReg { count, increase }) => Some((*count, *increase)),
                _ => None,
            }
        };
        if let Some(other) = four.iter().find(|l| !l.iter().map(set).eq(longest.iter().map(set))) {
            let at = longest.iter().zip(other).position(|(a, b)| set(a) != set(b)).unwrap_or(other.len());
            let site = grid.finding_site(block_slot, 4 * group as u32, 0, longest[at]);
            grid.reporter.report(FindingKind::Setmaxnreg, site, || {
                "setmaxnreg is not executed by all four warps of the warpgroup".into()
            });
        }
    }
}
