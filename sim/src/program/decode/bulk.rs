//! Decoding of bulk and tensor copies: `cp.async.bulk` and `cp.reduce.async.bulk`.

use super::{Decoder, nth};
use crate::program::ProgramError;
use crate::program::op::*;
use crate::ptx::ast::{Instruction, Operand, Type};
use crate::tensor_map::Reduction;

/// Decodes a bulk copy. Forms that are not supported (im2col, gather) become [`Op::Unsupported`].
pub(super) fn decode_bulk_copy(d: &mut Decoder, instruction: &Instruction, parts: &[&str]) -> Result<Op, ProgramError> {
    let has = |p: &str| parts.contains(&p);
    if parts.iter().any(|p| p.starts_with("im2col") || p.contains("gather") || p.contains("scatter") || *p == "cp_mask")
    {
        return Ok(Op::Unsupported(instruction.opcode.as_str().into()));
    }
    let tensor = has("tensor");
    let multicast = has("multicast::cluster");
    let spaces: Vec<AddressWindow> = parts.iter().filter_map(|p| space(p)).collect();
    let o = &instruction.operands;
    if has("prefetch") {
        let (src, src_window) = d.o.address_operand(nth(o, 0)?, AddressWindow::Global)?;
        let kind = if tensor { BulkCopyKind::TensorPrefetch } else { BulkCopyKind::Prefetch };
        let coords = if tensor { coordinates(d, nth(o, 0)?)? } else { Vec::new() };
        let size = if tensor { None } else { Some(d.o.source_slot(nth(o, 1)?, Type::B32)?) };
        return Ok(Op::BulkCopy(Box::new(BulkCopy {
            kind,
            dst: src,
            dst_window: src_window,
            src,
            src_window,
            size,
            coords,
            mbarrier: None,
            multicast: None,
            pair_signal: false,
            reduce: None,
        })));
    }
    let [to, from] = spaces[..] else { return Ok(Op::Unsupported(instruction.opcode.as_str().into())) };
    let kind = match (tensor, to, from) {
        (true, AddressWindow::Global, _) => BulkCopyKind::TensorStore,
        (true, _, AddressWindow::Global) => BulkCopyKind::TensorLoad,
        (false, AddressWindow::Global, _) => BulkCopyKind::Store,
        (false, _, AddressWindow::Global) => BulkCopyKind::Load,
        (false, _, _) => BulkCopyKind::SharedToShared,
        _ => return Ok(Op::Unsupported(instruction.opcode.as_str().into())),
    };
    // A tensor operand gives the address of its tensor map, which is always in the generic address space.
    let side = |w: AddressWindow, is_tensor: bool| if is_tensor { AddressWindow::Generic } else { w };
    let (dst, dst_window) = d.o.address_operand(nth(o, 0)?, side(to, kind == BulkCopyKind::TensorStore))?;
    let (src, src_window) = d.o.address_operand(nth(o, 1)?, side(from, kind == BulkCopyKind::TensorLoad))?;
    let coords = match kind {
        BulkCopyKind::TensorLoad => coordinates(d, nth(o, 1)?)?,
        BulkCopyKind::TensorStore => coordinates(d, nth(o, 0)?)?,
        _ => Vec::new(),
    };
    let mut next = 2;
    let mut take = || {
        next += 1;
        o.get(next - 1)
    };
    let missing = |d: &Decoder| d.o.error("an operand is missing");
    let size = match kind {
        BulkCopyKind::TensorLoad | BulkCopyKind::TensorStore => None,
        _ => Some(d.o.source_slot(take().ok_or_else(|| missing(d))?, Type::B32)?),
    };
    let mbarrier = if parts.iter().any(|p| p.starts_with("mbarrier::complete_tx")) {
        Some(d.o.address_operand(take().ok_or_else(|| missing(d))?, AddressWindow::Shared)?.0)
    } else {
        None
    };
    let multicast = match multicast {
        true => Some(d.o.source_slot(take().ok_or_else(|| missing(d))?, Type::B16)?),
        false => None,
    };
    let reduce = if parts[1] == "reduce" {
        let op = *parts
            .iter()
            .find(|p| AtomicOp::from_opcode_word(p).is_some())
            .ok_or_else(|| d.o.error("the opcode lacks an operation such as .add"))?;
        if tensor {
            AtomicOp::from_opcode_word(op).map(BulkReduction::Mapped)
        } else {
            let ty = parts.iter().rev().find(|p| Type::from_name(p).is_some()).copied().unwrap_or("");
            match Reduction::from_bulk_opcode(op, has("noftz"), ty, to != AddressWindow::Global) {
                Some(r) => Some(BulkReduction::Typed(r)),
                None => return Ok(Op::Unsupported(instruction.opcode.as_str().into())),
            }
        }
    } else {
        None
    };
    Ok(Op::BulkCopy(Box::new(BulkCopy {
        kind,
        dst,
        dst_window,
        src,
        src_window,
        size,
        coords,
        mbarrier,
        multicast,
        pair_signal: has("cta_group::2"),
        reduce,
    })))
}

fn coordinates(d: &mut Decoder, operand: &Operand) -> Result<Vec<u32>, ProgramError> {
    match operand {
        Operand::TensorAddress(_, _, list) => list.iter().map(|c| d.o.source_slot(c, Type::S32)).collect(),
        _ => Err(d.o.error("coordinates are needed")),
    }
}

fn space(part: &str) -> Option<AddressWindow> {
    Some(match part {
        "global" => AddressWindow::Global,
        "shared::cta" => AddressWindow::Shared,
        "shared::cluster" => AddressWindow::SharedCluster,
        _ => return None,
    })
}
