//! Moves values between bytes of memory and the registers of a warp.

use crate::exec::context::lanes_in_mask;
use crate::exec::state::location::LaneGroup;
use crate::program::op::LoadStore;
use crate::regs::Registers;
use std::collections::HashMap;

/// Reads one element of a load and extends it, with its sign or with zeros, to the width of a register. Bytes beyond
/// the end of `data` count as zero.
#[inline(always)]
pub fn read_element(data: &[u8], offset: usize, t: &LoadStore) -> u128 {
    let width = t.width as usize;
    let bytes = data.get(offset..offset + width).unwrap_or(&[]);
    let mut buffer = [0u8; 16];
    buffer[..bytes.len()].copy_from_slice(bytes);
    let value = u128::from_le_bytes(buffer);
    if t.signed && t.width < 8 {
        let shift = 128 - t.width as u32 * 8;
        let extended = ((value << shift) as i128 >> shift) as u128;
        extended & if t.register_rows == 1 { u32::MAX as u128 } else { u64::MAX as u128 }
    } else {
        value
    }
}

/// Returns the value of one lane of a register that takes `rows` (1, 2 or 4) rows of the register file; a row has 32
/// bits per lane.
pub fn lane_value(regs: &Registers, register: u32, rows: u8, lane: usize) -> u128 {
    match rows {
        4 => {
            let lanes: &[u128] = bytemuck::cast_slice(&regs.rows[register as usize..register as usize + 4]);
            lanes[lane]
        }
        2 => {
            let lanes: &[u64] = bytemuck::cast_slice(&regs.rows[register as usize..register as usize + 2]);
            lanes[lane] as u128
        }
        _ => regs.rows[register as usize].0[lane] as u128,
    }
}

/// Sets the lanes of `mask` in a register that takes `rows` (1, 2 or 4) rows of the register file; a row has 32 bits
/// per lane.
pub fn set_register_lanes(regs: &mut Registers, register: u32, rows: u8, values: &[u128; 32], mask: u32) {
    match rows {
        1 => regs.set(register, &values.map(|v| v as u32), mask),
        2 => regs.set64(register, &values.map(|v| v as u64), mask),
        _ => {
            let lanes: &mut [u128] = bytemuck::cast_slice_mut(&mut regs.rows[register as usize..register as usize + 4]);
            for lane in lanes_in_mask(mask) {
                lanes[lane as usize] = values[lane as usize];
            }
        }
    }
    regs.undefined[register as usize] &= !mask;
}

/// Sets the destination registers of failed loads to zero, so that their later use is not reported as undefined.
#[cold]
pub fn zero_registers(regs: &mut Registers, t: &LoadStore, lanes: u32) {
    t.regs.iter().flatten().for_each(|&slot| set_register_lanes(regs, slot, t.register_rows, &[0; 32], lanes));
}

/// Loads the registers of a group's lanes from memory.
#[inline]
pub fn load_registers(data: &[u8], group: &LaneGroup, t: &LoadStore, regs: &mut Registers) {
    let width = t.width as usize;
    for (n, slot) in t.regs.iter().enumerate() {
        let Some(slot) = *slot else { continue };
        let lanes = group.lanes;
        if width == 4 && t.register_rows == 1 && group.consecutive {
            let (from, step) = (group.offsets[0] as usize, 4 * t.regs.len());
            let row = &mut regs.rows[slot as usize].0;
            for (lane, bytes) in row.iter_mut().zip(data[from..from + 32 * step].chunks_exact(step)) {
                *lane = u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]);
            }
            regs.undefined[slot as usize] = 0;
        } else if width == 4 && t.register_rows == 1 {
            let row = &mut regs.rows[slot as usize].0;
            let mut left = lanes;
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + 4 * n;
                row[lane] = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            }
            regs.undefined[slot as usize] &= !lanes;
        } else {
            let mut values = [0u128; 32];
            for lane in lanes_in_mask(lanes).map(|lane| lane as usize) {
                values[lane] = read_element(data, group.offsets[lane] as usize + n * width, t);
            }
            set_register_lanes(regs, slot, t.register_rows, &values, lanes);
        }
    }
}

/// Stores the registers of a group's lanes to memory. Returns whether any byte of memory changed.
#[inline]
pub fn store_registers(data: &mut [u8], group: &LaneGroup, t: &LoadStore, regs: &Registers) -> bool {
    let width = t.width as usize;
    let mut changed = false;
    for (n, slot) in t.regs.iter().flatten().enumerate() {
        let mut left = group.lanes;
        if width == 4 && t.register_rows == 1 && group.consecutive {
            let (from, step) = (group.offsets[0] as usize, 4 * t.regs.len());
            let row = &regs.rows[*slot as usize].0;
            for (value, bytes) in row.iter().zip(data[from..from + 32 * step].chunks_exact_mut(step)) {
                let (new, old) = (value.to_le_bytes(), &mut bytes[4 * n..4 * n + 4]);
                changed |= *old != new;
                old.copy_from_slice(&new);
            }
        } else if width == 4 && t.register_rows == 1 {
            let row = &regs.rows[*slot as usize].0;
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + 4 * n;
                let new = row[lane].to_le_bytes();
                let old = &mut data[at..at + 4];
                changed |= old != new;
                old.copy_from_slice(&new);
            }
        } else {
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + width * n;
                let new = lane_value(regs, *slot, t.register_rows, lane).to_le_bytes();
                let old = &mut data[at..at + width];
                changed |= old != &new[..width];
                old.copy_from_slice(&new[..width]);
            }
        }
    }
    changed
}

/// Returns the lanes whose store changes no byte: the stored values equal the bytes in `data`, or the values that
/// earlier lanes of the same instruction stored there. `order` lists the lanes in the order in which they store.
///
/// The results of butterfly shuffles at one address count as equal if the lanes of one instruction store them: they may
/// differ by rounding, and the CUDA programming guide promises that one of the lanes stores last. They count as equal to
/// the bytes in `data`, too, if one of the lanes stores these bytes, as when another warp has computed the same sum.
pub fn lanes_with_unchanged_bytes(
    data: &[u8],
    group: &LaneGroup,
    t: &LoadStore,
    regs: &Registers,
    order: impl Iterator<Item = u32>,
) -> u32 {
    let width = t.width as usize;
    let mut stored: HashMap<usize, u8> = HashMap::new();
    let (mut unchanged, mut repeated) = (0, 0);
    for lane in order {
        let (mut same, mut repeats) = (true, true);
        for (n, slot) in t.regs.iter().flatten().enumerate() {
            let from = group.offsets[lane as usize] as usize + width * n;
            let value = lane_value(regs, *slot, t.register_rows, lane as usize).to_le_bytes();
            for (at, new) in (from..).zip(&value[..width]) {
                repeats &= data[at] == *new;
                same &= match stored.insert(at, *new) {
                    Some(by_earlier_lane) => by_earlier_lane == *new || t.butterfly,
                    None => data[at] == *new,
                };
            }
        }
        unchanged |= u32::from(same) << lane;
        repeated |= u32::from(repeats) << lane;
    }
    if t.butterfly {
        let at = |lane: u32| group.offsets[lane as usize];
        let is_repeated = |lane: u32| lanes_in_mask(repeated).any(|other| at(other) == at(lane));
        unchanged |=
            lanes_in_mask(group.lanes).filter(|&lane| is_repeated(lane)).fold(0, |lanes, lane| lanes | 1 << lane);
    }
    unchanged
}
