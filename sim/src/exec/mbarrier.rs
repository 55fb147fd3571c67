//! mbarrier objects: counts, phases, who waits, and the order they make. PTX ISA, "Parallel synchronization: mbarrier".

use super::run::{Flow, addresses, set_predicate, undefined_address};
use super::warp::{Fragment, State, Warp};
use super::{Block, Machine};
use crate::finding::{FindingKind, Site};
use crate::layout;
use crate::order::{AccessKind, AccessStrength, Agent, VectorClock};
use crate::program::op::{AddressWindow, Mbarrier, MbarrierKind};

/// The largest count of arrivals and of bytes.
const LIMIT: u32 = (1 << 20) - 1;

/// An mbarrier object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Arrivals of a phase.
    expected: u32,
    /// Arrivals missing in this phase.
    pending: u32,
    /// Bytes expected and not delivered.
    tx: i64,
    /// The current phase.
    pub phase: u32,
    /// The virtual agent that stands for its phases.
    pub agent: Agent,
    /// What the arrived of this phase did and knew.
    clock: Option<VectorClock>,
    /// The same of all phases that are over.
    released: Option<VectorClock>,
    /// Who initialised it, when.
    init: (Agent, u32),
    /// The copy that credited it last.
    credited: Option<Site>,
}

impl Object {
    /// In words, for deadlocks.
    pub fn describe(&self) -> String {
        format!("phase {}, {} of {} arrivals and {} bytes missing", self.phase, self.pending, self.expected, self.tx)
    }

    /// Whether its phase has begun and cannot end by itself: bytes are missing (or too many came), or some of the
    /// arrivals.
    pub fn is_short(&self) -> bool {
        self.pending < self.expected || self.tx != 0
    }
}

/// Where an object lies: slot of the block, shared address there.
type Where = (u32, u32);

impl Machine<'_> {
    /// The object's place for an address, if it is one that can hold an mbarrier.
    pub(super) fn mbarrier_place(
        &mut self,
        block: &Block,
        warp: &Warp,
        window: AddressWindow,
        address: u64,
        site: Site,
    ) -> Option<Where> {
        let shared = match window {
            AddressWindow::Generic if layout::window(address) == Some(AddressWindow::Shared) => {
                address - layout::SHARED
            }
            AddressWindow::Generic => {
                self.report(FindingKind::OutOfBounds, site, None, None, || {
                    format!("an mbarrier at {address:#x}, outside of shared memory")
                });
                return None;
            }
            _ => address,
        } as u32;
        let (rank, offset) = layout::split_cluster_address(shared);
        let slot = match rank {
            None => warp.slot,
            Some(r) => match block.cluster.get(r as usize) {
                Some(&s) => s,
                None => {
                    self.report(FindingKind::OutOfBounds, site, None, Some(("shared", shared as u64)), || {
                        format!("an mbarrier of block rank {r}, which the cluster does not have")
                    });
                    return None;
                }
            },
        };
        if slot != warp.slot && self.blocks[slot as usize].as_ref().is_none_or(|b| b.ended) {
            let rank = rank.unwrap_or(0);
            self.report(FindingKind::OutOfBounds, site, None, Some(("shared", offset as u64)), || {
                format!("an mbarrier of block rank {rank}, which has exited")
            });
            return None;
        }
        if offset % 8 != 0 {
            self.report(FindingKind::Misaligned, site, None, Some(("shared", offset as u64)), || {
                format!("an mbarrier at shared address {offset:#x}, which is not a multiple of 8")
            });
            return None;
        }
        if offset < layout::SHARED_START || (offset - layout::SHARED_START) as usize + 8 > block.shared.len() {
            self.report(FindingKind::OutOfBounds, site, None, Some(("shared", offset as u64)), || {
                format!("an mbarrier at shared address {offset:#x}, outside of the block's shared memory")
            });
            return None;
        }
        Some((slot, offset))
    }

    pub(super) fn object<'m>(&'m mut self, block: &'m mut Block, own: u32, at: Where) -> Option<&'m mut Object> {
        if at.0 == own {
            block.mbarriers.get_mut(&at.1)
        } else {
            self.blocks[at.0 as usize].as_mut()?.mbarriers.get_mut(&at.1)
        }
    }

    pub(super) fn mbarrier(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        m: &Mbarrier,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if let MbarrierKind::PendingCount { dst, state } = m.kind {
            let regs = &mut warp.frame(fragment.frame).regs;
            let states = regs.get64(state);
            regs.set(dst, &states.map(|s| (s >> 32) as u32), mask);
            regs.undefined[dst as usize] &= !mask;
            return Flow::Next;
        }
        let regs = &warp.frame(fragment.frame).regs;
        let at = addresses(regs, &m.addr);
        let undefined = undefined_address(regs, &m.addr) & mask;
        let mask = if undefined != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        if let MbarrierKind::Wait { dst, operand, parity, blocking } = m.kind {
            return self.mbarrier_wait(block, warp, fragment, m, (dst, operand, parity, blocking), &at, mask, pc);
        }
        if let MbarrierKind::CpAsyncArrive { noinc } = m.kind {
            let mut left = mask;
            while left != 0 {
                let lane = left.trailing_zeros();
                let same = (0..32).filter(|&l| at[l] == at[lane as usize]).fold(0u32, |m, l| m | 1 << l) & left;
                left &= !same;
                let site = self.site(block, warp.index, lane, pc);
                let Some(place) = self.mbarrier_place(block, warp, m.window, at[lane as usize], site) else { continue };
                if self.touch(block, warp, place, lane, site, "arrived at") {
                    self.cp_async_arrive(block, warp, place, noinc, same, site);
                }
            }
            self.changed();
            return Flow::Next;
        }
        let mut released: Option<(Where, VectorClock)> = None;
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let site = self.site(block, warp.index, lane, pc);
            let Some(place) = self.mbarrier_place(block, warp, m.window, at[lane as usize], site) else { continue };
            let value = |warp: &mut Warp, slot: u32| warp.frame(fragment.frame).regs.get(slot)[lane as usize];
            match m.kind {
                MbarrierKind::Init { count } => {
                    let count = value(warp, count);
                    self.mbarrier_init(block, warp, place, count, lane, site);
                }
                MbarrierKind::Inval => {
                    if !self.touch(block, warp, place, lane, site, "invalidated") {
                        continue;
                    }
                    let own = warp.slot;
                    let list = if place.0 == own {
                        &mut block.mbarriers
                    } else {
                        &mut self.blocks[place.0 as usize].as_mut().expect("checked").mbarriers
                    };
                    list.remove(&place.1);
                }
                MbarrierKind::Arrive { state, count, expect, drop, no_complete } => {
                    let count = count.map_or(1, |c| value(warp, c));
                    let expect = expect.map(|e| value(warp, e));
                    if !self.touch(block, warp, place, lane, site, "arrived at") {
                        // That was reported; a wait with what it returned is not another mistake.
                        if let Some(dst) = state {
                            let regs = &mut warp.frame(fragment.frame).regs;
                            regs.set64(dst, &[0; 32], 1 << lane);
                            regs.undefined[dst as usize] &= !(1 << lane);
                        }
                        continue;
                    }
                    // Lanes that arrive together release together.
                    let clock = match &released {
                        _ if !m.ordered => None,
                        Some((to, clock)) if *to == place => Some(clock.clone()),
                        _ => {
                            let same = (0..32).filter(|&l| mask >> l & 1 != 0 && at[l] == at[lane as usize]);
                            let clock = warp.order.release(same.fold(0u32, |m, l| m | 1 << l));
                            released = Some((place, clock.clone()));
                            Some(clock)
                        }
                    };
                    if let Some(bytes) = expect {
                        self.expect(block, warp.slot, place, bytes, site);
                    }
                    let own = warp.slot;
                    if let Some(dst) = state
                        && let Some(o) = self.object(block, own, place)
                    {
                        let token = o.phase as u64 | (o.pending as u64) << 32;
                        let regs = &mut warp.frame(fragment.frame).regs;
                        regs.set64(dst, &[token; 32], 1 << lane);
                        regs.undefined[dst as usize] &= !(1 << lane);
                    }
                    let own = warp.slot;
                    if drop && let Some(o) = self.object(block, own, place) {
                        o.expected = o.expected.saturating_sub(count);
                    }
                    let completed = self.arrive(block, own, place, count, clock, site);
                    if completed && no_complete {
                        self.report(FindingKind::Mbarrier, site, None, None, || {
                            "an arrive with .noComplete completes the phase".into()
                        });
                    }
                    fragment.backs = 0;
                }
                MbarrierKind::ExpectTx { bytes } => {
                    let bytes = value(warp, bytes);
                    if self.touch(block, warp, place, lane, site, "given bytes to expect") {
                        let own = warp.slot;
                        self.expect(block, own, place, bytes, site);
                    }
                }
                MbarrierKind::CompleteTx { bytes } => {
                    let bytes = value(warp, bytes);
                    if self.touch(block, warp, place, lane, site, "credited") {
                        let own = warp.slot;
                        self.credit(block, own, place, bytes, Some(site));
                    }
                }
                MbarrierKind::CpAsyncArrive { .. } | MbarrierKind::Wait { .. } | MbarrierKind::PendingCount { .. } => {}
            }
        }
        self.changed();
        Flow::Next
    }

    fn mbarrier_init(&mut self, block: &mut Block, warp: &mut Warp, place: Where, count: u32, lane: u32, site: Site) {
        if count == 0 || count > LIMIT {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                format!("an mbarrier initialised for {count} arrivals; 1 to {LIMIT} are possible")
            });
        }
        let own = warp.slot;
        if place.0 != own {
            self.report(FindingKind::Mbarrier, site, None, None, || {
                "an mbarrier of another block is initialised".into()
            });
            return;
        }
        if block.mbarriers.contains_key(&place.1) {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                "an mbarrier is initialised again without mbarrier.inval".into()
            });
        }
        let index = block.agents;
        block.agents = (block.agents + 1).min(1023);
        let object = Object {
            expected: count,
            pending: count,
            tx: 0,
            phase: 0,
            agent: Agent::virtual_agent(block.index, index),
            clock: None,
            released: None,
            init: (warp.order.agent(lane), warp.order.epoch()),
            credited: None,
        };
        block.mbarriers.insert(place.1, object);
        self.mbarrier_access(block, warp, place, lane, site, AccessKind::Write);
    }

    /// An operation on an object: it must be there, and its initialisation ordered before. Whether it is there.
    pub(super) fn touch(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        place: Where,
        lane: u32,
        site: Site,
        what: &str,
    ) -> bool {
        let own = warp.slot;
        if self.object(block, own, place).is_none() {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                format!("an mbarrier at {:#x} is {what} before mbarrier.init or after mbarrier.inval", place.1)
            });
            return false;
        }
        self.mbarrier_access(block, warp, place, lane, site, AccessKind::Atomic);
        true
    }

    fn mbarrier_access(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        place: Where,
        lane: u32,
        site: Site,
        access: AccessKind,
    ) {
        if self.options.count_only {
            return;
        }
        let mut found = Vec::new();
        let strength = if access == AccessKind::Write { AccessStrength::Weak } else { AccessStrength::Cluster };
        let cx = crate::order::CheckContext { ops: &self.ops, clusters: &self.clusters };
        let shadow = if place.0 == warp.slot {
            &mut block.shadow
        } else {
            match self.blocks[place.0 as usize].as_mut() {
                Some(b) => &mut b.shadow,
                None => return,
            }
        };
        let offsets = [(place.1 - layout::SHARED_START) as u64; 32];
        shadow.access(access, &warp.order, 1 << lane, &offsets, 8, strength, site.pc, &cx, &mut found);
        if let Some(c) = found.first() {
            let other = c.earlier.1;
            let (line, _) = crate::finding::source(self.program, self.kernel, other);
            self.report(FindingKind::Mbarrier, site, Some(other), Some(("shared", place.1 as u64)), || {
                format!("an mbarrier is used without order after what happened to its bytes at line {line} (its initialisation, say)")
            });
        }
    }

    /// An ordinary store on top of an mbarrier.
    pub(super) fn overwrites_mbarrier(
        &mut self,
        block: &Block,
        warp: &Warp,
        group: &super::access::Group,
        bytes: u32,
        pc: u32,
    ) {
        let super::access::Place::Shared(slot) = group.place else { return };
        if slot != warp.slot || block.mbarriers.is_empty() {
            return;
        }
        for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
            let from = group.offsets[lane as usize] as u32 + layout::SHARED_START;
            if let Some((&at, _)) = block.mbarriers.range(from.saturating_sub(7)..from + bytes).next() {
                let site = self.site(block, warp.index, lane, pc);
                self.report(FindingKind::Mbarrier, site, None, Some(("shared", from as u64)), || {
                    format!("an ordinary access overwrites the mbarrier at {at:#x}, which was not invalidated")
                });
                return;
            }
        }
    }

    fn expect(&mut self, block: &mut Block, own: u32, place: Where, bytes: u32, site: Site) {
        let Some(o) = self.object(block, own, place) else { return };
        o.tx += bytes as i64;
        let tx = o.tx;
        if tx > LIMIT as i64 || bytes > LIMIT {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                format!("an mbarrier expects {tx} bytes in a phase; at most {LIMIT} are possible")
            });
        }
    }

    /// `count` arrivals; whether they completed the phase.
    pub(super) fn arrive(
        &mut self,
        block: &mut Block,
        own: u32,
        place: Where,
        count: u32,
        clock: Option<VectorClock>,
        site: Site,
    ) -> bool {
        let Some(o) = self.object(block, own, place) else { return false };
        let (pending, expected) = (o.pending, o.expected);
        o.pending = pending.saturating_sub(count);
        if let Some(clock) = clock {
            match &mut o.clock {
                Some(all) => all.join(&clock),
                none => *none = Some(clock),
            }
        }
        if count > pending {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                format!("{count} arrivals at an mbarrier that misses {pending} of {expected} in this phase")
            });
        }
        self.maybe_complete(block, own, place)
    }

    /// More arrivals in this phase (`cp.async.mbarrier.arrive` without `.noinc`).
    pub(super) fn add_pending(&mut self, block: &mut Block, own: u32, place: Where, count: u32) {
        if let Some(o) = self.object(block, own, place) {
            o.pending += count;
        }
    }

    /// `bytes` were delivered by the copy at `site`.
    pub(super) fn credit(&mut self, block: &mut Block, own: u32, place: Where, bytes: u32, site: Option<Site>) -> bool {
        let Some(o) = self.object(block, own, place) else { return false };
        o.tx -= bytes as i64;
        o.credited = site;
        // Before the last arrival more bytes may still be expected; after it not.
        let (excess, pending) = (-o.tx, o.pending);
        if let (Some(site), 0, true) = (site, pending, excess > 0) {
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", place.1 as u64)), || {
                format!("copies credit an mbarrier with {excess} bytes more than its phase expects")
            });
        }
        self.maybe_complete(block, own, place)
    }

    /// A block is over: bytes that came and that no phase expected.
    pub(super) fn mbarrier_exit_checks(&mut self, block: &Block) {
        for (&address, o) in block.mbarriers.iter().filter(|(_, o)| o.tx < 0) {
            let Some(site) = o.credited else { continue };
            let excess = -o.tx;
            self.report(FindingKind::Mbarrier, site, None, Some(("shared", address as u64)), || {
                format!("copies credit an mbarrier with {excess} bytes that no phase of it expects: the phase before was over too early")
            });
        }
    }

    fn maybe_complete(&mut self, block: &mut Block, own: u32, place: Where) -> bool {
        let Some(o) = self.object(block, own, place) else { return false };
        if o.pending != 0 || o.tx != 0 {
            return false;
        }
        o.phase += 1;
        o.pending = o.expected;
        if let Some(clock) = o.clock.take() {
            match &mut o.released {
                Some(all) => all.join(&clock),
                none => *none = Some(clock),
            }
        }
        self.wakes.push(place);
        self.changed();
        true
    }

    /// Wakes who waits at mbarriers whose phase is over.
    pub(super) fn wake_mbarriers(&mut self) {
        for (slot, address) in std::mem::take(&mut self.wakes) {
            let Some(block) = &self.blocks[slot as usize] else { continue };
            let Some(now) = block.mbarriers.get(&address).map(|o| o.phase) else { continue };
            self.wake_in(slot, &|state: &State| {
                matches!(state, State::Mbarrier { address: a, phase, .. } if *a == address && *phase != now)
            });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    fn mbarrier_wait(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        m: &Mbarrier,
        (dst, operand, parity, blocking): (u32, u32, bool, bool),
        at: &[u64; 32],
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(fragment.frame).regs;
        let operands: [u64; 32] = if parity { regs.get(operand).map(u64::from) } else { regs.get64(operand) };
        let undefined = regs.undefined[operand as usize] & mask;
        if undefined != 0 {
            let site = self.site(block, warp.index, undefined.trailing_zeros(), pc);
            self.report(FindingKind::Uninitialized, site, None, None, || {
                "an mbarrier wait on an undefined register".into()
            });
        }
        let mut done = 0u32;
        let mut blocked = None;
        let mut left = mask;
        while left != 0 {
            let lane = left.trailing_zeros();
            let l = lane as usize;
            let same = (0..32).filter(|&k| left >> k & 1 != 0 && at[k] == at[l] && operands[k] == operands[l]);
            let same = same.fold(0u32, |m, k| m | 1 << k);
            left &= !same;
            let site = self.site(block, warp.index, lane, pc);
            let Some(place) = self.mbarrier_place(block, warp, m.window, at[l], site) else {
                done |= same;
                continue;
            };
            if place.0 != warp.slot {
                self.report(FindingKind::Mbarrier, site, None, None, || {
                    "a wait on an mbarrier of another block".into()
                });
            }
            if !self.touch(block, warp, place, lane, site, "waited for") {
                done |= same;
                continue;
            }
            if parity && operands[l] > 1 {
                self.report(FindingKind::Mbarrier, site, None, None, || {
                    format!("a wait on parity {}; it is 0 or 1", operands[l])
                });
            }
            let own = warp.slot;
            let Some(o) = self.object(block, own, place) else { continue };
            let phase = o.phase;
            // A state names the phase it was taken in; a parity is that of the current phase or of the one before.
            let over = if parity { phase as u64 & 1 != operands[l] & 1 } else { phase != operands[l] as u32 };
            if over {
                done |= same;
                if m.ordered && phase > 0 {
                    let (agent, released) = (o.agent, o.released.clone());
                    let mut clock = released.unwrap_or_else(|| VectorClock::empty(block.index));
                    clock.raise(agent, phase);
                    warp.order.acquire(same, &clock);
                }
            } else {
                blocked = Some((place, phase));
            }
        }
        if let (true, 0, Some((place, phase)), false) = (blocking, done, blocked, fragment.gathered) {
            fragment.state = State::Mbarrier { slot: place.0, address: place.1, phase };
            return Flow::Stop;
        }
        fragment.gathered = false;
        set_predicate(&mut warp.frame(fragment.frame).regs, dst, done, mask);
        Flow::Next
    }

    /// Where and when an object was initialised, for proxy checks.
    pub(super) fn mbarrier_init_of(&mut self, block: &mut Block, own: u32, place: Where) -> Option<(Agent, u32)> {
        self.object(block, own, place).map(|o| o.init)
    }
}
