//! Loads and stores: addresses to places, checks, bytes, counts.

use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, Machine};
use crate::counters;
use crate::finding::{FindingKind, Site};
use crate::layout;
use crate::order::{
    AccessKind, AccessStrength, Agent, AsyncOpKind, CheckContext, Conflict, ConflictKind, EarlierAccess, ShadowMemory,
};
use crate::program::op::{AddressWindow, LoadStore};

/// A place where bytes lie that threads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A global buffer, by index.
    Global(usize),
    /// Shared memory of the block in this slot.
    Shared(u32),
}

impl Place {
    /// The space's name in findings.
    pub fn space(self) -> &'static str {
        match self {
            Place::Global(_) => "global",
            Place::Shared(_) => "shared",
        }
    }
}

/// Lanes whose accesses go to one place, and their offsets there.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where.
    pub place: Place,
    /// Which lanes.
    pub lanes: u32,
    /// Offset of each.
    pub offsets: [u64; 32],
    /// All 32 lanes, one after the other.
    pub row: bool,
}

impl Group {
    /// All lanes of a warp in one place, or lanes to be added.
    #[inline(always)]
    fn new(place: Place, lanes: u32, offsets: [u64; 32], bytes: u64) -> Group {
        let step = |all: bool, lane: usize| all & (offsets[lane] == offsets[0] + lane as u64 * bytes);
        let row = lanes == u32::MAX && (1..32).fold(true, step);
        Group { place, lanes, offsets, row }
    }

    /// Accesses of `bytes` bytes by all lanes, if each lies in `range` of a place that begins at `base`, aligned.
    #[inline]
    fn of_all(place: Place, addresses: &[u64; 32], base: u64, range: (u64, u64), bytes: u64) -> Option<Group> {
        crate::simd::dispatch(
            #[inline(always)]
            || {
                let offsets = all_within(addresses, base, range, bytes)?;
                Some(Group::new(place, u32::MAX, offsets, bytes))
            },
        )
    }
}

/// The offsets of all lanes from `base`, if each access of `bytes` bytes lies between `low` and `high` and is aligned.
#[inline(always)]
fn all_within(addresses: &[u64; 32], base: u64, (low, high): (u64, u64), bytes: u64) -> Option<[u64; 32]> {
    let offsets = addresses.map(|a| a.wrapping_sub(base));
    let (room, start) = (high.checked_sub(low)?.checked_sub(bytes)?, low);
    let inside = offsets.iter().fold(true, |all, o| all & (o.wrapping_sub(start) <= room));
    let bits = addresses.iter().fold(0, |bits, a| bits | a);
    (inside && bits & (bytes - 1) == 0).then_some(offsets)
}

impl Machine<'_> {
    /// The lanes of `mask` whose address may be used; reports those that depend on undefined registers.
    pub(super) fn defined_lanes(&mut self, block: &Block, warp: &Warp, undefined: u32, mask: u32, pc: u32) -> u32 {
        if undefined & mask != 0 {
            let site = self.site(block, warp.index, (undefined & mask).trailing_zeros(), pc);
            self.report(FindingKind::Uninitialized, site, None, None, || {
                "an address depends on an undefined register".into()
            });
        }
        mask & !undefined
    }

    /// Splits accesses of `bytes` bytes at generic or window addresses by the place they go to. Lanes outside of
    /// everything, misaligned, or in other windows than memory that threads share are left out; the first kinds are reported,
    /// the last come back as the second value.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub(super) fn places(
        &mut self,
        block: &Block,
        warp: &Warp,
        window: AddressWindow,
        addresses: &[u64; 32],
        mask: u32,
        bytes: u64,
        pc: u32,
        groups: &mut Vec<Group>,
    ) -> u32 {
        let mut left = mask;
        let mut elsewhere = 0;
        while left != 0 {
            let lane = left.trailing_zeros();
            let address = addresses[lane as usize];
            let actual = match window {
                AddressWindow::Generic => layout::window(address).unwrap_or(AddressWindow::Global),
                w => w,
            };
            match actual {
                AddressWindow::Global | AddressWindow::Const | AddressWindow::Generic => {
                    self.global_group(block, warp, addresses, &mut left, bytes, pc, groups);
                }
                AddressWindow::Shared | AddressWindow::SharedCluster => {
                    let base = if window == AddressWindow::Generic { layout::SHARED } else { 0 };
                    self.shared_group(block, warp, addresses, base, &mut left, bytes, pc, groups);
                }
                _ => {
                    elsewhere |= 1 << lane;
                    left &= left - 1;
                }
            }
        }
        elsewhere
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn global_group(
        &mut self,
        block: &Block,
        warp: &Warp,
        addresses: &[u64; 32],
        left: &mut u32,
        bytes: u64,
        pc: u32,
        groups: &mut Vec<Group>,
    ) {
        let first = addresses[left.trailing_zeros() as usize];
        let index = match self.memory.holds(self.last_allocation, first) {
            true => Some(self.last_allocation),
            false => self.memory.find(first),
        };
        let Some(index) = index else {
            let lane = left.trailing_zeros();
            *left &= *left - 1;
            let site = self.site(block, warp.index, lane, pc);
            let near = self.memory.describe(first);
            self.report(FindingKind::OutOfBounds, site, None, Some(("global", first)), || {
                format!("access of {bytes} bytes at global address {first:#x}: {near}")
            });
            return;
        };
        self.last_allocation = index;
        let allocation = self.memory.get(index);
        let (base, len) = (allocation.base, allocation.data.len() as u64);
        if *left == u32::MAX
            && let Some(group) = Group::of_all(Place::Global(index), addresses, base, (0, len), bytes)
        {
            *left = 0;
            groups.push(group);
            return;
        }
        let mut group = Group::new(Place::Global(index), 0, [0; 32], bytes);
        let align = bytes - 1;
        let mut bad = 0;
        let mut all = *left;
        while all != 0 {
            let lane = all.trailing_zeros();
            all &= all - 1;
            let address = addresses[lane as usize];
            let offset = address.wrapping_sub(base);
            if offset >= len {
                continue;
            }
            *left &= !(1 << lane);
            if offset + bytes > len || address & align != 0 {
                bad |= 1 << lane;
                continue;
            }
            group.lanes |= 1 << lane;
            group.offsets[lane as usize] = offset;
        }
        if bad != 0 {
            self.bad_lane(block, warp, addresses, bad, bytes, pc, "global", len, base);
        }
        if group.lanes != 0 {
            groups.push(group);
        }
    }

    /// Counts what a refused (misaligned) store would have written as written: its cause was reported, and reads of those
    /// bytes are not another one.
    #[cold]
    fn refused_store(
        &mut self,
        block: &mut Block,
        window: AddressWindow,
        addresses: &[u64; 32],
        lanes: u32,
        bytes: u64,
    ) {
        for lane in (0..32).filter(|l| lanes >> l & 1 != 0) {
            let address = addresses[lane];
            let actual = if window == AddressWindow::Generic { layout::window(address) } else { Some(window) };
            if actual == Some(AddressWindow::Shared) {
                let base =
                    layout::SHARED_START as u64 + if window == AddressWindow::Generic { layout::SHARED } else { 0 };
                let (start, len) = (address.wrapping_sub(base), block.shared.len() as u64);
                if start < len {
                    block.shadow.initialize(start..(start + bytes).min(len));
                }
            } else if let Some(index) = self.memory.find(address) {
                let allocation = self.memory.get_mut(index);
                let (start, len) = (address.wrapping_sub(allocation.base), allocation.data.len() as u64);
                if start < len {
                    allocation.shadow.initialize(start..(start + bytes).min(len));
                }
            }
        }
    }

    #[cold]
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn bad_lane(
        &mut self,
        block: &Block,
        warp: &Warp,
        addresses: &[u64; 32],
        bad: u32,
        bytes: u64,
        pc: u32,
        space: &'static str,
        len: u64,
        base: u64,
    ) {
        for lane in (0..32).filter(|l| bad >> l & 1 != 0) {
            let address = addresses[lane];
            let site = self.site(block, warp.index, lane as u32, pc);
            if address & (bytes - 1) != 0 {
                self.report(FindingKind::Misaligned, site, None, Some((space, address)), || {
                    format!(
                        "access of {bytes} bytes at {space} address {address:#x}, which is not a multiple of {bytes}"
                    )
                });
            } else {
                let offset = address.wrapping_sub(base) as i64;
                let inside = (0..len as i64 - bytes as i64 + 1).contains(&offset);
                let what = if inside { ", which no variable holds" } else { "" };
                self.report(FindingKind::OutOfBounds, site, None, Some((space, address)), || {
                    format!("access of {bytes} bytes at offset {offset} of {len} bytes of {space} memory{what}")
                });
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn shared_group(
        &mut self,
        block: &Block,
        warp: &Warp,
        addresses: &[u64; 32],
        window_base: u64,
        left: &mut u32,
        bytes: u64,
        pc: u32,
        groups: &mut Vec<Group>,
    ) {
        let first = addresses[left.trailing_zeros() as usize].wrapping_sub(window_base) as u32;
        let (rank, _) = layout::split_cluster_address(first);
        let slot = match rank {
            None => Some(warp.slot),
            Some(r) => block.cluster.get(r as usize).copied(),
        };
        let Some(slot) = slot.filter(|&s| s == warp.slot || self.blocks[s as usize].is_some()) else {
            let lane = left.trailing_zeros();
            *left &= *left - 1;
            let site = self.site(block, warp.index, lane, pc);
            self.report(FindingKind::OutOfBounds, site, None, Some(("shared", first as u64)), || {
                format!("access to shared memory of block rank {}, which the cluster does not have", rank.unwrap_or(0))
            });
            return;
        };
        if slot != warp.slot && self.blocks[slot as usize].as_ref().is_some_and(|b| b.ended) {
            let site = self.site(block, warp.index, left.trailing_zeros(), pc);
            self.report(FindingKind::OutOfBounds, site, None, Some(("shared", first as u64)), || {
                format!("access to shared memory of block rank {}, which has exited", rank.unwrap_or(0))
            });
        }
        let len = block.shared.len() as u64;
        let start = layout::SHARED_START as u64;
        // The variables, one of which has to hold the bytes.
        let variables = &self.shared_variables;
        let mut variable = (1, 0);
        if *left == u32::MAX && rank.is_none() {
            let offset = (first as u64).wrapping_sub(start);
            let at = variables.partition_point(|v| v.0 <= offset);
            variable = at.checked_sub(1).map_or((1, 0), |at| variables[at]);
            let range = (variable.0, variable.1.min(len));
            if let Some(group) = Group::of_all(Place::Shared(slot), addresses, window_base + start, range, bytes) {
                *left = 0;
                groups.push(group);
                return;
            }
        }
        let mut group = Group::new(Place::Shared(slot), 0, [0; 32], bytes);
        let mut bad = 0;
        let mut all = *left;
        while all != 0 {
            let lane = all.trailing_zeros();
            all &= all - 1;
            let address = addresses[lane as usize].wrapping_sub(window_base);
            if address >> 32 == 0 {
                let (r, offset) = layout::split_cluster_address(address as u32);
                if r != rank {
                    continue;
                }
                *left &= !(1 << lane);
                let offset = (offset as u64).wrapping_sub(start);
                if (offset < variable.0 || offset >= variable.1) && offset < len {
                    let at = variables.partition_point(|v| v.0 <= offset);
                    variable = at.checked_sub(1).map_or((1, 0), |at| variables[at]);
                }
                if offset < len && offset >= variable.0 && offset + bytes <= variable.1 && address & (bytes - 1) == 0 {
                    group.lanes |= 1 << lane;
                    group.offsets[lane as usize] = offset;
                    continue;
                }
            } else if layout::window(addresses[lane as usize]) != Some(AddressWindow::Shared) && window_base != 0 {
                continue;
            }
            *left &= !(1 << lane);
            bad |= 1 << lane;
        }
        if bad != 0 {
            self.bad_lane(block, warp, addresses, bad, bytes, pc, "shared", len, window_base + start);
        }
        if group.lanes != 0 {
            groups.push(group);
        }
    }

    /// Checks the order of an access of a group's lanes and reports what is wrong. `same`: lanes whose store leaves memory as it was.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub(super) fn check(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        access: AccessKind,
        group: &Group,
        bytes: u32,
        strength: AccessStrength,
        pc: u32,
        same: u32,
    ) {
        if self.options.count_only {
            return;
        }
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
        let shadow: Option<&mut ShadowMemory> = match group.place {
            Place::Global(i) => Some(&mut self.memory.get_mut(i).shadow),
            Place::Shared(s) if s == warp.slot => Some(&mut block.shadow),
            Place::Shared(s) => self.blocks[s as usize].as_mut().map(|b| &mut b.shadow),
        };
        if let Some(shadow) = shadow {
            // The shadow takes up to 16 bytes a lane at once.
            shadow.access(access, &warp.order, group.lanes, &group.offsets, bytes, strength, pc, &cx, &mut found);
        }
        if !found.is_empty() {
            self.report_conflicts(block, warp.index, access, group.place, &found, pc, same);
        }
        self.conflicts = found;
    }

    /// Turns conflicts into findings and notes.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub(super) fn report_conflicts(
        &mut self,
        block: &Block,
        warp: u32,
        access: AccessKind,
        place: Place,
        found: &[Conflict],
        pc: u32,
        same: u32,
    ) {
        for c in found {
            let site = self.site(block, warp, c.lane, pc);
            let address = match place {
                Place::Global(i) => self.memory.get(i).base + c.offset,
                Place::Shared(_) => c.offset + layout::SHARED_START as u64,
            };
            // The library's own; its groups count on a shuffle to pass an acquire on to the other lanes.
            let scratch = self.kernel.group_scratch.filter(|_| matches!(place, Place::Shared(_)));
            if scratch.is_some_and(|(start, end)| (start as u64..end as u64).contains(&address)) {
                continue;
            }
            if self.report_dependent(site, access, c, address) {
                continue;
            }
            self.report_conflict(site, access, place, c, address, same >> c.lane & 1 != 0);
        }
    }

    fn report_conflict(
        &mut self,
        site: Site,
        access: AccessKind,
        place: Place,
        c: &Conflict,
        address: u64,
        same: bool,
    ) {
        let space = place.space();
        let memory = Some((space, address));
        let verb = match access {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Atomic => "atomic access",
        };
        // What is known already is counted before anything is put into words: a lost barrier conflicts at every access.
        let known = match c.kind {
            ConflictKind::Race { two_stores: true } if same => None,
            ConflictKind::ProxyRead if !self.options.strict_proxy => None,
            ConflictKind::Uninitialized => Some((FindingKind::Uninitialized, None)),
            ConflictKind::Race { .. } => Some((FindingKind::Race, Some(c.earlier.1))),
            ConflictKind::NotWaited(op) => Some((FindingKind::AsyncNotWaited, Some(self.ops.pc(op)))),
            ConflictKind::ProxyRead | ConflictKind::Proxy => Some((FindingKind::AsyncProxy, Some(c.earlier.1))),
        };
        if known.is_some_and(|(kind, other)| self.findings.again(kind, site.pc, other)) {
            return;
        }
        match c.kind {
            ConflictKind::Uninitialized => {
                self.report(FindingKind::Uninitialized, site, None, memory, || {
                    format!("{verb} of {space} memory at {address:#x} that nobody has written")
                });
            }
            ConflictKind::Race { two_stores: true } if same => {
                let line = crate::finding::source(self.program, self.kernel, site.pc).0;
                let note =
                    format!("line {line}: threads store the same value to the same {space} address without order");
                *self.notes.entry(note).or_insert(0) += 1;
            }
            ConflictKind::Race { .. } => {
                let other = c.earlier.1;
                let (line, _) = crate::finding::source(self.program, self.kernel, other);
                let who = self.thread_of(c.earlier.0);
                let what = other_words(c.earlier_kind);
                self.report(FindingKind::Race, site, Some(other), memory, || {
                    format!("{verb} of {space} memory at {address:#x} is not ordered after the {what} of {who} at line {line}")
                });
            }
            ConflictKind::NotWaited(op) => {
                let other = self.ops.pc(op);
                let (line, _) = crate::finding::source(self.program, self.kernel, other);
                let what = op_words(self.ops.kind(op));
                self.report(FindingKind::AsyncNotWaited, site, Some(other), memory, || {
                    format!("{verb} of {space} memory at {address:#x} whose {what} of line {line} this thread has not seen complete")
                });
            }
            ConflictKind::ProxyRead if !self.options.strict_proxy => {
                let (line, _) = crate::finding::source(self.program, self.kernel, site.pc);
                let (other, _) = crate::finding::source(self.program, self.kernel, c.earlier.1);
                let note = format!(
                    "line {line}: the async proxy overwrites {space} memory that line {other} read, without fence.proxy.async"
                );
                *self.notes.entry(note).or_insert(0) += 1;
            }
            ConflictKind::ProxyRead => {
                let other = c.earlier.1;
                let (line, _) = crate::finding::source(self.program, self.kernel, other);
                let who = self.thread_of(c.earlier.0);
                self.report(FindingKind::AsyncProxy, site, Some(other), memory, || {
                    format!("the async proxy overwrites {space} memory at {address:#x} that {who} read through the generic proxy at line {line}, without fence.proxy.async in between")
                });
            }
            ConflictKind::Proxy => {
                let other = c.earlier.1;
                let (line, _) = crate::finding::source(self.program, self.kernel, other);
                let who = self.thread_of(c.earlier.0);
                self.report(FindingKind::AsyncProxy, site, Some(other), memory, || {
                    format!(
                        "the async proxy uses {space} memory at {address:#x} that {who} wrote through the generic proxy at line {line}, without fence.proxy.async in between"
                    )
                });
            }
        }
    }

    /// A thread in words.
    pub(super) fn thread_of(&self, agent: Agent) -> String {
        if agent == Agent::HOST {
            return "the host".into();
        }
        let [gx, gy, _] = self.launch.grid;
        let [bx, by, _] = self.launch.block;
        let Some(b) = agent.block().checked_sub(self.pair.first_block()) else {
            return "a thread of the grid before".into();
        };
        match agent.thread_index() {
            Some(t) => format!(
                "thread ({},{},{}) of block ({},{},{})",
                t % bx,
                t / bx % by,
                t / bx / by,
                b % gx,
                b / gx % gy,
                b / gx / gy
            ),
            None => format!("block ({},{},{})", b % gx, b / gx % gy, b / gx / gy),
        }
    }

    /// The bytes of a place.
    pub(super) fn data<'m>(&'m self, block: &'m Block, own: u32, place: Place) -> &'m [u8] {
        match place {
            Place::Global(i) => &self.memory.get(i).data,
            Place::Shared(s) if s == own => &block.shared,
            Place::Shared(s) => self.blocks[s as usize].as_ref().map_or(&[], |b| &b.shared),
        }
    }

    /// The bytes of a place, to be changed.
    pub(super) fn data_mut<'m>(&'m mut self, block: &'m mut Block, own: u32, place: Place) -> &'m mut [u8] {
        match place {
            Place::Global(i) => &mut self.memory.get_mut(i).data,
            Place::Shared(s) if s == own => &mut block.shared,
            Place::Shared(s) => self.blocks[s as usize].as_mut().map_or(&mut [], |b| &mut b.shared),
        }
    }

    /// Counts an access's traffic.
    pub(super) fn count_traffic(&mut self, group: &Group, bytes: u32, write: bool, pc: u32) {
        let lanes = group.lanes;
        let asked = lanes.count_ones() as u64 * bytes as u64;
        match group.place {
            Place::Global(i) => {
                let base = self.memory.get(i).base;
                let sectors = if group.row {
                    let first = base + group.offsets[0];
                    (first + asked - 1) / 32 - first / 32 + 1
                } else {
                    crate::simd::dispatch(
                        #[inline(always)]
                        || counters::sectors(&group.offsets.map(|o| o.wrapping_add(base)), lanes, bytes),
                    )
                };
                let count = &mut self.counters.by_instruction[pc as usize];
                if write {
                    count.global_written += asked;
                } else {
                    count.global_read += asked;
                }
                count.sectors += sectors;
            }
            Place::Shared(_) => {
                let (passes, least) = if group.row && bytes <= 4 {
                    (1, 1)
                } else {
                    crate::simd::dispatch(
                        #[inline(always)]
                        || counters::wavefronts(&group.offsets.map(|o| o as u32), lanes, bytes),
                    )
                };
                let count = &mut self.counters.by_instruction[pc as usize];
                count.shared_bytes += asked;
                count.wavefronts += passes;
                count.wavefronts_least += least;
            }
        }
    }

    pub(super) fn load(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        frame: u32,
        t: &LoadStore,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(frame).regs;
        let at = addresses(regs, &t.addr);
        let undefined = undefined_address(regs, &t.addr);
        let wanted = mask;
        let mask = if undefined & mask != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        let bytes = t.width as u32 * t.regs.len() as u32;
        match t.window {
            AddressWindow::KernelParam => self.load_param(warp, frame, t, &at, 0, mask),
            AddressWindow::FrameParam => load_frame(warp, frame, t, &at, mask),
            AddressWindow::Local => self.load_local(block, warp, frame, t, &at, 0, mask, pc),
            _ => {
                let mut groups = std::mem::take(&mut self.groups);
                groups.clear();
                let elsewhere = self.places(block, warp, t.window, &at, mask, bytes as u64, pc, &mut groups);
                let placed = groups.iter().fold(elsewhere, |lanes, group| lanes | group.lanes);
                if placed != wanted {
                    give_zeros(&mut warp.frame(frame).regs, t, wanted & !placed);
                }
                self.waits += t.semantics.is_some() as u64;
                for group in &groups {
                    if t.window != AddressWindow::Const {
                        self.count_traffic(group, bytes, false, pc);
                    }
                    if t.semantics.is_some() {
                        self.strong_read(warp, group, t, pc);
                    }
                    let strength = Machine::scope_strength(t.semantics, t.scope);
                    self.check(block, warp, AccessKind::Read, group, bytes, strength, pc, 0);
                    let slot = warp.slot;
                    let data = self.data(block, slot, group.place);
                    let regs = &mut warp.frames[frame as usize].as_mut().expect("a fragment's frame lives").regs;
                    read_registers(data, group, t, regs);
                }
                self.groups = groups;
                if elsewhere != 0 {
                    self.load_elsewhere(block, warp, frame, t, &at, elsewhere, pc);
                }
            }
        }
        Flow::Next
    }

    /// Generic loads that turn out to be local or of parameters.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn load_elsewhere(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        frame: u32,
        t: &LoadStore,
        at: &[u64; 32],
        lanes: u32,
        pc: u32,
    ) {
        let which =
            |w: AddressWindow| (0..32).filter(|&l| layout::window(at[l]) == Some(w)).fold(0u32, |m, l| m | 1 << l);
        let local = which(AddressWindow::Local) & lanes;
        if local != 0 {
            self.load_local(block, warp, frame, t, at, layout::LOCAL, local, pc);
        }
        let param = which(AddressWindow::KernelParam) & lanes;
        if param != 0 {
            self.load_param(warp, frame, t, at, layout::PARAM, param);
        }
    }

    fn load_param(&mut self, warp: &mut Warp, frame: u32, t: &LoadStore, at: &[u64; 32], base: u64, mask: u32) {
        let params = &self.launch.params;
        let regs = &mut warp.frame(frame).regs;
        for (n, slot) in t.regs.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let offset = |l: usize| (at[l].wrapping_sub(base) as usize).wrapping_add(n * t.width as usize);
            // Parameters are nearly always the same in all lanes.
            let first = offset(mask.trailing_zeros() as usize);
            let value = |o: usize| element(params, o, t.width, t.signed, t.register_rows);
            let uniform = (0..32).all(|l| mask >> l & 1 == 0 || offset(l) == first);
            if uniform {
                let v = value(first);
                put(regs, *slot, t.register_rows, &[v; 32], mask);
            } else {
                let values = std::array::from_fn(|l| if mask >> l & 1 != 0 { value(offset(l)) } else { 0 });
                put(regs, *slot, t.register_rows, &values, mask);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn load_local(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        frame: u32,
        t: &LoadStore,
        at: &[u64; 32],
        base: u64,
        mask: u32,
        pc: u32,
    ) {
        let bytes = t.width as usize * t.regs.len();
        let mut values = vec![[0u128; 32]; t.regs.len()];
        let mut done = 0;
        for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
            let offset = at[lane].wrapping_sub(base) as usize;
            done |= 1 << lane;
            let Some(start) = self.local_range(block, warp, lane, offset, bytes, pc) else { continue };
            if !warp.local_init[start..start + bytes].iter().all(|&i| i) {
                let site = self.site(block, warp.index, lane as u32, pc);
                let memory = Some(("local", offset as u64));
                self.report(FindingKind::Uninitialized, site, None, memory, || {
                    format!("read of local memory at {offset:#x} that nobody has written")
                });
            }
            for (n, v) in values.iter_mut().enumerate() {
                v[lane] = element(&warp.local, start + n * t.width as usize, t.width, t.signed, t.register_rows);
            }
        }
        let regs = &mut warp.frame(frame).regs;
        for (slot, v) in t.regs.iter().zip(&values) {
            if let Some(slot) = slot {
                put(regs, *slot, t.register_rows, v, done);
            }
        }
    }

    /// Where a lane's local bytes lie in [`Warp::local`].
    fn local_range(
        &mut self,
        block: &Block,
        warp: &Warp,
        lane: usize,
        offset: usize,
        bytes: usize,
        pc: u32,
    ) -> Option<usize> {
        let site = self.site(block, warp.index, lane as u32, pc);
        // The stack ends where the innermost function's variables do.
        let (stride, size) = (warp.local_size as usize, warp.local_top as usize);
        if !offset.is_multiple_of(bytes) {
            self.report(FindingKind::Misaligned, site, None, Some(("local", offset as u64)), || {
                format!("access of {bytes} bytes at local address {offset:#x}, which is not a multiple of {bytes}")
            });
            return None;
        }
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            self.report(FindingKind::OutOfBounds, site, None, Some(("local", offset as u64)), || {
                format!("access of {bytes} bytes at offset {} of {size} bytes of local memory", offset as i64)
            });
            return None;
        }
        Some(lane * stride + offset)
    }

    pub(super) fn store(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        t: &LoadStore,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let frame = fragment.frame;
        let regs = &warp.frame(frame).regs;
        let at = addresses(regs, &t.addr);
        let undefined = undefined_address(regs, &t.addr);
        let data_undefined = t.regs.iter().flatten().fold(0, |m, &s| m | regs.undefined[s as usize]) & mask;
        let mask = if undefined & mask != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        if data_undefined & mask != 0 && t.window != AddressWindow::Local && t.window != AddressWindow::FrameParam {
            let site = self.site(block, warp.index, (data_undefined & mask).trailing_zeros(), pc);
            self.report(FindingKind::Uninitialized, site, None, None, || "a store of an undefined register".into());
        }
        let bytes = t.width as u32 * t.regs.len() as u32;
        match t.window {
            AddressWindow::FrameParam => store_frame(warp, frame, t, &at, mask),
            AddressWindow::Local => self.store_local(block, warp, fragment, t, &at, 0, mask, pc, data_undefined),
            AddressWindow::KernelParam | AddressWindow::Const => {
                let site = self.site(block, warp.index, mask.trailing_zeros(), pc);
                self.report(FindingKind::OutOfBounds, site, None, None, || {
                    "a store to memory that is read-only".into()
                });
            }
            _ => {
                let mut groups = std::mem::take(&mut self.groups);
                groups.clear();
                let elsewhere = self.places(block, warp, t.window, &at, mask, bytes as u64, pc, &mut groups);
                let placed = groups.iter().fold(elsewhere, |lanes, group| lanes | group.lanes);
                if placed != mask {
                    self.refused_store(block, t.window, &at, mask & !placed, bytes as u64);
                }
                for group in &groups {
                    self.count_traffic(group, bytes, true, pc);
                    if let Place::Global(i) = group.place
                        && !self.memory.get(i).writable
                    {
                        let site = self.site(block, warp.index, group.lanes.trailing_zeros(), pc);
                        self.report(FindingKind::OutOfBounds, site, None, None, || "a store to constant memory".into());
                        continue;
                    }
                    let slot = warp.slot;
                    let (same, changed) = {
                        let regs = &warp.frames[frame as usize].as_ref().expect("a fragment's frame lives").regs;
                        let data = self.data_mut(block, slot, group.place);
                        write_registers(data, group, t, regs)
                    };
                    if changed {
                        self.changed();
                        fragment.backs = 0;
                    }
                    self.overwrites_mbarrier(block, warp, group, bytes, pc);
                    let strength = Machine::scope_strength(t.semantics, t.scope);
                    self.check(block, warp, AccessKind::Write, group, bytes, strength, pc, same);
                    self.write_order(warp, group, t, pc);
                }
                self.groups = groups;
                if elsewhere != 0 {
                    let local = (0..32)
                        .filter(|&l| layout::window(at[l]) == Some(AddressWindow::Local))
                        .fold(0u32, |m, l| m | 1 << l);
                    if local & elsewhere != 0 {
                        self.store_local(
                            block,
                            warp,
                            fragment,
                            t,
                            &at,
                            layout::LOCAL,
                            local & elsewhere,
                            pc,
                            data_undefined,
                        );
                    }
                    if elsewhere & !local != 0 {
                        let site = self.site(block, warp.index, (elsewhere & !local).trailing_zeros(), pc);
                        self.report(FindingKind::OutOfBounds, site, None, None, || {
                            "a store to the kernel's parameters".into()
                        });
                    }
                }
            }
        }
        Flow::Next
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn store_local(
        &mut self,
        block: &Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        t: &LoadStore,
        at: &[u64; 32],
        base: u64,
        mask: u32,
        pc: u32,
        undefined: u32,
    ) {
        let frame = fragment.frame;
        let bytes = t.width as usize * t.regs.len();
        for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
            let offset = at[lane].wrapping_sub(base) as usize;
            let Some(start) = self.local_range(block, warp, lane, offset, bytes, pc) else { continue };
            for (n, slot) in t.regs.iter().flatten().enumerate() {
                let regs = &warp.frames[frame as usize].as_ref().expect("a fragment's frame lives").regs;
                let value = get(regs, *slot, t.register_rows, lane).to_le_bytes();
                let from = start + n * t.width as usize;
                let old = &mut warp.local[from..from + t.width as usize];
                // A loop that changes its own memory does not wait for others to.
                fragment.backs *= u32::from(*old == value[..t.width as usize]);
                old.copy_from_slice(&value[..t.width as usize]);
            }
            warp.local_init[start..start + bytes].fill(undefined >> lane & 1 == 0);
        }
    }

    /// A strong read observes what was released at its address.
    fn strong_read(&mut self, warp: &mut Warp, group: &Group, t: &LoadStore, _pc: u32) {
        let Some(sem) = t.semantics else { return };
        if self.sync.is_empty() {
            return;
        }
        for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
            let key = self.sync_key(warp, group, lane);
            self.sync.on_strong_read(key, &mut warp.order, lane, sem, t.scope, &self.clusters);
        }
    }

    fn write_order(&mut self, warp: &mut Warp, group: &Group, t: &LoadStore, _pc: u32) {
        match t.semantics {
            None if self.sync.is_empty() => {}
            None => {
                for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
                    let key = self.sync_key(warp, group, lane);
                    self.sync.on_weak_write(key);
                }
            }
            Some(sem) => {
                for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
                    let key = self.sync_key(warp, group, lane);
                    self.sync.on_strong_write(key, &mut warp.order, lane, sem, t.scope, false, &self.clusters);
                }
            }
        }
    }

    /// A number that names a location in [`crate::order::SyncLocations`].
    pub(super) fn sync_key(&self, warp: &Warp, group: &Group, lane: u32) -> u64 {
        let offset = group.offsets[lane as usize];
        match group.place {
            Place::Global(i) => self.memory.get(i).base + offset,
            Place::Shared(s) => {
                let own = warp.order.block();
                let index =
                    if s == warp.slot { own } else { self.blocks[s as usize].as_ref().map_or(own, |b| b.index) };
                1 << 63 | (index as u64) << 32 | offset
            }
        }
    }
}

fn other_words(other: EarlierAccess) -> &'static str {
    match other {
        EarlierAccess::None => "access",
        EarlierAccess::Read => "read",
        EarlierAccess::Write => "write",
        EarlierAccess::Atomic => "atomic access",
        EarlierAccess::Async(_) => "asynchronous access",
    }
}

/// An asynchronous operation in words.
pub fn op_words(kind: AsyncOpKind) -> &'static str {
    match kind {
        AsyncOpKind::CpAsync => "cp.async",
        AsyncOpKind::BulkCopy => "bulk copy",
        AsyncOpKind::TensorCopy => "tensor copy",
        AsyncOpKind::Reduce => "bulk reduction",
        AsyncOpKind::StAsync => "asynchronous store",
        AsyncOpKind::Wgmma => "wgmma",
    }
}

/// One element of memory as a register holds it.
#[inline(always)]
fn element(data: &[u8], at: usize, width: u8, signed: bool, rows: u8) -> u128 {
    let bytes = data.get(at..at + width as usize).unwrap_or(&[]);
    let mut buffer = [0u8; 16];
    buffer[..bytes.len()].copy_from_slice(bytes);
    let value = u128::from_le_bytes(buffer);
    if signed && width < 8 {
        let shift = 128 - width as u32 * 8;
        let extended = ((value << shift) as i128 >> shift) as u128;
        extended & if rows == 1 { u32::MAX as u128 } else { u64::MAX as u128 }
    } else {
        value
    }
}

/// The value in one lane of a register of 1, 2 or 4 rows.
fn get(regs: &crate::regs::Registers, slot: u32, rows: u8, lane: usize) -> u128 {
    match rows {
        4 => {
            let rows: &[u128] = bytemuck::cast_slice(&regs.rows[slot as usize..slot as usize + 4]);
            rows[lane]
        }
        2 => {
            let lanes: &[u64] = bytemuck::cast_slice(&regs.rows[slot as usize..slot as usize + 2]);
            lanes[lane] as u128
        }
        _ => regs.rows[slot as usize].0[lane] as u128,
    }
}

/// Sets a register of 1, 2 or 4 rows.
fn put(regs: &mut crate::regs::Registers, slot: u32, rows: u8, values: &[u128; 32], mask: u32) {
    match rows {
        1 => regs.set(slot, &values.map(|v| v as u32), mask),
        2 => regs.set64(slot, &values.map(|v| v as u64), mask),
        _ => {
            let lanes: &mut [u128] = bytemuck::cast_slice_mut(&mut regs.rows[slot as usize..slot as usize + 4]);
            for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
                lanes[lane] = values[lane];
            }
        }
    }
    regs.undefined[slot as usize] &= !mask;
}

/// What was reported once shall not be reported again as undefined: lanes whose load went wrong get zeros.
#[cold]
fn give_zeros(regs: &mut crate::regs::Registers, t: &LoadStore, lanes: u32) {
    t.regs.iter().flatten().for_each(|&slot| put(regs, slot, t.register_rows, &[0; 32], lanes));
}

/// Loads the registers of a group's lanes.
#[inline]
fn read_registers(data: &[u8], group: &Group, t: &LoadStore, regs: &mut crate::regs::Registers) {
    let width = t.width as usize;
    for (n, slot) in t.regs.iter().enumerate() {
        let Some(slot) = *slot else { continue };
        let lanes = group.lanes;
        if width == 4 && t.register_rows == 1 && group.row {
            let (from, step) = (group.offsets[0] as usize, 4 * t.regs.len());
            let row = &mut regs.rows[slot as usize].0;
            for (lane, bytes) in row.iter_mut().zip(data[from..from + 32 * step].chunks_exact(step)) {
                *lane = u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]);
            }
            regs.undefined[slot as usize] = 0;
        } else if width == 4 && t.register_rows == 1 {
            let row = &mut regs.rows[slot as usize].0;
            let mut left = lanes;
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + 4 * n;
                row[lane] = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            }
            regs.undefined[slot as usize] &= !lanes;
        } else {
            let mut values = [0u128; 32];
            for lane in (0..32).filter(|l| lanes >> l & 1 != 0) {
                values[lane] =
                    element(data, group.offsets[lane] as usize + n * width, t.width, t.signed, t.register_rows);
            }
            put(regs, slot, t.register_rows, &values, lanes);
        }
    }
}

/// Stores the registers of a group's lanes: the lanes that left memory as it was, and whether anything changed.
#[inline]
fn write_registers(data: &mut [u8], group: &Group, t: &LoadStore, regs: &crate::regs::Registers) -> (u32, bool) {
    let width = t.width as usize;
    let mut differs = 0u32;
    for (n, slot) in t.regs.iter().flatten().enumerate() {
        let mut left = group.lanes;
        if width == 4 && t.register_rows == 1 && group.row {
            let (from, step) = (group.offsets[0] as usize, 4 * t.regs.len());
            let row = &regs.rows[*slot as usize].0;
            for (lane, bytes) in data[from..from + 32 * step].chunks_exact_mut(step).enumerate() {
                let (new, old) = (row[lane].to_le_bytes(), &mut bytes[4 * n..4 * n + 4]);
                differs |= u32::from(*old != new) << lane;
                old.copy_from_slice(&new);
            }
        } else if width == 4 && t.register_rows == 1 {
            let row = &regs.rows[*slot as usize].0;
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + 4 * n;
                let new = row[lane].to_le_bytes();
                let old = &mut data[at..at + 4];
                differs |= u32::from(old != new) << lane;
                old.copy_from_slice(&new);
            }
        } else {
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                let at = group.offsets[lane] as usize + width * n;
                let new = get(regs, *slot, t.register_rows, lane).to_le_bytes();
                let old = &mut data[at..at + width];
                differs |= u32::from(old != &new[..width]) << lane;
                old.copy_from_slice(&new[..width]);
            }
        }
    }
    (group.lanes & !differs, differs != 0)
}

fn load_frame(warp: &mut Warp, frame: u32, t: &LoadStore, at: &[u64; 32], mask: u32) {
    let frame = warp.frame(frame);
    let stride = frame.params.len() / 32;
    for (n, slot) in t.regs.iter().enumerate() {
        let Some(slot) = slot else { continue };
        let values = std::array::from_fn(|l| {
            let o = at[l] as usize + n * t.width as usize;
            if o + t.width as usize <= stride {
                element(&frame.params, l * stride + o, t.width, t.signed, t.register_rows)
            } else {
                0
            }
        });
        put(&mut frame.regs, *slot, t.register_rows, &values, mask);
    }
}

fn store_frame(warp: &mut Warp, frame: u32, t: &LoadStore, at: &[u64; 32], mask: u32) {
    let frame = warp.frame(frame);
    let stride = frame.params.len() / 32;
    for (n, slot) in t.regs.iter().flatten().enumerate() {
        for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
            let value = get(&frame.regs, *slot, t.register_rows, lane).to_le_bytes();
            let o = at[lane] as usize + n * t.width as usize;
            if let Some(place) = frame.params.get_mut(lane * stride + o..lane * stride + o + t.width as usize)
                && o + t.width as usize <= stride
            {
                place.copy_from_slice(&value[..t.width as usize]);
            }
        }
    }
}

impl Warp {
    /// More local memory, not yet written, at the top of every lane's stack; where it begins, a multiple of 16.
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
}
