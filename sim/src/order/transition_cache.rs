//! A cache for one access over many shadow cells: the access changes equal cells in the same way, so a changed cell
//! can be copied from the cache instead of being computed again.

use super::access_check::AccessCheck;
use super::access_lists::AccessLists;
use super::caches_disabled;
use super::cell::ShadowCell;

/// Contents of shadow cells before and after an access, valid for one instruction and for lanes with equal vector
/// clocks. `SIZE` is a power of two.
pub(super) struct AsyncCellChangeCache<const SIZE: usize> {
    before: [[u64; 4]; SIZE],
    after: [ShadowCell; SIZE],
}

/// A cache for the bytes of a tile. In a tile that wgmma reads, each 32 bytes of k have a different last reader, once
/// per warpgroup.
pub(super) type TileChangeCache = AsyncCellChangeCache<32>;
/// A cache for the bytes that one instruction of a warp copies.
pub(super) type WarpCopyChangeCache = AsyncCellChangeCache<8>;

impl<const SIZE: usize> AsyncCellChangeCache<SIZE> {
    pub(super) fn new() -> Self {
        // No real shadow cell has all bits set, with or without its writer's lane, so these entries match no cell.
        AsyncCellChangeCache { before: [[u64::MAX; 4]; SIZE], after: [ShadowCell::NEVER_ACCESSED; SIZE] }
    }

    /// Returns the bits of a shadow cell with its writer's lane set to 0.
    #[inline(always)]
    fn any_lane(cell: &ShadowCell) -> [u64; 4] {
        let [first, rest @ ..]: [u64; 4] = bytemuck::cast(*cell);
        let lane = if cfg!(target_endian = "little") { 31 } else { 31 << 32 };
        [first & !lane, rest[0], rest[1], rest[2]]
    }

    /// Returns true if cache entry `at` holds the shadow cell contents `bits`. Compares in 64-bit words, the width in
    /// which the cells were just written: reads of another width could not use store forwarding and would be slow.
    #[inline(always)]
    fn is(&self, at: usize, bits: &[u64; 4]) -> bool {
        let before = &self.before[at];
        (before[0] ^ bits[0]) | (before[1] ^ bits[1]) | (before[2] ^ bits[2]) | (before[3] ^ bits[3]) == 0
    }

    #[inline(always)]
    fn slot(cell: &ShadowCell) -> usize {
        let states = cell.writer >> 5 ^ cell.reader ^ cell.older.rotate_left(16);
        (states.wrapping_mul(0x9e37_79b1) >> (32 - SIZE.trailing_zeros())) as usize
    }

    /// Like [`AccessCheck::check_cell`] for a lane of an asynchronous operation that reads, but uses cached results.
    #[inline(always)]
    pub(super) fn check_read(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let (at, writer) = (Self::slot(cell), cell.writer);
        let before = Self::any_lane(cell);
        if self.is(at, &before) {
            *cell = ShadowCell { writer, readers: 1 << lane, ..self.after[at] };
            return;
        }
        let old = *cell;
        check.check_cell::<false>(cell, offset, lane, lists);
        if check.is_result_lane_independent(&old, false) && !check.is_last_reader(&old) {
            self.put(at, before, cell);
        }
    }

    /// Like [`AccessCheck::check_cell_of_async_operation`], but uses cached results. All calls with one cache must pass the same
    /// lane.
    #[inline(always)]
    pub(super) fn check_cell_of_async_operation<const WRITES: bool>(
        &mut self,
        check: &mut AccessCheck,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let old = *cell;
        if self.replace_by_cached_result(cell) {
            return;
        }
        check.check_cell_of_async_operation::<WRITES>(cell, offset, lane, lists);
        if check.is_result_offset_independent(&old, WRITES, lane) {
            self.insert_change(&old, cell);
        }
    }

    /// If the cache has an equal shadow cell (with the same writer's lane), replaces `cell` by its cached result and
    /// returns true; otherwise returns false.
    #[inline(always)]
    pub(super) fn replace_by_cached_result(&self, cell: &mut ShadowCell) -> bool {
        let at = Self::slot(cell);
        let known = self.is(at, &bytemuck::cast(*cell));
        if known {
            *cell = self.after[at];
        }
        known
    }

    /// Like [`Self::replace_by_cached_result`], for accesses whose result does not depend on the lane of the shadow
    /// cell's writer.
    #[inline(always)]
    pub(super) fn replace_by_cached_result_of_any_writer_lane(&self, cell: &mut ShadowCell) -> bool {
        let at = Self::slot(cell);
        let known = self.is(at, &Self::any_lane(cell));
        if known {
            *cell = ShadowCell { writer: cell.writer, ..self.after[at] };
        }
        known
    }

    pub(super) fn insert_change_of_any_writer_lane(&mut self, old: &ShadowCell, new: &ShadowCell) {
        self.put(Self::slot(old), Self::any_lane(old), new);
    }

    pub(super) fn insert_change(&mut self, old: &ShadowCell, new: &ShadowCell) {
        self.put(Self::slot(old), bytemuck::cast(*old), new);
    }

    #[inline(always)]
    fn put(&mut self, at: usize, before: [u64; 4], after: &ShadowCell) {
        if !caches_disabled() {
            (self.before[at], self.after[at]) = (before, *after);
        }
    }
}
