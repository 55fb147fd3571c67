//! Unblocks a warp in which no fragment can run. Its lanes wait for each other, either at a reconvergence point
//! (join) or at an instruction that needs several lanes together (gathering); such a wait is completed or given up.

use super::warp_turn::Interpreter;
use crate::exec::state::warp::{FragmentState, Warp};
use crate::finding::FindingKind;

impl Interpreter<'_> {
    /// Completes the joins and gatherings at which lanes of the warp wait for each other, or gives them up if the
    /// missing lanes cannot arrive. Returns whether a fragment can run now.
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
        warp.give_up_reconvergence()
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
