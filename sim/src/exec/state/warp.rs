//! A warp: its register frames, and the fragments into which divergence splits it.
//!
//! A fragment is a set of lanes that are at the same instruction. A join is a point of reconvergence: an instruction
//! at which diverged fragments wait for each other.
//!
//! ```text
//! branch that only some lanes take:
//!     split the fragment in two; both get a join at the branch's immediate post-dominator
//! fragment reaches the instruction of its join:
//!     wait there; when every lane that the join expects has arrived, continue as one fragment
//! instruction that needs lanes together (.aligned, .sync):
//!     wait (Gather) until all live members are at the instruction, then merge their fragments
//! nothing else in the warp can run:
//!     give up the joins, because threads of a warp make progress independently since Volta;
//!     a gathering that can still not complete is reported as divergent
//! ```

use super::copies::WarpCopies;
use super::tensor_memory::WarpTensor;
use super::wgmma::WarpWgmma;
use crate::order::WarpVectorClocks;
use crate::program::FunctionCode;
use crate::regs::{RegisterRow, Registers, UnwrittenSource};
use std::collections::HashMap;

/// Value of [`WarpFragment::join`] for a fragment that has no reconvergence point (join).
pub const NO_RECONVERGENCE_POINT: u32 = u32::MAX;

/// One call of a function by lanes of a warp: its registers, parameters and return address.
#[derive(Debug)]
pub struct CallFrame {
    /// Index of the function in [`crate::program::Kernel::functions`].
    pub function: u32,
    /// The registers, and the constants that the function uses as operands.
    pub regs: Registers,
    /// Bytes of the function's `.param` space: first all bytes of lane 0, then those of lane 1, and so on.
    pub params: Vec<u8>,
    /// Bytes of `params` that hold a copy of bytes that nothing has written, by offset and lane.
    pub unwritten_params: HashMap<(u32, u8), UnwrittenSource>,
    /// Offset of the function's `.local` variables in each lane's local memory.
    pub local_base: u32,
    /// The caller's frame and the instruction to return to; `None` for the kernel itself.
    pub parent: Option<(u32, u32)>,
    /// Depth of nested calls of this frame; 0 for the kernel itself.
    pub depth: u32,
    /// Lanes that have not returned from the function.
    pub lanes: u32,
}

/// Whether a warp fragment (lanes of a diverged warp that are at one instruction) can run, or what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentState {
    /// The fragment can run.
    Ready,
    /// Waits at its reconvergence point (join) for the other warp fragments.
    AtJoin,
    /// Waits at an instruction that needs the lanes `members` together. With `same_instruction` all these lanes must be
    /// at this instruction; without it (`bar.warp.sync`) each lane may be at a different `bar.warp.sync`.
    Gather { members: u32, same_instruction: bool },
    /// Waits at the block barrier `id` (0 to 15).
    BlockBarrier { id: u32 },
    /// Waits at `barrier.cluster.wait` until phase `phase` of the cluster barrier is complete.
    ClusterBarrier { phase: u64 },
    /// Waits, after an mbarrier `try_wait` that was false, until the mbarrier at shared address `address` of the
    /// block in `slot` leaves phase `phase`. The wait names the phase by its parity, or by a state token.
    Mbarrier { slot: u32, address: u32, phase: u32, by_parity: bool },
    /// Waits in a loop that only a memory change can end; `progress` is the number of memory changes at the loop's
    /// last iteration.
    Spin { progress: u64 },
    /// Waits at `setmaxnreg.inc` for registers in the block's pool.
    Registers,
    /// Waits at `tcgen05.alloc` for free columns of tensor memory.
    TensorMemory,
    /// Waits at `wgmma.wait_group` for a product that other warps of the warpgroup have not issued.
    Wgmma,
    /// Waits at `griddepcontrol.wait` for the end of the primary grid.
    GridDependency,
}

/// Lanes of a warp that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct WarpFragment {
    /// Next instruction, as an index in the function of the warp fragment's call frame.
    pub pc: u32,
    /// Mask of the lanes.
    pub mask: u32,
    /// Index in [`Warp::frames`] of the lanes' call frame.
    pub frame: u32,
    /// Index in [`Warp::joins`] of the reconvergence point at which the warp fragment merges with others, or
    /// [`NO_RECONVERGENCE_POINT`].
    pub join: u32,
    /// Index of the instruction at which the warp fragment reconverges. [`NO_RECONVERGENCE_POINT`] if that instruction
    /// belongs to another call frame or does not exist.
    pub join_pc: u32,
    /// Whether the warp fragment can run, or what it waits for.
    pub state: FragmentState,
    /// Whether the other lanes that the next instruction needs have arrived, so that it may execute.
    pub gathered: bool,
    /// Number of backward branches since the warp fragment last changed memory; a high number suggests a loop that
    /// only waits.
    pub backward_branches: u32,
    /// Hash of instruction and registers from the interpreter's last check for a waiting loop; 0 if there was no such
    /// check.
    pub spin_hash: u64,
}

/// A point of reconvergence: an instruction at which diverged warp fragments continue as one.
#[derive(Clone, Copy, Debug)]
pub struct ReconvergencePoint {
    /// The instruction, as an index in the function of `frame`.
    pub pc: u32,
    /// Index of the call frame that the instruction belongs to.
    pub frame: u32,
    /// Mask of the lanes that must arrive, including those that have arrived; 0 once all have reconverged.
    pub expected: u32,
    /// Mask of the lanes that have arrived.
    pub arrived: u32,
    /// Index of the enclosing reconvergence point, or [`NO_RECONVERGENCE_POINT`].
    pub parent: u32,
}

/// A `setmaxnreg` that a warp has executed.
#[derive(Clone, Copy, Debug)]
pub struct ExecutedSetmaxnreg {
    /// Index of the instruction in the kernel.
    pub pc: u32,
    /// The warp's epoch when it executed the instruction; vector clocks count epochs.
    pub epoch: u32,
}

/// A warp of a resident block.
#[derive(Debug)]
pub struct Warp {
    /// Index of the warp in its block.
    pub index: u32,
    /// Slot of its block in the block table.
    pub slot: u32,
    /// Vector clocks of the lanes.
    pub order: WarpVectorClocks,
    /// Frames of the functions that were called; `None` for a function that has returned.
    pub frames: Vec<Option<Box<CallFrame>>>,
    /// The lanes, grouped by the instruction that they are at.
    pub fragments: Vec<WarpFragment>,
    /// Points of reconvergence; entries that expect no lanes are free.
    pub joins: Vec<ReconvergencePoint>,
    /// Mask of the lanes that have not exited.
    pub live: u32,
    /// Size of local memory in bytes per lane.
    pub local_size: u32,
    /// The bytes of local memory: first all bytes of lane 0, then those of lane 1, and so on.
    pub local: Vec<u8>,
    /// Whether each byte of local memory was written.
    pub local_init: Vec<bool>,
    /// Bytes of each lane's local memory that the functions on the call stack use.
    pub local_top: u32,
    /// Asynchronous copies that the warp has issued and not waited for.
    pub copies: WarpCopies,
    /// wgmma products of the warp and the registers that they use.
    pub wgmma: WarpWgmma,
    /// `tcgen05` instructions of the warp that are not known to be complete.
    pub tensor: WarpTensor,
    /// Number of registers per thread: the number at the start of the kernel, or as `setmaxnreg` set it. `None` while
    /// it is unknown.
    pub max_registers: Option<u32>,
    /// The `setmaxnreg` instructions that the warp has executed, in order.
    pub setmaxnreg: Vec<ExecutedSetmaxnreg>,
    /// For each mbarrier (block slot and address) that the warp has waited for by parity: the phase that it waits for
    /// next if it waits for all phases in order.
    pub next_phases: HashMap<(u32, u32), i64>,
    /// Whether the warp's next wait for a phase ends at once, because the phase is over although the parity names a
    /// later one.
    pub passes_late_wait: bool,
    /// For each lane, the last load of shared memory that nothing has written: the origin of undefined registers. Empty
    /// if no lane has executed such a load.
    pub unwritten_loads: Vec<Option<UnwrittenSource>>,
    /// Number of instructions executed, which `%clock` returns.
    pub clock: u64,
    /// Whether the warp executed `nanosleep` or a false mbarrier test, which ends its turn so that other warps run.
    pub yielded: bool,
    /// Number of consecutive turns in which the warp only polled.
    pub idle_turns: u32,
    /// Number of times that the scheduler passes over the warp before its next turn, because it only polls.
    pub passes: u32,
}

impl Warp {
    /// Returns whether a wait by parity, which waits for phase `phase` of an mbarrier now, is late: the phase that the
    /// warp should wait for next has the same parity, and is over.
    pub fn is_late(&self, mbarrier: (u32, u32), phase: u32) -> bool {
        let (next, phase) = (self.next_phase(mbarrier, phase & 1), phase as i64);
        (phase - next) % 2 == 0 && next + 2 <= phase
    }

    /// Records that a wait for `parity` has ended while `phase` was the current phase of the mbarrier.
    pub fn count_phase(&mut self, mbarrier: (u32, u32), parity: u32, phase: u32) {
        let next = self.next_phase(mbarrier, parity);
        let in_order = next & 1 == parity as i64;
        self.next_phases.insert(mbarrier, if in_order { next + 1 } else { phase as i64 });
    }

    /// Returns the phase that the warp should wait for next. A first wait with parity 1 is for the phase before phase 0.
    fn next_phase(&self, mbarrier: (u32, u32), parity: u32) -> i64 {
        self.next_phases.get(&mbarrier).copied().unwrap_or(-(parity as i64))
    }

    /// Returns whether any warp fragment can run.
    pub fn is_ready(&self) -> bool {
        self.fragments.iter().any(|f| f.state == FragmentState::Ready)
    }

    /// Records that `lane` has loaded shared memory that nothing has written.
    pub fn record_unwritten_load(&mut self, lane: u32, source: UnwrittenSource) {
        self.unwritten_loads.resize(32, None);
        self.unwritten_loads[lane as usize] = Some(source);
    }

    /// Returns the load from which an undefined register of `lane` may come: the lane's own last load of unwritten
    /// shared memory, or the last such load of another lane, whose value a shuffle or a matrix product may have passed
    /// on.
    pub fn unwritten_load(&self, lane: u32) -> Option<UnwrittenSource> {
        let own = self.unwritten_loads.get(lane as usize).copied().flatten();
        own.or_else(|| self.unwritten_loads.iter().find_map(|source| *source))
    }

    /// Returns the bytes of host memory that the warp's call frames and local memory take.
    pub fn stack_bytes(&self) -> u64 {
        let frame = |f: &CallFrame| 128 * f.regs.rows.len() as u64 + f.params.len() as u64 + 256;
        self.frames.iter().flatten().map(|f| frame(f)).sum::<u64>() + 64 * u64::from(self.local_size)
    }

    pub fn frame(&mut self, index: u32) -> &mut CallFrame {
        self.frames[index as usize].as_mut().expect("a fragment's frame lives")
    }

    /// Returns the registers of the call frame with this index.
    #[inline(always)]
    pub fn regs(&self, frame: u32) -> &Registers {
        &self.frames[frame as usize].as_ref().expect("a fragment's frame lives").regs
    }

    /// Returns the registers of the call frame with this index (mutable).
    #[inline(always)]
    pub fn regs_mut(&mut self, frame: u32) -> &mut Registers {
        &mut self.frame(frame).regs
    }

    /// Adds a call frame and returns its index.
    pub fn push_frame(&mut self, frame: CallFrame) -> u32 {
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

    /// Adds a reconvergence point and returns its index.
    pub fn push_reconvergence_point(&mut self, join: ReconvergencePoint) -> u32 {
        // Reuses the entry of a reconvergence point that is no longer in use, if there is one.
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

    /// Returns [`WarpFragment::join_pc`] for a fragment in `frame` whose next reconvergence point is `join`.
    pub fn reconvergence_pc_in_frame(&self, join: u32, frame: u32) -> u32 {
        match self.joins.get(join as usize) {
            Some(j) if join != NO_RECONVERGENCE_POINT && j.frame == frame => j.pc,
            _ => NO_RECONVERGENCE_POINT,
        }
    }

    /// Splits a warp fragment in two at a branch: `fragment` keeps the lanes `taken` and goes to `target`; the
    /// returned fragment has the other lanes and goes to `next`. Both fragments reconverge at the instruction
    /// `reconverge`, if it is given.
    pub fn split_off_lanes(
        &mut self,
        fragment: &mut WarpFragment,
        taken: u32,
        target: u32,
        next: u32,
        reconverge: Option<u32>,
    ) -> WarpFragment {
        if let Some(pc) = reconverge {
            // A loop that diverges in every iteration reuses its reconvergence point.
            let reuse = fragment.join != NO_RECONVERGENCE_POINT
                && self.joins[fragment.join as usize].pc == pc
                && self.joins[fragment.join as usize].frame == fragment.frame;
            if !reuse {
                let join = ReconvergencePoint {
                    pc,
                    frame: fragment.frame,
                    expected: fragment.mask,
                    arrived: 0,
                    parent: fragment.join,
                };
                fragment.join = self.push_reconvergence_point(join);
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

    /// Makes a warp fragment that has reached its reconvergence point wait there.
    pub fn wait_at_reconvergence_point(&mut self, fragment: &mut WarpFragment) {
        let join = fragment.join;
        self.joins[join as usize].arrived |= fragment.mask;
        fragment.state = FragmentState::AtJoin;
    }

    /// Adds `bytes` bytes, marked as unwritten, to every lane's local memory. Returns their local address, a multiple
    /// of 16.
    pub fn grow_local_memory(&mut self, bytes: u32) -> u32 {
        let base = self.local_top.next_multiple_of(16);
        self.local_top = base + bytes;
        if self.local_top > self.local_size {
            // The memory grows by at least half of its size, so that deep recursion does not copy the local memory at
            // every call.
            let wanted = self.local_top.max(self.local_size + self.local_size / 2);
            let (old, new) = (self.local_size as usize, wanted.next_multiple_of(64) as usize);
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

    /// Merges the warp fragments at reconvergence points where all expected lanes have arrived, and makes them ready.
    /// `self.fragments` must hold every live lane.
    pub fn complete_reconvergence(&mut self) {
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
        self.joins[join as usize] = ReconvergencePoint { expected: 0, arrived: 0, ..j };
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
        let join_pc = self.reconvergence_pc_in_frame(j.parent, j.frame);
        self.fragments.push(WarpFragment {
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

    /// Makes every warp fragment ready that waits at a reconvergence point with lanes missing and for which `which`
    /// returns true. Returns whether any fragment was made ready.
    pub fn give_up_reconvergence(&mut self, which: impl Fn(&WarpFragment) -> bool) -> bool {
        let gives_up = |f: &WarpFragment| f.state == FragmentState::AtJoin && which(f);
        let waiting: Vec<usize> = (0..self.fragments.len()).filter(|&i| gives_up(&self.fragments[i])).collect();
        for &i in &waiting {
            let f = self.fragments[i];
            let j = &mut self.joins[f.join as usize];
            j.expected &= !f.mask;
            j.arrived &= !f.mask;
            let parent = j.parent;
            let join_pc = self.reconvergence_pc_in_frame(parent, f.frame);
            let f = &mut self.fragments[i];
            f.join = parent;
            f.join_pc = join_pc;
            f.state = FragmentState::Ready;
        }
        !waiting.is_empty()
    }

    /// Removes the lanes `mask` from the reconvergence point `from` and from the points that enclose it, up to but not
    /// including `to`. These points then no longer wait for the lanes.
    pub fn leave_reconvergence_points(&mut self, mask: u32, from: u32, to: u32) {
        let mut at = from;
        while at != NO_RECONVERGENCE_POINT && at != to {
            let j = &mut self.joins[at as usize];
            j.expected &= !mask;
            j.arrived &= !mask;
            at = j.parent;
        }
    }

    /// Merges warp fragments that wait for each other at the same instruction, and makes them ready once no lane is
    /// missing. Returns whether anything changed.
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

    /// Completes a `bar.warp.sync` once all its member lanes wait at a `bar.warp.sync`; the lanes may wait at different
    /// instructions.
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

    /// Merges warp fragment `k` into fragment `i`. The merged fragment next reconverges at the innermost reconvergence
    /// point that encloses both fragments.
    fn merge(&mut self, i: usize, k: usize) {
        let g = self.fragments.swap_remove(k);
        let f = self.fragments[i];
        let chain = |mut at: u32, joins: &[ReconvergencePoint]| {
            let mut list = vec![at];
            while at != NO_RECONVERGENCE_POINT {
                at = joins[at as usize].parent;
                list.push(at);
            }
            list
        };
        let (a, b) = (chain(f.join, &self.joins), chain(g.join, &self.joins));
        let common = a.iter().copied().find(|j| b.contains(j)).unwrap_or(NO_RECONVERGENCE_POINT);
        self.leave_reconvergence_points(f.mask, f.join, common);
        self.leave_reconvergence_points(g.mask, g.join, common);
        let join_pc = self.reconvergence_pc_in_frame(common, f.frame);
        let f = &mut self.fragments[i];
        f.mask |= g.mask;
        f.join = common;
        f.join_pc = join_pc;
    }
}

/// Creates the registers of a new call frame: constants have their values; all other registers are zero and undefined.
/// Uses the memory of `spare`, the registers of an earlier frame of the same function: a large frame then needs no new
/// memory, and its constants are in place, because no instruction writes them.
pub fn initial_registers(code: &FunctionCode, spare: Option<Registers>) -> Registers {
    let register_rows = code.register_rows as usize;
    let mut regs = match spare {
        Some(mut spare) => {
            spare.rows[..register_rows].fill(RegisterRow([0; 32]));
            spare.clear_partial_definitions();
            spare
        }
        None => Registers {
            rows: code.template.clone(),
            undefined: vec![0; code.template.len()],
            undefined_predicates: vec![0; code.predicate_template.len()],
            ..Registers::default()
        },
    };
    regs.predicates.clone_from(&code.predicate_template);
    regs.undefined[..register_rows].fill(u32::MAX);
    regs.undefined[register_rows..].fill(0);
    let register_predicates = code.register_predicates as usize;
    regs.undefined_predicates[..register_predicates].fill(u32::MAX);
    regs.undefined_predicates[register_predicates..].fill(0);
    regs
}
