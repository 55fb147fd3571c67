//! Issues `tcgen05.mma` and `tcgen05.commit`: checks the operands and queues the product or the arrival.

use super::queue::{PipeItem, ProductOperand, QueuedProduct};
use super::{blocks_of_group, check_group, issuing_lane};
use crate::exec::async_engine::AsyncEngine;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::memory_system::MemorySystem;
use crate::exec::operands::{lane_addresses, lanes_with_undefined_address, lanes_with_undefined_register};
use crate::exec::state::location::MemoryLocation;
use crate::finding::FindingKind;
use crate::layout;
use crate::matrix::tcgen05::{MmaError, MmaShape};
use crate::matrix::wgmma::{DescriptorError, SharedOperand};
use crate::order::{AccessKind, AsyncOpId, AsyncOpKind, OperandWriters, TensorAccess, TensorAccessKind};
use crate::program::op::{AddressOperand, TensorMma, TensorOperand};
use crate::regs::Slot;

impl AsyncEngine {
    /// Executes `tcgen05.mma` in one thread.
    pub(super) fn tensor_mma(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        m: &TensorMma,
    ) -> NextAction {
        let lane = issuing_lane(cx, "tcgen05.mma");
        let l = lane as usize;
        cx.fragment.backward_branches = 0;
        check_group(cx, m.group);
        let Some(slots) = blocks_of_group(cx, m.group) else { return NextAction::Next };
        let regs = cx.regs();
        let of_a = match &m.a {
            TensorOperand::Shared(slot) => regs.undefined[*slot as usize],
            TensorOperand::Tensor(address) => lanes_with_undefined_address(regs, address),
        };
        let undefined = of_a
            | lanes_with_undefined_address(regs, &m.d)
            | lanes_with_undefined_register(regs, [m.b, m.descriptor].iter().chain(&m.disabled_lanes))
            | regs.undefined_predicates[m.accumulate.0 as usize];
        if undefined >> lane & 1 != 0 {
            cx.report_undefined(lane, || "an operand of tcgen05.mma is undefined".into());
            return NextAction::Next;
        }
        let accumulates = (regs.predicates[m.accumulate.0 as usize] >> lane & 1 != 0) != m.accumulate.1;
        let d = lane_addresses(regs, &m.d)[l] as u32;
        let disabled_lanes: Vec<u32> = m.disabled_lanes.iter().map(|&slot| regs.get(slot)[l]).collect();
        let (descriptor, b) = (regs.get(m.descriptor)[l], regs.get64(m.b)[l]);
        let a_address = match &m.a {
            TensorOperand::Shared(slot) => Err(regs.get64(*slot)[l]),
            TensorOperand::Tensor(address) => Ok(lane_addresses(regs, address)[l] as u32),
        };
        let shape = match MmaShape::decode(m.kind, m.group, descriptor) {
            Ok(shape) => shape,
            Err(e) => {
                let unsupported = matches!(e, MmaError::Unsupported { .. });
                let kind = if unsupported { FindingKind::Unsupported } else { FindingKind::Tcgen05 };
                cx.report(kind, lane, || e.to_string());
                return NextAction::Next;
            }
        };
        let shared_bytes = cx.block().shared.len();
        let mut shared = |operand: Result<SharedOperand, DescriptorError>| {
            operand.and_then(|operand| self.remember_runs(shared_bytes, &operand).map(|()| operand))
        };
        let operands = a_address.map_or_else(|bits| shared(shape.operand_a(bits)).map(Some), |_| Ok(None));
        let operands = operands.and_then(|a| Ok((a, shared(shape.operand_b(b))?)));
        let (a, b) = match operands {
            Ok(operands) => operands,
            Err(e) => {
                cx.report(FindingKind::Tcgen05, lane, || e.to_string());
                return NextAction::Next;
            }
        };
        cx.grid.reporter.counts(cx.pc).matrix_flops += shape.flops();
        let op = open_operation(cx, memory, lane);
        let access = TensorAccess {
            kind: TensorAccessKind::Product(shape),
            agent: cx.warp.order.agent(lane),
            pc: cx.pc,
            op: Some(op),
            released: None,
            fenced: None,
        };
        let id = cx.grid.tensor_accesses.add(access);
        cx.warp.tensor.products_of(lane).unpublished.push(id);
        let mut is_allocated = true;
        for &slot in &slots {
            self.check_shared_operands(cx, memory, (lane, slot), op, a.iter().chain([&b]));
            if let Ok(address) = a_address {
                let region = shape.region_of_a(address);
                is_allocated &= self.check_tensor_access(cx, memory, (id, lane), slot, &region, (true, false));
            }
            let region = shape.region_of_d(d);
            is_allocated &= self.check_tensor_access(cx, memory, (id, lane), slot, &region, (accumulates, true));
        }
        if is_allocated {
            let a = a_address.map_or_else(|_| ProductOperand::Shared(a.expect("a descriptor")), ProductOperand::Tensor);
            let scale_d = accumulates.then(|| 0.5f32.powi(m.scale_d as i32));
            let product = QueuedProduct { shape, slots, a, b, d, scale_d, disabled_lanes };
            self.queue_in_pipe(cx, memory, lane, PipeItem::Product(Box::new(product)));
        }
        NextAction::Next
    }

    /// Checks that the writes of a product's operands in the shared memory of the block in `slot` are ordered before
    /// the product and visible to the async proxy.
    fn check_shared_operands<'o>(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        (lane, slot): (u32, u32),
        op: AsyncOpId,
        operands: impl Iterator<Item = &'o SharedOperand> + Clone,
    ) {
        let pc = cx.pc;
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        for operand in operands.clone() {
            runs.extend_from_slice(self.operand_runs.get(operand).map_or(&[], Vec::as_slice));
        }
        let mut writers = OperandWriters::default();
        memory.check_shadow(cx, MemoryLocation::Shared(slot), AccessKind::Read, None, |shadow, warp, order, found| {
            shadow.check_wgmma_operand_read(&runs, op, warp, lane, pc, order, &mut writers, found);
        });
        self.runs = runs;
        if let Some(e) = operands.clone().find_map(|operand| operand.check_pattern().err())
            && !writers.were_written_by_tensor_copies(&memory.ops)
        {
            cx.report(FindingKind::Tcgen05, lane, || e.to_string());
        }
    }

    /// Executes `tcgen05.commit` in one thread.
    pub(super) fn tensor_commit(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        group: u32,
        mbarrier: &AddressOperand,
        generic: bool,
        multicast: Option<Slot>,
    ) -> NextAction {
        let lane = issuing_lane(cx, "tcgen05.commit");
        check_group(cx, group);
        cx.fragment.backward_branches = 0;
        let regs = cx.regs();
        let undefined = lanes_with_undefined_address(regs, mbarrier) | lanes_with_undefined_register(regs, &multicast);
        if undefined >> lane & 1 != 0 {
            cx.report_undefined(lane, || "an operand of tcgen05.commit is undefined".into());
            return NextAction::Next;
        }
        let address = lane_addresses(regs, mbarrier)[lane as usize];
        let address = if generic { address.wrapping_sub(layout::SHARED_BASE) } else { address };
        let ranks = match multicast.map(|slot| regs.get(slot)[lane as usize]) {
            None => vec![None],
            Some(mask) => (0..16).filter(|rank| mask >> rank & 1 != 0).map(Some).collect(),
        };
        let Some(mbarriers) = self.mbarriers_of_copy(cx, memory, lane, Some(address), &ranks) else {
            return NextAction::Next;
        };
        self.publish_products(cx, 1 << lane);
        let products = cx.warp.tensor.products_of(lane);
        products.committed = products.open.take().or(products.committed);
        let (op, site, clock) = (products.committed, cx.finding_site(lane), cx.warp.order.clock(lane).clone());
        self.queue_in_pipe(cx, memory, lane, PipeItem::Arrive { op, mbarriers, clock, site });
        NextAction::Next
    }
}

/// Returns the operation that stands for the products of `lane` since its last commit; starts it if there is none.
fn open_operation(cx: &mut InstructionContext, memory: &mut MemorySystem, lane: u32) -> AsyncOpId {
    let products = cx.warp.tensor.products_of(lane);
    if let Some(op) = products.open {
        return op;
    }
    let op = memory.ops.start(AsyncOpKind::Tcgen05, &cx.warp.order, 1 << lane, cx.pc);
    let products = cx.warp.tensor.products_of(lane);
    products.open = Some(op);
    // The tensor core executes the products of a thread in order.
    if let Some(before) = products.committed {
        memory.ops.set_next_in_order(before, op);
    }
    op
}
