//! `wmma.load` and `wmma.store`: fragments of matrices between registers and memory.

use super::matrix_rows::store_after_loads_of_warp;
use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, NextAction};
use crate::exec::operands::{lane_addresses, lanes_with_undefined_address};
use crate::finding::FindingKind;
use crate::program::op::WmmaTransfer;

impl MemorySystem {
    /// Executes `wmma.load` or `wmma.store`: every lane moves its own registers.
    pub fn wmma_transfer(&mut self, cx: &mut InstructionContext, t: &WmmaTransfer) -> NextAction {
        if !cx.gather_lanes(u32::MAX) {
            return NextAction::Stop;
        }
        let (form, mask) = (&t.fragment, cx.mask);
        let regs = cx.regs();
        let base = lane_addresses(regs, &t.addr);
        let strides = t.stride.map_or([form.default_stride_elements(t.column_major); 32], |slot| regs.get(slot));
        let undefined =
            lanes_with_undefined_address(regs, &t.addr) | t.stride.map_or(0, |slot| regs.undefined[slot as usize]);
        let defined = undefined & mask == 0;
        let lane = cx.first_lane();
        if !defined {
            cx.report_undefined(lane, || "an address depends on an undefined register".into());
        }
        // A misaligned matrix is reported once, not for each of its elements.
        let (start, step) = (base[lane as usize], strides[lane as usize] as u64 * form.element_bits() as u64);
        let align = form.row_alignment_bytes();
        let aligned = start.is_multiple_of(align) && step.is_multiple_of(8 * align);
        if defined && !aligned {
            let bytes = step / 8;
            cx.report(FindingKind::Misaligned, lane, || {
                format!(
                    "a wmma matrix at address {start:#x} with a row stride of {bytes} bytes: both must be multiples of {align}"
                )
            });
        }
        if !defined || !aligned {
            if !t.store {
                let regs = cx.regs_mut();
                t.regs.iter().for_each(|&slot| regs.undefined[slot as usize] &= !mask);
            }
            return NextAction::Next;
        }
        if t.store {
            store_after_loads_of_warp(cx, |cx| self.wmma_registers(cx, t, &base, &strides));
            return NextAction::Next;
        }
        self.wmma_registers(cx, t, &base, &strides);
        // Some matrix fragments hold each element in several registers: the remaining registers are copies of the
        // distinct ones.
        let (distinct, copies) = t.regs.split_at(form.distinct_register_count());
        for (&to, &from) in copies.iter().zip(distinct.iter().cycle()) {
            let value = cx.regs().get(from);
            cx.set_register(to, &value);
        }
        NextAction::Next
    }

    /// Moves all registers of a matrix fragment between registers and memory. In each lane, `base` is the address of
    /// the matrix and `strides` the distance of its rows in elements.
    fn wmma_registers(&mut self, cx: &mut InstructionContext, t: &WmmaTransfer, base: &[u64; 32], strides: &[u32; 32]) {
        let form = &t.fragment;
        for register in 0..form.distinct_register_count() {
            let addresses_of = |element: usize| -> [u64; 32] {
                std::array::from_fn(|l| {
                    let (row, column) = form.element_row_and_column(register, element, l);
                    let (line, along) = if t.column_major { (column, row) } else { (row, column) };
                    let bits = (line as u64 * strides[l] as u64 + along as u64) * form.element_bits() as u64;
                    base[l].wrapping_add(bits / 8)
                })
            };
            if t.packed {
                self.wmma_element(cx, t, register, &addresses_of(0));
                continue;
            }
            self.wmma_unpacked(cx, t, t.regs[register], addresses_of);
        }
    }

    /// Moves the elements of a register one at a time: they are narrower than the register and not consecutive in
    /// memory.
    fn wmma_unpacked(
        &mut self,
        cx: &mut InstructionContext,
        t: &WmmaTransfer,
        slot: u32,
        addresses_of: impl Fn(usize) -> [u64; 32],
    ) {
        let (form, mask) = (&t.fragment, cx.mask);
        let mut word = if t.store { cx.regs().get(slot) } else { [0; 32] };
        let undefined = cx.regs().undefined[slot as usize];
        for element in 0..form.elements_per_register() {
            let shift = element as u32 * form.element_bits();
            if t.store {
                let low = u32::MAX >> (32 - form.element_bits());
                let regs = cx.regs_mut();
                regs.set(t.element, &word.map(|w| w >> shift & low), mask);
                regs.undefined[t.element as usize] = undefined;
            }
            self.wmma_element(cx, t, 0, &addresses_of(element));
            if !t.store {
                let part = cx.regs().get(t.element);
                word.iter_mut().zip(part).for_each(|(word, part)| *word |= part << shift);
            }
        }
        if !t.store {
            cx.set_register(slot, &word);
        }
    }

    /// Executes the load or store with index `transfer` among those that make up the instruction. `at` holds the
    /// address of each lane.
    fn wmma_element(&mut self, cx: &mut InstructionContext, t: &WmmaTransfer, transfer: usize, at: &[u64; 32]) {
        let regs = cx.regs_mut();
        regs.set64(t.at, at, u32::MAX);
        regs.undefined[t.at as usize] = 0;
        if t.store {
            self.store(cx, &t.transfers[transfer]);
        } else {
            self.load(cx, &t.transfers[transfer]);
        }
    }
}
