//! Shadow memory: for each few bytes of an allocation, the earlier accesses that a new access must be ordered after.
//!
//! ```text
//! read by agent a:   conflict unless a's clock includes cell.writer (and every write in cell.older)
//!                    then: if the last readers are not ordered before a, push them onto cell.older; cell.reader = a
//! write by agent a:  conflict unless a's clock includes cell.writer, cell.readers and all of cell.older
//!                    then: cell = { writer: a }, no readers, older = []
//! ```
//!
//! Replacing ordered accesses is safe: whatever races with them also races with the access that replaced them. Strong
//! accesses keep more history, because two strong accesses do not race with each other. [`AccessCheck`] implements the
//! rules for one shadow cell; this file walks over the cells of an access.

use super::access_check::{AccessCheck, ConflictWithoutLane};
use super::access_lists::AccessLists;
use super::cell::{
    CHUNK_BYTES, CellChunk, InitializedBytes, LOG2_CHUNK_BYTES, LOG2_MAX_BYTES_PER_LANE, ShadowCell,
    chunk_without_row_cells, for_each_byte_mask, get_or_create_chunk,
};
use super::conflict::{AccessKind, Conflict, RaceCheckContext};
use super::lane_cache::ShadowCellChangeCache;
use super::transition_cache::{TileChangeCache, WarpCopyChangeCache};
use super::{AccessStamp, AccessStrength, AsyncOpId, LANES, MemorySpace, OwnerKey, WarpVectorClocks};
use std::ops::Range;

mod prefetch;
mod row_reads;

/// The shadow memory of one allocation (a global buffer, or a block's shared memory): its history of accesses.
#[derive(Clone, Debug)]
pub struct ShadowMemory {
    pub(super) space: MemorySpace,
    pub(super) chunks: Vec<Option<CellChunk>>,
    pub(super) spare: Vec<CellChunk>,
    pub(super) init: Vec<InitializedBytes>,
    pub(super) lists: AccessLists,
}

impl ShadowMemory {
    /// Creates the shadow memory of `bytes` bytes in `space`; `initialized` says whether the host wrote all of them.
    pub fn new(space: MemorySpace, bytes: u64, initialized: bool) -> ShadowMemory {
        let chunks = bytes.div_ceil(CHUNK_BYTES) as usize;
        let init = vec![ShadowMemory::init(initialized); chunks];
        ShadowMemory { space, chunks: vec![None; chunks], spare: Vec::new(), init, lists: AccessLists::default() }
    }

    fn init(initialized: bool) -> InitializedBytes {
        if initialized { InitializedBytes::All } else { InitializedBytes::Some(Vec::new(), CHUNK_BYTES as u32) }
    }

    /// Resets the shadow memory to its initial state, to reuse it for another block's shared memory of the same size.
    pub fn reset(&mut self, initialized: bool) {
        self.forget_accesses();
        self.init.fill(ShadowMemory::init(initialized));
    }

    /// Forgets all accesses, because they happen before all later ones (at the end of a launch). Initialised bytes
    /// stay initialised.
    pub fn forget_accesses(&mut self) {
        self.spare.extend(self.chunks.iter_mut().filter_map(Option::take));
        self.lists = AccessLists::default();
    }

    /// Marks the bytes `range` as initialised.
    pub fn mark_initialized(&mut self, range: Range<u64>) {
        if self.are_chunks_initialized(&range) {
            return;
        }
        for_each_byte_mask(range, |at, bits| {
            self.init[(at >> LOG2_CHUNK_BYTES) as usize].mark_bytes_initialized(at & (CHUNK_BYTES - 1), bits)
        });
    }

    /// Marks the bytes `range` as not initialised, because a store copied uninitialised bytes there.
    pub fn mark_uninitialized(&mut self, range: Range<u64>) {
        for_each_byte_mask(range, |at, bits| {
            self.init[(at >> LOG2_CHUNK_BYTES) as usize].mark_bytes_uninitialized(at & (CHUNK_BYTES - 1), bits)
        });
    }

    /// Returns true if every byte of `range` is initialised.
    pub fn is_initialized(&self, range: Range<u64>) -> bool {
        if self.are_chunks_initialized(&range) {
            return true;
        }
        let mut all = true;
        for_each_byte_mask(range, |at, bits| {
            all &= self.init[(at >> LOG2_CHUNK_BYTES) as usize].are_bytes_initialized(at & (CHUNK_BYTES - 1), bits)
        });
        all
    }

    /// Returns true if all chunks that contain bytes of `range` are initialised as a whole.
    fn are_chunks_initialized(&self, range: &Range<u64>) -> bool {
        let chunks =
            self.init.get((range.start >> LOG2_CHUNK_BYTES) as usize..range.end.div_ceil(CHUNK_BYTES) as usize);
        chunks.is_some_and(|chunks| chunks.iter().all(|chunk| matches!(chunk, InitializedBytes::All)))
    }

    /// Checks and records an access of `bytes` bytes (1, 2, 4, 8 or 16) by each lane in `lanes`, at its offset in
    /// `offsets`, which must be in bounds and aligned. Adds at most one conflict per lane to `out`; the access is
    /// recorded even if it conflicts.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_access(
        &mut self,
        access: AccessKind,
        warp: &WarpVectorClocks,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        strength: AccessStrength,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = AccessStamp::new(warp.epoch(), bytes.trailing_zeros(), access == AccessKind::Atomic, strength);
        let lanes = LaneAccess { warp, lanes, offsets, bytes, key: warp.key(), stamp, pc };
        self.check_lanes_as(access, &lanes, cx, out);
    }

    /// Checks and records that a tensor copy of `lane` reads a tensor map through the tensormap proxy. The map has
    /// `bytes` bytes at `offset` of the allocation, and the address `address`.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_tensor_map_read(
        &mut self,
        warp: &WarpVectorClocks,
        lane: u32,
        (offset, bytes): (u64, u64),
        address: u64,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = AccessStamp::new(warp.epoch(), LOG2_MAX_BYTES_PER_LANE, false, AccessStrength::Weak);
        self.collect_unused_lists();
        let clock = warp.clock(lane);
        for part in (offset..offset + bytes).step_by(1 << LOG2_MAX_BYTES_PER_LANE) {
            let offsets = &[part; LANES];
            let access = LaneAccess { warp, lanes: 1 << lane, offsets, bytes: 16, key: warp.key(), stamp, pc };
            let check = AccessCheck::new(self.space, warp, clock, cx, warp.key(), stamp, pc);
            let mut check = check.through_tensormap_proxy(address);
            self.check_lanes::<true, false>(&access, 1 << lane, &mut check, out, |check, cell, offset, lane, lists| {
                check.check_cell::<false>(cell, offset, lane, lists);
            });
        }
    }

    /// Checks and records the accesses of a `cp.async`, in which each lane in `lanes` accesses `bytes` bytes at its
    /// offset. Call it when the operation is issued.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_cp_async(
        &mut self,
        access: AccessKind,
        op: AsyncOpId,
        warp: &WarpVectorClocks,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = AccessStamp::new(0, bytes.trailing_zeros(), false, AccessStrength::Weak);
        let lanes = LaneAccess { warp, lanes, offsets, bytes, key: op.key(), stamp, pc };
        self.collect_unused_lists();
        for (mask, clock) in warp.lane_groups_with_clocks() {
            let mut part = lanes.lanes & mask;
            if part == 0 {
                continue;
            }
            let mut check = AccessCheck::new(self.space, warp, clock, cx, op.key(), stamp, pc);
            if access == AccessKind::Read && part == u32::MAX && bytes == 16 {
                part = self.check_rows_and_return_other_lanes(&lanes, &mut check);
                if part == 0 {
                    return;
                }
            }
            if access == AccessKind::Read {
                self.prefetch_lanes(part, offsets);
                let mut cache = WarpCopyChangeCache::new();
                self.check_lanes::<true, false>(&lanes, part, &mut check, out, |check, cell, offset, lane, lists| {
                    cache.check_read(check, cell, offset, lane, lists);
                });
                continue;
            }
            let mut seen = ShadowCellChangeCache::new();
            crate::simd::run_with_widest_simd(
                #[inline(always)]
                || {
                    self.check_lanes::<false, true>(
                        &lanes,
                        part,
                        &mut check,
                        out,
                        #[inline(always)]
                        |check, cell, offset, lane, lists| seen.check_write(check, cell, offset, lane, lists),
                    );
                },
            );
        }
    }

    #[inline(always)]
    fn check_lanes_as(
        &mut self,
        access: AccessKind,
        lanes: &LaneAccess,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        self.collect_unused_lists();
        match access {
            AccessKind::Read => self.check_warp::<true, false>(lanes, cx, out),
            AccessKind::Write => self.check_warp::<false, true>(lanes, cx, out),
            AccessKind::Atomic => self.check_warp::<true, true>(lanes, cx, out),
        }
    }

    fn check_warp<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &LaneAccess,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        for (mask, clock) in access.warp.lane_groups_with_clocks() {
            let lanes = access.lanes & mask;
            if lanes == 0 {
                continue;
            }
            let mut check = AccessCheck::new(self.space, access.warp, clock, cx, access.key, access.stamp, access.pc);
            if lanes != u32::MAX || !self.check_consecutive_lanes::<READS, WRITES>(access, &mut check, out) {
                self.check_lanes::<READS, WRITES>(
                    access,
                    lanes,
                    &mut check,
                    out,
                    |check, cell, offset, lane, lists| {
                        check.check_cell::<WRITES>(cell, offset, lane, lists);
                    },
                );
            }
        }
    }

    /// Fast path for 32 lanes that access consecutive bytes within one chunk of shadow cells. For any other access it
    /// does nothing and returns false.
    #[inline(always)]
    fn check_consecutive_lanes<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &LaneAccess,
        check: &mut AccessCheck,
        out: &mut Vec<Conflict>,
    ) -> bool {
        let (start, bytes) = (access.offsets[0], access.bytes as u64);
        let end = start + bytes * LANES as u64;
        let mut at = start;
        let in_a_row = access.offsets.iter().fold(true, |all, &offset| {
            let next = all & (offset == at);
            at += bytes;
            next
        });
        if !in_a_row || start >> LOG2_CHUNK_BYTES != (end - 1) >> LOG2_CHUNK_BYTES {
            return false;
        }
        if READS && !self.is_initialized(start..end) {
            return false;
        }
        let index = (start >> LOG2_CHUNK_BYTES) as usize;
        let chunk = get_or_create_chunk(&mut self.chunks[index], &mut self.spare, access.bytes.trailing_zeros());
        if WRITES && !matches!(self.init[index], InitializedBytes::All) {
            let init = &mut self.init[index];
            for_each_byte_mask(start..end, |at, bits| init.mark_bytes_initialized(at & (CHUNK_BYTES - 1), bits));
        }
        let (first, count) =
            (((start & (CHUNK_BYTES - 1)) >> chunk.shift) as usize, (access.bytes >> chunk.shift) as usize);
        let (shift, lists) = (chunk.shift, &mut self.lists);
        let cells = &mut chunk.cells[first..first + count * LANES];
        for (lane, cells) in cells.chunks_exact_mut(count).enumerate() {
            for (step, cell) in cells.iter_mut().enumerate() {
                let offset = start + (((lane * count + step) as u64) << shift);
                check.check_cell::<WRITES>(cell, offset, lane as u32, lists);
            }
            check.push_conflict(lane as u32, out);
        }
        true
    }

    #[inline(always)]
    fn check_lanes<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &LaneAccess,
        lanes: u32,
        check: &mut AccessCheck,
        out: &mut Vec<Conflict>,
        mut each: impl FnMut(&mut AccessCheck, &mut ShadowCell, u64, u32, &mut AccessLists),
    ) {
        let bytes = access.bytes;
        let bits = (1u64 << bytes) - 1;
        let mut left = lanes;
        while left != 0 {
            let index = (access.offsets[left.trailing_zeros() as usize] >> LOG2_CHUNK_BYTES) as usize;
            let init = &mut self.init[index];
            let chunk = get_or_create_chunk(&mut self.chunks[index], &mut self.spare, bytes.trailing_zeros());
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = access.offsets[lane as usize];
                if (offset >> LOG2_CHUNK_BYTES) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK_BYTES - 1);
                if READS && !init.are_bytes_initialized(at, bits) {
                    check.fault = Some(ConflictWithoutLane::uninitialized(offset));
                }
                if WRITES {
                    init.mark_bytes_initialized(at, bits);
                }
                let (first, count) = ((at >> chunk.shift) as usize, (bytes >> chunk.shift) as usize);
                for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                    each(check, cell, offset + ((step as u64) << chunk.shift), lane, &mut self.lists);
                }
                check.push_conflict(lane, out);
            }
        }
    }

    /// Checks and records that asynchronous operation `op`, issued by `lane` of `warp`, accesses the byte ranges
    /// `runs` (offset, length). The operation reads if `write` is `None`; otherwise it writes with this strength
    /// (weak, except for reductions). Call it when the operation is issued. Adds at most one conflict per range to
    /// `out`.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_async_ranges(
        &mut self,
        runs: &[(u64, u64)],
        op: AsyncOpId,
        warp: &WarpVectorClocks,
        lane: u32,
        write: Option<AccessStrength>,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        match write {
            None => self.check_async_runs::<false>(runs, op, warp, lane, AccessStrength::Weak, pc, cx, out),
            Some(strength) => self.check_async_runs::<true>(runs, op, warp, lane, strength, pc, cx, out),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    fn check_async_runs<const WRITES: bool>(
        &mut self,
        runs: &[(u64, u64)],
        op: AsyncOpId,
        warp: &WarpVectorClocks,
        lane: u32,
        strength: AccessStrength,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        self.collect_unused_lists();
        let stamp_of = |(start, bytes): (u64, u64)| {
            let lane_wide = bytes.is_power_of_two() && bytes <= 16 && start.is_multiple_of(bytes);
            AccessStamp::new(0, if lane_wide { bytes.trailing_zeros() } else { AccessStamp::RANGE }, false, strength)
        };
        let mut left = runs;
        while let Some(&first) = left.first() {
            let stamp = stamp_of(first);
            let count = left.iter().take_while(|run| stamp_of(**run) == stamp).count();
            let (alike, rest) = left.split_at(count);
            left = rest;
            let mut check = AccessCheck::new(self.space, warp, warp.clock(lane), cx, op.key(), stamp, pc);
            let mut cache = TileChangeCache::new();
            for (n, &(start, bytes)) in alike.iter().enumerate() {
                if n % RANGES_PER_PREFETCH == 0 {
                    self.prefetch_ranges(&alike[n..alike.len().min(n + RANGES_PER_PREFETCH)]);
                }
                let range = start..start + bytes;
                if WRITES {
                    self.mark_initialized(range.clone());
                } else if !self.is_initialized(range.clone()) {
                    check.fault = Some(ConflictWithoutLane::uninitialized(start));
                }
                self.check_async_range::<WRITES>(range, &mut check, &mut cache, lane);
                check.push_conflict(lane, out);
            }
        }
    }

    #[inline(always)]
    fn check_async_range<const WRITES: bool>(
        &mut self,
        range: Range<u64>,
        check: &mut AccessCheck,
        cache: &mut TileChangeCache,
        lane: u32,
    ) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start | (CHUNK_BYTES - 1)) + 1);
            let finest = (start | end).trailing_zeros();
            let chunk = chunk_without_row_cells(
                &mut self.chunks[(start >> LOG2_CHUNK_BYTES) as usize],
                &mut self.spare,
                finest,
            );
            let first = ((start & (CHUNK_BYTES - 1)) >> chunk.shift) as usize;
            let count = ((end - start) >> chunk.shift) as usize;
            for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                let offset = start + ((step as u64) << chunk.shift);
                cache.check_cell_of_async_operation::<WRITES>(check, cell, offset, lane, &mut self.lists);
            }
            start = end;
        }
    }

    /// Frees access lists that no shadow cell uses any more, if there are many lists.
    #[inline(always)]
    pub(super) fn collect_unused_lists(&mut self) {
        if self.lists.needs_garbage_collection() {
            let chunks = self.chunks.iter_mut().flatten();
            self.lists.collect_garbage(chunks.flat_map(|chunk| chunk.cells.iter_mut().map(|cell| &mut cell.older)));
        }
    }
}

/// Number of byte ranges whose shadow cells are prefetched together.
const RANGES_PER_PREFETCH: usize = 8;

/// The access that a warp's lanes make with one instruction, each lane at its own offset.
struct LaneAccess<'a> {
    warp: &'a WarpVectorClocks,
    lanes: u32,
    offsets: &'a [u64; LANES],
    bytes: u32,
    /// The owner for which the access is recorded: the warp or an asynchronous operation.
    key: OwnerKey,
    stamp: AccessStamp,
    pc: u32,
}
