//! Computes wgmma products: reads the operands once and writes the accumulators of all four warps.

use super::engine::AsyncEngine;
use super::wgmma_deferred::{warp_of_group, wgmma_at, write_deferred_sums};
use super::wgmma_registers::product_instruction;
use crate::exec::grid::GridState;
use crate::exec::state::warp::Warp;
use crate::exec::state::wgmma::ALL_WARPS;
use crate::layout;
use crate::matrix::Lanes;
use crate::matrix::wgmma::SharedOperand;

impl AsyncEngine {
    /// Computes the warpgroup's products with numbers below `end` that are not computed yet, in order of issue. Stops
    /// at the first product that some warp has not issued.
    pub(super) fn compute_products(&mut self, grid: &mut GridState, warp: &mut Warp, end: u64) {
        let group = (warp.index / 4) as usize;
        let Some(here) = grid.blocks[warp.slot].warpgroups.get(group) else { return };
        let first = here.first;
        let count = (end.saturating_sub(first) as usize).min(here.products.len());
        for index in 0..count {
            let product = &mut grid.blocks[warp.slot].warpgroups[group].products[index];
            if product.computed {
                continue;
            }
            if product.issued != ALL_WARPS {
                return;
            }
            product.computed = true;
            let (a, b) = (product.a, product.b);
            self.compute(grid, warp, first + index as u64, a, b);
        }
    }

    /// Computes product `number` for the four warps of a warpgroup. `warp` is the executing warp, which is taken out of
    /// its block during its turn.
    fn compute(
        &mut self,
        grid: &mut GridState,
        warp: &mut Warp,
        number: u64,
        a: Option<SharedOperand>,
        b: SharedOperand,
    ) {
        let context = grid.context;
        if let Some(cache) = &context.options.products
            && !context.options.count_only
        {
            if self.defer_product(grid, warp, number, (a, b), cache) {
                return;
            }
            let deferred = &grid.blocks[warp.slot].warpgroups[(warp.index / 4) as usize].deferred;
            for sum in deferred.clone() {
                write_deferred_sums(grid, warp, &wgmma_at(grid, sum.index).d);
            }
        }
        let mut tiles = self.tiles.take().unwrap_or_default();
        let mut sums = std::mem::take(&mut self.sums);
        let mut read = false;
        let block = &mut grid.blocks[warp.slot];
        let shared = &block.shared;
        for quarter in 0..4u32 {
            let Some(member) = warp_of_group(&mut block.warps, warp, quarter) else { continue };
            let Some(at) = number.checked_sub(member.wgmma.waited) else { continue };
            let Some(issued) = member.wgmma.issued.get(at as usize) else { continue };
            let w = product_instruction(&context, issued);
            let frame = member.frames.get_mut(issued.frame as usize).and_then(|f| f.as_mut());
            let Some(regs) = frame.map(|frame| &mut frame.regs) else { continue };
            if !context.options.count_only {
                let fetch = |at: u32| -> [u8; 16] {
                    let from = (at - layout::FIRST_SHARED_ADDRESS) as usize;
                    shared[from..from + 16].try_into().expect("16 bytes")
                };
                if !read {
                    if let Some(a) = &a {
                        tiles.read_a(&w.op, a, fetch);
                    }
                    tiles.read_b(&w.op, &b, fetch);
                    read = true;
                }
                if let Some(rows) = &issued.a {
                    tiles.set_a_rows(&w.op, quarter as usize, &rows[..]);
                }
                if issued.mask == u32::MAX {
                    let registers: &mut [Lanes] = bytemuck::cast_slice_mut(&mut regs.rows);
                    w.op.multiply_add_registers(&tiles, quarter as usize, issued.scale_d, registers, &w.d);
                } else {
                    sums.resize(w.d.len(), [0; 32]);
                    sums.iter_mut().zip(&w.d).for_each(|(sum, &s)| *sum = regs.get(s));
                    w.op.multiply_add(&tiles, quarter as usize, issued.scale_d, &mut sums);
                    for (&s, value) in w.d.iter().zip(&sums) {
                        regs.set(s, value, issued.mask);
                    }
                }
                for (to, from) in &issued.copies {
                    let value = regs.get(*from);
                    regs.set(*to, &value, issued.mask);
                }
            }
            for s in w.d.iter().chain(issued.copies.iter().map(|c| &c.0)) {
                regs.undefined[*s as usize] &= !issued.mask;
            }
        }
        self.tiles = Some(tiles);
        self.sums = sums;
    }
}
