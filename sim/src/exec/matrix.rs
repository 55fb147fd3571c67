//! Matrix instructions of a warp: ldmatrix and stmatrix, movmatrix, mma; and setmaxnreg.

use super::access::{Group, Place};
use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, Machine};
use crate::counters;
use crate::finding::FindingKind;
use crate::layout;
use crate::matrix::Lanes;
use crate::matrix::ldmatrix;
use crate::matrix::mma::MmaOp;
use crate::order::{AccessKind, AccessStrength, CheckContext};
use crate::program::op::{AddressWindow, DecodedInstruction, MatrixTransfer, Mma, Op};
use crate::regs::Registers;

impl Machine<'_> {
    pub(super) fn matrix_transfer(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        t: &MatrixTransfer,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        if !t.store && mask == u32::MAX {
            let frame = fragment.frame;
            let done = crate::simd::dispatch(
                #[inline(always)]
                || self.load_own_rows(block, warp, frame, t, pc),
            );
            if done {
                return Flow::Next;
            }
        }
        let count = t.regs.len();
        let rows = 8 * count;
        let suppliers = if rows == 32 { u32::MAX } else { (1 << rows) - 1 };
        let regs = &warp.frame(fragment.frame).regs;
        let at = addresses(regs, &t.addr);
        let undefined = undefined_address(regs, &t.addr) & suppliers;
        if undefined != 0 {
            self.defined_lanes(block, warp, undefined, suppliers, pc);
        }
        let mut groups = std::mem::take(&mut self.groups);
        groups.clear();
        match own_rows(block, warp.slot, t, &at, suppliers & !undefined) {
            Some(group) => groups.push(group),
            None => {
                self.places(block, warp, t.window, &at, suppliers & !undefined, 16, pc, &mut groups);
            }
        }
        let mut bytes = [[0u8; 16]; 32];
        let own = warp.slot;
        if t.store {
            let regs = &warp.frame(fragment.frame).regs;
            let values: Vec<Lanes> = t.regs.iter().map(|&r| regs.get(r)).collect();
            if t.regs.iter().any(|&r| regs.undefined[r as usize] & mask != 0) {
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(FindingKind::Uninitialized, site, None, None, || {
                    "stmatrix of an undefined register".into()
                });
            }
            ldmatrix::store(&values, t.trans, &mut bytes[..rows]);
        }
        for group in &groups {
            self.count_traffic(group, 16, t.store, pc);
            if t.store {
                self.check(block, warp, AccessKind::Write, group, 16, AccessStrength::Weak, pc, 0);
                self.overwrites_mbarrier(block, warp, group, 16, pc);
            } else {
                self.check_rows(block, warp, group, pc);
            }
            if t.store {
                let data = self.data_mut(block, own, group.place);
                for lane in (0..rows).filter(|l| group.lanes >> l & 1 != 0) {
                    data[group.offsets[lane] as usize..][..16].copy_from_slice(&bytes[lane]);
                }
            } else {
                let data = self.data(block, own, group.place);
                for lane in (0..rows).filter(|l| group.lanes >> l & 1 != 0) {
                    bytes[lane].copy_from_slice(&data[group.offsets[lane] as usize..][..16]);
                }
            }
        }
        self.groups = groups;
        if t.store {
            self.changed();
            fragment.backs = 0;
        } else {
            let mut values = [[0u32; 32]; 4];
            ldmatrix::load(&bytes[..rows], t.trans, &mut values[..count]);
            let regs = &mut warp.frame(fragment.frame).regs;
            for (slot, value) in t.regs.iter().zip(&values) {
                regs.set(*slot, value, mask);
                regs.undefined[*slot as usize] &= !mask;
            }
        }
        Flow::Next
    }

    /// `ldmatrix` by all lanes from the block's own memory, with nothing wrong with its addresses. False, and nothing done,
    /// where that is not so.
    #[inline(always)]
    fn load_own_rows(&mut self, block: &mut Block, warp: &mut Warp, frame: u32, t: &MatrixTransfer, pc: u32) -> bool {
        let (rows, frame) = (8 * t.regs.len(), frame as usize);
        let Some(regs) = warp.frames[frame].as_ref().map(|frame| &frame.regs) else { return false };
        let (AddressWindow::Shared, false, Some(base), 0) =
            (t.window, t.addr.wide, t.addr.base, undefined_address(regs, &t.addr))
        else {
            return false;
        };
        let plus = (t.addr.offset as u32).wrapping_sub(layout::SHARED_START);
        let offsets = regs.rows[base as usize].0.map(|a| a.wrapping_add(plus));
        let end = (block.shared.len() as u32).saturating_sub(15);
        if !offsets[..rows].iter().fold(true, |good, &o| good & (o < end) & (o % 16 == 0)) {
            return false;
        }
        let lanes = u32::MAX >> (32 - rows);
        let (passes, least) = counters::wavefronts(&offsets, lanes, 16);
        let count = &mut self.counters.by_instruction[pc as usize];
        count.shared_bytes += 16 * rows as u64;
        count.wavefronts += passes;
        count.wavefronts_least += least;
        if !self.options.count_only {
            let mut found = std::mem::take(&mut self.conflicts);
            found.clear();
            let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
            block.shadow.read_matrix_rows(&warp.order, lanes, &offsets.map(u64::from), pc, &cx, &mut found);
            if !found.is_empty() {
                let place = Place::Shared(warp.slot);
                self.report_conflicts(block, warp.index, AccessKind::Read, place, &found, pc, 0);
            }
            self.conflicts = found;
        }
        let Some(regs) = warp.frames[frame].as_mut().map(|frame| &mut frame.regs) else { return false };
        for (&slot, offsets) in t.regs.iter().zip(offsets.chunks_exact(8)) {
            // Straight to the register: rows put together elsewhere would be slow to load from there at once.
            let matrix = &mut regs.rows[slot as usize].0;
            let rows: &mut [[u8; 16]; 8] = bytemuck::cast_mut(matrix);
            for (row, &from) in rows.iter_mut().zip(offsets) {
                row.copy_from_slice(&block.shared[from as usize..from as usize + 16]);
            }
            ldmatrix::arrange(matrix, t.trans);
            regs.undefined[slot as usize] = 0;
        }
        true
    }

    /// Checks that the warp may read the rows of a group.
    fn check_rows(&mut self, block: &mut Block, warp: &Warp, group: &Group, pc: u32) {
        if self.options.count_only {
            return;
        }
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
        let shadow = match group.place {
            Place::Global(i) => Some(&mut self.memory.get_mut(i).shadow),
            Place::Shared(s) if s == warp.slot => Some(&mut block.shadow),
            Place::Shared(s) => self.blocks[s as usize].as_mut().map(|b| &mut b.shadow),
        };
        if let Some(shadow) = shadow {
            shadow.read_matrix_rows(&warp.order, group.lanes, &group.offsets, pc, &cx, &mut found);
        }
        if !found.is_empty() {
            self.report_conflicts(block, warp.index, AccessKind::Read, group.place, &found, pc, 0);
        }
        self.conflicts = found;
    }

    pub(super) fn movmatrix(
        &mut self,
        warp: &mut Warp,
        fragment: &mut Fragment,
        dst: u32,
        src: u32,
        mask: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let regs = &mut warp.frame(fragment.frame).regs;
        let value = ldmatrix::transposed(&regs.get(src));
        let undefined = if regs.undefined[src as usize] & mask != 0 { mask } else { 0 };
        regs.set(dst, &value, mask);
        let slot = &mut regs.undefined[dst as usize];
        *slot = *slot & !mask | undefined;
        Flow::Next
    }

    pub(super) fn mma(&mut self, warp: &mut Warp, fragment: &mut Fragment, m: &Mma, mask: u32, pc: u32) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        self.counters.by_instruction[pc as usize].matrix_flops += m.op.flops();
        let regs = &mut warp.frame(fragment.frame).regs;
        let undefined = m.a.iter().chain(&m.b).chain(&m.c).fold(0, |u, &s| u | regs.undefined[s as usize]) & mask;
        if !self.options.count_only {
            let row = |s: u32| &regs.rows[s as usize].0;
            match (&m.a[..], &m.b[..], &m.c[..], m.op.rows_per_register()) {
                (&[a0, a1, a2, a3], &[b0, b1], &[c0, c1, c2, c3], 1) => {
                    let (a, b) = ([row(a0), row(a1), row(a2), row(a3)], [row(b0), row(b1)]);
                    let c = [row(c0), row(c1), row(c2), row(c3)];
                    let mut d = [[0; 32]; 4];
                    m.op.run(&a, &b, &c, &mut d);
                    if mask == u32::MAX {
                        m.d.iter().zip(&d).for_each(|(&s, d)| regs.rows[s as usize].0 = *d);
                    } else {
                        m.d.iter().zip(&d).for_each(|(&s, d)| regs.set(s, d, mask));
                    }
                }
                _ => mma_of_any_shape(m, regs, mask),
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

    /// `mma`s of all lanes one after the other, as far as `instrs` go on with the same one; how many. The first is counted as
    /// executed, the others are still to be. `number` is the first's, kernel-wide.
    #[inline(never)]
    pub(super) fn mma_sequence(
        &mut self,
        regs: &mut Registers,
        op: MmaOp,
        instrs: &[DecodedInstruction],
        number: u32,
    ) -> u32 {
        // A guarded one waits for its turn, whatever its guard; but the first's has been looked at.
        let alike = |(n, instr): &(usize, &DecodedInstruction)| match &instr.op {
            Op::Mma(m) => m.op == op && (*n == 0 || instr.guard.is_none()),
            _ => false,
        };
        let count = instrs.iter().enumerate().take_while(alike).count();
        let products = instrs[..count].iter().filter_map(|instr| match &instr.op {
            Op::Mma(m) => m.batched.as_ref(),
            _ => None,
        });
        for (n, p) in products.clone().enumerate() {
            let total = &mut self.counters.by_instruction[number as usize + n];
            let again = u64::from(n > 0);
            total.warps += again;
            total.threads += 32 * again;
            total.matrix_flops += op.flops();
            let undefined = p.a.iter().chain(&p.b).chain(&p.c).fold(0, |u, &s| u | regs.undefined[s as usize]);
            let spoiled = if undefined != 0 { u32::MAX } else { 0 };
            p.d.iter().for_each(|&s| regs.undefined[s as usize] = spoiled);
        }
        if !self.options.count_only {
            self.fragments.run(&op, bytemuck::cast_slice_mut(&mut regs.rows), products);
        }
        count as u32
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    pub(super) fn setmaxnreg(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        count: u32,
        increase: bool,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            self.report(FindingKind::Setmaxnreg, site, None, None, || {
                format!("setmaxnreg {count}: 24 to 256 in steps of 8 are possible")
            });
            return Flow::Next;
        }
        let now = warp.max_registers;
        if increase && count < now || !increase && count > now {
            self.report(FindingKind::Setmaxnreg, site, None, None, || {
                let word = if increase { "inc" } else { "dec" };
                format!("setmaxnreg.{word} to {count}, but the warp has {now} registers a thread")
            });
            return Flow::Next;
        }
        if self.kernel.max_threads.is_none()
            && self.kernel.max_registers.is_none()
            && self.kernel.required_threads.is_none()
        {
            let line = crate::finding::source(self.program, self.kernel, pc).0;
            let note = format!("line {line}: ptxas ignores setmaxnreg in a kernel without launch bounds");
            *self.notes.entry(note).or_insert(0) += 1;
        }
        if increase {
            let need = (count - now) * 32;
            if block.register_pool < need {
                fragment.gathered = true;
                fragment.state = super::warp::State::Registers;
                return Flow::Stop;
            }
            fragment.gathered = false;
            block.register_pool -= need;
        } else {
            block.register_pool += (now - count) * 32;
            self.pool_grew = true;
        }
        warp.max_registers = count;
        warp.copies.wgmma.setmaxnreg.push(pc);
        self.changed();
        Flow::Next
    }
}

/// D = A·B + C with any number of registers, 64-bit ones too.
fn mma_of_any_shape(m: &Mma, regs: &mut Registers, mask: u32) {
    let rows = m.op.rows_per_register();
    let gather = |slots: &[u32]| -> Vec<&Lanes> {
        slots.iter().flat_map(|&s| regs.rows[s as usize..s as usize + rows].iter().map(|row| &row.0)).collect()
    };
    let (a, b, c) = (gather(&m.a), gather(&m.b), gather(&m.c));
    let mut d = vec![[0; 32]; c.len()];
    m.op.run(&a, &b, &c, &mut d);
    for (d, &s) in d.chunks_exact(rows).zip(&m.d) {
        if rows == 1 {
            regs.set(s, &d[0], mask);
        } else {
            (0..rows).for_each(|r| regs.rows[s as usize + r].0 = d[r]);
        }
    }
}

/// Rows at shared addresses that all lie in the block's own memory, aligned.
#[inline]
fn own_rows(block: &Block, slot: u32, t: &MatrixTransfer, at: &[u64; 32], lanes: u32) -> Option<Group> {
    if t.window != AddressWindow::Shared {
        return None;
    }
    let end = (block.shared.len() as u64).saturating_sub(15);
    let offsets = at.map(|a| a.wrapping_sub(layout::SHARED_START as u64));
    let good = (0..32).all(|l| lanes >> l & 1 == 0 || offsets[l] < end && offsets[l].is_multiple_of(16));
    good.then_some(Group { place: Place::Shared(slot), lanes, offsets, row: false })
}
