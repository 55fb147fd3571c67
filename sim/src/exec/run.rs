//! The interpreter: runs a fragment of a warp until it waits, splits or has had its turn.

use super::warp::{Fragment, NONE, State, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::layout;
use crate::program::op::{
    AddressOperand, AddressWindow, Call, CallArgument, CallTarget, DecodedInstruction, Op, VaryingRegister,
};

/// Backward branches before a loop is suspected of waiting; a power of two.
const BACKS_BEFORE_LOOK: u32 = 64;

/// What an instruction asks of the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next instruction.
    Next,
    /// The fragment has jumped; its `pc` is set.
    Jumped,
    /// The fragment waits at this instruction (its state is set) or is gone (its mask is empty).
    Stop,
}

impl<'a> Machine<'a> {
    /// Runs a warp for about `budget` instructions.
    pub(super) fn run_warp(&mut self, slot: u32, w: u32, budget: u32) {
        let Some(mut block) = self.blocks[slot as usize].take() else { return };
        let Some(mut warp) = block.warps[w as usize].take() else {
            self.blocks[slot as usize] = Some(block);
            return;
        };
        let mut left = budget;
        while left > 0 {
            let ready: u32 = warp.fragments.iter().filter(|f| f.state == State::Ready).count() as u32;
            if ready == 0 {
                // Joins and gatherings may let somebody go on.
                if !self.resolve_warp(&mut block, &mut warp) {
                    break;
                }
                continue;
            }
            let pick = if ready == 1 { 0 } else { self.rng.below(ready) };
            let Some(i) =
                (0..warp.fragments.len()).filter(|&i| warp.fragments[i].state == State::Ready).nth(pick as usize)
            else {
                break;
            };
            let mut fragment = warp.fragments.swap_remove(i);
            // Of several fragments none may starve the others.
            let turn = if ready == 1 { left } else { left.min(1 + self.rng.below(64)) };
            let used = crate::simd::dispatch(
                #[inline(always)]
                || self.run_fragment(&mut block, &mut warp, &mut fragment, turn),
            );
            left = left.saturating_sub(used.max(1));
            if std::mem::take(&mut self.yielded) {
                left = 0;
            }
            if fragment.mask != 0 {
                warp.fragments.push(fragment);
            }
            if fragment.state == State::Joined || fragment.mask == 0 {
                warp.complete_joins();
            }
            if matches!(fragment.state, State::Gather { .. }) || fragment.mask == 0 {
                warp.complete_gatherings();
            }
        }
        let live = warp.live;
        block.warps[w as usize] = Some(warp);
        if live == 0 {
            self.warp_ended(&mut block, w);
        }
        self.blocks[slot as usize] = Some(block);
        self.settle_block(slot);
    }

    /// Executes up to `budget` instructions of a fragment; how many.
    #[inline(always)]
    fn run_fragment(&mut self, block: &mut Block, warp: &mut Warp, fragment: &mut Fragment, budget: u32) -> u32 {
        let kernel = self.kernel;
        let (mut used, mut clocked) = (0, 0);
        'frames: while used < budget && fragment.mask != 0 && fragment.state == State::Ready {
            let frame_index = fragment.frame as usize;
            let mut frame = warp.frames[frame_index].take().expect("a fragment's frame lives");
            let code = &kernel.functions[frame.function as usize];
            while used < budget {
                let pc = fragment.pc;
                if pc == fragment.join_pc {
                    warp.arrive_at_join(fragment);
                    break;
                }
                let instr: &DecodedInstruction = &code.instrs[pc as usize];
                used += 1;
                let mask = match instr.guard {
                    None => fragment.mask,
                    Some((p, negated)) => {
                        let value = frame.regs.predicates[p as usize];
                        fragment.mask & if negated { !value } else { value }
                    }
                };
                let number = (code.first + pc) as usize;
                if let Some((p, _)) = instr.guard
                    && frame.regs.undefined_predicates[p as usize] & fragment.mask != 0
                {
                    self.undefined_guard(block, warp, &mut frame.regs, instr, p, fragment.mask, number as u32);
                }
                if mask == 0 && !matches!(instr.op, Op::Branch { .. }) {
                    fragment.pc += 1;
                    continue;
                }
                if mask != fragment.mask && instr.op.may_wait() {
                    // Those whose guard is false go on behind the instruction, and meet the others there.
                    let rest = warp.split(fragment, mask, pc, pc + 1, Some(pc + 1));
                    warp.fragments.push(rest);
                }
                let count = &mut self.counters.by_instruction[number];
                count.warps += 1;
                count.threads += mask.count_ones() as u64;
                if let Some(watch) = code.wgmma_uses.get(pc as usize)
                    && !watch.is_empty()
                {
                    self.wgmma_touch(block, warp, frame_index as u32, watch, mask, number as u32);
                }
                match &instr.op {
                    Op::Alu { op, slots } => {
                        op.run(&mut frame.regs, slots, mask);
                        fragment.pc = pc + 1;
                    }
                    Op::Branch { target } => {
                        let target = *target;
                        if mask == fragment.mask {
                            fragment.pc = target;
                            if target <= pc && self.backward(fragment, &frame.regs, warp) {
                                break;
                            }
                        } else if mask == 0 {
                            fragment.pc = pc + 1;
                        } else {
                            let other = warp.split(fragment, mask, target, pc + 1, instr.reconverge);
                            // Which side goes first is part of the interleaving.
                            if self.rng.draw() & 1 == 0 {
                                warp.fragments.push(other);
                            } else {
                                warp.fragments.push(*fragment);
                                *fragment = other;
                            }
                            if target <= pc && self.backward(fragment, &frame.regs, warp) {
                                break;
                            }
                            used += 1;
                            warp.frames[frame_index] = Some(frame);
                            break 'frames;
                        }
                    }
                    Op::Mma(m) if mask == u32::MAX && m.batched.is_some() => {
                        // All lanes are here. Those that follow run in the same turn anyway, unless it ends before.
                        fragment.gathered = false;
                        let most = (budget - used + 1).min(fragment.join_pc.wrapping_sub(pc)) as usize;
                        let most =
                            if code.wgmma_uses.is_empty() { most.min(code.instrs.len() - pc as usize) } else { 1 };
                        let instrs = &code.instrs[pc as usize..pc as usize + most];
                        let count = self.mma_sequence(&mut frame.regs, m.op, instrs, number as u32);
                        used += count - 1;
                        fragment.pc = pc + count;
                    }
                    other => {
                        warp.frames[frame_index] = Some(frame);
                        warp.clock += (used - clocked) as u64;
                        clocked = used;
                        let flow = self.execute(block, warp, fragment, instr, other, mask, number as u32);
                        match flow {
                            Flow::Next => fragment.pc = pc + 1,
                            Flow::Jumped => {}
                            Flow::Stop => {
                                if fragment.pc == pc && fragment.state != State::Ready {
                                    // It waits in front of the instruction: not executed yet.
                                    let count = &mut self.counters.by_instruction[number];
                                    count.warps -= 1;
                                    count.threads -= mask.count_ones() as u64;
                                }
                                break 'frames;
                            }
                        }
                        if fragment.frame as usize != frame_index {
                            continue 'frames;
                        }
                        frame = warp.frames[frame_index].take().expect("a fragment's frame lives");
                    }
                }
            }
            warp.frames[frame_index] = Some(frame);
        }
        warp.clock += (used - clocked) as u64;
        self.executed += used as u64;
        used
    }

    /// The predicate `p` of an instruction is undefined in some of the lanes: wrong for all but calculations.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    fn undefined_guard(
        &mut self,
        block: &Block,
        warp: &Warp,
        regs: &mut crate::regs::Registers,
        instr: &DecodedInstruction,
        p: u32,
        mask: u32,
        pc: u32,
    ) {
        let lanes = regs.undefined_predicates[p as usize] & mask;
        let what = match instr.op {
            Op::Alu { .. } => return,
            Op::Branch { .. } => "a branch depends",
            _ => "whether the instruction is executed depends",
        };
        let site = self.site(block, warp.index, lanes.trailing_zeros(), pc);
        self.report(FindingKind::Uninitialized, site, None, None, || format!("{what} on an undefined register"));
        regs.undefined_predicates[p as usize] &= !lanes;
    }

    /// A backward branch: a loop that only memory can end waits until memory changes. Whether it does.
    #[inline(always)]
    fn backward(&mut self, fragment: &mut Fragment, regs: &crate::regs::Registers, warp: &Warp) -> bool {
        fragment.backs += 1;
        // Look at the registers now and then, twice in a row.
        let look = fragment.backs & (fragment.backs - 1) == 0 || fragment.spin_hash != 0;
        if fragment.backs < BACKS_BEFORE_LOOK || !look {
            return false;
        }
        self.look_for_spin(fragment, regs, warp)
    }

    #[cold]
    #[inline(never)]
    fn look_for_spin(&mut self, fragment: &mut Fragment, regs: &crate::regs::Registers, _warp: &Warp) -> bool {
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ (fragment.pc as u64) << 32 ^ fragment.mask as u64;
        let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        // What changed since the first look may not have been seen by the loop yet.
        add(self.progress);
        for row in &regs.rows {
            row.0.chunks_exact(2).for_each(|c| add(c[0] as u64 | (c[1] as u64) << 32));
        }
        regs.predicates.iter().for_each(|&p| add(p as u64));
        if fragment.spin_hash == hash | 1 {
            fragment.spin_hash = 0;
            // Woken in vain it shall wait again soon.
            fragment.backs = BACKS_BEFORE_LOOK - 2;
            fragment.state = State::Spin { progress: self.progress };
            return true;
        }
        fragment.spin_hash = if fragment.spin_hash == 0 { hash | 1 } else { 0 };
        false
    }

    /// Everything but scalar instructions and branches.
    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    fn execute(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        instr: &DecodedInstruction,
        op: &Op,
        mask: u32,
        pc: u32,
    ) -> Flow {
        match op {
            Op::Alu { .. } | Op::Branch { .. } => unreachable!("run_fragment executes these"),
            Op::Load(t) => self.load(block, warp, fragment.frame, t, mask, pc),
            Op::Store(t) => self.store(block, warp, fragment, t, mask, pc),
            Op::Atomic(a) => self.atomic(block, warp, fragment, a, mask, pc),
            Op::BranchIndexed { index, targets } => {
                self.branch_indexed(block, warp, fragment, *index, targets, mask, instr, pc)
            }
            Op::Call(call) => self.call(block, warp, fragment, call, mask, pc),
            Op::Ret => self.ret(block, warp, fragment, mask),
            Op::Exit => self.exit(warp, block, fragment, mask),
            Op::Trap => {
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(FindingKind::Trap, site, None, None, || "trap: the kernel would be aborted".into());
                self.exit(warp, block, fragment, mask)
            }
            Op::Nop | Op::GridDepLaunch => Flow::Next,
            Op::Yield => {
                // Others first: the warp's turn ends.
                fragment.pc += 1;
                self.yielded = true;
                self.waits += 1;
                Flow::Stop
            }
            Op::Prefetch { .. } => Flow::Next,
            Op::CreatePolicy { dst } => {
                let frame = warp.frame(fragment.frame);
                frame.regs.set64(*dst, &[0x1000_0000_0000_0000; 32], mask);
                frame.regs.undefined[*dst as usize] &= !mask;
                Flow::Next
            }
            Op::ReadSpecial { dst, which } => {
                self.read_special(warp, fragment, *dst, *which, mask);
                Flow::Next
            }
            Op::Cvta { dst, src, wide, window, to } => {
                self.cvta(warp, fragment.frame, (*dst, *src), *wide, *window, *to, mask);
                Flow::Next
            }
            Op::Isspacep { dst, src, window } => {
                let frame = warp.frame(fragment.frame);
                let addresses = frame.regs.get64(*src);
                let inside = |a: u64| {
                    let found = layout::window(a).unwrap_or(AddressWindow::Global);
                    match window {
                        AddressWindow::SharedCluster => found == AddressWindow::Shared,
                        AddressWindow::Shared => found == AddressWindow::Shared && own_block(a as u32, block.rank),
                        AddressWindow::FrameParam => found == AddressWindow::KernelParam,
                        w => found == *w,
                    }
                };
                let value = (0..32).filter(|&l| inside(addresses[l])).fold(0u32, |m, l| m | 1 << l);
                set_predicate(&mut frame.regs, *dst, value, mask);
                Flow::Next
            }
            Op::Mapa { dst, src, rank, wide, generic } => {
                let frame = warp.frame(fragment.frame);
                let ranks = frame.regs.get(*rank);
                let to = |a: u32, r: u32| layout::cluster_address(a, r);
                if *wide {
                    let a = frame.regs.get64(*src);
                    let base = if *generic { layout::SHARED } else { 0 };
                    let out = std::array::from_fn(|l| base + to((a[l] & 0xffff_ffff) as u32, ranks[l]) as u64);
                    frame.regs.set64(*dst, &out, mask);
                } else {
                    let a = frame.regs.get(*src);
                    frame.regs.set(*dst, &std::array::from_fn(|l| to(a[l], ranks[l])), mask);
                }
                frame.regs.undefined[*dst as usize] &= !mask;
                Flow::Next
            }
            Op::GetCtaRank { dst, src, wide, .. } => {
                let rank = block.rank;
                let frame = warp.frame(fragment.frame);
                let a: [u32; 32] = if *wide { frame.regs.get64(*src).map(|a| a as u32) } else { frame.regs.get(*src) };
                let out = a.map(|a| layout::split_cluster_address(a).0.unwrap_or(rank));
                frame.regs.set(*dst, &out, mask);
                frame.regs.undefined[*dst as usize] &= !mask;
                Flow::Next
            }
            Op::Alloca { dst, size } => {
                let size = warp.frame(fragment.frame).regs.get64(*size)[mask.trailing_zeros() as usize] as u32;
                let at = warp.grow_local(size);
                let frame = warp.frame(fragment.frame);
                frame.regs.set64(*dst, &[at as u64; 32], mask);
                frame.regs.undefined[*dst as usize] &= !mask;
                Flow::Next
            }
            Op::Warp(w) => self.warp_op(block, warp, fragment, w, mask, pc),
            Op::Barrier(b) => self.barrier(block, warp, fragment, b, mask, pc),
            Op::ClusterArrive { release, aligned } => {
                self.cluster_arrive(block, warp, fragment, *release, *aligned, mask, pc)
            }
            Op::ClusterWait { aligned } => self.cluster_wait(block, warp, fragment, *aligned, mask, pc),
            Op::Fence(f) => self.fence(warp, *f, mask),
            Op::Mbarrier(m) => self.mbarrier(block, warp, fragment, m, mask, pc),
            Op::CpAsync(c) => self.cp_async(block, warp, fragment, c, mask, pc),
            Op::CpAsyncCommit => self.cp_async_commit(warp, mask),
            Op::CpAsyncWait { groups } => self.cp_async_wait(block, warp, *groups, mask),
            Op::BulkCopy(b) => self.bulk(block, warp, fragment, b, mask, pc),
            Op::BulkCommit => self.bulk_commit(warp, mask),
            Op::BulkWait { groups, read } => self.bulk_wait(block, warp, *groups, *read, mask),
            Op::StAsync { addr, width, regs, mbarrier, reduce } => {
                self.st_async(block, warp, fragment, (addr, mbarrier), *width, regs, *reduce, mask, pc)
            }
            Op::TensorMapReplace { addr, window, field, ordinal, value, wide } => self.tensormap_replace(
                block,
                warp,
                fragment,
                (addr, *window),
                (field, *ordinal),
                (*value, *wide),
                mask,
                pc,
            ),
            Op::TensorMapCopyFence { dst, src } => self.tensormap_copy(block, warp, fragment, dst, src, mask, pc),
            Op::MatrixTransfer(t) => self.matrix_transfer(block, warp, fragment, t, mask, pc),
            Op::MovMatrix { dst, src } => self.movmatrix(warp, fragment, *dst, *src, mask),
            Op::Mma(m) => self.mma(warp, fragment, m, mask, pc),
            Op::Wmma(m) => self.wmma_mma(warp, fragment, m, mask, pc),
            Op::WmmaTransfer(t) => self.wmma_transfer(block, warp, fragment, t, mask, pc),
            Op::Wgmma(w) => self.wgmma(block, warp, fragment, w, mask, pc),
            Op::WgmmaFence => self.wgmma_fence(block, warp, fragment, mask, pc),
            Op::WgmmaCommit => self.wgmma_commit(block, warp, fragment, mask, pc),
            Op::WgmmaWait { groups } => self.wgmma_wait(block, warp, fragment, *groups, mask, pc),
            Op::SetMaxNReg { count, increase } => self.setmaxnreg(block, warp, fragment, *count, *increase, mask, pc),
            Op::GridDepWait => self.grid_wait(fragment),
            Op::Unsupported(what) => {
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(FindingKind::Unsupported, site, None, None, || {
                    format!("{what}: the simulator does not clock this instruction")
                });
                Flow::Next
            }
        }
    }

    fn read_special(&mut self, warp: &mut Warp, fragment: &Fragment, dst: u32, which: VaryingRegister, mask: u32) {
        let clock = warp.clock;
        let now = self.executed * 2;
        let frame = warp.frame(fragment.frame);
        let narrow = |v: u32| [v; 32];
        match which {
            VaryingRegister::Clock => frame.regs.set(dst, &narrow(clock as u32), mask),
            VaryingRegister::ClockHi => frame.regs.set(dst, &narrow((clock >> 32) as u32), mask),
            VaryingRegister::Clock64 => frame.regs.set64(dst, &[clock; 32], mask),
            VaryingRegister::Globaltimer => frame.regs.set64(dst, &[now; 32], mask),
            VaryingRegister::GlobaltimerLo => frame.regs.set(dst, &narrow(now as u32), mask),
            VaryingRegister::GlobaltimerHi => frame.regs.set(dst, &narrow((now >> 32) as u32), mask),
            VaryingRegister::Activemask => frame.regs.set(dst, &narrow(mask), mask),
            VaryingRegister::ExplicitCluster => {
                let value = if self.cluster == [1, 1, 1] { 0 } else { u32::MAX };
                set_predicate(&mut frame.regs, dst, value, mask);
                return;
            }
        }
        frame.regs.undefined[dst as usize] &= !mask;
    }

    #[expect(clippy::too_many_arguments, reason = "the operands of cvta")]
    fn cvta(
        &mut self,
        warp: &mut Warp,
        frame: u32,
        (dst, src): (u32, u32),
        wide: bool,
        window: AddressWindow,
        to: bool,
        mask: u32,
    ) {
        let base = match window {
            AddressWindow::Shared | AddressWindow::SharedCluster => layout::SHARED,
            AddressWindow::Local => layout::LOCAL,
            AddressWindow::KernelParam | AddressWindow::FrameParam => layout::PARAM,
            _ => 0,
        };
        let regs = &mut warp.frame(frame).regs;
        let undefined = regs.undefined[src as usize] & mask;
        if wide {
            let a = regs.get64(src);
            let out = if to { a.map(|a| a.wrapping_sub(base)) } else { a.map(|a| a.wrapping_add(base)) };
            regs.set64(dst, &out, mask);
        } else {
            let a = regs.get(src);
            regs.set(dst, &a, mask);
        }
        let slot = &mut regs.undefined[dst as usize];
        *slot = *slot & !mask | undefined;
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    fn branch_indexed(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        index: u32,
        targets: &[u32],
        mask: u32,
        instr: &DecodedInstruction,
        pc: u32,
    ) -> Flow {
        let values = warp.frame(fragment.frame).regs.get(index);
        let mut left = mask;
        let here = fragment.pc;
        let mut groups: Vec<(u32, u32)> = Vec::new();
        while left != 0 {
            let value = values[left.trailing_zeros() as usize];
            let same = (0..32).filter(|&l| left >> l & 1 != 0 && values[l] == value).fold(0u32, |m, l| m | 1 << l);
            left &= !same;
            match targets.get(value as usize) {
                Some(&target) => groups.push((target, same)),
                None => {
                    let site = self.site(block, warp.index, same.trailing_zeros(), pc);
                    let n = targets.len();
                    self.report(FindingKind::OutOfBounds, site, None, None, || {
                        format!("brx.idx: index {value} of {n} targets")
                    });
                    groups.push((here + 1, same));
                }
            }
        }
        if mask != fragment.mask {
            groups.push((here + 1, fragment.mask & !mask));
        }
        let Some((target, last)) = groups.pop() else { return Flow::Next };
        for (target, same) in groups {
            let rest = fragment.mask & !same;
            let mut part = warp.split(fragment, same, target, here, instr.reconverge);
            // `fragment` is now the group that jumps; the rest goes on being split.
            std::mem::swap(fragment, &mut part);
            warp.fragments.push(part);
            debug_assert_eq!(fragment.mask, rest);
        }
        debug_assert_eq!(fragment.mask, last);
        fragment.pc = target;
        Flow::Jumped
    }

    fn call(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        call: &Call,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let function = match call.target {
            CallTarget::Function(f) => f,
            CallTarget::Indirect(slot) => {
                let regs = &warp.frame(fragment.frame).regs;
                let (address, undefined) = (regs.get64(slot), regs.undefined[slot as usize] & mask);
                if self.defined_lanes(block, warp, undefined, mask, pc) != mask {
                    return Flow::Next;
                }
                let first = address[mask.trailing_zeros() as usize];
                let same = (0..32).filter(|&l| mask >> l & 1 != 0 && address[l] == first).fold(0u32, |m, l| m | 1 << l);
                if same != fragment.mask {
                    // One target at a time; the others come to this instruction again.
                    let here = fragment.pc;
                    let other = warp.split(fragment, same, here, here, Some(here + 1));
                    warp.fragments.push(other);
                    return Flow::Jumped;
                }
                let Some(f) = self.function_at(first) else {
                    let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                    self.report(FindingKind::OutOfBounds, site, None, None, || {
                        format!("call of {first:#x}, where no function is")
                    });
                    return Flow::Next;
                };
                f
            }
            CallTarget::Vprintf => return self.vprintf(warp, fragment, call, mask),
            CallTarget::AssertFail => return self.assert_fail(block, warp, fragment, call, mask, pc),
            CallTarget::Malloc => return self.malloc(warp, fragment, call, mask),
            CallTarget::Free => return self.free(warp, fragment, call, mask),
            CallTarget::Unknown(name) => {
                let name = self.kernel.unknown[name as usize].clone();
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(FindingKind::Unsupported, site, None, None, || {
                    format!("call of {name}, which is declared and not defined")
                });
                return Flow::Next;
            }
        };
        let kernel = self.kernel;
        let callee = &kernel.functions[function as usize];
        let parent = fragment.frame;
        let mut rest = None;
        if mask != fragment.mask {
            let mut other = *fragment;
            other.mask = fragment.mask & !mask;
            other.pc = fragment.pc + 1;
            rest = Some(other);
        }
        // All lanes of the call meet again behind it.
        let all = fragment.mask;
        let join =
            super::warp::Join { pc: fragment.pc + 1, frame: parent, expected: all, arrived: 0, parent: fragment.join };
        let join = warp.push_join(join);
        let join_pc = fragment.pc + 1;
        let index = self.enter(block, warp, function, Some((parent, fragment.pc + 1)), mask);
        for (from, to) in call.args.iter().zip(&callee.formals) {
            copy_argument(warp, parent, *from, index, *to, mask);
        }
        if let Some(mut other) = rest {
            other.join = join;
            other.join_pc = join_pc;
            warp.fragments.push(other);
        }
        fragment.mask = mask;
        fragment.frame = index;
        fragment.pc = 0;
        fragment.join = join;
        fragment.join_pc = NONE;
        Flow::Jumped
    }

    fn function_at(&self, address: u64) -> Option<u32> {
        let index = address.checked_sub(layout::FUNCTION + 16)? / 16;
        let name = &self.program.module.functions.get(index as usize)?.name;
        self.kernel.functions.iter().position(|f| f.name == *name).map(|i| i as u32)
    }

    /// Returns from a function; from the kernel it is an exit.
    fn ret(&mut self, block: &mut Block, warp: &mut Warp, fragment: &mut Fragment, mask: u32) -> Flow {
        let frame = warp.frame(fragment.frame);
        let Some((parent, pc)) = frame.parent else { return self.exit(warp, block, fragment, mask) };
        let index = fragment.frame;
        let function = frame.function;
        frame.lanes &= !mask;
        let empty = frame.lanes == 0;
        // The call instruction is the one before the return address.
        let kernel = self.kernel;
        let caller = &kernel.functions[warp.frame(parent).function as usize];
        if let Op::Call(call) = &caller.instrs[pc as usize - 1].op {
            for (to, from) in call.returns.iter().zip(&kernel.functions[function as usize].returns) {
                copy_argument(warp, index, *from, parent, *to, mask);
            }
        }
        if empty {
            let base = warp.frame(index).local_base;
            warp.frames[index as usize] = None;
            if warp.frames.iter().flatten().all(|f| f.local_base <= base) {
                warp.local_top = base;
            }
        }
        if mask != fragment.mask {
            let mut other = *fragment;
            other.mask = fragment.mask & !mask;
            other.pc += 1;
            warp.fragments.push(other);
        }
        fragment.mask = mask;
        fragment.frame = parent;
        fragment.pc = pc;
        // Joins of the frame that is left.
        while fragment.join != NONE && warp.joins[fragment.join as usize].frame == index {
            let join = fragment.join;
            let to = warp.joins[join as usize].parent;
            warp.leave_joins(mask, join, to);
            fragment.join = to;
        }
        fragment.join_pc = warp.join_pc(fragment.join, parent);
        warp.complete_joins();
        Flow::Jumped
    }

    /// Lanes leave the kernel.
    pub(super) fn exit(&mut self, warp: &mut Warp, block: &mut Block, fragment: &mut Fragment, mask: u32) -> Flow {
        warp.live &= !mask;
        block.live -= mask.count_ones();
        warp.leave_joins(mask, fragment.join, NONE);
        self.changed();
        fragment.mask &= !mask;
        fragment.pc += 1;
        warp.complete_joins();
        warp.complete_gatherings();
        if fragment.mask == 0 { Flow::Stop } else { Flow::Jumped }
    }

    /// Nothing of the warp can run: lets joins or gatherings go on where that is possible. Whether something can run now.
    fn resolve_warp(&mut self, block: &mut Block, warp: &mut Warp) -> bool {
        warp.complete_joins();
        warp.complete_gatherings();
        if warp.is_ready() {
            return true;
        }
        // Somebody may still come: lanes that wait for other warps.
        let waiting_elsewhere = warp.fragments.iter().any(|f| !matches!(f.state, State::Joined | State::Gather { .. }));
        if waiting_elsewhere || warp.fragments.is_empty() {
            return false;
        }
        // Lanes gather at an instruction that the others, waiting at a join behind it or gathering elsewhere, will not reach.
        let stuck = warp.fragments.iter().position(|f| matches!(f.state, State::Gather { whole: true, .. }));
        if let Some(i) = stuck {
            self.report_divergence(block, warp, i);
            let f = &mut warp.fragments[i];
            f.state = State::Ready;
            f.gathered = true;
            return true;
        }
        warp.give_up_joins()
    }

    fn report_divergence(&mut self, block: &Block, warp: &mut Warp, i: usize) {
        let f = warp.fragments[i];
        let function = warp.frame(f.frame).function;
        let code = &self.kernel.functions[function as usize];
        let State::Gather { members, .. } = f.state else { return };
        let missing = members & warp.live & !f.mask;
        let site = self.site(block, warp.index, f.mask.trailing_zeros(), code.first + f.pc);
        let opcode = &code.opcodes[f.pc as usize];
        let kind = match opcode.split('.').next() {
            Some("wgmma") => FindingKind::Wgmma,
            Some("setmaxnreg") => FindingKind::Setmaxnreg,
            _ => FindingKind::Barrier,
        };
        self.report(kind, site, None, None, || {
            format!(
                "{opcode} in divergent code: lanes {missing:#010x} of warp {} do not execute it with the others",
                warp.index
            )
        });
    }

    /// Makes the fragment wait until `members` are together at this instruction; true when they are.
    pub(super) fn gather(&mut self, warp: &Warp, fragment: &mut Fragment, members: u32, mask: u32) -> bool {
        if fragment.gathered {
            fragment.gathered = false;
            return true;
        }
        if members & warp.live & !mask == 0 {
            return true;
        }
        fragment.state = State::Gather { members, whole: true };
        false
    }
}

/// Whether a shared address is the block's own.
pub fn own_block(address: u32, rank: u32) -> bool {
    layout::split_cluster_address(address).0.is_none_or(|r| r == rank)
}

/// Sets the lanes of `mask` in a predicate.
pub fn set_predicate(regs: &mut crate::regs::Registers, p: u32, value: u32, mask: u32) {
    let slot = &mut regs.predicates[p as usize];
    *slot = *slot & !mask | value & mask;
    regs.undefined_predicates[p as usize] &= !mask;
}

/// The addresses of an operand, in every lane.
#[inline(always)]
pub fn addresses(regs: &crate::regs::Registers, addr: &AddressOperand) -> [u64; 32] {
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

/// The lanes of an address that are undefined.
#[inline(always)]
pub fn undefined_address(regs: &crate::regs::Registers, addr: &AddressOperand) -> u32 {
    addr.base.map_or(0, |slot| regs.undefined[slot as usize])
}

/// Copies a value between frames, for the lanes of `mask`.
fn copy_argument(warp: &mut Warp, from_frame: u32, from: CallArgument, to_frame: u32, to: CallArgument, mask: u32) {
    for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
        let bytes = read_argument(warp, from_frame, from, lane);
        write_argument(warp, to_frame, to, lane, &bytes);
    }
}

/// The bytes of an argument in one lane.
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

/// Sets an argument in one lane.
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
            set_predicate(&mut frame.regs, p, if bytes.first() == Some(&1) { u32::MAX } else { 0 }, 1 << lane)
        }
    }
}
