//! Detection of loops that wait: a loop whose registers and memory do not change can be ended only by another thread.

use super::warp_turn::Interpreter;
use crate::exec::state::warp::{Fragment, FragmentState};
use crate::regs::Registers;

/// Backward branches without a change of memory after which a loop is suspected of waiting; a power of two.
const BRANCHES_BEFORE_CHECK: u32 = 64;

impl Interpreter<'_> {
    /// Counts a backward branch. If the fragment only waits in a loop, sets its state to `Spin` and returns true.
    #[inline(always)]
    pub(super) fn backward_branch(&mut self, fragment: &mut Fragment, regs: &Registers) -> bool {
        fragment.backward_branches += 1;
        let branches = fragment.backward_branches;
        // Two consecutive iterations are compared, at powers of two of the branch count.
        let check = branches & (branches - 1) == 0 || fragment.spin_hash != 0;
        if branches < BRANCHES_BEFORE_CHECK || !check {
            return false;
        }
        self.check_spin(fragment, regs)
    }

    /// Compares the registers with those of the iteration before, by hash.
    #[cold]
    #[inline(never)]
    fn check_spin(&mut self, fragment: &mut Fragment, regs: &Registers) -> bool {
        let changes = self.grid.progress.changes;
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ (fragment.pc as u64) << 32 ^ fragment.mask as u64;
        let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        // The loop may not have seen a change that was made since the iteration before.
        add(changes);
        for row in &regs.rows {
            row.0.chunks_exact(2).for_each(|c| add(c[0] as u64 | (c[1] as u64) << 32));
        }
        regs.predicates.iter().for_each(|&p| add(p as u64));
        if fragment.spin_hash == hash | 1 {
            fragment.spin_hash = 0;
            // Two more branches repeat the check if the fragment is woken in vain.
            fragment.backward_branches = BRANCHES_BEFORE_CHECK - 2;
            fragment.state = FragmentState::Spin { progress: changes };
            return true;
        }
        fragment.spin_hash = if fragment.spin_hash == 0 { hash | 1 } else { 0 };
        false
    }
}
