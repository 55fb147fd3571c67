//! Decoding of barriers, fences and mbarriers.

use super::{Decoded, Decoder, nth};
use crate::order::{AccessStrength, FenceCoverage, MemoryFence};
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_barrier(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        if parts.contains(&"cluster") {
            let aligned = parts.contains(&"aligned");
            return Ok(if parts.contains(&"wait") {
                Op::ClusterWait { aligned }
            } else {
                Op::ClusterArrive { release: !parts.contains(&"relaxed"), aligned }
            });
        }
        if parts.contains(&"warp") {
            let members = self.o.source_slot(o.first().unwrap_or(&Operand::Integer(-1)), Type::B32)?;
            return Ok(Op::Warp(Box::new(WarpOp { kind: WarpOpKind::Sync, dst: None, dst_pred: None, members })));
        }
        let aligned = parts[0] == "bar" || parts.contains(&"aligned");
        if parts.contains(&"red") {
            let pred = |d: &mut Self, o: &Operand| d.o.predicate_index(o);
            let id = self.o.source_slot(nth(o, 1)?, Type::B32)?;
            let count = if o.len() > 3 { Some(self.o.source_slot(nth(o, 2)?, Type::B32)?) } else { None };
            let (p, negated) = pred(self, &o[o.len() - 1])?;
            let kind = if parts.contains(&"popc") {
                BarrierKind::Popc { dst: self.o.register_slot(nth(o, 0)?)?, p, negated }
            } else {
                let (dst, _) = pred(self, nth(o, 0)?)?;
                if parts.contains(&"and") {
                    BarrierKind::And { dst, p, negated }
                } else {
                    BarrierKind::Or { dst, p, negated }
                }
            };
            return Ok(Op::Barrier(Box::new(Barrier { id, count, kind, aligned })));
        }
        let id = self.o.source_slot(o.first().unwrap_or(&Operand::Integer(0)), Type::B32)?;
        let count = match o.get(1) {
            Some(c) => Some(self.o.source_slot(c, Type::B32)?),
            None => None,
        };
        let kind = if parts.contains(&"arrive") { BarrierKind::Arrive } else { BarrierKind::Sync };
        Ok(Op::Barrier(Box::new(Barrier { id, count, kind, aligned })))
    }

    pub(super) fn decode_fence(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        if has("mbarrier_init") {
            return Ok(Op::Fence(Fence::MbarrierInit));
        }
        let scope = match parts {
            p if p.contains(&"cta") => AccessStrength::Cta,
            p if p.contains(&"cluster") => AccessStrength::Cluster,
            _ => AccessStrength::Gpu,
        };
        let is_tensor_map = parts.iter().any(|p| p.starts_with("tensormap"));
        if is_tensor_map && has("acquire") {
            let (addr, _) = self.o.address_operand(nth(&instruction.operands, 0)?, AddressWindow::Generic)?;
            return Ok(Op::Fence(Fence::AcquireTensorMap { addr, scope }));
        }
        let covers = match parts {
            _ if is_tensor_map => FenceCoverage::TensorMaps,
            p if p.iter().any(|p| p.starts_with("sync_restrict")) => FenceCoverage::Shared,
            _ => FenceCoverage::All,
        };
        let (acquires, releases) = (!has("release"), !has("acquire"));
        let fence = MemoryFence { scope, acquires, releases, covers };
        if has("proxy") && !is_tensor_map {
            if !parts.iter().any(|p| p.starts_with("async")) {
                return Ok(Op::Fence(Fence::Other));
            }
            if covers == FenceCoverage::Shared {
                return Ok(Op::Fence(Fence::ProxyAsyncShared(fence)));
            }
            let shared = parts.iter().any(|p| p.starts_with("shared"));
            let global = has("global");
            let both = !shared && !global;
            return Ok(Op::Fence(Fence::ProxyAsync { shared: shared || both, global: global || both }));
        }
        Ok(Op::Fence(Fence::Memory(fence)))
    }

    pub(super) fn decode_mbarrier(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let has = |p: &str| parts.contains(&p);
        let o = &instruction.operands;
        let named = self.window(parts)?;
        let ordered = !has("relaxed");
        // Without `.scope` the PTX ISA assumes `.cta`. Public kernels (CUTLASS), however, arrive at mbarriers of other
        // blocks and wait for such arrivals without a scope, so only an explicit `.cta` is taken literally.
        let scope = if has("cta") { AccessStrength::Cta } else { AccessStrength::Cluster };
        let b32 = Type::B32;
        let (kind, address) = if has("init") {
            (MbarrierOperationKind::Init { count: self.o.source_slot(nth(o, 1)?, b32)? }, 0)
        } else if has("inval") {
            (MbarrierOperationKind::Inval, 0)
        } else if has("pending_count") {
            let (dst, state) = (self.o.register_slot(nth(o, 0)?)?, self.o.source_slot(nth(o, 1)?, Type::B64)?);
            let addr = AddressOperand { base: None, wide: true, offset: 0 };
            let kind = MbarrierOperationKind::PendingCount { dst, state };
            return Ok(Op::Mbarrier(Box::new(Mbarrier { addr, window: named, kind, ordered, scope })));
        } else if has("test_wait") || has("try_wait") {
            let (dst, _) = self.o.predicate_index(nth(o, 0)?)?;
            let parity = has("parity");
            let operand = self.o.source_slot(nth(o, 2)?, if parity { b32 } else { Type::B64 })?;
            (MbarrierOperationKind::Wait { dst, operand, parity, blocking: has("try_wait") }, 1)
        } else if has("arrive") || has("arrive_drop") {
            // The address is the first or second operand. `_` or a destination for the state may precede it; an
            // arrival count or the number of expected bytes may follow it.
            let at = o.iter().position(|x| matches!(x, Operand::Address(..))).unwrap_or(0);
            let state = if at == 1 { self.o.destination_slot(nth(o, 0)?)? } else { None };
            let tail = match o.get(at + 1) {
                Some(x) => Some(self.o.source_slot(x, b32)?),
                None => None,
            };
            let (count, expect) = if has("expect_tx") { (None, tail) } else { (tail, None) };
            let (drop, no_complete) = (has("arrive_drop"), has("noComplete"));
            (MbarrierOperationKind::Arrive { state, count, expect, drop, no_complete }, at)
        } else if has("expect_tx") {
            (MbarrierOperationKind::ExpectTx { bytes: self.o.source_slot(nth(o, 1)?, b32)? }, 0)
        } else if has("complete_tx") {
            (MbarrierOperationKind::CompleteTx { bytes: self.o.source_slot(nth(o, 1)?, b32)? }, 0)
        } else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let (addr, window) = self.o.address_operand(nth(o, address)?, named)?;
        Ok(Op::Mbarrier(Box::new(Mbarrier { addr, window, kind, ordered, scope })))
    }
}
