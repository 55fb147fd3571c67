//! The pipe of a thread: products and the arrivals of `tcgen05.commit`, which are executed in order.

use super::queue::{PipeItem, ProductOperand, QueuedProduct, TensorPipe};
use crate::exec::async_engine::AsyncEngine;
use crate::exec::async_engine::engine::completes_at_issue;
use crate::exec::context::InstructionContext;
use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::mbarrier::ArrivalClocks;
use crate::finding::FindingKind;
use crate::layout::FIRST_SHARED_ADDRESS;
use std::collections::VecDeque;

impl AsyncEngine {
    /// Adds an item to the pipe of `lane`, or executes the pipe at once, as the run's completion timing says.
    pub(super) fn queue_in_pipe(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        lane: u32,
        item: PipeItem,
    ) {
        let thread = (cx.warp.slot, cx.warp.index, lane);
        let pipes = &mut self.tensor.pipes;
        let at = pipes.iter().position(|pipe| pipe.thread == thread).unwrap_or_else(|| {
            pipes.push(TensorPipe { thread, items: VecDeque::new() });
            pipes.len() - 1
        });
        pipes[at].items.push_back(item);
        if completes_at_issue(cx.grid, 4) {
            while self.tensor.pipes.get(at).is_some_and(|pipe| pipe.thread == thread) {
                self.advance_pipe(cx.grid, memory, at);
            }
        }
    }

    /// Executes the items of a pipe up to the next arrival.
    pub(in crate::exec::async_engine) fn advance_pipe(
        &mut self,
        grid: &mut GridState,
        memory: &mut MemorySystem,
        at: usize,
    ) {
        while let Some(item) = self.tensor.pipes[at].items.pop_front() {
            match item {
                PipeItem::Product(product) => execute_product(grid, &product),
                PipeItem::Arrive { op, mbarriers, clock, site } => {
                    for at in mbarriers {
                        if let (Some(op), Some(o)) = (op, grid.blocks.mbarrier(at)) {
                            memory.ops.mark_observed(op, o.agent, o.phase + 1);
                        }
                        // The completion is known to every thread that waits, as that of a copy is: no scope limits it.
                        let clocks = ArrivalClocks { own_block: Some(clock.clone()), other_blocks: None };
                        self.count_arrivals(grid, at, 1, clocks, site);
                    }
                    break;
                }
            }
        }
        if self.tensor.pipes[at].items.is_empty() {
            self.tensor.pipes.remove(at);
        }
    }

    /// Executes the pipes that use memory of a block that exits, and reports their products: no thread waited for them.
    pub(in crate::exec::async_engine) fn complete_pipes_of_block(
        &mut self,
        grid: &mut GridState,
        memory: &mut MemorySystem,
        block_slot: u32,
    ) {
        while let Some(at) = self.tensor.pipes.iter().position(|pipe| pipe.uses(block_slot)) {
            let product = self.tensor.pipes[at].items.iter().any(|item| matches!(item, PipeItem::Product(_)));
            let arrival = self.tensor.pipes[at].items.iter().find_map(|item| match item {
                PipeItem::Arrive { site, .. } => Some(*site),
                PipeItem::Product(_) => None,
            });
            if let (true, Some(site)) = (product, arrival) {
                grid.reporter.report(FindingKind::Tcgen05, site, || {
                    "a block exits before the products of this tcgen05.commit are complete: no thread waited for them"
                        .into()
                });
            }
            self.advance_pipe(grid, memory, at);
        }
    }
}

impl TensorPipe {
    fn uses(&self, block_slot: u32) -> bool {
        self.thread.0 == block_slot
            || self.items.iter().any(|item| match item {
                PipeItem::Product(product) => product.slots.contains(&block_slot),
                PipeItem::Arrive { mbarriers, .. } => mbarriers.iter().any(|at| at.slot == block_slot),
            })
    }
}

/// Computes a product and writes D in the tensor memory of its blocks.
fn execute_product(grid: &mut GridState, p: &QueuedProduct) {
    grid.count_memory_or_barrier_change();
    let (shape, n) = (&p.shape, p.shape.n as usize);
    if grid.context.options.count_only {
        return;
    }
    fn fetch(shared: &[u8]) -> impl Fn(u32) -> [u8; 16] {
        |at| {
            let from = (at - FIRST_SHARED_ADDRESS) as usize;
            shared[from..from + 16].try_into().expect("16 bytes")
        }
    }
    let mut b = vec![0.0; shape.k() as usize * n];
    for (i, &slot) in p.slots.iter().enumerate() {
        let Some(block) = grid.blocks.get(slot) else { return };
        shape.read_b(&p.b, i * n / p.slots.len(), &mut b, fetch(&block.shared));
    }
    let (rows, k) = (shape.rows() as usize, shape.k() as usize);
    for (i, &slot) in p.slots.iter().enumerate() {
        let Some(block) = grid.blocks.get_mut(slot) else { return };
        let Some(tensor) = block.tensor.as_mut() else { return };
        let position = |row: usize, column: usize| {
            let (lane, at) = shape.position_in_d(p.d, row, column);
            (lane, (p.d & 0xffff) as usize + at)
        };
        // If the halves of D's columns lie in different lanes, each half has an A of its own in tensor memory.
        for half in [0, n / 2] {
            let is_folded = position(0, 0).0 != position(0, n / 2).0;
            let columns = match (is_folded, half) {
                (true, first) => first..first + n / 2,
                (false, 0) => 0..n,
                (false, _) => break,
            };
            let a = match &p.a {
                ProductOperand::Shared(a) => shape.read_a(a, fetch(&block.shared)),
                ProductOperand::Tensor(address) => {
                    let mut a = vec![0.0; rows * k];
                    for (row, out) in a.chunks_exact_mut(k).enumerate() {
                        let (lane, first) = (position(row, columns.start).0, (*address & 0xffff) as usize);
                        shape.row_of_a(std::array::from_fn(|c| *tensor.word(lane, first + c)), out);
                    }
                    a
                }
            };
            let mut d = vec![0; rows * n];
            for (row, d) in d.chunks_exact_mut(n).enumerate() {
                for column in columns.clone() {
                    let (lane, at) = position(row, column);
                    d[column] = *tensor.word(lane, at);
                }
            }
            shape.multiply_add(&a, &b, p.scale_d, &mut d);
            for (row, d) in d.chunks_exact(n).enumerate() {
                for column in columns.clone() {
                    let (lane, at) = position(row, column);
                    let disabled = p.disabled_lanes.get(4 * i + lane / 32).is_some_and(|m| m >> (lane % 32) & 1 != 0);
                    if !disabled {
                        *tensor.word(lane, at) = d[column];
                    }
                }
            }
        }
    }
}
