//! `wmma`: fragments between registers and memory, and their product.

use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::matrix::Lanes;
use crate::program::op::{Wmma, WmmaTransfer};

impl Machine<'_> {
    /// `wmma.load` and `wmma.store`: every lane moves its own registers.
    pub(super) fn wmma_transfer(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        t: &WmmaTransfer,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let form = &t.fragment;
        let regs = &warp.frame(fragment.frame).regs;
        let base = addresses(regs, &t.addr);
        let strides = t.stride.map_or([form.default_stride(t.column_major); 32], |slot| regs.get(slot));
        let undefined = undefined_address(regs, &t.addr) | t.stride.map_or(0, |slot| regs.undefined[slot as usize]);
        let lane = mask.trailing_zeros();
        let site = self.site(block, warp.index, lane, pc);
        if undefined & mask != 0 {
            self.report(FindingKind::Uninitialized, site, None, None, || {
                "an address depends on an undefined register".into()
            });
        }
        // Once for the whole matrix rather than for each of its elements.
        let (start, step) = (base[lane as usize], strides[lane as usize] as u64 * form.bits() as u64);
        let align = form.alignment();
        let aligned = start.is_multiple_of(align) && step.is_multiple_of(8 * align);
        if undefined & mask == 0 && !aligned {
            let bytes = step / 8;
            self.report(FindingKind::Misaligned, site, None, None, || {
                format!(
                    "a matrix at {start:#x} with {bytes} bytes from row to row: both have to be multiples of {align}"
                )
            });
        }
        if undefined & mask != 0 || !aligned {
            if !t.store {
                let regs = &mut warp.frame(fragment.frame).regs;
                t.regs.iter().for_each(|&slot| regs.undefined[slot as usize] &= !mask);
            }
            return Flow::Next;
        }
        for register in 0..form.distinct() {
            let addresses_of = |element: usize| -> [u64; 32] {
                std::array::from_fn(|l| {
                    let (row, column) = form.element_position(register, element, l);
                    let (line, along) = if t.column_major { (column, row) } else { (row, column) };
                    let bits = (line as u64 * strides[l] as u64 + along as u64) * form.bits() as u64;
                    base[l].wrapping_add(bits / 8)
                })
            };
            if t.packed {
                set_address(warp, fragment, t, &addresses_of(0));
                self.wmma_access(block, warp, fragment, t, register, mask, pc);
                continue;
            }
            let slot = t.regs[register];
            let mut word = if t.store { warp.frame(fragment.frame).regs.get(slot) } else { [0; 32] };
            let undefined = warp.frame(fragment.frame).regs.undefined[slot as usize];
            for element in 0..form.per_register() {
                set_address(warp, fragment, t, &addresses_of(element));
                let shift = element as u32 * form.bits();
                if t.store {
                    let low = u32::MAX >> (32 - form.bits());
                    let regs = &mut warp.frame(fragment.frame).regs;
                    regs.set(t.element, &word.map(|w| w >> shift & low), mask);
                    regs.undefined[t.element as usize] = undefined;
                }
                self.wmma_access(block, warp, fragment, t, 0, mask, pc);
                if !t.store {
                    let part = warp.frame(fragment.frame).regs.get(t.element);
                    word.iter_mut().zip(part).for_each(|(word, part)| *word |= part << shift);
                }
            }
            if !t.store {
                let regs = &mut warp.frame(fragment.frame).regs;
                regs.set(slot, &word, mask);
                regs.undefined[slot as usize] &= !mask;
            }
        }
        if !t.store {
            let regs = &mut warp.frame(fragment.frame).regs;
            for (&to, &from) in t.regs[form.distinct()..].iter().zip(t.regs[..form.distinct()].iter().cycle()) {
                let value = regs.get(from);
                regs.set(to, &value, mask);
                regs.undefined[to as usize] &= !mask;
            }
        }
        Flow::Next
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn wmma_access(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        t: &WmmaTransfer,
        which: usize,
        mask: u32,
        pc: u32,
    ) {
        let transfer = &t.transfers[which];
        if t.store {
            self.store(block, warp, fragment, transfer, mask, pc);
        } else {
            self.load(block, warp, fragment.frame, transfer, mask, pc);
        }
    }

    /// `wmma.mma`
    pub(super) fn wmma_mma(&mut self, warp: &mut Warp, fragment: &mut Fragment, m: &Wmma, mask: u32, pc: u32) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        self.counters.by_instruction[pc as usize].matrix_flops += m.op.flops();
        let regs = &mut warp.frame(fragment.frame).regs;
        let undefined = m.a.iter().chain(&m.b).chain(&m.c).fold(0, |u, &s| u | regs.undefined[s as usize]) & mask;
        if !self.options.count_only {
            let rows = m.op.rows_per_register();
            let of = |slots: &[u32], distinct: usize| -> Vec<&Lanes> {
                let rows_of = |&s: &u32| regs.rows[s as usize..s as usize + rows].iter().map(|row| &row.0);
                slots[..distinct].iter().flat_map(rows_of).collect()
            };
            let [a, b, c, _] = m.op.fragments.map(|f| f.distinct());
            let d = m.op.run(&of(&m.a, a), &of(&m.b, b), &of(&m.c, c));
            for (d, &slot) in d.chunks_exact(rows).zip(&m.d) {
                d.iter().enumerate().for_each(|(row, d)| regs.rows[slot as usize + row].0 = *d);
            }
        }
        // An undefined element spoils its row or column; all of D, to be short.
        let spoiled = if undefined != 0 { mask } else { 0 };
        for &s in &m.d {
            let slot = &mut regs.undefined[s as usize];
            *slot = *slot & !mask | spoiled;
        }
        Flow::Next
    }
}

fn set_address(warp: &mut Warp, fragment: &Fragment, t: &WmmaTransfer, at: &[u64; 32]) {
    let regs = &mut warp.frame(fragment.frame).regs;
    regs.set64(t.at, at, u32::MAX);
    regs.undefined[t.at as usize] = 0;
}
