//! The turn of a warp: picks its fragments and executes their instructions.

use super::matrix::MatrixUnit;
use crate::exec::async_engine::{AsyncEngine, access_wgmma_registers, write_deferred_sums};
use crate::exec::context::NextAction;
use crate::exec::grid::GridState;
use crate::exec::limits::additional_steps;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::warp::{CallFrame, FragmentState, Warp, WarpFragment};
use crate::program::op::{DecodedInstruction, Op};

/// The parts of the machine that execute instructions.
#[derive(Debug)]
pub struct Interpreter<'a> {
    /// The launch, the resident blocks and the reporter.
    pub grid: GridState<'a>,
    /// Memory and race checks.
    pub memory: MemorySystem,
    /// Asynchronous copies, mbarriers and wgmma.
    pub async_engine: AsyncEngine,
    matrix: MatrixUnit,
}

impl<'a> Interpreter<'a> {
    /// Creates an interpreter for a grid; no block is resident yet.
    pub fn new(grid: GridState<'a>, memory: MemorySystem) -> Interpreter<'a> {
        Interpreter { grid, memory, async_engine: AsyncEngine::default(), matrix: MatrixUnit::default() }
    }

    /// Runs warp `warp_index` of the block in `block_slot` for about `budget` instructions.
    pub fn run_warp(&mut self, block_slot: u32, warp_index: u32, budget: u32) {
        let Some(block) = self.grid.blocks.get_mut(block_slot) else { return };
        let Some(mut warp) = block.warps[warp_index as usize].take() else { return };
        let mut left = budget;
        while left > 0 {
            let ready = warp.fragments.iter().filter(|f| f.state == FragmentState::Ready).count() as u32;
            if ready == 0 {
                if !self.unblock_warp(&mut warp) {
                    break;
                }
                continue;
            }
            let pick = if ready == 1 { 0 } else { self.grid.rng.draw_below(ready) };
            let mut indices = (0..warp.fragments.len()).filter(|&i| warp.fragments[i].state == FragmentState::Ready);
            let Some(i) = indices.nth(pick as usize) else { break };
            let mut fragment = warp.fragments.swap_remove(i);
            // If several warp fragments are ready, each runs for only a few instructions, so that all of them make
            // progress.
            let turn = if ready == 1 { left } else { left.min(1 + self.grid.rng.draw_below(64)) };
            let used = crate::simd::run_with_widest_simd(
                #[inline(always)]
                || self.run_fragment(&mut warp, &mut fragment, turn),
            );
            left = left.saturating_sub(used.max(1));
            if std::mem::take(&mut warp.yielded) {
                left = 0;
            }
            if fragment.mask != 0 {
                warp.fragments.push(fragment);
            }
            if fragment.state == FragmentState::AtJoin || fragment.mask == 0 {
                warp.complete_reconvergence();
            }
            if matches!(fragment.state, FragmentState::Gather { .. }) || fragment.mask == 0 {
                warp.complete_gatherings();
            }
        }
        if warp.live == 0 {
            self.async_engine.complete_warp_operations(&mut self.grid, &mut self.memory, &mut warp);
        }
        self.grid.blocks[block_slot].warps[warp_index as usize] = Some(warp);
    }

    /// Executes up to `budget` instructions of a warp fragment; returns how many it executed.
    #[inline(always)]
    fn run_fragment(&mut self, warp: &mut Warp, fragment: &mut WarpFragment, budget: u32) -> u32 {
        let kernel = self.grid.context.kernel;
        let (mut used, mut clocked) = (0, 0);
        'frames: while used < budget && fragment.mask != 0 && fragment.state == FragmentState::Ready {
            let frame_index = fragment.frame as usize;
            // While instructions run, the call frame is taken out of the warp, which saves a look-up per instruction.
            let mut frame = warp.frames[frame_index].take().expect("a fragment's frame lives");
            let code = &kernel.functions[frame.function as usize];
            while used < budget {
                let pc = fragment.pc;
                if pc == fragment.join_pc {
                    warp.wait_at_reconvergence_point(fragment);
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
                let kernel_pc = code.first + pc;
                if let Some((p, _)) = instr.guard
                    && frame.regs.undefined_predicates[p as usize] & fragment.mask != 0
                {
                    self.report_undefined_guard(warp, &mut frame, instr, p, fragment.mask, kernel_pc);
                }
                if mask == 0 && !matches!(instr.op, Op::Branch { .. }) {
                    fragment.pc += 1;
                    continue;
                }
                if mask != fragment.mask && instr.op.may_wait() {
                    // Lanes whose guard is false skip the instruction and wait after it for the other lanes.
                    let rest = warp.split_off_lanes(fragment, mask, pc, pc + 1, Some(pc + 1));
                    warp.fragments.push(rest);
                }
                let counts = self.grid.reporter.counts(kernel_pc);
                counts.warps += 1;
                counts.threads += mask.count_ones() as u64;
                if let Some(watch) = code.wgmma_uses.get(pc as usize)
                    && !watch.is_empty()
                {
                    if frame_index == 0 && self.grid.has_deferred_sum(warp, watch) {
                        warp.frames[0] = Some(frame);
                        write_deferred_sums(&mut self.grid, warp, &watch.reads);
                        write_deferred_sums(&mut self.grid, warp, &watch.writes);
                        frame = warp.frames[0].take().expect("it was put back above");
                    }
                    access_wgmma_registers(&mut self.grid, warp, frame_index as u32, watch, mask, kernel_pc);
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
                            if target <= pc && self.detect_spin_at_backward_branch(fragment, &frame.regs) {
                                break;
                            }
                        } else if mask == 0 {
                            fragment.pc = pc + 1;
                        } else {
                            let other = warp.split_off_lanes(fragment, mask, target, pc + 1, instr.reconverge);
                            // The interleaving (a random choice) decides which side of the branch runs first.
                            if self.grid.rng.draw() & 1 == 0 {
                                warp.fragments.push(other);
                            } else {
                                warp.fragments.push(*fragment);
                                *fragment = other;
                            }
                            if target <= pc && self.detect_spin_at_backward_branch(fragment, &frame.regs) {
                                break;
                            }
                            used += 1;
                            warp.frames[frame_index] = Some(frame);
                            break 'frames;
                        }
                    }
                    Op::Mma(m) if mask == u32::MAX && m.batched.is_some() => {
                        // All lanes of the warp are at this instruction, so the `mma` instructions that follow can run
                        // together with this one in this turn.
                        fragment.gathered = false;
                        let limit = (budget - used + 1).min(fragment.join_pc.wrapping_sub(pc)) as usize;
                        let limit =
                            if code.wgmma_uses.is_empty() { limit.min(code.instrs.len() - pc as usize) } else { 1 };
                        let instrs = &code.instrs[pc as usize..pc as usize + limit];
                        let (reporter, count_only) = (&mut self.grid.reporter, self.grid.context.options.count_only);
                        let regs = &mut frame.regs;
                        let count = self.matrix.mma_sequence(reporter, count_only, regs, m.op, instrs, kernel_pc);
                        used += count - 1;
                        fragment.pc = pc + count;
                    }
                    _ => {
                        warp.frames[frame_index] = Some(frame);
                        warp.clock += (used - clocked) as u64;
                        clocked = used;
                        self.grid.progress.steps += additional_steps(&instr.op, mask.count_ones());
                        match self.execute_instruction(warp, fragment, instr, mask, kernel_pc) {
                            NextAction::Next => fragment.pc = pc + 1,
                            NextAction::Jumped => {}
                            NextAction::Stop => {
                                if fragment.pc == pc && fragment.state != FragmentState::Ready {
                                    // The warp fragment waits at the instruction without having executed it.
                                    let counts = self.grid.reporter.counts(kernel_pc);
                                    counts.warps -= 1;
                                    counts.threads -= mask.count_ones() as u64;
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
        self.grid.progress.executed += used as u64;
        self.grid.progress.steps += used as u64;
        used
    }

    /// Reports a guard predicate that is undefined in some lanes. Does nothing for arithmetic instructions.
    #[cold]
    fn report_undefined_guard(
        &mut self,
        warp: &Warp,
        frame: &mut CallFrame,
        instr: &DecodedInstruction,
        p: u32,
        mask: u32,
        pc: u32,
    ) {
        let lanes = frame.regs.undefined_predicates[p as usize] & mask;
        let consequence = match instr.op {
            Op::Alu { .. } => return,
            Op::Branch { .. } => "a branch depends",
            _ => "the guard of an instruction depends",
        };
        let lane = lanes.trailing_zeros();
        self.grid.report_undefined(warp, lane, pc, || format!("{consequence} on an undefined register"));
        frame.regs.undefined_predicates[p as usize] &= !lanes;
    }
}
