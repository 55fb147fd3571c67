//! Matrix instructions: ldmatrix and stmatrix, mma, and wgmma with its groups.

use super::access::{Group, Place};
use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, Completion, Machine};
use crate::finding::Kind;
use crate::layout;
use crate::matrix::Lanes;
use crate::matrix::ldmatrix;
use crate::matrix::wgmma::{Operand, Tiles};
use crate::order::{Access, OpId, OpKind, Strength};
use crate::program::op::{MatrixTransfer, Mma, Wgmma};
use std::collections::VecDeque;

/// A warp's wgmma state.
#[derive(Clone, Debug, Default)]
pub struct WarpWgmma {
    /// Issued and not committed.
    open: Vec<Issued>,
    /// Committed groups, oldest first.
    groups: VecDeque<Vec<Issued>>,
    /// Registers that ordinary instructions touched since the last `wgmma.fence`, by row; grows as needed.
    pub touched: Vec<bool>,
    /// A `wgmma.fence` was executed at least once.
    pub fenced: bool,
    /// How many wgmma instructions of this warp are in flight.
    pub in_flight: u32,
}

/// A wgmma on its way.
#[derive(Clone, Debug)]
pub struct Issued {
    op: OpId,
    frame: u32,
    mask: u32,
    /// Rows of D, and of A from registers.
    d: Vec<u32>,
    a: Vec<u32>,
    /// What is still to be computed.
    todo: Option<Box<Todo>>,
    pc: u32,
}

/// The product that is still to be made.
#[derive(Clone, Debug)]
struct Todo {
    w: Wgmma,
    a_desc: Option<Operand>,
    a_regs: Vec<Lanes>,
    b_desc: Operand,
    scale_d: bool,
}

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
        self.places(block, warp, t.window, &at, suppliers & !undefined, 16, pc, &mut groups);
        let mut bytes = [[0u8; 16]; 32];
        let own = warp.slot;
        if t.store {
            let regs = &warp.frame(fragment.frame).regs;
            let values: Vec<Lanes> = t.regs.iter().map(|&r| regs.get(r)).collect();
            if t.regs.iter().any(|&r| regs.undefined[r as usize] & mask != 0) {
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(Kind::Uninitialized, site, None, None, || "stmatrix of an undefined register".into());
            }
            ldmatrix::store(&values, t.trans, &mut bytes[..rows]);
        }
        for group in &groups {
            self.count_matrix_traffic(group, t.store, pc);
            let access = if t.store { Access::Write } else { Access::Read };
            self.check(block, warp, access, group, 16, Strength::Weak, pc, 0);
            let data = self.data_mut(block, own, group.place);
            for lane in (0..rows).filter(|l| group.lanes >> l & 1 != 0) {
                let from = group.offsets[lane] as usize;
                let place = &mut data[from..from + 16];
                if t.store {
                    place.copy_from_slice(&bytes[lane]);
                } else {
                    bytes[lane].copy_from_slice(place);
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

    /// Each matrix, eight rows of 16 bytes, is a pass of its own at least.
    fn count_matrix_traffic(&mut self, group: &Group, store: bool, pc: u32) {
        self.count_traffic(group, 16, store, pc);
    }

    pub(super) fn movmatrix(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        dst: u32,
        src: u32,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let _ = (block, pc);
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

    pub(super) fn mma(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        m: &Mma,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let _ = block;
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        self.counters.by_instruction[pc as usize].matrix_flops += m.op.flops();
        let regs = &mut warp.frame(fragment.frame).regs;
        let undefined = m.a.iter().chain(&m.b).chain(&m.c).fold(0, |u, &s| u | regs.undefined[s as usize]) & mask;
        if !self.options.count_only {
            let rows = m.op.rows_per_register();
            let mut a = [[0u32; 32]; 16];
            let mut b = [[0u32; 32]; 16];
            let mut c = [[0u32; 32]; 16];
            let mut d = [[0u32; 32]; 16];
            let gather = |slots: &[u32], out: &mut [Lanes; 16]| {
                for (i, &s) in slots.iter().enumerate() {
                    for r in 0..rows {
                        out[i * rows + r] = regs.rows[s as usize + r].0;
                    }
                }
                slots.len() * rows
            };
            let (na, nb, nc) = (gather(&m.a, &mut a), gather(&m.b, &mut b), gather(&m.c, &mut c));
            m.op.run(&a[..na], &b[..nb], &c[..nc], &mut d[..nc]);
            for (i, &s) in m.d.iter().enumerate() {
                if rows == 1 {
                    regs.set(s, &d[i], mask);
                } else {
                    for r in 0..rows {
                        regs.rows[s as usize + r].0 = d[i * rows + r];
                    }
                }
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

    pub(super) fn wgmma(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        w: &Wgmma,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        if warp.index % 4 == 0 {
            self.counters.by_instruction[pc as usize].matrix_flops += w.op.flops();
        }
        let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
        let first = mask.trailing_zeros() as usize;
        let regs = &warp.frame(fragment.frame).regs;
        let read = |slot: u32| regs.get64(slot);
        let uniform = |values: [u64; 32]| (0..32).filter(|l| mask >> l & 1 != 0).all(|l| values[l] == values[first]);
        let (a_bits, b_bits) = (w.a_desc.map(read), read(w.b_desc));
        let descriptor_undefined =
            w.a_desc.iter().chain(Some(&w.b_desc)).fold(0, |u, &s| u | regs.undefined[s as usize]) & mask != 0;
        if descriptor_undefined || a_bits.is_some_and(|a| !uniform(a)) || !uniform(b_bits) {
            self.report(Kind::Wgmma, site, None, None, || {
                "a wgmma descriptor differs between lanes or is undefined".into()
            });
        }
        let (p, negated) = w.scale_d;
        let scale_d = (regs.predicates[p as usize] >> first & 1 != 0) != negated;
        let a_undefined = w.a.iter().fold(0, |u, &s| u | regs.undefined[s as usize]) & mask;
        let d_undefined = if scale_d { w.d.iter().fold(0, |u, &s| u | regs.undefined[s as usize]) & mask } else { 0 };
        let a_regs: Vec<Lanes> = w.a.iter().map(|&s| regs.get(s)).collect();
        let operands = (|| {
            let a = match a_bits {
                Some(bits) => Some(w.op.operand_a(bits[first])?),
                None => None,
            };
            Ok::<_, crate::matrix::wgmma::DescriptorError>((a, w.op.operand_b(b_bits[first])?))
        })();
        let (a_desc, b_desc) = match operands {
            Ok(o) => o,
            Err(e) => {
                self.report(Kind::Wgmma, site, None, None, || e.to_string());
                return Flow::Next;
            }
        };
        let (start, end) = (layout::SHARED_START, layout::SHARED_START + block.shared.len() as u32);
        for operand in a_desc.iter().chain(Some(&b_desc)) {
            if let Err(e) = operand.check_range(start, end) {
                self.report(Kind::Wgmma, site, None, None, || e.to_string());
                return Flow::Next;
            }
        }
        if a_undefined != 0 || d_undefined != 0 {
            self.report(Kind::Uninitialized, site, None, None, || "wgmma reads undefined registers".into());
        }
        let op = self.ops.start(OpKind::Matrix, &warp.order, mask, pc);
        // What the instruction reads; the warps of the group each read all of B, and A.
        if !self.options.count_only {
            let mut runs = Vec::new();
            if let Some(a) = &a_desc {
                a.for_each_run(|at, n| runs.push((at, n)));
            }
            b_desc.for_each_run(|at, n| runs.push((at, n)));
            let place = Place::Shared(warp.slot);
            let lane = mask.trailing_zeros();
            for (at, n) in runs {
                self.async_access(block, warp, op, lane, place, (at - start) as u64, n as u64, None, pc);
            }
        }
        let todo = Todo { w: w.clone(), a_desc, a_regs, b_desc, scale_d };
        let mut issued =
            Issued { op, frame: fragment.frame, mask, d: w.d.clone(), a: w.a.clone(), todo: Some(Box::new(todo)), pc };
        let now = match self.options.completion {
            Completion::Earliest => true,
            Completion::Latest => false,
            Completion::Random => self.rng.below(2) == 0,
        };
        // In order: what was issued earlier comes first.
        if now && warp.copies.wgmma.all_done() {
            self.finish_wgmma(block, warp, &mut issued);
        }
        self.wgmma_issue_checks(block, warp, &issued, w, pc);
        warp.copies.wgmma.open.push(issued);
        warp.copies.wgmma.in_flight += 1;
        Flow::Next
    }

    /// Computes a product that was put off.
    fn finish_wgmma(&mut self, block: &Block, warp: &mut Warp, issued: &mut Issued) {
        let Some(todo) = issued.todo.take() else { return };
        let regs = &mut warp.frame(issued.frame).regs;
        for &s in &issued.d {
            regs.undefined[s as usize] &= !issued.mask;
        }
        if self.options.count_only {
            return;
        }
        let mut tiles = std::mem::take(&mut self.tiles);
        let fetch = |at: u32| -> [u8; 16] {
            let from = (at - layout::SHARED_START) as usize;
            block.shared[from..from + 16].try_into().expect("16 bytes")
        };
        let w = &todo.w;
        let quarter = (warp.index % 4) as usize;
        match &todo.a_desc {
            Some(a) => tiles.read_a(&w.op, a, fetch),
            None => tiles.set_a(&w.op, quarter, &todo.a_regs),
        }
        tiles.read_b(&w.op, &todo.b_desc, fetch);
        let regs = &mut warp.frame(issued.frame).regs;
        let mut d: Vec<Lanes> = issued.d.iter().map(|&s| regs.get(s)).collect();
        w.op.run(&tiles, quarter, todo.scale_d, &mut d);
        for (&s, value) in issued.d.iter().zip(&d) {
            regs.set(s, value, issued.mask);
        }
        self.tiles = tiles;
    }

    /// Hazards at the issue of a wgmma: registers touched since the last fence.
    fn wgmma_issue_checks(&mut self, block: &Block, warp: &mut Warp, issued: &Issued, w: &Wgmma, pc: u32) {
        let site = self.site(block, warp.index, issued.mask.trailing_zeros(), pc);
        let state = &warp.copies.wgmma;
        let touched = |s: &u32| state.touched.get(*s as usize).copied().unwrap_or(false);
        if !state.fenced {
            self.report(Kind::Wgmma, site, None, None, || "wgmma without any wgmma.fence before it".into());
        } else if w.a.iter().any(touched) || w.d.iter().any(touched) {
            self.report(Kind::Wgmma, site, None, None, || {
                "wgmma on registers that were accessed since the last wgmma.fence".into()
            });
        }
    }

    pub(super) fn wgmma_fence(
        &mut self,
        _block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        mask: u32,
        _pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let state = &mut warp.copies.wgmma;
        state.fenced = true;
        state.touched.iter_mut().for_each(|t| *t = false);
        Flow::Next
    }

    pub(super) fn wgmma_commit(
        &mut self,
        _block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        mask: u32,
        _pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let open = std::mem::take(&mut warp.copies.wgmma.open);
        warp.copies.wgmma.groups.push_back(open);
        Flow::Next
    }

    pub(super) fn wgmma_wait(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        groups: u32,
        mask: u32,
        _pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        while warp.copies.wgmma.groups.len() > groups as usize {
            let Some(group) = warp.copies.wgmma.groups.pop_front() else { break };
            for mut issued in group {
                self.finish_wgmma(block, warp, &mut issued);
                self.ops.resolve_lanes(issued.op, &warp.order, mask);
                warp.copies.wgmma.in_flight -= 1;
            }
        }
        Flow::Next
    }

    /// An ordinary instruction while wgmma is in flight, or between fences: which registers it touches.
    #[cold]
    #[inline(never)]
    pub(super) fn wgmma_registers(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        frame: u32,
        reads: &[u32],
        writes: &[u32],
        lane: u32,
        pc: u32,
    ) {
        let state = &mut warp.copies.wgmma;
        for &s in reads.iter().chain(writes) {
            if state.touched.len() <= s as usize {
                state.touched.resize(s as usize + 1, false);
            }
            state.touched[s as usize] = true;
        }
        if state.in_flight == 0 {
            return;
        }
        let all = state.open.iter().chain(state.groups.iter().flatten());
        let bad = all.filter(|i| i.frame == frame).find_map(|i| {
            let d = reads.iter().chain(writes).any(|s| i.d.contains(s));
            let a = writes.iter().any(|s| i.a.contains(s));
            (d || a).then_some((i.pc, d))
        });
        if let Some((other, accumulator)) = bad {
            let site = self.site(block, warp.index, lane, pc);
            let (line, _) = crate::finding::source(self.program, self.kernel, other);
            self.report(Kind::Wgmma, site, Some(other), None, || {
                let what = if accumulator { "an accumulator" } else { "a register of A" };
                format!("{what} of the wgmma at line {line} is touched before wgmma.wait_group covers it")
            });
        }
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
        if !(24..=256).contains(&count) || count % 8 != 0 {
            self.report(Kind::Setmaxnreg, site, None, None, || {
                format!("setmaxnreg {count}: 24 to 256 in steps of 8 are possible")
            });
            return Flow::Next;
        }
        let now = warp.max_registers;
        if increase && count < now || !increase && count > now {
            self.report(Kind::Setmaxnreg, site, None, None, || {
                let word = if increase { "inc" } else { "dec" };
                format!("setmaxnreg.{word} to {count}, but the warp has {now} registers a thread")
            });
            return Flow::Next;
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
        self.changed();
        Flow::Next
    }
}

impl WarpWgmma {
    /// Nothing is put off.
    fn all_done(&self) -> bool {
        self.open.iter().chain(self.groups.iter().flatten()).all(|i| i.todo.is_none())
    }
}

/// A place for the operands of a product, used again and again.
pub type TileSpace = Tiles;
