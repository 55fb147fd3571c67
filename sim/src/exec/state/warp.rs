//! A warp: its register frames, and the fragments into which divergence splits it.
//!
//! A fragment is a set of lanes that stand at one instruction. Divergence and reconvergence work like this:
//!
//! ```text
//! branch that only some lanes take:
//!     split the fragment in two; both get the join at the branch's immediate post-dominator
//! fragment reaches the instruction of its join:
//!     wait there; when every lane the join expects has arrived, continue as one fragment
//! instruction that needs lanes together (.aligned, .sync):
//!     wait (Gather) until all live members stand at the instruction, then merge their fragments
//! nothing else in the warp can run:
//!     give up the joins, because threads of a warp make progress independently since Volta;
//!     a gathering that can still not complete is reported as divergent
//! ```

use super::copies::WarpCopies;
use super::wgmma::WarpWgmma;
use crate::order::WarpClocks;
use crate::program::FunctionCode;
use crate::regs::Registers;

/// The join index of a fragment that has no join.
pub const NO_JOIN: u32 = u32::MAX;

/// The activation of a function: its registers, parameters and return address.
#[derive(Debug)]
pub struct Frame {
    /// Index of the function in [`crate::program::Kernel::functions`].
    pub function: u32,
    /// Registers, and constants that the function uses as operands.
    pub regs: Registers,
    /// Bytes of the function's `.param` space, lane by lane.
    pub params: Vec<u8>,
    /// Offset of the function's `.local` variables in each lane's local memory.
    pub local_base: u32,
    /// The caller's frame and the instruction to return to; `None` in the kernel itself.
    pub parent: Option<(u32, u32)>,
    /// Lanes that have not returned from the function.
    pub lanes: u32,
}

/// Whether a fragment can run, or what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentState {
    /// The fragment can run.
    Ready,
    /// Waits at its join until the sibling fragments arrive.
    AtJoin,
    /// Waits at an instruction that needs the lanes `members` together. `same_instruction` is false for
    /// `bar.warp.sync`, at which lanes may stand in different places of the code.
    Gather { members: u32, same_instruction: bool },
    /// Waits at the block barrier `id` (0 to 15).
    BlockBarrier { id: u32 },
    /// Waits at `barrier.cluster.wait` until phase `phase` of the cluster barrier is complete.
    ClusterBarrier { phase: u64 },
    /// Waits after a `try_wait` that was false, until the mbarrier at shared address `address` of the block in `slot`
    /// leaves phase `phase`.
    Mbarrier { slot: u32, address: u32, phase: u32 },
    /// Waits in a loop that only a memory change can end; `progress` is the number of changes when the loop last
    /// looked.
    Spin { progress: u64 },
    /// Waits at `setmaxnreg.inc` for registers in the block's pool.
    Registers,
    /// Waits at `wgmma.wait_group` for a product that other warps of the warpgroup have not issued.
    Wgmma,
    /// Waits at `griddepcontrol.wait` for the end of the primary grid.
    GridDependency,
}

/// Lanes of a warp that stand at one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Next instruction, as an index in the frame's function.
    pub pc: u32,
    /// The lanes.
    pub mask: u32,
    /// Index of their frame in [`Warp::frames`].
    pub frame: u32,
    /// Index of the join where the fragment meets its siblings, or [`NO_JOIN`].
    pub join: u32,
    /// The join's instruction if the join is in this frame, else [`NO_JOIN`].
    pub join_pc: u32,
    /// Whether the fragment can run.
    pub state: FragmentState,
    /// The fragment has waited for the other lanes at its instruction, so the instruction may execute.
    pub gathered: bool,
    /// Backward branches since the fragment last changed memory: a high number suggests a loop that waits.
    pub backward_branches: u32,
    /// Hash of loop head and registers when the interpreter last checked whether the loop only waits; 0 if none.
    pub spin_hash: u64,
}

/// An instruction at which fragments that diverged continue as one.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// The instruction.
    pub pc: u32,
    /// The frame that the instruction belongs to.
    pub frame: u32,
    /// Lanes that the join waits for, including those that have arrived; 0 once the join is over.
    pub expected: u32,
    /// Lanes that have arrived.
    pub arrived: u32,
    /// The enclosing join.
    pub parent: u32,
}

/// A warp of a resident block.
#[derive(Debug)]
pub struct Warp {
    /// Index of the warp in its block.
    pub index: u32,
    /// Slot of its block in the block table.
    pub slot: u32,
    /// Vector clocks of its lanes.
    pub order: WarpClocks,
    /// Function activations; `None` for those that have returned.
    pub frames: Vec<Option<Box<Frame>>>,
    /// The lanes, grouped by instruction.
    pub fragments: Vec<Fragment>,
    /// Joins; entries with no expected lanes are free.
    pub joins: Vec<Join>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Local memory in bytes per lane.
    pub local_size: u32,
    /// The bytes of local memory, lane by lane.
    pub local: Vec<u8>,
    /// Which bytes of local memory were written.
    pub local_init: Vec<bool>,
    /// Top of the stack of local variables, in bytes from its start.
    pub local_top: u32,
    /// `cp.async` groups and bulk store groups.
    pub copies: WarpCopies,
    /// wgmma groups and the registers that they use.
    pub wgmma: WarpWgmma,
    /// Registers that a thread may use, as set by `setmaxnreg`.
    pub max_registers: u32,
    /// The `setmaxnreg` instructions that the warp executed, in order.
    pub setmaxnreg: Vec<u32>,
    /// Instructions executed, which `%clock` returns.
    pub clock: u64,
    /// The warp executed `nanosleep`: its turn ends so that other warps run.
    pub yielded: bool,
}

impl Warp {
    /// Whether any fragment can run.
    pub fn is_ready(&self) -> bool {
        self.fragments.iter().any(|f| f.state == FragmentState::Ready)
    }

    /// The frame with this index.
    pub fn frame(&mut self, index: u32) -> &mut Frame {
        self.frames[index as usize].as_mut().expect("a fragment's frame lives")
    }

    /// The registers of the frame with this index.
    #[inline(always)]
    pub fn regs(&self, frame: u32) -> &Registers {
        &self.frames[frame as usize].as_ref().expect("a fragment's frame lives").regs
    }

    /// The registers of the frame with this index, to be changed.
    #[inline(always)]
    pub fn regs_mut(&mut self, frame: u32) -> &mut Registers {
        &mut self.frame(frame).regs
    }

    /// Adds a frame and returns its index.
    pub fn push_frame(&mut self, frame: Frame) -> u32 {
        match self.frames.iter().position(|f| f.is_none()) {
            Some(i) => {
                self.frames[i] = Some(Box::new(frame));
                i as u32
            }
            None => {
                self.frames.push(Some(Box::new(frame)));
                self.frames.len() as u32 - 1
            }
        }
    }

    /// Adds a join and returns its index.
    pub fn push_join(&mut self, join: Join) -> u32 {
        // Reuses the entry of a join that is over.
        match self.joins.iter().position(|j| j.expected == 0) {
            Some(i) => {
                self.joins[i] = join;
                i as u32
            }
            None => {
                self.joins.push(join);
                self.joins.len() as u32 - 1
            }
        }
    }

    /// The value of [`Fragment::join_pc`] for a fragment of `frame` that goes to `join`.
    pub fn join_pc(&self, join: u32, frame: u32) -> u32 {
        match self.joins.get(join as usize) {
            Some(j) if join != NO_JOIN && j.frame == frame => j.pc,
            _ => NO_JOIN,
        }
    }

    /// Splits a fragment in two at a branch. `fragment` keeps the lanes `taken` and goes to `target`; the returned
    /// fragment has the other lanes and goes to `next`. Both meet again at the instruction `reconverge`, if there is
    /// one.
    pub fn split(
        &mut self,
        fragment: &mut Fragment,
        taken: u32,
        target: u32,
        next: u32,
        reconverge: Option<u32>,
    ) -> Fragment {
        if let Some(pc) = reconverge {
            // A loop that diverges in every iteration needs only one join.
            let reuse = fragment.join != NO_JOIN
                && self.joins[fragment.join as usize].pc == pc
                && self.joins[fragment.join as usize].frame == fragment.frame;
            if !reuse {
                let join =
                    Join { pc, frame: fragment.frame, expected: fragment.mask, arrived: 0, parent: fragment.join };
                fragment.join = self.push_join(join);
                fragment.join_pc = pc;
            }
        }
        let mut other = *fragment;
        other.mask = fragment.mask & !taken;
        other.pc = next;
        fragment.mask = taken;
        fragment.pc = target;
        other
    }

    /// Records that a fragment has reached its join, where it waits.
    pub fn arrive_at_join(&mut self, fragment: &mut Fragment) {
        let join = fragment.join;
        self.joins[join as usize].arrived |= fragment.mask;
        fragment.state = FragmentState::AtJoin;
    }

    /// Grows every lane's local memory by `bytes` bytes that count as unwritten. Returns where they begin, a multiple
    /// of 16.
    pub fn grow_local(&mut self, bytes: u32) -> u32 {
        let base = self.local_top.next_multiple_of(16);
        self.local_top = base + bytes;
        if self.local_top > self.local_size {
            let (old, new) = (self.local_size as usize, self.local_top.next_multiple_of(64) as usize);
            let mut local = vec![0xa5u8; new * 32];
            let mut init = vec![false; new * 32];
            for lane in 0..32 {
                local[lane * new..lane * new + old].copy_from_slice(&self.local[lane * old..lane * old + old]);
                init[lane * new..lane * new + old].copy_from_slice(&self.local_init[lane * old..lane * old + old]);
            }
            self.local = local;
            self.local_init = init;
            self.local_size = new as u32;
        }
        if bytes > 0 {
            let stride = self.local_size as usize;
            (0..32).for_each(|lane| self.local_init[lane * stride + base as usize..][..bytes as usize].fill(false));
        }
        base
    }

    /// Merges the fragments of complete joins and makes them ready. `self.fragments` must hold every live lane.
    pub fn complete_joins(&mut self) {
        for at in 0..self.joins.len() {
            let j = self.joins[at];
            if j.expected != 0 && j.arrived & j.expected == j.expected {
                self.finish_join(at as u32);
            } else if j.expected == 0 && j.arrived != 0 {
                self.joins[at].arrived = 0;
            }
        }
    }

    fn finish_join(&mut self, join: u32) {
        let j = self.joins[join as usize];
        self.joins[join as usize] = Join { expected: 0, arrived: 0, ..j };
        let mut mask = 0;
        self.fragments.retain(|f| {
            let here = f.state == FragmentState::AtJoin && f.join == join;
            if here {
                mask |= f.mask;
            }
            !here
        });
        if mask == 0 {
            return;
        }
        let join_pc = self.join_pc(j.parent, j.frame);
        self.fragments.push(Fragment {
            pc: j.pc,
            mask,
            frame: j.frame,
            join: j.parent,
            join_pc,
            state: FragmentState::Ready,
            gathered: false,
            backward_branches: 0,
            spin_hash: 0,
        });
    }

    /// Lets fragments that wait at a join continue alone; returns whether any waited.
    pub fn give_up_joins(&mut self) -> bool {
        let waiting: Vec<usize> =
            (0..self.fragments.len()).filter(|&i| self.fragments[i].state == FragmentState::AtJoin).collect();
        for &i in &waiting {
            let f = self.fragments[i];
            let j = &mut self.joins[f.join as usize];
            j.expected &= !f.mask;
            j.arrived &= !f.mask;
            let parent = j.parent;
            let join_pc = self.join_pc(parent, f.frame);
            let f = &mut self.fragments[i];
            f.join = parent;
            f.join_pc = join_pc;
            f.state = FragmentState::Ready;
        }
        !waiting.is_empty()
    }

    /// Removes lanes that exited or merged elsewhere from the joins `from` up to, not including, `to`.
    pub fn leave_joins(&mut self, mask: u32, from: u32, to: u32) {
        let mut at = from;
        while at != NO_JOIN && at != to {
            let j = &mut self.joins[at as usize];
            j.expected &= !mask;
            j.arrived &= !mask;
            at = j.parent;
        }
    }

    /// Merges fragments that gather at the same instruction and makes complete gatherings ready; returns whether
    /// anything changed.
    pub fn complete_gatherings(&mut self) -> bool {
        let mut progress = false;
        let mut i = 0;
        while i < self.fragments.len() {
            let f = self.fragments[i];
            if let FragmentState::Gather { members, same_instruction: true } = f.state {
                let mut k = i + 1;
                while k < self.fragments.len() {
                    let g = self.fragments[k];
                    let same = g.state == f.state && g.pc == f.pc && g.frame == f.frame;
                    if same {
                        self.merge(i, k);
                        progress = true;
                    } else {
                        k += 1;
                    }
                }
                let f = &mut self.fragments[i];
                if members & self.live & !f.mask == 0 {
                    f.state = FragmentState::Ready;
                    f.gathered = true;
                    progress = true;
                }
            }
            i += 1;
        }
        progress |= self.complete_warp_syncs();
        progress
    }

    /// Completes `bar.warp.sync`: its lanes may stand at different instructions, as long as each member stands at one.
    fn complete_warp_syncs(&mut self) -> bool {
        for i in 0..self.fragments.len() {
            let FragmentState::Gather { members, same_instruction: false } = self.fragments[i].state else { continue };
            let state = self.fragments[i].state;
            let waiting = self.fragments.iter().filter(|f| f.state == state).fold(0, |mask, f| mask | f.mask);
            if members & self.live & !waiting == 0 {
                self.order.sync(waiting & members);
                // Fragments at the same instruction continue as one.
                let mut i = 0;
                while i < self.fragments.len() {
                    let f = self.fragments[i];
                    if f.state == state {
                        while let Some(k) = (i + 1..self.fragments.len()).find(|&k| {
                            let g = &self.fragments[k];
                            g.state == state && g.pc == f.pc && g.frame == f.frame
                        }) {
                            self.merge(i, k);
                        }
                        self.fragments[i].state = FragmentState::Ready;
                        self.fragments[i].gathered = true;
                    }
                    i += 1;
                }
                return true;
            }
        }
        false
    }

    /// Merges fragment `k` into fragment `i`. Both leave their joins up to the innermost one that they share.
    fn merge(&mut self, i: usize, k: usize) {
        let g = self.fragments.swap_remove(k);
        let f = self.fragments[i];
        let chain = |mut at: u32, joins: &[Join]| {
            let mut list = vec![at];
            while at != NO_JOIN {
                at = joins[at as usize].parent;
                list.push(at);
            }
            list
        };
        let (a, b) = (chain(f.join, &self.joins), chain(g.join, &self.joins));
        let common = a.iter().copied().find(|j| b.contains(j)).unwrap_or(NO_JOIN);
        self.leave_joins(f.mask, f.join, common);
        self.leave_joins(g.mask, g.join, common);
        let join_pc = self.join_pc(common, f.frame);
        let f = &mut self.fragments[i];
        f.mask |= g.mask;
        f.join = common;
        f.join_pc = join_pc;
    }
}

/// The registers of a new frame: constants are set, all others are undefined.
pub fn new_registers(code: &FunctionCode) -> Registers {
    let mut undefined = vec![0u32; code.template.len()];
    undefined[..code.register_rows as usize].fill(u32::MAX);
    let mut undefined_predicates = vec![0u32; code.predicate_template.len()];
    undefined_predicates[..code.register_predicates as usize].fill(u32::MAX);
    Registers {
        rows: code.template.clone(),
        undefined,
        predicates: code.predicate_template.clone(),
        undefined_predicates,
    }
}
