//! wgmma: products of a warpgroup, in groups, and the registers that must be left alone meanwhile.
//!
//! A product takes effect when all four warps have issued it, and is complete for all of them at once: whoever of the group
//! waits for it may hand its operands' memory on. PTX ISA, "Asynchronous warpgroup level matrix instructions".

use super::access::Place;
use super::run::Flow;
use super::warp::{Fragment, State, Warp};
use super::{Block, CompletionTiming, Machine};
use crate::finding::{FindingKind, Site};
use crate::layout;
use crate::matrix::Lanes;
use crate::matrix::wgmma::{DescriptorError, SharedOperand};
use crate::order::{AccessKind, AsyncOpId, AsyncOpKind, CheckContext, OperandWriters};
use crate::program::op::{Op, Wgmma};
use crate::program::uses::WgmmaRegisterUse;
use std::collections::VecDeque;

/// The products of a warpgroup that not all of its warps have waited for, oldest first.
#[derive(Debug, Default)]
pub struct Warpgroup {
    /// The number of the first.
    first: u64,
    products: VecDeque<Product>,
}

/// A product.
#[derive(Debug)]
struct Product {
    pc: u32,
    op: AsyncOpId,
    /// Descriptors as the first warp gave them, and the operands that they mean.
    bits: (Option<u64>, u64),
    a: Option<SharedOperand>,
    b: SharedOperand,
    /// Who wrote the operands.
    writers: OperandWriters,
    /// Warps that issued it, and that waited for it.
    issued: u8,
    waited: u8,
    /// It has been computed.
    done: bool,
}

/// A warp's wgmma state.
#[derive(Clone, Debug, Default)]
pub struct WarpWgmma {
    /// Products that the warp waited for; the next is the oldest in [`Self::flights`].
    waited: u64,
    flights: VecDeque<Flight>,
    /// Ends of the committed groups, oldest first.
    groups: VecDeque<u64>,
    /// Registers that ordinary instructions touched since the last `wgmma.fence`, by row; grows as needed. And whether any was.
    touched: Vec<bool>,
    any_touched: bool,
    /// A `wgmma.fence` was executed at least once; the products issued before the last one.
    fenced: bool,
    fence_at: u64,
    /// Since the last `wgmma.fence` no group was committed. What touches registers now was likely written before the fence
    /// and moved behind it by the compiler, which ptxas makes good: a note.
    after_fence: bool,
    late: Vec<u32>,
    /// The `setmaxnreg`s that it executed.
    pub setmaxnreg: Vec<u32>,
}

/// A warp's part of a product.
#[derive(Clone, Debug)]
struct Flight {
    function: u32,
    /// The instruction in the function, and kernel-wide.
    at: u32,
    pc: u32,
    frame: u32,
    mask: u32,
    scale_d: bool,
    a: Option<Box<[Lanes; 4]>>,
    /// Registers into which an accumulator was moved meanwhile, and that accumulator.
    copies: Vec<(u32, u32)>,
}

impl WarpWgmma {
    fn next(&self) -> u64 {
        self.waited + self.flights.len() as u64
    }

    fn is_touched(&self, slot: u32) -> bool {
        self.touched.get(slot as usize).copied().unwrap_or(false)
    }

    fn touch(&mut self, slot: u32, touched: bool) {
        if self.after_fence {
            if touched && !self.late.contains(&slot) {
                self.late.push(slot);
            }
            return;
        }
        if self.touched.len() <= slot as usize {
            if !touched {
                return;
            }
            self.touched.resize(slot as usize + 1, false);
        }
        self.touched[slot as usize] = touched;
        self.any_touched |= touched;
    }
}

impl<'a> Machine<'a> {
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
        let (group, quarter) = ((warp.index / 4) as usize, warp.index % 4);
        let lane = mask.trailing_zeros();
        let site = self.site(block, warp.index, lane, pc);
        if group * 4 + 4 > block.warps.len() {
            let n = block.warps.len() - group * 4;
            self.report(FindingKind::Wgmma, site, None, None, || {
                format!("wgmma in a warpgroup of {n} warps; it takes four")
            });
            return Flow::Next;
        }
        if quarter == 0 {
            self.counters.by_instruction[pc as usize].matrix_flops += w.op.flops();
        }
        self.wgmma_issue_checks(warp, fragment.frame, w, site);
        let first = lane as usize;
        let regs = &warp.frame(fragment.frame).regs;
        let uniform = |values: &[u64; 32]| (0..32).all(|l| mask >> l & 1 == 0 || values[l] == values[first]);
        let (a_all, b_all) = (w.a_desc.map(|s| regs.get64(s)), regs.get64(w.b_desc));
        let undefined = |slots: &[u32]| slots.iter().fold(0, |u, &s| u | regs.undefined[s as usize]) & mask != 0;
        let loose = undefined(&[w.b_desc]) || w.a_desc.is_some_and(|s| undefined(&[s]));
        let (p, negated) = w.scale_d;
        let scale_d = (regs.predicates[p as usize] >> first & 1 != 0) != negated;
        let spoiled = undefined(&w.a) || scale_d && undefined(&w.d);
        let a_rows = (!w.a.is_empty()).then(|| Box::new(std::array::from_fn(|i| regs.get(w.a[i]))));
        if loose || a_all.as_ref().is_some_and(|a| !uniform(a)) || !uniform(&b_all) {
            self.report(FindingKind::Wgmma, site, None, None, || {
                "a wgmma descriptor differs between lanes or is undefined".into()
            });
        }
        let bits = (a_all.map(|a| a[first]), b_all[first]);
        block.warpgroups.resize_with(block.warps.len() / 4, Warpgroup::default);
        fragment.backs = 0;
        let number = warp.copies.wgmma.next();
        let index = (number - block.warpgroups[group].first) as usize;
        let begun = block.warpgroups[group].products.get(index).filter(|p| p.bits == bits && p.pc == pc);
        let operands = begun.map_or_else(|| self.wgmma_operands(block, w, bits), |p| Ok((p.a, p.b)));
        let (a, b) = match operands {
            Ok(operands) => operands,
            Err(e) => {
                self.report(FindingKind::Wgmma, site, None, None, || e.to_string());
                return Flow::Next;
            }
        };
        if spoiled {
            self.report(FindingKind::Uninitialized, site, None, None, || "wgmma reads undefined registers".into());
        }
        let here = &mut block.warpgroups[group];
        if index == here.products.len() {
            let op = self.ops.start(AsyncOpKind::Wgmma, &warp.order, mask, pc);
            let writers = OperandWriters::default();
            here.products.push_back(Product { pc, op, bits, a, b, writers, issued: 0, waited: 0, done: false });
        }
        let product = &mut here.products[index];
        let other = product.pc;
        product.issued |= 1 << quarter;
        let differs = product.bits != bits;
        let complete = product.issued == 15;
        if other != pc {
            let line = crate::finding::source(self.program, self.kernel, other).0;
            self.report(FindingKind::Wgmma, site, Some(other), None, || {
                format!("a warp executes this wgmma while others of its warpgroup execute the one at line {line}")
            });
        } else if differs {
            self.report(FindingKind::Wgmma, site, None, None, || {
                "a wgmma descriptor differs between the warps of the warpgroup".into()
            });
        }
        if !self.options.count_only {
            self.read_operands(block, warp, group, index, lane, (a, b), pc);
        }
        let code = &self.kernel.functions[warp.frame(fragment.frame).function as usize];
        let function = warp.frame(fragment.frame).function;
        // Defined when it is complete; until then nobody may look.
        let regs = &mut warp.frame(fragment.frame).regs;
        w.d.iter().for_each(|&s| regs.undefined[s as usize] &= !mask);
        let (at, frame, copies) = (pc - code.first, fragment.frame, Vec::new());
        warp.copies.wgmma.flights.push_back(Flight { function, at, pc, frame, mask, scale_d, a: a_rows, copies });
        if complete {
            self.changed();
            self.wgmma_complete = true;
            let now = match self.options.completion {
                CompletionTiming::Earliest => true,
                CompletionTiming::Latest => false,
                CompletionTiming::Random => self.rng.below(2) == 0,
            };
            if now {
                self.finish_products(block, warp, number + 1);
            }
        }
        Flow::Next
    }

    /// The operands of these descriptors, all in the block's memory.
    fn wgmma_operands(
        &mut self,
        block: &Block,
        w: &Wgmma,
        bits: (Option<u64>, u64),
    ) -> Result<(Option<SharedOperand>, SharedOperand), DescriptorError> {
        let a = bits.0.map(|bits| w.op.operand_a(bits)).transpose()?;
        let b = w.op.operand_b(bits.1)?;
        let (start, end) = (layout::SHARED_START, layout::SHARED_START + block.shared.len() as u32);
        for operand in a.iter().chain(Some(&b)) {
            if self.operand_runs.contains_key(operand) {
                continue;
            }
            operand.check_range(start, end)?;
            let mut runs = Vec::new();
            operand.for_each_run(|at, n| runs.push(((at - start) as u64, n as u64)));
            self.operand_runs.insert(*operand, runs);
        }
        Ok((a, b))
    }

    /// Records that a product reads its operands, and checks that this warp knows who wrote them.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn read_operands(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        group: usize,
        index: usize,
        lane: u32,
        (a, b): (Option<SharedOperand>, SharedOperand),
        pc: u32,
    ) {
        let product = &mut block.warpgroups[group].products[index];
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
        if (a, b) == (product.a, product.b) && product.issued.count_ones() > 1 {
            block.shadow.recheck_wgmma_operand(&product.writers, product.op, &warp.order, lane, pc, &cx, &mut found);
        } else {
            let mut runs = std::mem::take(&mut self.runs);
            runs.clear();
            for operand in a.iter().chain(Some(&b)) {
                runs.extend_from_slice(self.operand_runs.get(operand).map_or(&[], Vec::as_slice));
            }
            let (op, writers) = (product.op, &mut product.writers);
            block.shadow.read_wgmma_operand(&runs, op, &warp.order, lane, pc, &cx, writers, &mut found);
            self.runs = runs;
        }
        if !found.is_empty() {
            self.report_conflicts(block, warp.index, AccessKind::Read, Place::Shared(warp.slot), &found, pc, 0);
        }
        self.conflicts = found;
    }

    fn product_of(&self, flight: &Flight) -> &'a Wgmma {
        match &self.kernel.functions[flight.function as usize].instrs[flight.at as usize].op {
            Op::Wgmma(w) => w,
            _ => unreachable!("a flight is made by a wgmma"),
        }
    }

    /// Hazards at the issue of a wgmma: registers touched since the last fence, or still in use by another.
    fn wgmma_issue_checks(&mut self, warp: &Warp, frame: u32, w: &Wgmma, site: Site) {
        let state = &warp.copies.wgmma;
        if !state.fenced {
            self.report(FindingKind::Wgmma, site, None, None, || "wgmma without any wgmma.fence before it".into());
        } else if state.any_touched && w.a.iter().chain(&w.d).any(|&s| state.is_touched(s)) {
            self.report(FindingKind::Wgmma, site, None, None, || {
                "wgmma on registers that were accessed since the last wgmma.fence".into()
            });
        }
        if !state.late.is_empty() && w.a.iter().chain(&w.d).any(|s| state.late.contains(s)) {
            let line = crate::finding::source(self.program, self.kernel, site.pc).0;
            let note = format!("line {line}: registers of this wgmma are accessed between its wgmma.fence and it");
            *self.notes.entry(note).or_insert(0) += 1;
        }
        for (n, flight) in state.flights.iter().enumerate().filter(|(_, f)| f.frame == frame) {
            let other = self.product_of(flight);
            let unfenced = state.waited + n as u64 >= state.fence_at;
            let shape = |w: &Wgmma| (w.op.n, w.op.accumulator);
            let other_shape = || shape(w) != shape(other) && w.d.iter().any(|s| other.d.contains(s));
            if w.a.iter().any(|s| other.d.contains(s)) || unfenced && other_shape() {
                let (line, _) = crate::finding::source(self.program, self.kernel, flight.pc);
                self.report(FindingKind::Wgmma, site, Some(flight.pc), None, || {
                    format!("wgmma on accumulators of the wgmma at line {line}, which is not waited for and of another shape")
                });
            }
        }
    }

    /// Computes the products of the warp's group below `end` that are still to be computed, for all four warps.
    fn finish_products(&mut self, block: &mut Block, warp: &mut Warp, end: u64) {
        let group = (warp.index / 4) as usize;
        let Some(here) = block.warpgroups.get(group) else { return };
        let first = here.first;
        let count = (end.saturating_sub(first) as usize).min(here.products.len());
        for index in 0..count {
            let product = &mut block.warpgroups[group].products[index];
            if product.done {
                continue;
            }
            if product.issued != 15 {
                // Products take effect in order.
                return;
            }
            product.done = true;
            let (a, b) = (product.a, product.b);
            self.compute(block, warp, first + index as u64, a, b);
        }
    }

    fn compute(&mut self, block: &mut Block, warp: &mut Warp, number: u64, a: Option<SharedOperand>, b: SharedOperand) {
        let mut tiles = self.tiles.take().unwrap_or_default();
        let mut d = std::mem::take(&mut self.sums);
        let mut read = false;
        for quarter in 0..4u32 {
            let index = warp.index & !3 | quarter;
            let mine = index == warp.index;
            let shared = &block.shared;
            let member = if mine {
                &mut *warp
            } else {
                match &mut block.warps[index as usize] {
                    Some(other) => &mut **other,
                    None => continue,
                }
            };
            let Some(at) = number.checked_sub(member.copies.wgmma.waited) else { continue };
            let Some(flight) = member.copies.wgmma.flights.get(at as usize).cloned() else { continue };
            let w = self.product_of(&flight);
            let Some(frame) = member.frames.get_mut(flight.frame as usize).and_then(|f| f.as_mut()) else { continue };
            let regs = &mut frame.regs;
            if !self.options.count_only {
                let fetch = |at: u32| -> [u8; 16] {
                    let from = (at - layout::SHARED_START) as usize;
                    shared[from..from + 16].try_into().expect("16 bytes")
                };
                if !read {
                    if let Some(a) = &a {
                        tiles.read_a(&w.op, a, fetch);
                    }
                    tiles.read_b(&w.op, &b, fetch);
                    read = true;
                }
                if let Some(rows) = &flight.a {
                    tiles.set_a(&w.op, quarter as usize, &rows[..]);
                }
                if flight.mask == u32::MAX {
                    let registers: &mut [Lanes] = bytemuck::cast_slice_mut(&mut regs.rows);
                    w.op.run_in(&tiles, quarter as usize, flight.scale_d, registers, &w.d);
                } else {
                    d.resize(w.d.len(), [0; 32]);
                    d.iter_mut().zip(&w.d).for_each(|(d, &s)| *d = regs.get(s));
                    w.op.run(&tiles, quarter as usize, flight.scale_d, &mut d);
                    for (&s, value) in w.d.iter().zip(&d) {
                        regs.set(s, value, flight.mask);
                    }
                }
                for (to, from) in &flight.copies {
                    let value = regs.get(*from);
                    regs.set(*to, &value, flight.mask);
                }
            }
            for s in w.d.iter().chain(flight.copies.iter().map(|c| &c.0)) {
                regs.undefined[*s as usize] &= !flight.mask;
            }
        }
        self.tiles = Some(tiles);
        self.sums = d;
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
        state.fence_at = state.next();
        if std::mem::take(&mut state.any_touched) {
            state.touched.fill(false);
        }
        state.after_fence = true;
        state.late.clear();
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
        let state = &mut warp.copies.wgmma;
        state.groups.push_back(state.next());
        state.after_fence = false;
        state.late.clear();
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
        let state = &warp.copies.wgmma;
        let over = state.groups.len().saturating_sub(groups as usize);
        let Some(&end) = over.checked_sub(1).and_then(|last| state.groups.get(last)) else { return Flow::Next };
        let (group, from) = ((warp.index / 4) as usize, state.waited);
        if let Some(here) = block.warpgroups.get(group) {
            let range = (from - here.first) as usize..(end - here.first) as usize;
            if here.products.range(range).any(|p| p.issued != 15) {
                fragment.gathered = true;
                fragment.state = State::Wgmma;
                return Flow::Stop;
            }
        }
        self.finish_products(block, warp, end);
        if let Some(here) = block.warpgroups.get_mut(group) {
            let range = (from - here.first) as usize..(end - here.first) as usize;
            for product in here.products.range_mut(range) {
                product.waited |= 1 << (warp.index % 4);
                self.ops.mark_observed_by_warp(product.op, &warp.order);
            }
            while here.products.front().is_some_and(|p| p.waited == 15) {
                here.products.pop_front();
                here.first += 1;
            }
        }
        let state = &mut warp.copies.wgmma;
        state.groups.drain(..over);
        state.flights.drain(..(end - from) as usize);
        state.waited = end;
        Flow::Next
    }

    /// An ordinary instruction on registers that wgmma uses too.
    #[cold]
    #[inline(never)]
    pub(super) fn wgmma_touch(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        frame: u32,
        watch: &WgmmaRegisterUse,
        mask: u32,
        pc: u32,
    ) {
        let mut state = std::mem::take(&mut warp.copies.wgmma);
        let mut bad = None;
        if watch.copies && !watch.writes.is_empty() {
            bad = self.wgmma_moved(&mut state, frame, watch.reads.first().copied(), watch.writes[0]);
        } else {
            for &s in &watch.reads {
                state.touch(s, true);
                let in_use = |f: &&Flight| self.product_of(f).d.contains(&s) || f.copies.iter().any(|c| c.0 == s);
                let flight = state.flights.iter().filter(|f| f.frame == frame).find(in_use);
                bad = bad.or(flight.map(|f| (f.pc, "an accumulator", "read")));
            }
            for &s in &watch.writes {
                state.touch(s, true);
                bad = bad.or(self.wgmma_overwritten(&mut state, frame, s));
            }
        }
        warp.copies.wgmma = state;
        if let Some((other, what, verb)) = bad {
            let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
            let (line, _) = crate::finding::source(self.program, self.kernel, other);
            self.report(FindingKind::Wgmma, site, Some(other), None, || {
                format!("{what} of the wgmma at line {line} is {verb} before wgmma.wait_group covers it")
            });
        }
    }

    /// A register is written: which product in flight minds.
    fn wgmma_overwritten(
        &self,
        state: &mut WarpWgmma,
        frame: u32,
        slot: u32,
    ) -> Option<(u32, &'static str, &'static str)> {
        let mut bad = None;
        for f in state.flights.iter_mut().filter(|f| f.frame == frame) {
            let w = self.product_of(f);
            if w.d.contains(&slot) {
                bad = bad.or(Some((f.pc, "an accumulator", "written")));
            } else if w.a.contains(&slot) {
                bad = bad.or(Some((f.pc, "a register of A", "written")));
            }
            f.copies.retain(|c| c.0 != slot);
        }
        bad
    }

    /// A register is moved. Moves of accumulators in flight are renamings by the compiler: the result goes along.
    fn wgmma_moved(
        &self,
        state: &mut WarpWgmma,
        frame: u32,
        from: Option<u32>,
        to: u32,
    ) -> Option<(u32, &'static str, &'static str)> {
        if let Some(from) = from {
            state.touch(to, state.is_touched(from));
        }
        let origin = |f: &Flight| {
            let from = from?;
            let copied = f.copies.iter().find(|c| c.0 == from).map(|c| c.1);
            copied.or_else(|| self.product_of(f).d.contains(&from).then_some(from))
        };
        let newest = (0..state.flights.len())
            .rev()
            .find(|&i| state.flights[i].frame == frame && origin(&state.flights[i]).is_some());
        let Some(at) = newest else { return self.wgmma_overwritten(state, frame, to) };
        let accumulator = origin(&state.flights[at])?;
        let mut bad = None;
        for f in state.flights.iter_mut().filter(|f| f.frame == frame) {
            f.copies.retain(|c| c.0 != to);
            if self.product_of(f).a.contains(&to) {
                bad = Some((f.pc, "a register of A", "written"));
            }
        }
        if to != accumulator {
            state.flights[at].copies.push((to, accumulator));
        }
        bad
    }

    /// A block is over: products that some warps of their group never issued, `setmaxnreg`s that some never executed.
    pub(super) fn warpgroup_exit_checks(&mut self, block: &mut Block) {
        for (group, here) in std::mem::take(&mut block.warpgroups).into_iter().enumerate() {
            for p in here.products.iter().filter(|p| p.issued != 15) {
                let present =
                    (0..4).filter(|q| p.issued >> q & 1 != 0).map(|q| 4 * group as u32 + q).next().unwrap_or(0);
                let missing: Vec<usize> = (0..4).filter(|q| p.issued >> q & 1 == 0).map(|q| 4 * group + q).collect();
                let site = self.site(block, present, 0, p.pc);
                self.report(FindingKind::Wgmma, site, None, None, || {
                    format!("warps {missing:?} of the warpgroup do not execute this wgmma")
                });
            }
        }
        let lists: Vec<Vec<u32>> = block.warps.iter().flatten().map(|w| w.copies.wgmma.setmaxnreg.clone()).collect();
        for (group, four) in lists.chunks(4).enumerate() {
            let most = four.iter().max_by_key(|l| l.len()).expect("a chunk is not empty");
            if let Some(other) = four.iter().find(|l| *l != most) {
                let at = most.iter().zip(other).position(|(a, b)| a != b).unwrap_or(other.len());
                let site = self.site(block, 4 * group as u32, 0, most[at]);
                self.report(FindingKind::Setmaxnreg, site, None, None, || {
                    "setmaxnreg is not executed by all four warps of the warpgroup".into()
                });
            }
        }
    }
}
