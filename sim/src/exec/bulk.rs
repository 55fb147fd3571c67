//! Bulk and tensor copies, `st.async`, and tensor maps that kernels change.

use super::access::{Group, Place};
use super::copies::{BoxLoad, BulkGroup, BulkStore, Effect, End, InFlight, Piece};
use super::run::{Flow, addresses, undefined_address};
use super::warp::{Fragment, Warp};
use super::{Block, CompletionTiming, Machine};
use crate::finding::{FindingKind, Site};
use crate::layout;
use crate::order::{AccessKind, AccessStrength, AsyncOpId, AsyncOpKind};
use crate::program::op::{AddressOperand, AddressWindow, BulkCopy, BulkCopyKind, BulkReduction};
use crate::tensor_map::{self, EncodedMap, MapField, Reduction, TensorMap};

/// What one lane's bulk instruction does.
struct Job {
    lane: u32,
    op: AsyncOpId,
    pieces: Vec<Piece>,
    reduce: Option<Reduction>,
}

impl Machine<'_> {
    pub(super) fn bulk(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        b: &BulkCopy,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(fragment.frame).regs;
        let (dst, src) = (addresses(regs, &b.dst), addresses(regs, &b.src));
        let bar = b.mbarrier.map(|m| addresses(regs, &m));
        let sizes = b.size.map(|s| regs.get(s));
        let masks = b.multicast.map(|m| regs.get(m));
        let coords: Vec<[u32; 32]> = b.coords.iter().map(|&c| regs.get(c)).collect();
        let mut undefined = undefined_address(regs, &b.dst) | undefined_address(regs, &b.src);
        let slots = b.size.iter().chain(&b.multicast).chain(&b.coords);
        undefined |= slots.fold(0, |m, &s| m | regs.undefined[s as usize]);
        if let Some(m) = &b.mbarrier {
            undefined |= undefined_address(regs, m);
        }
        let mask = if undefined & mask != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let l = lane as usize;
            let site = self.site(block, warp.index, lane, pc);
            let (to, from) = (dst[l], src[l]);
            let at: Vec<i32> = coords.iter().map(|c| c[l] as i32).collect();
            let size = sizes.map_or(0, |s| s[l]);
            let ranks = masks.map(|m| m[l] as u16);
            match b.kind {
                BulkCopyKind::Prefetch | BulkCopyKind::TensorPrefetch => {}
                BulkCopyKind::Load | BulkCopyKind::SharedToShared => {
                    self.bulk_load(block, warp, b, (to, from, size), bar.map(|b| b[l]), ranks, site, lane);
                }
                BulkCopyKind::TensorLoad => {
                    self.tensor_load(block, warp, (to, from), &at, bar.map(|b| b[l]), ranks, site, lane);
                }
                BulkCopyKind::Store => self.bulk_store(block, warp, b, (to, from, size), site, lane),
                BulkCopyKind::TensorStore => self.tensor_store(block, warp, b, (to, from), &at, site, lane),
            }
        }
        fragment.backs = 0;
        Flow::Next
    }

    /// Checks size and alignment of a copy without a map.
    fn check_bulk_size(&mut self, to: u64, from: u64, size: u32, site: Site) -> bool {
        if !size.is_multiple_of(16) || size == 0 {
            self.report(FindingKind::Misaligned, site, None, None, || {
                format!("a bulk copy of {size} bytes; it must be a multiple of 16")
            });
            return false;
        }
        for address in [to, from] {
            if address % 16 != 0 {
                self.report(FindingKind::Misaligned, site, None, None, || {
                    format!("a bulk copy at address {address:#x}, which is not a multiple of 16")
                });
                return false;
            }
        }
        true
    }

    /// The place of `bytes` bytes at one address; reports what is outside.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn place_of(
        &mut self,
        block: &Block,
        warp: &Warp,
        window: AddressWindow,
        address: u64,
        bytes: u64,
        lane: u32,
        pc: u32,
    ) -> Option<(Place, u64)> {
        let mut groups: Vec<Group> = Vec::new();
        let mut at = [0; 32];
        at[lane as usize] = address;
        self.places(block, warp, window, &at, 1 << lane, 1, pc, &mut groups);
        let g = groups.first()?;
        let offset = g.offsets[lane as usize];
        let len = match g.place {
            Place::Global(i) => self.memory.get(i).data.len() as u64,
            Place::Shared(_) => block.shared.len() as u64,
        };
        if offset + bytes > len {
            let site = self.site(block, warp.index, lane, pc);
            let space = g.place.space();
            self.report(FindingKind::OutOfBounds, site, None, Some((space, address)), || {
                format!("a copy of {bytes} bytes at offset {offset} of {len} bytes of {space} memory")
            });
            return None;
        }
        Some((g.place, offset))
    }

    /// The mbarriers to credit: one, or one a destination block.
    fn credits(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        bar: Option<u64>,
        ranks: &[Option<u32>],
        site: Site,
        lane: u32,
    ) -> Option<Vec<(u32, u32)>> {
        let address = bar?;
        let mut out = Vec::new();
        for rank in ranks {
            let address = match rank {
                None => address,
                Some(r) => layout::cluster_address(address as u32, *r) as u64,
            };
            let place = self.mbarrier_place(block, warp, AddressWindow::SharedCluster, address, site)?;
            if !self.touch(block, warp, place, lane, site, "given to a copy") {
                return None;
            }
            self.note_unfenced_init(block, warp, place, lane, site);
            out.push(place);
        }
        Some(out)
    }

    /// An mbarrier that copies use should have been made visible to the async proxy after its initialisation.
    fn note_unfenced_init(&mut self, block: &mut Block, warp: &Warp, place: (u32, u32), lane: u32, site: Site) {
        let own = warp.slot;
        let Some((agent, epoch)) = self.mbarrier_init_of(block, own, place) else { return };
        let visible = warp.order.is_fenced(lane, crate::order::MemorySpace::Shared, agent, epoch)
            || self.init_fences.contains(&agent.0);
        if !visible {
            let line = crate::finding::source(self.program, self.kernel, site.pc).0;
            let note = format!(
                "line {line}: a copy completes on an mbarrier whose initialisation no fence.mbarrier_init or fence.proxy.async made visible"
            );
            *self.notes.entry(note).or_insert(0) += 1;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a copy has this many properties")]
    fn bulk_load(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        b: &BulkCopy,
        (to, from, size): (u64, u64, u32),
        bar: Option<u64>,
        ranks: Option<u16>,
        site: Site,
        lane: u32,
    ) {
        if !self.check_bulk_size(to, from, size, site) {
            return;
        }
        let pc = site.pc;
        let Some(source) = self.place_of(block, warp, b.src_window, from, size as u64, lane, pc) else { return };
        let ranks = self.destination_ranks(ranks);
        let Some(bars) = self.credits(block, warp, bar, &ranks, site, lane) else { return };
        let kind = if b.reduce.is_some() { AsyncOpKind::Reduce } else { AsyncOpKind::BulkCopy };
        let op = self.ops.start(kind, &warp.order, 1 << lane, pc);
        self.async_access(block, warp, op, lane, source.0, source.1, size as u64, None, pc);
        self.count_bulk(pc, size as u64, matches!(source.0, Place::Global(_)), false);
        let mut pieces = Vec::new();
        for rank in &ranks {
            let to = match rank {
                None => to,
                Some(r) => layout::cluster_address(to as u32, *r) as u64,
            };
            let Some((place, at)) = self.place_of(block, warp, AddressWindow::SharedCluster, to, size as u64, lane, pc)
            else {
                return;
            };
            let strength = if b.reduce.is_some() { AccessStrength::Gpu } else { AccessStrength::Weak };
            self.async_access(block, warp, op, lane, place, at, size as u64, Some(strength), pc);
            pieces.push(Piece { to: place, at, from: Some(source), bytes: size, fill: 0, with: [0; 16] });
        }
        let reduce = match b.reduce {
            Some(BulkReduction::Typed(r)) => Some(r),
            _ => None,
        };
        let end = End::Credit(bars.into_iter().map(|p| (p, size)).collect());
        self.start_flight(
            block,
            warp,
            InFlight { op: Some(op), effect: Effect { pieces, reduce, ..Effect::default() }, end },
        );
    }

    fn destination_ranks(&self, mask: Option<u16>) -> Vec<Option<u32>> {
        match mask {
            None => vec![None],
            Some(mask) => (0..16).filter(|r| mask >> r & 1 != 0).map(Some).collect(),
        }
    }

    fn count_bulk(&mut self, pc: u32, bytes: u64, global: bool, write: bool) {
        let count = &mut self.counters.by_instruction[pc as usize];
        if global && write {
            count.global_written += bytes;
        } else if global {
            count.global_read += bytes;
        }
        if global {
            count.sectors += bytes.div_ceil(32);
        }
    }

    /// The tensor map at an address.
    fn tensor_map(&mut self, block: &Block, warp: &mut Warp, address: u64, site: Site) -> Option<TensorMap> {
        if !address.is_multiple_of(64) {
            self.report(FindingKind::Misaligned, site, None, None, || {
                format!("a tensor map at {address:#x}, which is not a multiple of 64")
            });
            return None;
        }
        let lane = 0;
        let bytes: Option<Vec<u8>> = match layout::window(address) {
            Some(AddressWindow::KernelParam) => {
                let from = (address - layout::PARAM) as usize;
                self.launch.params.get(from..from + 128).map(|b| b.to_vec())
            }
            Some(AddressWindow::Local) => None,
            _ => {
                let place = self.place_of(block, warp, AddressWindow::Generic, address, 128, lane, site.pc);
                place.map(|(p, at)| self.data(block, warp.slot, p)[at as usize..at as usize + 128].to_vec())
            }
        };
        let blob: EncodedMap = match bytes.and_then(|b| b.try_into().ok()) {
            Some(blob) => blob,
            None => {
                self.report(FindingKind::OutOfBounds, site, None, None, || {
                    format!("no tensor map can be read at {address:#x}")
                });
                return None;
            }
        };
        match TensorMap::decode(&blob) {
            Ok(map) => Some(map),
            Err(e) => {
                self.report(FindingKind::OutOfBounds, site, None, None, || e.to_string());
                None
            }
        }
    }

    /// Checks a box on both sides: where it lies in shared memory, and its bytes. `shared`: absolute shared address.
    #[expect(clippy::too_many_arguments, reason = "a copy has this many properties")]
    fn check_box(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        map: &TensorMap,
        coords: &[i32],
        shared: u64,
        load: bool,
        ops: (AsyncOpId, AsyncOpId),
        strength: AccessStrength,
        site: Site,
        lane: u32,
    ) -> Option<(Place, u64, u32)> {
        let pc = site.pc;
        let (_, offset) = layout::split_cluster_address(shared as u32);
        let copy = match map.box_at(coords, offset) {
            Ok(copy) => copy,
            Err(e) => {
                let kind = if e.field == "shared address" { FindingKind::Misaligned } else { FindingKind::Unsupported };
                self.report(kind, site, None, Some(("shared", offset as u64)), || e.to_string());
                return None;
            }
        };
        let spread = copy.shared_bytes() as u64;
        let (place, base) = self.place_of(block, warp, AddressWindow::SharedCluster, shared, spread, lane, pc)?;
        let start = offset;
        // Shared side: all bytes of the box, but elements outside of the tensor are not stored, so not read.
        let (read_op, write_op) = ops;
        let (op, write) = if load { (write_op, Some(AccessStrength::Weak)) } else { (read_op, None) };
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        let mut whole = copy.is_dense();
        if whole && !load {
            copy.for_each_row(|r| whole &= r.global.is_some());
        }
        if whole {
            runs.push((base, spread));
        } else {
            copy.for_each_run(|r| {
                if load || r.global.is_some() {
                    runs.push((base + (r.shared - start) as u64, r.bytes as u64));
                }
            });
        }
        self.async_runs(block, warp, op, lane, place, &runs, write, pc);
        // Global side, a row at a time; the rows of a buffer together.
        let (op, write) = if load { (read_op, None) } else { (write_op, Some(strength)) };
        let mut rows = std::mem::take(&mut self.box_rows);
        rows.clear();
        copy.for_each_row(|r| rows.extend(r.global.map(|g| (g, r.bytes))));
        let (mut bytes, mut buffer) = (0, None);
        runs.clear();
        for &(address, n) in &rows {
            let Some((at_place, at)) = self.row_place(block, warp, address, n as u64, lane, pc) else {
                (self.runs, self.box_rows) = (runs, rows);
                return None;
            };
            if let Some(before) = buffer.replace(at_place)
                && before != at_place
            {
                self.async_runs(block, warp, op, lane, before, &runs, write, pc);
                runs.clear();
            }
            runs.push((at, n as u64));
            bytes += n as u64;
        }
        if let Some(buffer) = buffer {
            self.async_runs(block, warp, op, lane, buffer, &runs, write, pc);
        }
        (self.runs, self.box_rows) = (runs, rows);
        self.count_bulk(pc, bytes, true, !load);
        Some((place, base, copy.bytes()))
    }

    /// The place of a row of a box in global memory.
    fn row_place(
        &mut self,
        block: &Block,
        warp: &Warp,
        address: u64,
        bytes: u64,
        lane: u32,
        pc: u32,
    ) -> Option<(Place, u64)> {
        let last = self.last_allocation;
        if self.memory.holds(last, address) {
            let (allocation, place) = (self.memory.get(last), Place::Global(last));
            let at = address - allocation.base;
            if at + bytes <= allocation.data.len() as u64 {
                return Some((place, at));
            }
        }
        self.place_of(block, warp, AddressWindow::Global, address, bytes, lane, pc)
    }

    /// The pieces of a box that is stored: from `base` in `place`, where its first byte lies at the shared address `start`.
    fn box_pieces(&mut self, map: &TensorMap, coords: &[i32], start: u32, place: Place, base: u64) -> Vec<Piece> {
        let (mut pieces, with) = (Vec::new(), map.fill());
        let Ok(copy) = map.box_at(coords, start) else { return pieces };
        copy.for_each_run(|r| {
            let Some(address) = r.global else { return };
            if !self.memory.holds(self.last_allocation, address) {
                let Some(index) = self.memory.find(address) else { return };
                self.last_allocation = index;
            }
            let (index, shared_at) = (self.last_allocation, base + (r.shared - start) as u64);
            let at = address - self.memory.get(index).base;
            let from = Some((place, shared_at));
            pieces.push(Piece { to: Place::Global(index), at, from, bytes: r.bytes, fill: 0, with });
        });
        pieces
    }

    #[expect(clippy::too_many_arguments, reason = "a copy has this many properties")]
    fn tensor_load(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        (to, map_at): (u64, u64),
        coords: &[i32],
        bar: Option<u64>,
        ranks: Option<u16>,
        site: Site,
        lane: u32,
    ) {
        let Some(map) = self.tensor_map(block, warp, map_at, site) else { return };
        let ranks = self.destination_ranks(ranks);
        let Some(bars) = self.credits(block, warp, bar, &ranks, site, lane) else { return };
        let op = self.ops.start(AsyncOpKind::TensorCopy, &warp.order, 1 << lane, site.pc);
        let mut boxes = Vec::with_capacity(ranks.len());
        let mut bytes = 0;
        for rank in &ranks {
            let to = match rank {
                None => to,
                Some(r) => layout::cluster_address(to as u32, *r) as u64,
            };
            let checked =
                self.check_box(block, warp, &map, coords, to, true, (op, op), AccessStrength::Weak, site, lane);
            let Some((Place::Shared(slot), _, n)) = checked else { return };
            let shared = layout::split_cluster_address(to as u32).1;
            boxes.push(BoxLoad { map, coordinates: coords.to_vec(), shared, slot });
            bytes = n;
        }
        let end = End::Credit(bars.into_iter().map(|p| (p, bytes)).collect());
        self.start_flight(block, warp, InFlight { op: Some(op), effect: Effect { boxes, ..Effect::default() }, end });
    }

    fn bulk_store(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        b: &BulkCopy,
        (to, from, size): (u64, u64, u32),
        site: Site,
        lane: u32,
    ) {
        if !self.check_bulk_size(to, from, size, site) {
            return;
        }
        let pc = site.pc;
        let Some(source) = self.place_of(block, warp, b.src_window, from, size as u64, lane, pc) else { return };
        let Some((place, at)) = self.place_of(block, warp, b.dst_window, to, size as u64, lane, pc) else { return };
        let reduce = match b.reduce {
            Some(BulkReduction::Typed(r)) => Some(r),
            _ => None,
        };
        let kind = if reduce.is_some() { AsyncOpKind::Reduce } else { AsyncOpKind::BulkCopy };
        let reading = self.ops.start(kind, &warp.order, 1 << lane, pc);
        let writing = self.ops.start(kind, &warp.order, 1 << lane, pc);
        self.async_access(block, warp, reading, lane, source.0, source.1, size as u64, None, pc);
        let strength = if reduce.is_some() { AccessStrength::Gpu } else { AccessStrength::Weak };
        self.async_access(block, warp, writing, lane, place, at, size as u64, Some(strength), pc);
        self.count_bulk(pc, size as u64, true, true);
        let pieces = vec![Piece { to: place, at, from: Some(source), bytes: size, fill: 0, with: [0; 16] }];
        self.add_store(block, warp, Job { lane, op: reading, pieces, reduce }, writing);
    }

    #[expect(clippy::too_many_arguments, reason = "a copy has this many properties")]
    fn tensor_store(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        b: &BulkCopy,
        (map_at, from): (u64, u64),
        coords: &[i32],
        site: Site,
        lane: u32,
    ) {
        let Some(map) = self.tensor_map(block, warp, map_at, site) else { return };
        let reduce = match b.reduce {
            Some(BulkReduction::Mapped(op)) => match Reduction::tensor(op, map.data_type) {
                Some(r) => Some(r),
                None => {
                    self.report(FindingKind::Unsupported, site, None, None, || {
                        format!("a reduction that {:?} does not have", map.data_type)
                    });
                    return;
                }
            },
            _ => None,
        };
        let kind = if reduce.is_some() { AsyncOpKind::Reduce } else { AsyncOpKind::TensorCopy };
        let reading = self.ops.start(kind, &warp.order, 1 << lane, site.pc);
        let writing = self.ops.start(kind, &warp.order, 1 << lane, site.pc);
        let strength = if reduce.is_some() { AccessStrength::Gpu } else { AccessStrength::Weak };
        let ops = (reading, writing);
        let checked = self.check_box(block, warp, &map, coords, from, false, ops, strength, site, lane);
        let Some((place, base, _)) = checked else { return };
        let start = layout::split_cluster_address(from as u32).1;
        let pieces = self.box_pieces(&map, coords, start, place, base);
        self.add_store(block, warp, Job { lane, op: reading, pieces, reduce }, writing);
    }

    /// Adds a store to the lane's open bulk group.
    fn add_store(&mut self, block: &mut Block, warp: &mut Warp, job: Job, writing: AsyncOpId) {
        let now = match self.options.completion {
            CompletionTiming::Earliest => true,
            CompletionTiming::Latest => false,
            CompletionTiming::Random => self.rng.below(3) == 0,
        };
        let effect = Effect { pieces: job.pieces, reduce: job.reduce, ..Effect::default() };
        let effect = if now {
            let own = warp.slot;
            self.apply(Some((block, own)), &effect);
            None
        } else {
            Some(effect)
        };
        let store = BulkStore { reading: job.op, writing, effect };
        let open = warp.copies.bulk.iter_mut().find(|g| g.lane == job.lane && !g.committed);
        match open {
            Some(group) => group.stores.push(store),
            None => {
                warp.copies.bulk.push(BulkGroup { lane: job.lane, stores: vec![store], committed: false, read: false })
            }
        }
    }

    pub(super) fn bulk_commit(&mut self, warp: &mut Warp, mask: u32) -> Flow {
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            match warp.copies.bulk.iter_mut().find(|g| g.lane == lane && !g.committed) {
                Some(group) => group.committed = true,
                None => warp.copies.bulk.push(BulkGroup { lane, stores: Vec::new(), committed: true, read: false }),
            }
        }
        Flow::Next
    }

    pub(super) fn bulk_wait(&mut self, block: &mut Block, warp: &mut Warp, groups: u32, read: bool, mask: u32) -> Flow {
        let own = warp.slot;
        let mut all = std::mem::take(&mut warp.copies.bulk);
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let committed: Vec<usize> = (0..all.len()).filter(|&i| all[i].lane == lane && all[i].committed).collect();
            let done = committed.len().saturating_sub(groups as usize);
            for &i in &committed[..done] {
                for store in &mut all[i].stores {
                    if let Some(effect) = store.effect.take() {
                        self.apply(Some((&mut *block, own)), &effect);
                    }
                    self.ops.mark_observed_by_lanes(store.reading, &warp.order, 1 << lane);
                    if !read {
                        self.ops.mark_observed_by_lanes(store.writing, &warp.order, 1 << lane);
                    }
                }
                all[i].read = true;
                if !read {
                    all[i].stores.clear();
                }
            }
        }
        // Groups that are waited for entirely are over; those only read are kept for a later full wait.
        all.retain(|g| !(g.committed && g.read && g.stores.is_empty()));
        warp.copies.bulk = all;
        Flow::Next
    }

    /// A warp ends: stores whose source may still be read when the block's memory is gone.
    pub(super) fn bulk_exit(&mut self, block: &mut Block, warp: &mut Warp) {
        let own = warp.slot;
        for group in std::mem::take(&mut warp.copies.bulk) {
            for store in group.stores {
                if !group.read {
                    let pc = self.ops.pc(store.reading);
                    let site = self.site(block, warp.index, group.lane, pc);
                    self.report(FindingKind::AsyncNotWaited, site, None, None, || {
                        "a bulk store's shared source may be unread when the thread exits: no wait_group follows".into()
                    });
                }
                if let Some(effect) = store.effect {
                    self.apply(Some((&mut *block, own)), &effect);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    pub(super) fn st_async(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        (addr, mbarrier): (&AddressOperand, &AddressOperand),
        width: u8,
        values: &[u32],
        reduce: Option<Reduction>,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(fragment.frame).regs;
        let (at, bar) = (addresses(regs, addr), addresses(regs, mbarrier));
        let undefined = undefined_address(regs, addr) | undefined_address(regs, mbarrier);
        let mask = if undefined & mask != 0 { self.defined_lanes(block, warp, undefined, mask, pc) } else { mask };
        let bytes = width as u32 * values.len() as u32;
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let l = lane as usize;
            let site = self.site(block, warp.index, lane, pc);
            let Some(places) = self.credits(block, warp, Some(bar[l]), &[None], site, lane) else { continue };
            let Some((place, offset)) =
                self.place_of(block, warp, AddressWindow::SharedCluster, at[l], bytes as u64, lane, pc)
            else {
                continue;
            };
            let regs = &warp.frame(fragment.frame).regs;
            let mut data = Vec::new();
            for &slot in values {
                if width == 8 {
                    data.extend_from_slice(&regs.get64(slot)[l].to_le_bytes());
                } else {
                    data.extend_from_slice(&regs.get(slot)[l].to_le_bytes());
                }
            }
            let op = self.ops.start(AsyncOpKind::StAsync, &warp.order, 1 << lane, pc);
            let strength = if reduce.is_some() { AccessStrength::Gpu } else { AccessStrength::Weak };
            self.async_access(block, warp, op, lane, place, offset, bytes as u64, Some(strength), pc);
            let pieces = vec![Piece { to: place, at: offset, from: None, bytes: 0, fill: 0, with: [0; 16] }];
            let end = End::Credit(places.into_iter().map(|p| (p, bytes)).collect());
            let effect = Effect { pieces, reduce, bytes: Some(data), ..Effect::default() };
            self.start_flight(block, warp, InFlight { op: Some(op), effect, end });
        }
        Flow::Next
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    pub(super) fn tensormap_replace(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        (addr, window): (&AddressOperand, AddressWindow),
        (field, ordinal): (&str, u32),
        (value, wide): (u32, bool),
        mask: u32,
        pc: u32,
    ) -> Flow {
        let regs = &warp.frame(fragment.frame).regs;
        let at = addresses(regs, addr);
        let values: [u64; 32] = if wide { regs.get64(value) } else { regs.get(value).map(u64::from) };
        for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
            let site = self.site(block, warp.index, lane, pc);
            let Some((place, offset)) = self.place_of(block, warp, window, at[lane as usize], 128, lane, pc) else {
                continue;
            };
            let own = warp.slot;
            let data = self.data_mut(block, own, place);
            let slice = &mut data[offset as usize..offset as usize + 128];
            let mut blob: EncodedMap = [0; 128];
            blob.copy_from_slice(slice);
            let result = match MapField::parse(field) {
                Some(f) => tensor_map::replace(&mut blob, f, ordinal, values[lane as usize]).map_err(|e| e.to_string()),
                None => Err(format!("tensormap.replace: no field {field}")),
            };
            match result {
                Ok(()) => slice.copy_from_slice(&blob),
                Err(e) => self.report(FindingKind::OutOfBounds, site, None, None, || e),
            }
            self.map_access(block, warp, place, offset, AccessKind::Write, lane, pc);
        }
        self.changed();
        Flow::Next
    }

    /// The 128 bytes of a map, as ordinary accesses of one lane.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn map_access(
        &mut self,
        block: &mut Block,
        warp: &Warp,
        place: Place,
        offset: u64,
        access: AccessKind,
        lane: u32,
        pc: u32,
    ) {
        for part in 0..8u64 {
            let group = Group { place, lanes: 1 << lane, offsets: [offset + 16 * part; 32], row: false };
            self.check(block, warp, access, &group, 16, AccessStrength::Weak, pc, 0);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the interpreter's whole state")]
    pub(super) fn tensormap_copy(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        dst: &AddressOperand,
        src: &AddressOperand,
        mask: u32,
        pc: u32,
    ) -> Flow {
        if !self.gather(warp, fragment, u32::MAX, mask) {
            return Flow::Stop;
        }
        let lane = mask.trailing_zeros();
        let regs = &warp.frame(fragment.frame).regs;
        let (to, from) = (addresses(regs, dst)[lane as usize], addresses(regs, src)[lane as usize]);
        let Some((source, a)) = self.place_of(block, warp, AddressWindow::Shared, from, 128, lane, pc) else {
            return Flow::Next;
        };
        let Some((target, b)) = self.place_of(block, warp, AddressWindow::Global, to, 128, lane, pc) else {
            return Flow::Next;
        };
        self.map_access(block, warp, source, a, AccessKind::Read, lane, pc);
        self.map_access(block, warp, target, b, AccessKind::Write, lane, pc);
        let bytes = self.data(block, warp.slot, source)[a as usize..a as usize + 128].to_vec();
        let own = warp.slot;
        self.data_mut(block, own, target)[b as usize..b as usize + 128].copy_from_slice(&bytes);
        // It releases, and makes the map visible to the tensor proxy.
        warp.order.fence_proxy(mask, true, true);
        warp.order.fence(mask, AccessStrength::Gpu);
        self.changed();
        Flow::Next
    }
}
