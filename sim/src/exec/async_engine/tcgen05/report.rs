//! Checks accesses to tensor memory: their order after earlier accesses, and whether the columns are allocated.

use crate::exec::async_engine::AsyncEngine;
use crate::exec::context::InstructionContext;
use crate::exec::memory_system::MemorySystem;
use crate::finding::FindingKind;
use crate::matrix::tcgen05::Region;
use crate::order::{NewTensorAccess, TensorAccessId, TensorAccessKind, TensorOrder};

impl AsyncEngine {
    /// Checks and records the access `id` of `lane`, which reads and writes a region of the tensor memory of the block
    /// in `slot`, as `(reads, writes)` says. Returns whether all columns are allocated.
    pub(super) fn check_tensor_access(
        &mut self,
        cx: &mut InstructionContext,
        memory: &MemorySystem,
        (id, lane): (TensorAccessId, u32),
        slot: u32,
        region: &Region,
        (reads, writes): (bool, bool),
    ) -> bool {
        let access = *cx.grid.tensor_accesses.get(id);
        let grid = &mut *cx.grid;
        let Some(block) = grid.blocks.get_mut(slot) else { return false };
        let tensor = block.tensor.get_or_insert_default();
        if access.kind != TensorAccessKind::Free && !tensor.are_allocated(&region.1) {
            let (first, end) = (region.1.start, region.1.end);
            let name = instruction_name(access.kind);
            cx.report_access(FindingKind::OutOfBounds, lane, ("tensor", first.into()), || {
                format!("{name} accesses columns {first} to {} of tensor memory, which are not all allocated", end - 1)
            });
            return false;
        }
        if grid.context.options.count_only {
            return true;
        }
        let mut found = Vec::new();
        let lanes = if matches!(access.kind, TensorAccessKind::Product(_)) { 1 << lane } else { cx.mask };
        let new =
            NewTensorAccess { id, accesses: &grid.tensor_accesses, ops: &memory.ops, warp: &cx.warp.order, lanes };
        let unwritten = tensor.cells.access(region, (reads, writes), &new, &mut found);
        if let Some(column) = unwritten
            && matches!(access.kind, TensorAccessKind::Product(_))
        {
            cx.report_access(FindingKind::Uninitialized, lane, ("tensor", column.into()), || {
                format!("tcgen05.mma reads column {column} of tensor memory, which nothing has written")
            });
        }
        for (old, order) in found {
            self.report_order(cx, lane, access.kind, old, order);
        }
        true
    }

    /// Reports that an access is not ordered after the access `old`.
    fn report_order(
        &mut self,
        cx: &mut InstructionContext,
        lane: u32,
        new: TensorAccessKind,
        old: TensorAccessId,
        order: TensorOrder,
    ) {
        let old = *cx.grid.tensor_accesses.get(old);
        let strict = cx.grid.reporter.is_strict_about_proxies();
        match order {
            TensorOrder::OtherProduct if !strict => {
                cx.grid.reporter.add_note(
                    cx.pc,
                    "tcgen05.mma uses tensor memory of an incomplete tcgen05.mma of this thread with another shape; the \
                     PTX ISA promises the order of products only for the same accumulator and shape",
                );
                return;
            }
            TensorOrder::NotPublished if !strict => {
                // Kernels without any fence of this kind have the note about the other fence.
                if self.kernel_has_tensor_fences(cx) {
                    cx.grid.reporter.add_note(
                        old.pc,
                        "the PTX ISA asks for tcgen05.fence::before_thread_sync between the tcgen05.wait after this \
                         instruction and the synchronisation with the next use of the tensor memory",
                    );
                }
                return;
            }
            TensorOrder::NotFenced if !strict && !self.kernel_has_tensor_fences(cx) => {
                cx.grid.reporter.add_note(
                    cx.pc,
                    "the PTX ISA asks for tcgen05.fence::after_thread_sync between a synchronisation and the tcgen05 \
                     instructions that rely on it; this kernel has no tcgen05.fence, like those of CUTLASS",
                );
                return;
            }
            _ => {}
        }
        let site = cx.finding_site(lane);
        let line = cx.grid.context.source_line(old.pc);
        let (new, other) = (instruction_name(new), instruction_name(old.kind));
        cx.grid.reporter.report_with_details(FindingKind::Tcgen05, site, Some(old.pc.into()), None, || {
            let missing = match (order, old.kind) {
                (TensorOrder::NotPublished, _) => {
                    "tcgen05.fence::before_thread_sync is missing before the synchronisation between them"
                }
                (TensorOrder::NotFenced, _) => {
                    "tcgen05.fence::after_thread_sync is missing after the synchronisation between them"
                }
                (_, TensorAccessKind::Product(_)) => {
                    "its completion was not observed by tcgen05.commit and a wait on the mbarrier"
                }
                (_, TensorAccessKind::Load) => {
                    "it is not ordered after it by tcgen05.wait::ld and a synchronisation with that warp"
                }
                (_, TensorAccessKind::Store) => {
                    "it is not ordered after it by tcgen05.wait::st and a synchronisation with that warp"
                }
                (_, TensorAccessKind::Free) => "it is not ordered after it",
            };
            format!("{new} accesses the same tensor memory as the {other} at line {line}: {missing}")
        });
    }
}

fn instruction_name(kind: TensorAccessKind) -> &'static str {
    match kind {
        TensorAccessKind::Load => "tcgen05.ld",
        TensorAccessKind::Store => "tcgen05.st",
        TensorAccessKind::Product(_) => "tcgen05.mma",
        TensorAccessKind::Free => "tcgen05.dealloc",
    }
}
