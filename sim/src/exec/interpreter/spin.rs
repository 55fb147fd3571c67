//! Detects loops that only wait: if neither registers nor memory change in an iteration, only another thread can end
//! the loop.

use super::warp_turn::Interpreter;
use crate::exec::state::warp::{FragmentState, WarpFragment};
use crate::regs::Registers;

/// Number of backward branches without a memory change after which the interpreter checks whether a loop only waits; a
/// power of two.
const BRANCHES_BEFORE_CHECK: u32 = 64;

impl Interpreter<'_> {
    /// Counts a backward branch. If the warp fragment is in a loop that only waits, sets its state to `Spin` and
    /// returns true.
    #[inline(always)]
    pub(super) fn detect_spin_at_backward_branch(&mut self, fragment: &mut WarpFragment, regs: &Registers) -> bool {
        fragment.backward_branches += 1;
        let branches = fragment.backward_branches;
        // Two consecutive iterations are compared whenever the branch count is a power of two.
        let check = branches & (branches - 1) == 0 || fragment.spin_hash != 0;
        if branches < BRANCHES_BEFORE_CHECK || !check {
            return false;
        }
        self.check_spin(fragment, regs)
    }

    /// Compares a hash of the registers with the hash from the previous iteration.
    #[cold]
    #[inline(never)]
    fn check_spin(&mut self, fragment: &mut WarpFragment, regs: &Registers) -> bool {
        let changes = self.grid.progress.changes;
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ (fragment.pc as u64) << 32 ^ fragment.mask as u64;
        let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        // The hash includes the number of memory changes: the loop may not have read the latest change yet.
        add(changes);
        // The hash includes the number of clock reads: a loop that reads a clock may wait for time to pass and does not
        // need another thread to end.
        add(self.grid.progress.clock_reads);
        for row in &regs.rows {
            row.0.chunks_exact(2).for_each(|c| add(c[0] as u64 | (c[1] as u64) << 32));
        }
        regs.predicates.iter().for_each(|&p| add(p as u64));
        if fragment.spin_hash == hash | 1 {
            fragment.spin_hash = 0;
            // If the warp fragment is woken and still waits, the check runs again after two more branches.
            fragment.backward_branches = BRANCHES_BEFORE_CHECK - 2;
            fragment.state = FragmentState::Spin { progress: changes };
            return true;
        }
        fragment.spin_hash = if fragment.spin_hash == 0 { hash | 1 } else { 0 };
        false
    }
}
