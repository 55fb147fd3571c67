//! Asynchronous copies: `cp.async` and its groups, and the effects that are still to come.

use super::access::Place;
use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, CompletionTiming, Machine};
use crate::finding::{FindingKind, Site};
use crate::layout::SHARED_START;
use crate::memory::{Allocation, SimMemory};
use crate::order::{AccessKind, AccessStrength, AsyncOpId, AsyncOpKind, CheckContext};
use crate::program::op::{AddressWindow, CpAsync};
use crate::tensor_map::{Reduction, TensorMap};
use std::collections::VecDeque;

/// Bytes to be moved.
#[derive(Clone, Debug)]
pub struct Piece {
    /// To.
    pub to: Place,
    /// Offset there.
    pub at: u64,
    /// From, and the offset there; none: only the filling.
    pub from: Option<(Place, u64)>,
    /// Bytes taken from the source.
    pub bytes: u32,
    /// Bytes filled behind them.
    pub fill: u32,
    /// With what (16 bytes, repeated).
    pub with: [u8; 16],
}

/// What the lanes of a `cp.async` move.
#[derive(Clone, Debug)]
pub struct Row {
    /// Lanes that have not moved theirs.
    lanes: u32,
    to: Place,
    at: [u64; 32],
    from: Place,
    source: [u64; 32],
    /// Bytes taken from the source by each lane, and written altogether: the rest is zero.
    taken: [u8; 32],
    size: u8,
}

/// A box of a tensor on its way to shared memory.
#[derive(Clone, Debug)]
pub struct BoxLoad {
    /// Of which tensor, and where the box begins in it.
    pub map: TensorMap,
    /// The coordinates, innermost first.
    pub coordinates: Vec<i32>,
    /// Absolute shared address, in the block of a slot.
    pub shared: u32,
    /// The slot.
    pub slot: u32,
}

/// What an asynchronous operation does when it takes effect.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Moves.
    pub pieces: Vec<Piece>,
    /// Moves of `cp.async`.
    pub rows: Vec<Row>,
    /// Boxes of tensors to be loaded.
    pub boxes: Vec<BoxLoad>,
    /// Combines instead of overwriting.
    pub reduce: Option<Reduction>,
    /// `st.async`: bytes that come from registers.
    pub bytes: Option<Vec<u8>>,
}

/// How the end of an operation becomes known.
#[derive(Clone, Debug)]
pub enum End {
    /// Bytes credited to mbarriers (slot, address): a multicast has several.
    Credit(Vec<((u32, u32), u32)>),
    /// Arrivals when a lane's earlier `cp.async`s are done: slot and warp, lane, the mbarrier.
    Arrive { warp: u32, slot: u32, lanes: u32, ops: Vec<(AsyncOpId, u32)>, place: (u32, u32), site: Site },
}

/// An operation on its way.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Which.
    pub op: Option<AsyncOpId>,
    /// What it does.
    pub effect: Effect,
    /// And then.
    pub end: End,
}

/// `cp.async`s that complete together.
#[derive(Clone, Debug)]
struct Part {
    op: AsyncOpId,
    lanes: u32,
    /// What is not yet done.
    rows: Vec<Row>,
}

/// A committed group of some lanes.
#[derive(Clone, Debug)]
struct Group {
    lanes: u32,
    parts: Vec<Part>,
}

/// A bulk group of one lane.
#[derive(Clone, Debug)]
pub struct BulkGroup {
    /// The lane.
    pub lane: u32,
    /// Its operations.
    pub stores: Vec<BulkStore>,
    /// Whether it is closed.
    pub committed: bool,
    /// The sources have been read: `wait_group.read` was passed.
    pub read: bool,
}

/// One store of a bulk group: the reading of its source and its writing complete apart.
#[derive(Clone, Debug)]
pub struct BulkStore {
    /// The reading.
    pub reading: AsyncOpId,
    /// The writing.
    pub writing: AsyncOpId,
    /// What is not yet done.
    pub effect: Option<Effect>,
}

/// A warp's own asynchronous operations.
#[derive(Clone, Debug, Default)]
pub struct WarpCopies {
    open: Vec<Part>,
    groups: VecDeque<Group>,
    /// BulkCopy groups, oldest first; the last of a lane may be open.
    pub bulk: Vec<BulkGroup>,
    /// wgmma state.
    pub wgmma: super::wgmma::WarpWgmma,
}

impl Machine<'_> {
    pub(super) fn cp_async(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        c: &CpAsync,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(fragment.frame).regs;
        let (dst, src) = (addresses(regs, &c.dst), addresses(regs, &c.src));
        let undefined = (undefined_address(regs, &c.dst) | undefined_address(regs, &c.src)) & mask;
        let sizes = c.src_size.map(|s| regs.get(s));
        let ignore = c.ignore.map(|(p, n)| regs.predicates[p as usize] ^ if n { u32::MAX } else { 0 }).unwrap_or(0);
        let mask = if undefined != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        let size = c.size as u32;
        let taken = |lane: u32| {
            if ignore >> lane & 1 != 0 { 0 } else { sizes.map_or(size, |s| s[lane as usize].min(size)) }
        };
        if let Some(s) = sizes
            && let Some(lane) = (0..32u32).find(|&l| mask >> l & 1 != 0 && s[l as usize] > size)
        {
            let site = self.site(block, warp.index, lane, pc);
            self.report(FindingKind::OutOfBounds, site, None, None, || {
                format!("cp.async: src-size {} is above {size}", s[lane as usize])
            });
        }
        let (mut to, mut from) = std::mem::take(&mut self.copy_groups);
        to.clear();
        from.clear();
        self.places(block, warp, AddressWindow::Shared, &dst, mask, size as u64, pc, &mut to);
        // Lanes that take nothing do not touch their source.
        let (mut reading, mut partial) = (mask, false);
        if sizes.is_some() || ignore != 0 {
            reading = (0..32u32).filter(|&l| mask >> l & 1 != 0 && taken(l) > 0).fold(0u32, |m, l| m | 1 << l);
            partial = (0..32u32).any(|l| reading >> l & 1 != 0 && taken(l) < size);
        }
        if partial {
            // The tail of a row: only the bytes taken must be there. Alignment is that of the full size.
            for lane in (0..32u32).filter(|l| reading >> l & 1 != 0) {
                self.places_of_bytes(block, warp, c.window, src[lane as usize], lane, taken(lane), size, pc, &mut from);
            }
        } else {
            self.places(block, warp, c.window, &src, reading, size as u64, pc, &mut from);
        }
        fragment.backs = 0;
        let op = self.open_part(warp, mask, pc);
        let now = match self.options.completion {
            CompletionTiming::Earliest => true,
            CompletionTiming::Latest => false,
            CompletionTiming::Random => self.rng.below(3) == 0,
        };
        for group in &from {
            self.count_traffic(group, size, false, pc);
            if partial {
                for lane in (0..32u32).filter(|l| group.lanes >> l & 1 != 0) {
                    let offset = group.offsets[lane as usize];
                    self.async_access(block, warp, op, lane, group.place, offset, taken(lane) as u64, None, pc);
                }
            } else {
                self.async_lanes(block, warp, op, AccessKind::Read, group, size, pc);
            }
        }
        for group in &to {
            self.count_traffic(group, size, true, pc);
            self.async_lanes(block, warp, op, AccessKind::Write, group, size, pc);
            // Lanes by where they read; those that read nothing with any.
            let mut left = group.lanes;
            for source in from.iter().map(Some).chain([None]) {
                let lanes = source.map_or(left, |s| s.lanes & left);
                left &= !lanes;
                if lanes == 0 {
                    continue;
                }
                let bytes = |l: usize| if source.is_some() { taken(l as u32) as u8 } else { 0 };
                let row = Row {
                    lanes,
                    to: group.place,
                    at: group.offsets,
                    from: source.map_or(group.place, |s| s.place),
                    source: source.map_or([0; 32], |s| s.offsets),
                    taken: std::array::from_fn(bytes),
                    size: c.size,
                };
                if now {
                    let own = warp.slot;
                    self.move_row(&mut Some((&mut *block, own)), &row, lanes);
                    self.changed();
                } else if let Some(part) = warp.copies.open.last_mut() {
                    part.rows.push(row);
                }
            }
        }
        self.copy_groups = (to, from);
        Flow::Next
    }

    /// Checks the accesses of a `cp.async`'s lanes at issue.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn async_lanes(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        op: AsyncOpId,
        access: AccessKind,
        group: &super::access::Group,
        size: u32,
        pc: u32,
    ) {
        if self.options.count_only {
            return;
        }
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
        let shadow = match group.place {
            Place::Global(i) => Some(&mut self.memory.get_mut(i).shadow),
            Place::Shared(s) if s == warp.slot => Some(&mut block.shadow),
            Place::Shared(s) => self.blocks[s as usize].as_mut().map(|b| &mut b.shadow),
        };
        if let Some(shadow) = shadow {
            shadow.async_lanes(access, op, &warp.order, group.lanes, &group.offsets, size, pc, &cx, &mut found);
        }
        if !found.is_empty() {
            self.report_conflicts(block, warp.index, access, group.place, &found, pc, 0);
        }
        self.conflicts = found;
    }

    /// Moves what these lanes of a row move.
    fn move_row(&mut self, current: &mut Option<(&mut Block, u32)>, row: &Row, lanes: u32) {
        let size = row.size as usize;
        let mut bytes = [[0u8; 16]; 32];
        let source = self.bytes_of(current, row.from);
        let mut left = row.lanes & lanes;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            let (from, taken) = (row.source[lane] as usize, row.taken[lane] as usize);
            if taken == 16 {
                // The usual case, without a call.
                bytes[lane].copy_from_slice(&source[from..from + 16]);
            } else {
                bytes[lane][..taken].copy_from_slice(&source[from..from + taken]);
            }
        }
        let target = self.bytes_of(current, row.to);
        let mut left = row.lanes & lanes;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            let at = row.at[lane] as usize;
            if size == 16 {
                target[at..at + 16].copy_from_slice(&bytes[lane]);
            } else {
                target[at..at + size].copy_from_slice(&bytes[lane][..size]);
            }
        }
    }

    /// One lane's source of which only `bytes` of `size` are taken.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn places_of_bytes(
        &mut self,
        block: &Block,
        warp: &Warp,
        window: AddressWindow,
        address: u64,
        lane: u32,
        bytes: u32,
        size: u32,
        pc: u32,
        out: &mut Vec<super::access::Group>,
    ) {
        let mut found = Vec::new();
        let mut at = [0; 32];
        // The last byte first: it must be in the same buffer.
        at[lane as usize] = address + bytes as u64 - 1;
        self.places(block, warp, window, &at, 1 << lane, 1, pc, &mut found);
        if found.is_empty() {
            return;
        }
        found.clear();
        at[lane as usize] = address;
        self.places(block, warp, window, &at, 1 << lane, 1, pc, &mut found);
        if !address.is_multiple_of(size as u64) {
            let site = self.site(block, warp.index, lane, pc);
            self.report(FindingKind::Misaligned, site, None, Some(("global", address)), || {
                format!("cp.async of {size} bytes from {address:#x}, which is not a multiple of {size}")
            });
            return;
        }
        out.append(&mut found);
    }

    /// The operation that collects the warp's `cp.async`s since the last commit.
    fn open_part(&mut self, warp: &mut Warp, mask: u32, pc: u32) -> AsyncOpId {
        if let Some(part) = warp.copies.open.last_mut()
            && part.lanes != 0
        {
            part.lanes |= mask;
            self.ops.add_lanes(part.op, mask);
            return part.op;
        }
        let op = self.ops.start(AsyncOpKind::CpAsync, &warp.order, mask, pc);
        warp.copies.open.push(Part { op, lanes: mask, rows: Vec::new() });
        op
    }

    /// Checks an operation's access at issue. `write`: with this strength.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub(super) fn async_access(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        op: AsyncOpId,
        lane: u32,
        place: Place,
        offset: u64,
        bytes: u64,
        write: Option<AccessStrength>,
        pc: u32,
    ) {
        self.async_runs(block, warp, op, lane, place, &[(offset, bytes)], write, pc);
    }

    /// [`Machine::async_access`] of several runs of bytes: offset and how many.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub(super) fn async_runs(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        op: AsyncOpId,
        lane: u32,
        place: Place,
        runs: &[(u64, u64)],
        write: Option<AccessStrength>,
        pc: u32,
    ) {
        if self.options.count_only || runs.iter().all(|run| run.1 == 0) {
            return;
        }
        let mut found = std::mem::take(&mut self.conflicts);
        found.clear();
        let cx = CheckContext { ops: &self.ops, clusters: &self.clusters };
        let shadow = match place {
            Place::Global(i) => Some(&mut self.memory.get_mut(i).shadow),
            Place::Shared(s) if s == warp.slot => Some(&mut block.shadow),
            Place::Shared(s) => self.blocks[s as usize].as_mut().map(|b| &mut b.shadow),
        };
        if let Some(shadow) = shadow {
            match write {
                None => shadow.async_read(runs, op, &warp.order, lane, pc, &cx, &mut found),
                Some(strength) => shadow.async_write(runs, op, &warp.order, lane, strength, pc, &cx, &mut found),
            }
        }
        if !found.is_empty() {
            let access = if write.is_some() { AccessKind::Write } else { AccessKind::Read };
            self.report_conflicts(block, warp.index, access, place, &found, pc, 0);
        }
        self.conflicts = found;
    }

    /// Moves an effect's bytes. `current`: the block that is out of its slot because it runs.
    pub(super) fn apply(&mut self, mut current: Option<(&mut Block, u32)>, effect: &Effect) {
        for row in &effect.rows {
            self.move_row(&mut current, row, row.lanes);
        }
        for load in &effect.boxes {
            let block = match &mut current {
                Some((block, own)) if *own == load.slot => Some(&mut **block),
                _ => self.blocks[load.slot as usize].as_deref_mut(),
            };
            block.into_iter().for_each(|block| move_box(&self.memory, load, &mut block.shared));
        }
        let mut buffer = Vec::new();
        for piece in &effect.pieces {
            buffer.clear();
            if let Some(bytes) = &effect.bytes {
                buffer.extend_from_slice(bytes);
            } else if let Some((place, offset)) = piece.from {
                let data = self.bytes_of(&mut current, place);
                let from = offset as usize;
                buffer.extend_from_slice(data.get(from..from + piece.bytes as usize).unwrap_or(&[]));
            }
            let filled = buffer.len();
            buffer.extend((0..piece.fill as usize).map(|i| piece.with[(filled + i) % 16]));
            let data = self.bytes_of(&mut current, piece.to);
            let at = piece.at as usize;
            if let Some(target) = data.get_mut(at..at + buffer.len()) {
                match &effect.reduce {
                    Some(reduction) => reduction.apply(target, &buffer),
                    None => target.copy_from_slice(&buffer),
                }
            }
        }
        self.changed();
    }

    fn bytes_of<'m>(&'m mut self, current: &'m mut Option<(&mut Block, u32)>, place: Place) -> &'m mut [u8] {
        match (place, current) {
            (Place::Global(i), _) => &mut self.memory.get_mut(i).data,
            (Place::Shared(s), Some((block, own))) if s == *own => &mut block.shared,
            (Place::Shared(s), _) => self.blocks[s as usize].as_mut().map_or(&mut [], |b| &mut b.shared),
        }
    }

    pub(super) fn cp_async_commit(&mut self, warp: &mut Warp, mask: u32) -> Flow {
        let mut parts = Vec::new();
        // Parts of lanes that do not commit stay open.
        for part in std::mem::take(&mut warp.copies.open) {
            if part.lanes & mask == part.lanes {
                parts.push(part);
            } else {
                let mut mine = part.clone();
                let mut rest = part;
                mine.keep(mask);
                rest.keep(!mask);
                if mine.lanes != 0 {
                    parts.push(mine);
                }
                warp.copies.open.push(rest);
            }
        }
        warp.copies.groups.push_back(Group { lanes: mask, parts });
        Flow::Next
    }

    pub(super) fn cp_async_wait(&mut self, block: &mut Block, warp: &mut Warp, groups: Option<u32>, mask: u32) -> Flow {
        let own = warp.slot;
        self.finish_arrivals(block, own, warp.index, mask);
        let mut newer = [0u32; 32];
        let keep = groups.unwrap_or(0);
        let mut all = std::mem::take(&mut warp.copies.groups);
        for group in all.iter_mut().rev() {
            let mut done = 0u32;
            for lane in (0..32).filter(|l| group.lanes >> l & 1 != 0) {
                if newer[lane] >= keep && mask >> lane & 1 != 0 {
                    done |= 1 << lane;
                }
                newer[lane] += 1;
            }
            if done != 0 {
                self.finish_parts(block, warp, own, &mut group.parts, done);
                group.lanes &= !done;
            }
        }
        all.retain(|g| g.lanes != 0);
        warp.copies.groups = all;
        if groups.is_none() {
            // wait_all: what is not committed too.
            let mut open = std::mem::take(&mut warp.copies.open);
            self.finish_parts(block, warp, own, &mut open, mask);
            open.retain(|p| p.lanes != 0);
            warp.copies.open = open;
        }
        Flow::Next
    }

    /// Copies that `cp.async.mbarrier.arrive` took along are waited for as well.
    fn finish_arrivals(&mut self, block: &mut Block, own: u32, w: u32, mask: u32) {
        let mine = |f: &InFlight| matches!(f.end, End::Arrive { warp, slot, lanes, .. } if warp == w && slot == own && mask & lanes != 0);
        while let Some(at) = self.in_flight.iter().position(mine) {
            if let Some(flight) = self.in_flight.remove(at) {
                self.finish_flight(Some((&mut *block, own)), flight);
            }
        }
    }

    /// The lanes have observed the completion of their own copies.
    fn finish_parts(&mut self, block: &mut Block, warp: &Warp, own: u32, parts: &mut Vec<Part>, lanes: u32) {
        for part in parts.iter_mut() {
            let here = part.lanes & lanes;
            if here == 0 {
                continue;
            }
            let any = !part.rows.is_empty();
            for row in &mut part.rows {
                self.move_row(&mut Some((&mut *block, own)), row, here);
                row.lanes &= !here;
            }
            part.rows.retain(|row| row.lanes != 0);
            if any {
                self.changed();
            }
            self.ops.mark_observed_by_lanes(part.op, &warp.order, here);
            part.lanes &= !here;
        }
        parts.retain(|p| p.lanes != 0);
    }

    /// `cp.async.mbarrier.arrive`: an arrival of each lane once its copies so far are done.
    pub(super) fn cp_async_arrive(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        place: (u32, u32),
        noinc: bool,
        lanes: u32,
        site: Site,
    ) {
        let own = warp.slot;
        if !noinc {
            self.add_pending(block, own, place, lanes.count_ones());
        }
        // What comes later belongs to another operation.
        let mut rows = Vec::new();
        let mut ops = Vec::new();
        let open = &mut warp.copies.open;
        let committed = warp.copies.groups.iter_mut().flat_map(|g| g.parts.iter_mut());
        for part in open.iter_mut().chain(committed) {
            if part.lanes & lanes == 0 {
                continue;
            }
            ops.push((part.op, part.lanes & lanes));
            for row in part.rows.iter_mut().filter(|row| row.lanes & lanes != 0) {
                rows.push(Row { lanes: row.lanes & lanes, ..row.clone() });
                row.lanes &= !lanes;
            }
            part.rows.retain(|row| row.lanes != 0);
        }
        // Open parts are closed: later copies start anew, but still commit with these. Kernels that only arrive never commit.
        if let Some(op) = warp.copies.open.last().map(|p| p.op) {
            warp.copies.open.retain(|p| p.lanes != 0);
            if warp.copies.open.len() > 16 && warp.copies.open[0].rows.is_empty() {
                warp.copies.open.remove(0);
            }
            warp.copies.open.push(Part { op, lanes: 0, rows: Vec::new() });
        }
        let effect = Effect { rows, ..Effect::default() };
        let end = End::Arrive { warp: warp.index, slot: own, lanes, ops, place, site };
        let flight = InFlight { op: None, effect, end };
        if self.options.completion == CompletionTiming::Earliest {
            self.finish_flight(Some((block, own)), flight);
        } else {
            self.in_flight.push_back(flight);
        }
    }

    /// Queues an operation, or lets it take effect at once.
    pub(super) fn start_flight(&mut self, block: &mut Block, warp: &mut Warp, flight: InFlight) {
        if self.options.completion == CompletionTiming::Earliest {
            let own = warp.slot;
            self.finish_flight(Some((block, own)), flight);
        } else {
            self.in_flight.push_back(flight);
        }
    }

    /// Performs an operation and announces its end.
    pub(super) fn finish_flight(&mut self, mut current: Option<(&mut Block, u32)>, flight: InFlight) {
        self.apply(current.as_mut().map(|(b, s)| (&mut **b, *s)), &flight.effect);
        match flight.end {
            End::Credit(list) => {
                for (place, bytes) in list {
                    self.with_object(&mut current, place, |m, block, own| {
                        let phase = m.object(block, own, place).map(|o| (o.agent, o.phase));
                        if let (Some((agent, phase)), Some(op)) = (phase, flight.op) {
                            m.ops.mark_observed(op, agent, phase + 1);
                        }
                        let site = flight.op.map(|op| {
                            let issuer = m.ops.issuer(op);
                            let thread = issuer.thread_index().unwrap_or(0);
                            m.site_of(issuer.block(), thread, m.ops.pc(op))
                        });
                        m.credit(block, own, place, bytes, site);
                    });
                }
            }
            End::Arrive { lanes, ops, place, site, .. } => {
                self.with_object(&mut current, place, |m, block, own| {
                    let phase = m.object(block, own, place).map(|o| (o.agent, o.phase));
                    if let Some((agent, phase)) = phase {
                        ops.iter().for_each(|&(op, lanes)| m.ops.mark_part_observed(op, lanes, agent, phase + 1));
                    }
                    m.arrive(block, own, place, lanes.count_ones(), None, site);
                });
            }
        }
    }

    /// Calls `f` with the block that holds an mbarrier.
    fn with_object(
        &mut self,
        current: &mut Option<(&mut Block, u32)>,
        place: (u32, u32),
        f: impl FnOnce(&mut Self, &mut Block, u32),
    ) {
        match current {
            Some((block, own)) if *own == place.0 => f(self, block, *own),
            _ => {
                if let Some(mut block) = self.blocks[place.0 as usize].take() {
                    f(self, &mut block, place.0);
                    self.blocks[place.0 as usize] = Some(block);
                }
            }
        }
    }

    /// Completes the oldest operation that others may wait for. Whether there was one.
    pub(super) fn complete_oldest(&mut self) -> bool {
        // Of what is in flight any may come first; the seed says which.
        if self.in_flight.is_empty() {
            return false;
        }
        let pick = if self.options.seed & 8 == 0 { 0 } else { self.rng.below(self.in_flight.len() as u32) as usize };
        let Some(flight) = self.in_flight.remove(pick) else { return false };
        self.finish_flight(None, flight);
        self.wake_mbarriers();
        true
    }

    /// Completes a random one.
    pub(super) fn complete_random(&mut self) {
        let pick = self.rng.below(self.in_flight.len() as u32) as usize;
        if let Some(flight) = self.in_flight.remove(pick) {
            self.finish_flight(None, flight);
            self.wake_mbarriers();
        }
    }

    /// A warp is over: copies that nobody waited for.
    pub(super) fn warp_exit_checks(&mut self, block: &mut Block, w: u32) {
        let Some(mut warp) = block.warps[w as usize].take() else { return };
        let own = warp.slot;
        let mut left: Vec<Part> = std::mem::take(&mut warp.copies.open);
        left.extend(std::mem::take(&mut warp.copies.groups).into_iter().flat_map(|g| g.parts));
        for part in &mut left {
            let rows = std::mem::take(&mut part.rows);
            if !rows.is_empty() {
                // Nobody waited; the copies happen all the same, before the block's memory is gone.
                self.apply(Some((&mut *block, own)), &Effect { rows, ..Effect::default() });
            }
        }
        self.bulk_exit(block, &mut warp);
        block.warps[w as usize] = Some(warp);
    }

    /// A block is over: what is in flight for it happens now.
    pub(super) fn block_exit_checks(&mut self, slot: u32) {
        while let Some(at) = self.in_flight.iter().position(|f| f.touches(slot)) {
            if let Some(flight) = self.in_flight.remove(at) {
                self.report_unfinished(slot, &flight);
                self.finish_flight(None, flight);
            }
        }
        self.wake_mbarriers();
        if let Some(mut block) = self.blocks[slot as usize].take() {
            self.warpgroup_exit_checks(&mut block);
            self.mbarrier_exit_checks(&block);
            self.blocks[slot as usize] = Some(block);
        }
    }
}

impl Machine<'_> {
    /// A copy writes (or reads) shared memory of a block that exits.
    fn report_unfinished(&mut self, slot: u32, flight: &InFlight) {
        let (Some(op), End::Credit(_)) = (flight.op, &flight.end) else { return };
        let issuer = self.ops.issuer(op);
        let site = self.site_of(issuer.block(), issuer.thread_index().unwrap_or(0), self.ops.pc(op));
        let writes = flight.effect.pieces.iter().any(|p| p.to == Place::Shared(slot))
            || flight.effect.boxes.iter().any(|load| load.slot == slot);
        let rank = self.blocks[slot as usize].as_ref().map_or(0, |b| b.rank);
        self.report(FindingKind::AsyncNotWaited, site, None, None, || {
            let verb = if writes { "write" } else { "read" };
            format!("a copy may still {verb} shared memory of its block (rank {rank} in the cluster) when that exits: nobody waited for it")
        });
    }
}

/// Copies a box to shared memory, with the map's filling where it lies outside of the tensor.
fn move_box(memory: &SimMemory, load: &BoxLoad, shared: &mut [u8]) {
    let Ok(copy) = load.map.box_at(&load.coordinates, load.shared) else { return };
    let fill = load.map.fill();
    let mut buffer: Option<&Allocation> = None;
    copy.for_each_run(|run| {
        let (at, bytes) = ((run.shared - SHARED_START) as usize, run.bytes as usize);
        let Some(target) = shared.get_mut(at..at + bytes) else { return };
        match run.global {
            None => target.iter_mut().enumerate().for_each(|(i, byte)| *byte = fill[i % 16]),
            Some(address) => {
                if buffer.is_none_or(|b| address.wrapping_sub(b.base) >= b.data.len() as u64) {
                    buffer = memory.find(address).map(|index| memory.get(index));
                }
                let Some(source) = buffer else { return };
                let from = (address - source.base) as usize;
                let Some(source) = source.data.get(from..from + bytes) else { return };
                // The usual case, without a call.
                match (<&mut [u8; 16]>::try_from(&mut *target), <&[u8; 16]>::try_from(source)) {
                    (Ok(target), Ok(source)) => *target = *source,
                    _ => target.copy_from_slice(source),
                }
            }
        }
    });
}

impl Part {
    /// Only these lanes.
    fn keep(&mut self, lanes: u32) {
        self.lanes &= lanes;
        self.rows.iter_mut().for_each(|row| row.lanes &= lanes);
        self.rows.retain(|row| row.lanes != 0);
    }
}

impl InFlight {
    /// Whether it uses shared memory of the block in this slot.
    fn touches(&self, slot: u32) -> bool {
        let place = Place::Shared(slot);
        let rows = self.effect.rows.iter().any(|row| row.to == place);
        let boxes = self.effect.boxes.iter().any(|load| load.slot == slot);
        rows || boxes || self.effect.pieces.iter().any(|p| p.to == place || p.from.is_some_and(|f| f.0 == place))
    }
}
