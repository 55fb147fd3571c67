//! Function calls: frames with the registers of a called function, and the arguments that are copied between frames.

use super::special::fixed_special_register;
use crate::exec::context::lanes_in_mask;
use crate::exec::grid_context::GridContext;
use crate::exec::operands::set_predicate;
use crate::exec::state::block::Block;
use crate::exec::state::warp::{CallFrame, Warp, initial_registers};
use crate::program::PerWarpValue;
use crate::program::op::CallArgument;
use crate::regs::Registers;
use std::collections::HashMap;

/// Adds a frame (the registers of one call of a function) for a function that `lanes` of a warp enter. `parent` is the
/// caller's frame and the return address. `spare` are registers of an earlier frame of the same function, whose memory
/// is reused. Returns the index of the new frame.
pub fn enter_function(
    context: &GridContext,
    block: &Block,
    warp: &mut Warp,
    function: u32,
    parent: Option<(u32, u32)>,
    lanes: u32,
    spare: Option<Registers>,
) -> u32 {
    let code = &context.kernel.functions[function as usize];
    let local_base = warp.grow_local_memory(code.local_bytes);
    let mut regs = initial_registers(code, spare);
    for value in &code.per_warp_values {
        match *value {
            PerWarpValue::Special { slot, which, wide } => {
                let value = |l| fixed_special_register(context, block, warp.index, which, l as u32);
                let values: [u32; 32] = std::array::from_fn(value);
                if wide {
                    regs.set64(slot, &values.map(u64::from), u32::MAX);
                } else {
                    regs.set(slot, &values, u32::MAX);
                }
            }
            PerWarpValue::Shared { slot, address, wide } => {
                let address = crate::layout::shared_address_in_cluster(address, block.rank);
                if wide {
                    regs.set64(slot, &[u64::from(address); 32], u32::MAX);
                } else {
                    regs.set(slot, &[address; 32], u32::MAX);
                }
            }
            PerWarpValue::Local { slot, offset } => {
                regs.set64(slot, &[(local_base + offset) as u64; 32], u32::MAX);
            }
        }
    }
    let params = vec![0; code.param_bytes as usize * 32];
    let unwritten_params = HashMap::new();
    let depth = parent.map_or(0, |(caller, _)| warp.frame(caller).depth + 1);
    warp.push_frame(CallFrame { function, regs, params, unwritten_params, local_base, parent, depth, lanes })
}

/// Copies an argument or a return value between call frames, for the lanes of `mask`.
pub fn copy_argument(
    warp: &mut Warp,
    (from_frame, from): (u32, CallArgument),
    (to_frame, to): (u32, CallArgument),
    mask: u32,
) {
    for lane in lanes_in_mask(mask).map(|lane| lane as usize) {
        let bytes = read_argument(warp, from_frame, from, lane);
        write_argument(warp, to_frame, to, lane, &bytes);
        if let (CallArgument::Bytes { offset: from, size }, CallArgument::Bytes { offset: to, .. }) = (from, to)
            && !warp.frame(from_frame).unwritten_params.is_empty()
        {
            for byte in 0..size {
                if let Some(source) = warp.frame(from_frame).unwritten_params.get(&(from + byte, lane as u8)).copied() {
                    warp.frame(to_frame).unwritten_params.insert((to + byte, lane as u8), source);
                }
            }
        }
    }
}

/// Returns the bytes of an argument in one lane.
pub fn read_argument(warp: &mut Warp, frame: u32, arg: CallArgument, lane: usize) -> Vec<u8> {
    let frame = warp.frame(frame);
    match arg {
        CallArgument::Bytes { offset, size } => {
            let stride = frame.params.len() / 32;
            frame.params[lane * stride + offset as usize..][..size as usize].to_vec()
        }
        CallArgument::Row { slot, rows: 1 } => frame.regs.rows[slot as usize].0[lane].to_le_bytes().to_vec(),
        CallArgument::Row { slot, .. } => frame.regs.get64(slot)[lane].to_le_bytes().to_vec(),
        CallArgument::Predicate(p) => vec![(frame.regs.predicates[p as usize] >> lane & 1) as u8],
    }
}

pub fn write_argument(warp: &mut Warp, frame: u32, arg: CallArgument, lane: usize, bytes: &[u8]) {
    let frame = warp.frame(frame);
    let word = |n: usize| {
        let mut buffer = [0u8; 8];
        let n = n.min(bytes.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        u64::from_le_bytes(buffer)
    };
    match arg {
        CallArgument::Bytes { offset, size } => {
            let stride = frame.params.len() / 32;
            let n = bytes.len().min(size as usize);
            frame.params[lane * stride + offset as usize..][..n].copy_from_slice(&bytes[..n]);
        }
        CallArgument::Row { slot, rows: 1 } => {
            frame.regs.set(slot, &[word(4) as u32; 32], 1 << lane);
            frame.regs.undefined[slot as usize] &= !(1 << lane);
        }
        CallArgument::Row { slot, .. } => {
            frame.regs.set64(slot, &[word(8); 32], 1 << lane);
            frame.regs.undefined[slot as usize] &= !(1 << lane);
        }
        CallArgument::Predicate(p) => {
            let value = if bytes.first() == Some(&1) { u32::MAX } else { 0 };
            set_predicate(&mut frame.regs, p, value, 1 << lane);
        }
    }
}
