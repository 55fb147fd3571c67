//! The context of one instruction: the lanes that execute it and the grid that it acts on. Instruction handlers take
//! an [`InstructionContext`] instead of a list of arguments.

use super::grid::GridState;
use super::state::block::Block;
use super::state::warp::{FragmentState, Warp, WarpFragment};
use crate::finding::{FindingKind, FindingSite};
use crate::regs::Registers;

/// What the interpreter does after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAction {
    /// Continue with the next instruction.
    Next,
    /// Continue at the warp fragment's `pc`, which the instruction has set.
    Jumped,
    /// Stop running the warp fragment: it waits (its state says for what) or has no lanes left.
    Stop,
}

/// One instruction, as it is executed by a fragment (lanes of a warp at the same instruction).
pub struct InstructionContext<'i, 'a> {
    /// The running grid. It holds the warp's block; the warp itself is taken out of its block while it runs.
    pub grid: &'i mut GridState<'a>,
    /// The warp that executes the instruction.
    pub warp: &'i mut Warp,
    /// The fragment of the warp that executes the instruction.
    pub fragment: &'i mut WarpFragment,
    /// Mask of the lanes that execute the instruction: the lanes of the warp fragment whose guard is true.
    pub mask: u32,
    /// Index of the instruction in the kernel, over all functions.
    pub pc: u32,
}

impl InstructionContext<'_, '_> {
    /// Returns the block of the warp.
    #[inline]
    pub fn block(&self) -> &Block {
        &self.grid.blocks[self.warp.slot]
    }

    /// Returns the block of the warp (mutable).
    #[inline]
    pub fn block_mut(&mut self) -> &mut Block {
        &mut self.grid.blocks[self.warp.slot]
    }

    /// Returns the registers of the function that the warp fragment executes.
    #[inline(always)]
    pub fn regs(&self) -> &Registers {
        self.warp.regs(self.fragment.frame)
    }

    /// Returns the registers of the function that the warp fragment executes (mutable).
    #[inline(always)]
    pub fn regs_mut(&mut self) -> &mut Registers {
        self.warp.regs_mut(self.fragment.frame)
    }

    /// Returns the lowest lane that executes the instruction.
    #[inline]
    pub fn first_lane(&self) -> u32 {
        self.mask.trailing_zeros()
    }

    /// Returns the location for a finding: the thread of `lane` and this instruction.
    pub fn finding_site(&self, lane: u32) -> FindingSite {
        self.grid.finding_site(self.warp.slot, self.warp.index, lane, self.pc)
    }

    /// Reports a defect of a lane at this instruction.
    pub fn report(&mut self, kind: FindingKind, lane: u32, message: impl FnOnce() -> String) {
        let site = self.finding_site(lane);
        self.grid.reporter.report(kind, site, message);
    }

    /// Reports that this instruction uses an undefined register of a lane where its value can change what the kernel
    /// does.
    pub fn report_undefined(&mut self, lane: u32, message: impl FnOnce() -> String) {
        self.grid.report_undefined(self.warp, lane, self.pc, message);
    }

    /// Reports a defect of a lane at this instruction, which accesses `address` in the state space `space`.
    pub fn report_access(
        &mut self,
        kind: FindingKind,
        lane: u32,
        (space, address): (&'static str, u64),
        message: impl FnOnce() -> String,
    ) {
        let site = self.finding_site(lane);
        self.grid.reporter.report_with_details(kind, site, None, Some((space, address)), message);
    }

    /// Removes the lanes `undefined` from the mask and reports them: their address depends on an undefined register.
    pub fn drop_lanes_with_undefined_address(&mut self, undefined: u32) {
        let undefined = undefined & self.mask;
        if undefined != 0 {
            self.report_undefined(undefined.trailing_zeros(), || "an address depends on an undefined register".into());
            self.mask &= !undefined;
        }
    }

    /// Returns whether all live lanes in `member_mask` are at this instruction; if not, makes the warp fragment wait
    /// for them.
    pub fn gather_lanes(&mut self, member_mask: u32) -> bool {
        if self.fragment.gathered {
            self.fragment.gathered = false;
            return true;
        }
        if member_mask & self.warp.live & !self.mask == 0 {
            return true;
        }
        self.fragment.state = FragmentState::Gather { members: member_mask, same_instruction: true };
        false
    }

    /// Records that the warp fragment changed memory, so that its current loop is not taken for a loop that only
    /// waits.
    #[inline]
    pub fn record_memory_change(&mut self) {
        self.grid.count_memory_or_barrier_change();
        self.fragment.backward_branches = 0;
    }

    /// Writes `values` to a 32-bit register, in the lanes that execute the instruction.
    pub fn set_register(&mut self, register: u32, values: &[u32; 32]) {
        let mask = self.mask;
        let regs = self.regs_mut();
        regs.set(register, values, mask);
        regs.undefined[register as usize] &= !mask;
    }

    /// Writes `values` to a 64-bit register, in the lanes that execute the instruction.
    pub fn set_register64(&mut self, register: u32, values: &[u64; 32]) {
        let mask = self.mask;
        let regs = self.regs_mut();
        regs.set64(register, values, mask);
        regs.undefined[register as usize] &= !mask;
    }
}

/// Iterates over the lanes in a mask in ascending order.
#[inline]
pub fn lanes_in_mask(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}
