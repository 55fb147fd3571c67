//! `bar`/`barrier` with their 16 barriers a block, the cluster's barrier, and fences.

use super::run::Flow;
use super::warp::{Fragment, State, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::order::{FenceHandoff, VectorClock};
use crate::program::op::{Barrier, BarrierKind, Fence};
use std::collections::BTreeMap;

/// One of the 16 barriers of a block.
#[derive(Clone, Debug, Default)]
pub struct BlockBarrier {
    /// Threads that arrived, exited ones of their warps included.
    arrived: u32,
    /// Threads it waits for, once somebody named a number; 0: all of the block that live.
    expected: Option<u32>,
    /// By warp: lanes that arrived.
    lanes: BTreeMap<u32, u32>,
    /// What the arrived did and knew.
    clock: Option<VectorClock>,
    /// What they fenced and observed.
    handoff: FenceHandoff,
    /// Arrivals of `bar.red`: true predicates, and whether all and any were.
    popc: u32,
    all: bool,
    any: bool,
    /// Destinations to fill at the end: warp, frame, lanes, kind.
    reductions: Vec<(u32, u32, u32, BarrierKind)>,
    /// Somebody waits.
    waiting: bool,
    /// The instruction of the first arrival.
    pc: u32,
}

impl BlockBarrier {
    /// Whether it waits for a number of threads that was named.
    pub fn is_counted(&self) -> bool {
        self.expected.is_some()
    }

    /// The instruction of the first arrival.
    pub fn pc(&self) -> u32 {
        self.pc
    }

    /// In words, for deadlocks.
    pub fn describe(&self, live: u32) -> String {
        let expected = self.expected.unwrap_or(live);
        format!("{} of {expected} threads have arrived", self.arrived)
    }
}

/// The barrier of a cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterBarrier {
    /// How often it has completed.
    pub phase: u64,
    arrived: u32,
    clock: Option<VectorClock>,
    /// What the last phase released.
    released: Option<VectorClock>,
    /// By (slot, warp): lanes that arrived and the phase in which.
    lanes: BTreeMap<(u32, u32), (u32, u64)>,
}

impl Machine<'_> {
    pub(super) fn barrier(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        b: &Barrier,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if b.aligned && !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        fragment.gathered = false;
        let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
        let frame = fragment.frame;
        let regs = &mut warp.frame(frame).regs;
        let first = mask.trailing_zeros() as usize;
        let id = regs.get(b.id)[first];
        let count = b.count.map(|c| regs.get(c)[first]);
        if id > 15 {
            self.report(FindingKind::Barrier, site, None, None, || format!("barrier {id}: there are 16, 0 to 15"));
            return Flow::Next;
        }
        let total = block.warps.len() as u32 * 32;
        if let Some(n) = count
            && (n == 0 || n % 32 != 0 || n > total)
        {
            self.report(FindingKind::Barrier, site, None, None, || {
                format!(
                    "barrier {id}: a count of {n}; it must be a multiple of 32, at most the block's {total} threads"
                )
            });
            if n == 0 || n > total {
                return Flow::Next;
            }
        }
        let barrier = &mut block.barriers[id as usize];
        if barrier.arrived == 0 {
            barrier.expected = count;
            barrier.pc = pc;
        } else if barrier.expected != count {
            let (was, other) = (barrier.expected, barrier.pc);
            let words = |n: Option<u32>| n.map_or("all threads".to_string(), |n| format!("{n} threads"));
            self.report(FindingKind::Barrier, site, Some(other), None, || {
                format!(
                    "barrier {id} is used for {} here and for {} by others at the same time",
                    words(count),
                    words(was)
                )
            });
        }
        let barrier = &mut block.barriers[id as usize];
        let before = barrier.lanes.entry(warp.index).or_insert(0);
        if *before & mask != 0 {
            self.report(FindingKind::Barrier, site, None, None, || {
                format!("barrier {id}: a warp arrives a second time before the barrier is complete")
            });
        }
        let barrier = &mut block.barriers[id as usize];
        *barrier.lanes.entry(warp.index).or_insert(0) |= mask;
        // With a count, a warp counts 32, its exited threads included.
        let counted = b.count.is_some() && mask == warp.live;
        barrier.arrived += if counted { 32 } else { mask.count_ones() };
        barrier.handoff.join(&warp.order.fence_handoff(mask));
        let clock = warp.order.release(mask);
        match &mut barrier.clock {
            Some(all) => all.join(&clock),
            none => *none = Some(clock),
        }
        if let BarrierKind::Popc { p, negated, .. }
        | BarrierKind::And { p, negated, .. }
        | BarrierKind::Or { p, negated, .. } = b.kind
        {
            let regs = &warp.frame(frame).regs;
            let value = regs.predicates[p as usize] ^ if negated { u32::MAX } else { 0 };
            if barrier.reductions.is_empty() {
                barrier.all = true;
            }
            barrier.popc += (value & mask).count_ones();
            barrier.all &= !value & mask == 0;
            barrier.any |= value & mask != 0;
            barrier.reductions.push((warp.index, frame, mask, b.kind));
        }
        if matches!(b.kind, BarrierKind::Arrive) {
            return Flow::Next;
        }
        barrier.waiting = true;
        fragment.pc += 1;
        fragment.state = State::Barrier { id };
        Flow::Stop
    }

    /// Lets those go on whose barriers are complete.
    pub(super) fn complete_barriers(&mut self, slot: u32) {
        let mut late = Vec::new();
        let Some(block) = &mut self.blocks[slot as usize] else { return };
        let mut done = Vec::new();
        for id in 0..16u32 {
            let barrier = &block.barriers[id as usize];
            if barrier.arrived == 0 {
                continue;
            }
            // Without a count: all threads that live. With one: as many, warps that are gone altogether not waited for.
            let complete = match barrier.expected {
                None => barrier.arrived >= block.live,
                Some(n) => barrier.arrived >= n,
            };
            if barrier.expected.is_some_and(|n| barrier.arrived > n) {
                late.push((id, barrier.pc, barrier.arrived, barrier.expected));
            }
            if !complete {
                continue;
            }
            let barrier = std::mem::take(&mut block.barriers[id as usize]);
            for (w, frame, lanes, kind) in &barrier.reductions {
                let Some(warp) = &mut block.warps[*w as usize] else { continue };
                let Some(frame) = &mut warp.frames[*frame as usize] else { continue };
                let mask = |value: bool| if value { u32::MAX } else { 0 };
                match *kind {
                    BarrierKind::Popc { dst, .. } => {
                        frame.regs.set(dst, &[barrier.popc; 32], *lanes);
                        frame.regs.undefined[dst as usize] &= !lanes;
                    }
                    BarrierKind::And { dst, .. } => {
                        super::run::set_predicate(&mut frame.regs, dst, mask(barrier.all), *lanes)
                    }
                    BarrierKind::Or { dst, .. } => {
                        super::run::set_predicate(&mut frame.regs, dst, mask(barrier.any), *lanes)
                    }
                    _ => {}
                }
            }
            if let Some(clock) = &barrier.clock {
                for warp in block.warps.iter_mut().flatten() {
                    let lanes = warp
                        .fragments
                        .iter()
                        .filter(|f| f.state == State::Barrier { id })
                        .fold(0, |mask, f| mask | f.mask);
                    if lanes != 0 {
                        warp.order.acquire(lanes, clock);
                        warp.order.accept_handoff(lanes, &barrier.handoff);
                    }
                }
            }
            done.push(id);
        }
        for (id, pc, arrived, expected) in late {
            let Some(block) = self.blocks[slot as usize].take() else { return };
            let site = self.site(&block, 0, 0, pc);
            self.report(FindingKind::Barrier, site, None, None, || {
                format!("barrier {id}: {arrived} threads arrive where {} are expected", expected.unwrap_or(0))
            });
            self.blocks[slot as usize] = Some(block);
        }
        for id in done {
            self.counters.barriers += 1;
            self.changed();
            self.wake_in(slot, &|state: &State| *state == State::Barrier { id });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    pub(super) fn cluster_arrive(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        release: bool,
        aligned: bool,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if aligned && !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        fragment.gathered = false;
        let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
        let clock = release.then(|| warp.order.release(mask));
        let key = (warp.slot, warp.index);
        let own = block.cluster_slot == warp.slot;
        let barrier = if own {
            &mut block.cluster_barrier
        } else {
            match self.blocks[block.cluster_slot as usize].as_mut() {
                Some(b) => &mut b.cluster_barrier,
                None => return Flow::Next,
            }
        };
        let phase = barrier.phase;
        let entry = barrier.lanes.entry(key).or_insert((0, phase));
        let twice = entry.1 == phase && entry.0 & mask != 0;
        if entry.1 != phase {
            *entry = (0, phase);
        }
        entry.0 |= mask;
        barrier.arrived += mask.count_ones();
        if let Some(clock) = clock {
            match &mut barrier.clock {
                Some(all) => all.join(&clock),
                none => *none = Some(clock),
            }
        }
        if twice {
            self.report(FindingKind::Barrier, site, None, None, || {
                "barrier.cluster.arrive: a thread arrives a second time before it has waited".into()
            });
        }
        self.complete_cluster(block, warp);
        Flow::Next
    }

    /// Ends the cluster barrier's phase when every live thread of the cluster has arrived.
    fn complete_cluster(&mut self, block: &mut Block, warp: &Warp) {
        let mut live = 0;
        for &s in &block.cluster {
            live += if s == warp.slot { block.live } else { self.blocks[s as usize].as_ref().map_or(0, |b| b.live) };
        }
        let barrier = if block.cluster_slot == warp.slot {
            &mut block.cluster_barrier
        } else {
            match self.blocks[block.cluster_slot as usize].as_mut() {
                Some(b) => &mut b.cluster_barrier,
                None => return,
            }
        };
        if barrier.arrived == 0 || barrier.arrived < live {
            return;
        }
        barrier.arrived = 0;
        barrier.phase += 1;
        barrier.released = barrier.clock.take();
        self.counters.barriers += 1;
        self.changed();
    }

    /// Exits may complete the cluster's barrier; wakes who waits at a phase that is over.
    pub(super) fn settle_cluster(&mut self, slot: u32) {
        let Some(block) = &self.blocks[slot as usize] else { return };
        if block.cluster.len() == 1 && block.cluster_barrier.phase == 0 && block.cluster_barrier.arrived == 0 {
            return;
        }
        let (cluster, first) = (block.cluster.clone(), block.cluster_slot as usize);
        let live: u32 = cluster.iter().map(|&s| self.blocks[s as usize].as_ref().map_or(0, |b| b.live)).sum();
        let Some(owner) = &mut self.blocks[first] else { return };
        let barrier = &mut owner.cluster_barrier;
        if barrier.arrived > 0 && barrier.arrived >= live {
            barrier.arrived = 0;
            barrier.phase += 1;
            barrier.released = barrier.clock.take();
            self.counters.barriers += 1;
            self.progress += 1;
        }
        let now = barrier.phase;
        let over = |state: &State| matches!(state, State::Cluster { phase } if *phase < now);
        for s in cluster {
            self.wake_in(s, &over);
        }
    }

    pub(super) fn cluster_wait(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        aligned: bool,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if aligned && !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        self.complete_cluster(block, warp);
        let barrier = if block.cluster_slot == warp.slot {
            &block.cluster_barrier
        } else {
            match self.blocks[block.cluster_slot as usize].as_ref() {
                Some(b) => &b.cluster_barrier,
                None => return Flow::Next,
            }
        };
        let arrived = barrier.lanes.get(&(warp.slot, warp.index)).copied();
        let (lanes, phase) = arrived.unwrap_or((0, 0));
        if lanes & mask != mask {
            fragment.gathered = false;
            let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
            self.report(FindingKind::Barrier, site, None, None, || {
                "barrier.cluster.wait without an arrive before it".into()
            });
            return Flow::Next;
        }
        if barrier.phase > phase {
            fragment.gathered = false;
            if let Some(clock) = barrier.released.clone() {
                warp.order.acquire(mask, &clock);
            }
            return Flow::Next;
        }
        // Stays in front of the instruction.
        fragment.gathered = true;
        fragment.state = State::Cluster { phase };
        Flow::Stop
    }

    pub(super) fn fence(&mut self, warp: &mut Warp, fence: Fence, mask: u32) -> Flow {
        match fence {
            Fence::Memory { scope } => warp.order.fence(mask, scope),
            Fence::ProxyAsync { shared, global } => warp.order.fence_proxy(mask, shared, global),
            Fence::MbarrierInit => {
                (0..32).filter(|l| mask >> l & 1 != 0).for_each(|l| {
                    self.init_fences.insert(warp.order.agent(l).0);
                });
            }
            Fence::TensorMap => warp.order.fence_proxy(mask, true, true),
            Fence::Other => {}
        }
        Flow::Next
    }
}
