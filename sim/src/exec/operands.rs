//! Operands of instructions: addresses, predicates, undefined registers, and masks of the lanes that satisfy a
//! condition.

use crate::program::op::AddressOperand;
use crate::regs::Registers;

/// Returns the value of an address operand in every lane.
#[inline(always)]
pub fn lane_addresses(regs: &Registers, addr: &AddressOperand) -> [u64; 32] {
    match addr.base {
        None => [addr.offset as u64; 32],
        Some(slot) if addr.wide => {
            let base = regs.get64(slot);
            std::array::from_fn(|l| base[l].wrapping_add(addr.offset as u64))
        }
        Some(slot) => {
            let base = regs.get(slot);
            std::array::from_fn(|l| base[l].wrapping_add(addr.offset as u32) as u64)
        }
    }
}

/// Returns the mask of the lanes in which an address operand is undefined.
#[inline(always)]
pub fn lanes_with_undefined_address(regs: &Registers, addr: &AddressOperand) -> u32 {
    addr.base.map_or(0, |slot| regs.undefined[slot as usize])
}

/// Returns the mask of the lanes in which any of these registers is undefined.
pub fn lanes_with_undefined_register<'s>(regs: &Registers, slots: impl IntoIterator<Item = &'s u32>) -> u32 {
    slots.into_iter().fold(0, |mask, &slot| mask | regs.undefined[slot as usize])
}

/// Marks the lanes `undefined` of a register as undefined, and the other lanes of `mask` as defined.
pub fn mark_undefined_lanes(regs: &mut Registers, register: u32, undefined: u32, mask: u32) {
    regs.undefined[register as usize] &= !mask;
    regs.mark_undefined(register, undefined);
}

/// Sets a predicate to `value` in the lanes of `mask`.
pub fn set_predicate(regs: &mut Registers, predicate: u32, value: u32, mask: u32) {
    let slot = &mut regs.predicates[predicate as usize];
    *slot = *slot & !mask | value & mask;
    regs.undefined_predicates[predicate as usize] &= !mask;
}

/// Returns the mask of the lanes in `mask` for which `test` holds.
pub fn lanes_where(mask: u32, test: impl Fn(usize) -> bool) -> u32 {
    (0..32).filter(|&l| mask >> l & 1 != 0 && test(l)).fold(0, |lanes, l| lanes | 1 << l)
}
