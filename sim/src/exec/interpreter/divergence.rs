//! Unblocks a warp in which no fragment can run. Its lanes wait for each other, either at a reconvergence point
//! (join) or at an instruction that needs several lanes together (gathering); such a wait is completed or given up.

use super::warp_turn::Interpreter;
use crate::exec::state::warp::{FragmentState, Warp, WarpFragment};
use crate::finding::FindingKind;
use crate::program::FunctionCode;
use crate::program::op::Op;

impl Interpreter<'_> {
    /// Completes the joins and gatherings at which lanes of the warp wait for each other. Gives up a join or gathering
    /// whose missing lanes cannot arrive. Returns whether a fragment can run now.
    pub(super) fn unblock_warp(&mut self, warp: &mut Warp) -> bool {
        warp.complete_reconvergence();
        warp.complete_gatherings();
        if warp.is_ready() {
            return true;
        }
        let waits_in_warp = |state| matches!(state, FragmentState::AtJoin | FragmentState::Gather { .. });
        // Lanes that wait for another warp may still reach the instruction at which the rest of their own warp waits
        // for them.
        if warp.fragments.is_empty() || warp.fragments.iter().any(|f| !waits_in_warp(f.state)) {
            return false;
        }
        // Lanes that wait at a reconvergence point after which the kernel ends exit now, without the missing lanes.
        if self.let_lanes_exit(warp) {
            return true;
        }
        // A gathering waits for lanes that cannot arrive: these lanes wait at a reconvergence point after the
        // gathering, or gather at another instruction.
        let whole = |state| matches!(state, FragmentState::Gather { same_instruction: true, .. });
        if let Some(i) = warp.fragments.iter().position(|f| whole(f.state)) {
            self.report_divergence(warp, i);
            let fragment = &mut warp.fragments[i];
            fragment.state = FragmentState::Ready;
            fragment.gathered = true;
            return true;
        }
        warp.give_up_reconvergence(|_| true)
    }

    /// Makes every warp fragment ready that waits at a reconvergence point after which the kernel ends. Returns
    /// whether any fragment waited at such a point.
    fn let_lanes_exit(&mut self, warp: &mut Warp) -> bool {
        let functions = &self.grid.context.kernel.functions;
        let exits = |warp: &Warp, f: &WarpFragment| {
            let frame = warp.frames[f.frame as usize].as_ref();
            frame.is_some_and(|frame| ends_kernel(&functions[frame.function as usize], f.pc, frame.parent.is_none()))
        };
        let leaving: Vec<u32> = warp.fragments.iter().filter(|f| exits(warp, f)).map(|f| f.mask).collect();
        warp.give_up_reconvergence(|f| leaving.contains(&f.mask))
    }

    fn report_divergence(&mut self, warp: &mut Warp, i: usize) {
        let fragment = warp.fragments[i];
        let function = warp.frame(fragment.frame).function;
        let code = &self.grid.context.kernel.functions[function as usize];
        let FragmentState::Gather { members, .. } = fragment.state else { return };
        let missing = members & warp.live & !fragment.mask;
        let (lane, pc) = (fragment.mask.trailing_zeros(), code.first + fragment.pc);
        let opcode = &code.opcodes[fragment.pc as usize];
        let kind = match opcode.split('.').next() {
            Some("wgmma") => FindingKind::Wgmma,
            Some("tcgen05") => FindingKind::Tcgen05,
            Some("setmaxnreg") => FindingKind::Setmaxnreg,
            _ => FindingKind::Barrier,
        };
        let site = self.grid.finding_site(warp.slot, warp.index, lane, pc);
        self.grid.reporter.report(kind, site, || {
            let warp = warp.index;
            format!(
                "{opcode} in divergent code: lanes {missing:#010x} of warp {warp} do not execute it with the others"
            )
        });
    }
}

/// Returns whether lanes at instruction `pc` of a function do nothing but end the kernel. `is_kernel` says whether a
/// `ret` of the function ends it.
fn ends_kernel(code: &FunctionCode, mut pc: u32, is_kernel: bool) -> bool {
    // The number of steps is bounded, because unguarded branches can form an endless cycle.
    for _ in 0..code.instrs.len() {
        let Some(instruction) = code.instrs.get(pc as usize).filter(|i| i.guard.is_none()) else { return false };
        match instruction.op {
            Op::Exit => return true,
            Op::Ret => return is_kernel,
            Op::Branch { target } => pc = target,
            _ => return false,
        }
    }
    false
}
