//! A warp: its frames of registers, and the fragments into which divergence splits it.
//!
//! A fragment is a set of lanes at one instruction. A branch that splits a fragment makes a *join* at the branch's
//! immediate post-dominator: fragments wait there for their siblings. Instructions for which lanes must come together
//! (`.aligned`, `.sync`) gather fragments at the same instruction first. When nothing else in the warp can go on, joins are
//! given up (threads of a warp make progress on their own since Volta), and only then a gathering is called divergent.

use super::copies::WarpCopies;
use crate::order::WarpClocks;
use crate::program::FunctionCode;
use crate::regs::Registers;

/// No join.
pub const NONE: u32 = u32::MAX;

/// A function's activation.
#[derive(Debug)]
pub struct Frame {
    /// Index of the function in the kernel.
    pub function: u32,
    /// Registers and constants.
    pub regs: Registers,
    /// `.param` bytes, lane by lane.
    pub params: Vec<u8>,
    /// Offset of its `.local` variables in each lane's local memory.
    pub local_base: u32,
    /// The caller's frame and where it goes on.
    pub parent: Option<(u32, u32)>,
    /// Lanes inside.
    pub lanes: u32,
}

/// What a fragment waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    /// Can run.
    Ready,
    /// At its join, until the siblings are there.
    Joined,
    /// At an instruction that needs these lanes together; `whole`: at this very instruction.
    Gather { members: u32, whole: bool },
    /// At a block barrier.
    Barrier { id: u32 },
    /// At `barrier.cluster.wait`.
    Cluster { phase: u64 },
    /// At a try_wait that was false, until the mbarrier at this shared address of the block moves on.
    Mbarrier { slot: u32, address: u32, phase: u32 },
    /// In a loop that only memory can end; until something changes.
    Spin { progress: u64 },
    /// `setmaxnreg.inc` without registers in the pool.
    Registers,
    /// `wgmma.wait_group` for a product that other warps of the group have not issued.
    Wgmma,
    /// `griddepcontrol.wait`
    GridDependency,
}

/// Lanes at one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Next instruction, in the frame's function.
    pub pc: u32,
    /// Which lanes.
    pub mask: u32,
    /// Their frame.
    pub frame: u32,
    /// The join they go to, or [`NONE`].
    pub join: u32,
    /// The join's instruction if it is in this frame, else [`NONE`].
    pub join_pc: u32,
    /// Whether it can run.
    pub state: State,
    /// It has gathered whom it needs: the instruction may execute.
    pub gathered: bool,
    /// Backward branches since something changed.
    pub backs: u32,
    /// The loop head and register hash of the last look.
    pub spin_hash: u64,
}

/// A point where fragments meet again.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// The instruction.
    pub pc: u32,
    /// In this frame.
    pub frame: u32,
    /// Lanes that are to come, those that came included.
    pub expected: u32,
    /// Lanes that came.
    pub arrived: u32,
    /// The join beyond.
    pub parent: u32,
}

/// A warp of a block.
#[derive(Debug)]
pub struct Warp {
    /// Its index in the block.
    pub index: u32,
    /// Slot of its block.
    pub slot: u32,
    /// Its place in the order.
    pub order: WarpClocks,
    /// Activations; `None` when over.
    pub frames: Vec<Option<Box<Frame>>>,
    /// Where its lanes are.
    pub fragments: Vec<Fragment>,
    /// Joins, also those that are over.
    pub joins: Vec<Join>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Local memory: bytes a lane, and all lanes' bytes, lane by lane.
    pub local_size: u32,
    /// The bytes.
    pub local: Vec<u8>,
    /// Which of them were written.
    pub local_init: Vec<bool>,
    /// Top of the local stack.
    pub local_top: u32,
    /// Its asynchronous copies.
    pub copies: WarpCopies,
    /// Registers a thread may use, as set by `setmaxnreg`.
    pub max_registers: u32,
    /// Instructions executed.
    pub clock: u64,
}

impl Warp {
    /// Whether some lanes can run.
    pub fn is_ready(&self) -> bool {
        self.fragments.iter().any(|f| f.state == State::Ready)
    }

    /// The frame of a fragment.
    pub fn frame(&mut self, index: u32) -> &mut Frame {
        self.frames[index as usize].as_mut().expect("a fragment's frame lives")
    }

    /// Pushes a frame; its index.
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

    /// Adds a join.
    pub fn push_join(&mut self, join: Join) -> u32 {
        // Reuse one that is over.
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

    /// The fragment's [`Fragment::join_pc`] for the join it has.
    pub fn join_pc(&self, join: u32, frame: u32) -> u32 {
        match self.joins.get(join as usize) {
            Some(j) if join != NONE && j.frame == frame => j.pc,
            _ => NONE,
        }
    }

    /// Splits a fragment in two at a branch: `taken` goes to `target`, the rest of `fragment.mask` to `next`.
    /// Returns the second one; both meet at `reconverge`.
    pub fn split(
        &mut self,
        fragment: &mut Fragment,
        taken: u32,
        target: u32,
        next: u32,
        reconverge: Option<u32>,
    ) -> Fragment {
        if let Some(pc) = reconverge {
            // A loop that diverges again and again at the same place needs one join only.
            let reuse = fragment.join != NONE
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

    /// A fragment has come to its join.
    pub fn arrive_at_join(&mut self, fragment: &mut Fragment) {
        let join = fragment.join;
        self.joins[join as usize].arrived |= fragment.mask;
        fragment.state = State::Joined;
    }

    /// Lets the fragments of complete joins go on together. `fragments` hold every lane.
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
            let here = f.state == State::Joined && f.join == join;
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
            state: State::Ready,
            gathered: false,
            backs: 0,
            spin_hash: 0,
        });
    }

    /// Gives up the joins of fragments that wait at one: they go on alone. Whether there were any.
    pub fn give_up_joins(&mut self) -> bool {
        let waiting: Vec<usize> =
            (0..self.fragments.len()).filter(|&i| self.fragments[i].state == State::Joined).collect();
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
            f.state = State::Ready;
        }
        !waiting.is_empty()
    }

    /// Lanes are gone (exited, or merged elsewhere): no join waits for them.
    pub fn leave_joins(&mut self, mask: u32, from: u32, to: u32) {
        let mut at = from;
        while at != NONE && at != to {
            let j = &mut self.joins[at as usize];
            j.expected &= !mask;
            j.arrived &= !mask;
            at = j.parent;
        }
    }

    /// Merges fragments that gather at the same instruction, and lets those go on that are complete.
    pub fn complete_gatherings(&mut self) -> bool {
        let mut progress = false;
        // Same instruction, same frame: one fragment.
        let mut i = 0;
        while i < self.fragments.len() {
            let f = self.fragments[i];
            if let State::Gather { members, whole: true } = f.state {
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
                    f.state = State::Ready;
                    f.gathered = true;
                    progress = true;
                }
            }
            i += 1;
        }
        progress |= self.complete_warp_syncs();
        progress
    }

    /// `bar.warp.sync`: lanes may stand at different instructions as long as all named ones stand at one.
    fn complete_warp_syncs(&mut self) -> bool {
        for i in 0..self.fragments.len() {
            let State::Gather { members, whole: false } = self.fragments[i].state else { continue };
            let state = self.fragments[i].state;
            let there = self.fragments.iter().filter(|f| f.state == state).fold(0, |mask, f| mask | f.mask);
            if members & self.live & !there == 0 {
                self.order.sync(there & members);
                // Those at the same instruction go on together.
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
                        self.fragments[i].state = State::Ready;
                        self.fragments[i].gathered = true;
                    }
                    i += 1;
                }
                return true;
            }
        }
        false
    }

    /// Fragment `k` joins fragment `i`; their joins end where they share one.
    fn merge(&mut self, i: usize, k: usize) {
        let g = self.fragments.swap_remove(k);
        let f = self.fragments[i];
        let chain = |mut at: u32, joins: &[Join]| {
            let mut list = vec![at];
            while at != NONE {
                at = joins[at as usize].parent;
                list.push(at);
            }
            list
        };
        let (a, b) = (chain(f.join, &self.joins), chain(g.join, &self.joins));
        let common = a.iter().copied().find(|j| b.contains(j)).unwrap_or(NONE);
        self.leave_joins(f.mask, f.join, common);
        self.leave_joins(g.mask, g.join, common);
        let join_pc = self.join_pc(common, f.frame);
        let f = &mut self.fragments[i];
        f.mask |= g.mask;
        f.join = common;
        f.join_pc = join_pc;
    }
}

/// The registers of a new frame.
pub fn registers(code: &FunctionCode) -> Registers {
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
