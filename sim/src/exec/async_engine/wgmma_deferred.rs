//! Defers wgmma products whose sums the runs of a check share ([`ProductCache`]): the product becomes a step of a sum,
//! and the values of the sum are written to the accumulators only when another instruction accesses them.

use super::engine::AsyncEngine;
use super::wgmma_registers::product_instruction;
use crate::exec::grid::GridState;
use crate::exec::state::warp::Warp;
use crate::exec::state::wgmma::{DeferredSum, IssuedProduct};
use crate::layout;
use crate::matrix::Lanes;
use crate::matrix::wgmma::{Addend, ProductCache, SharedOperand};
use crate::program::op::{Op, Wgmma};
use crate::regs::Slot;

/// Returns the warp `quarter` of the warpgroup of `running`, which is taken out of `warps` during its turn.
pub(super) fn warp_of_group<'w>(
    warps: &'w mut [Option<Box<Warp>>],
    running: &'w mut Warp,
    quarter: u32,
) -> Option<&'w mut Warp> {
    let index = running.index & !3 | quarter;
    if index == running.index { Some(running) } else { warps[index as usize].as_deref_mut() }
}

impl AsyncEngine {
    /// Adds product `number` of the warpgroup of `warp` to a deferred sum. Returns false if it cannot be deferred:
    /// not all lanes of the four warps execute the same wgmma of the kernel itself, an accumulator was copied, or
    /// `cache` is full.
    pub(super) fn defer_product(
        &mut self,
        grid: &mut GridState,
        warp: &mut Warp,
        number: u64,
        (a, b): (Option<SharedOperand>, SharedOperand),
        cache: &ProductCache,
    ) -> bool {
        let tiles = &mut **self.tiles.get_or_insert_default();
        let block = &mut grid.blocks[warp.slot];
        let mut common: Option<(u32, bool)> = None;
        for quarter in 0..4 {
            let Some(member) = warp_of_group(&mut block.warps, warp, quarter) else { return false };
            let at = number.checked_sub(member.wgmma.waited);
            let Some(issued) = at.and_then(|at| member.wgmma.issued.get(at as usize)) else { return false };
            let IssuedProduct { function: 0, frame: 0, mask: u32::MAX, index, scale_d, .. } = *issued else {
                return false;
            };
            if !issued.copies.is_empty() || *common.get_or_insert((index, scale_d)) != (index, scale_d) {
                return false;
            }
            if let Some(rows) = &issued.a {
                tiles.set_a_rows(&product_instruction(&grid.context, issued).op, quarter as usize, &rows[..]);
            }
        }
        let Some((index, scale_d)) = common else { return false };
        let w = wgmma_at(grid, index);
        let shared = &grid.blocks[warp.slot].shared;
        let fetch = |at: u32| -> [u8; 16] {
            let from = (at - layout::FIRST_SHARED_ADDRESS) as usize;
            shared[from..from + 16].try_into().expect("16 bytes")
        };
        if let Some(a) = &a {
            tiles.read_a(&w.op, a, fetch);
        }
        tiles.read_b_registers(&b, fetch);
        let group = (warp.index / 4) as usize;
        let deferred = &grid.blocks[warp.slot].warpgroups[group].deferred;
        let same = deferred.iter().position(|sum| wgmma_at(grid, sum.index).d == w.d);
        let sum_before = same.map(|at| grid.blocks[warp.slot].warpgroups[group].remove_deferred(at, &w.d));
        write_deferred_sums(grid, warp, &w.d);
        let addend = match sum_before {
            _ if !scale_d => Some(Addend::Zero),
            Some(before) => Some(Addend::Sum(before.sum)),
            None => cache.content(&accumulators(grid, warp, w)).map(Addend::Content),
        };
        let block = &mut grid.blocks[warp.slot];
        let Some(sum) = addend.and_then(|addend| cache.add(&w.op, tiles, addend)) else {
            sum_before.into_iter().for_each(|sum| block.warpgroups[group].defer(sum, &w.d));
            return false;
        };
        block.warpgroups[group].defer(DeferredSum { index, sum }, &w.d);
        for quarter in 0..4 {
            if let Some(member) = warp_of_group(&mut block.warps, warp, quarter) {
                w.d.iter().for_each(|&s| member.regs_mut(0).undefined[s as usize] = 0);
            }
        }
        true
    }
}

/// Writes the deferred sums of the warpgroup of `warp` that use one of `registers` to the accumulators.
pub fn write_deferred_sums(grid: &mut GridState, warp: &mut Warp, registers: &[Slot]) {
    let group = (warp.index / 4) as usize;
    let uses_any = |(_, w): &(usize, &Wgmma)| w.d.iter().any(|s| registers.contains(s));
    while let Some(here) = grid.blocks[warp.slot].warpgroups.get(group)
        && here.defers_any_of(registers)
        && let Some((at, w)) = here.deferred.iter().map(|sum| wgmma_at(grid, sum.index)).enumerate().find(uses_any)
    {
        let block = &mut grid.blocks[warp.slot];
        let DeferredSum { sum, .. } = block.warpgroups[group].remove_deferred(at, &w.d);
        let cache = grid.context.options.products.as_ref().expect("only sums in a cache are deferred");
        let values = cache.values(sum);
        for (quarter, values) in (0..4).zip(values.chunks_exact(w.d.len())) {
            if let Some(member) = warp_of_group(&mut block.warps, warp, quarter) {
                let rows = &mut member.regs_mut(0).rows;
                w.d.iter().zip(values).for_each(|(&s, value)| rows[s as usize].0 = *value);
            }
        }
    }
}

/// Returns the accumulators of the four warps of a warpgroup.
fn accumulators(grid: &mut GridState, warp: &mut Warp, w: &Wgmma) -> Vec<Lanes> {
    let mut values = Vec::with_capacity(4 * w.d.len());
    for quarter in 0..4 {
        if let Some(member) = warp_of_group(&mut grid.blocks[warp.slot].warps, warp, quarter) {
            values.extend(w.d.iter().map(|&s| member.regs(0).get(s)));
        }
    }
    values
}

/// Returns the wgmma at an index in the kernel's first function.
pub(super) fn wgmma_at<'a>(grid: &GridState<'a>, index: u32) -> &'a Wgmma {
    match &grid.context.kernel.functions[0].instrs[index as usize].op {
        Op::Wgmma(w) => w,
        _ => unreachable!("only a wgmma has a deferred sum"),
    }
}
