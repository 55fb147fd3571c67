//! Decoding of `tcgen05` and `clusterlaunchcontrol`. Forms that are not supported become [`Op::Unsupported`].

use super::{Decoded, Decoder, nth};
use crate::matrix::tcgen05::{MmaKind, TransferShape};
use crate::order::AccessStrength;
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};

impl Decoder<'_> {
    pub(super) fn decode_tcgen05(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        let has = |p: &str| parts.contains(&p);
        let unsupported = || Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        let group = if has("cta_group::2") { 2 } else { 1 };
        let op = match parts.get(1).copied().unwrap_or("") {
            "alloc" => {
                let data = self.sink_slot_or_predicate(1);
                let (addr, window) = self.o.address_operand(nth(o, 0)?, self.window(parts)?)?;
                let store = LoadStore {
                    window,
                    addr,
                    param: None,
                    width: 4,
                    signed: false,
                    regs: vec![Some(data)],
                    register_rows: 1,
                    semantics: None,
                    scope: AccessStrength::Weak,
                    copies: false,
                    used_bytes: u32::MAX,
                    kept_bytes: 0,
                    cas_read: false,
                    butterfly: false,
                    used_where: Box::default(),
                };
                Tcgen05::Alloc { group, columns: self.o.source_slot(nth(o, 1)?, Type::B32)?, store: Box::new(store) }
            }
            "dealloc" => Tcgen05::Dealloc {
                group,
                address: self.o.source_slot(nth(o, 0)?, Type::B32)?,
                columns: self.o.source_slot(nth(o, 1)?, Type::B32)?,
            },
            "relinquish_alloc_permit" => Tcgen05::RelinquishAllocPermit { group },
            "ld" | "st" if !has("red") => return self.decode_tensor_transfer(instruction, parts),
            "wait::ld" => Tcgen05::Wait { stores: false },
            "wait::st" => Tcgen05::Wait { stores: true },
            "mma" => return self.decode_tensor_mma(instruction, parts, group),
            "commit" => {
                let generic = !has("shared::cluster");
                let window = if generic { AddressWindow::Generic } else { AddressWindow::SharedCluster };
                let (mbarrier, _) = self.o.address_operand(nth(o, 0)?, window)?;
                let multicast = match has("multicast::cluster") {
                    true => Some(self.o.source_slot(nth(o, 1)?, Type::B16)?),
                    false => None,
                };
                Tcgen05::Commit { group, mbarrier, generic, multicast }
            }
            "fence::before_thread_sync" => Tcgen05::Fence { after: false },
            "fence::after_thread_sync" => Tcgen05::Fence { after: true },
            _ => return unsupported(),
        };
        Ok(Op::Tcgen05(Box::new(op)))
    }

    fn decode_tensor_transfer(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        let store = parts[1] == "st";
        let shape = parts.iter().find_map(|part| TransferShape::parse(part));
        let repeat = parts.iter().find_map(|part| part.strip_prefix('x')?.parse().ok());
        let (Some(shape), Some(repeat)) = (shape, repeat) else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let shape: TransferShape = shape;
        let mut operands: Vec<&Operand> = o.iter().collect();
        let mut split = 0;
        if shape.is_split() {
            // The offset of the second half: last for a load, before the registers for a store.
            let at = if store { 1 } else { 2 };
            match operands.get(at) {
                Some(Operand::Integer(n)) => split = *n as u32,
                _ => return Err(self.o.error("the offset of the second half must be an integer literal")),
            }
            operands.remove(at);
        }
        let [address, registers] = match operands[..] {
            [address, registers] if store => [address, registers],
            [registers, address] => [address, registers],
            _ => return Err(self.o.error("the number of operands does not fit the opcode")),
        };
        let packed = parts.iter().any(|part| matches!(*part, "pack::16b" | "unpack::16b"));
        let shape = shape.with_options(repeat, packed, split);
        let registers = match registers {
            Operand::Vector(_) => self.row_list(registers, Type::B32)?,
            one => vec![self.o.source_slot(one, Type::B32)?],
        };
        if registers.len() != shape.registers() as usize {
            return Err(self.o.error("the number of registers does not fit the opcode"));
        }
        let (address, _) = self.o.address_operand(address, AddressWindow::Generic)?;
        let transfer = TensorTransfer { store, shape, address, registers };
        Ok(Op::Tcgen05(Box::new(Tcgen05::Transfer(Box::new(transfer)))))
    }

    fn decode_tensor_mma(&mut self, instruction: &Instruction, parts: &[&str], group: u32) -> Decoded {
        let o = &instruction.operands;
        let unsupported = ["ws", "sp", "block_scale", "ashift"];
        let kind = parts.iter().find_map(|part| MmaKind::from_qualifier(part));
        let (Some(kind), false) = (kind, parts.iter().any(|part| unsupported.contains(part))) else {
            return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
        };
        let tensor = AddressWindow::Generic;
        let (d, _) = self.o.address_operand(nth(o, 0)?, tensor)?;
        let a = match nth(o, 1)? {
            address @ Operand::Address(..) => TensorOperand::Tensor(self.o.address_operand(address, tensor)?.0),
            descriptor => TensorOperand::Shared(self.o.source_slot(descriptor, Type::B64)?),
        };
        let b = self.o.source_slot(nth(o, 2)?, Type::B64)?;
        let descriptor = self.o.source_slot(nth(o, 3)?, Type::B32)?;
        let (disabled_lanes, next) = match nth(o, 4)? {
            masks @ Operand::Vector(_) => (self.row_list(masks, Type::B32)?, 5),
            _ => (Vec::new(), 4),
        };
        if !disabled_lanes.is_empty() && disabled_lanes.len() != 4 * group as usize {
            return Err(self.o.error("disable-output-lane needs four registers per block of the .cta_group"));
        }
        let accumulate = self.o.predicate_index(nth(o, next)?)?;
        let scale_d = match o.get(next + 1) {
            None => 0,
            Some(Operand::Integer(scale @ 0..=15)) => *scale as u32,
            Some(_) => return Err(self.o.error("scale-input-d must be an integer literal from 0 to 15")),
        };
        let mma = TensorMma { kind, group, d, a, b, descriptor, disabled_lanes, accumulate, scale_d };
        Ok(Op::Tcgen05(Box::new(Tcgen05::Mma(Box::new(mma)))))
    }

    pub(super) fn decode_launch_control(&mut self, instruction: &Instruction, parts: &[&str]) -> Decoded {
        let o = &instruction.operands;
        let has = |p: &str| parts.contains(&p);
        let op = if has("try_cancel") {
            let generic = !has("shared::cta");
            let window = if generic { AddressWindow::Generic } else { AddressWindow::Shared };
            LaunchControl::TryCancel {
                response: self.o.address_operand(nth(o, 0)?, window)?.0,
                mbarrier: self.o.address_operand(nth(o, 1)?, window)?.0,
                generic,
                multicast: has("multicast::cluster::all"),
            }
        } else if has("is_canceled") {
            let (dst, _) = self.o.predicate_index(nth(o, 0)?)?;
            LaunchControl::IsCanceled { dst, response: self.o.source_slot(nth(o, 1)?, Type::B128)? }
        } else {
            let dimension = parts.iter().find_map(|part| {
                let name = part.strip_prefix("get_first_ctaid::")?;
                ["x", "y", "z"].iter().position(|d| *d == name)
            });
            let mut dst = Vec::new();
            match (nth(o, 0)?, dimension) {
                (one, Some(dimension)) => dst.push((self.o.register_slot(one)?, dimension as u32)),
                (Operand::Vector(list), None) if list.len() == 4 => {
                    for (dimension, register) in (0..).zip(list).filter(|(_, r)| !matches!(r, Operand::Sink)) {
                        dst.push((self.o.register_slot(register)?, dimension));
                    }
                }
                _ => return Ok(Op::Unsupported(instruction.opcode.as_str().into())),
            }
            LaunchControl::FirstBlock { dst, response: self.o.source_slot(nth(o, 1)?, Type::B128)? }
        };
        Ok(Op::LaunchControl(Box::new(op)))
    }
}
