//! The ordering rules: decide whether an access conflicts with one earlier access to the same bytes.

use super::super::access_lists::{AccessLists, AccessRecord, ListId};
use super::super::cell::ShadowCell;
use super::super::conflict::{ConflictKind, EarlierAccess};
use super::super::{AccessStrength, Agent, AsyncOpId, AsyncOpKind, FIRST_OP_KEY, LANES};
use super::{AccessCheck, ConflictWithoutLane, Proxy};

impl AccessCheck<'_> {
    /// Returns the conflict of `lane`'s access with the last write of a shadow cell, by the rules of
    /// [`AccessCheck::find_conflict`].
    pub(super) fn find_write_conflict(
        &mut self,
        cell: &ShadowCell,
        lane: u32,
        offset: u64,
        writes: bool,
        unread: bool,
    ) -> Option<ConflictWithoutLane> {
        let (last_ordered_write, entry) = (&self.last_ordered_write, cell.last_write_record());
        if (last_ordered_write.key, last_ordered_write.stamp) == (entry.key, entry.stamp)
            && entry.mask & !last_ordered_write.mask == 0
        {
            return None;
        }
        let fault = self.find_conflict(&entry, lane, offset, writes, unread);
        if fault.is_none() {
            self.last_ordered_write = entry;
        }
        fault
    }

    /// Returns the conflict of `lane`'s access with an earlier access `old`, whose mask is not rotated:
    ///
    /// 1. `NotWaited` (if `old` is an asynchronous operation) or `Race`, if a lane of `old` is not ordered before the
    ///    access, the two accesses are not morally strong, and `old` is no load that `wgmma.fence` or `stmatrix` has
    ///    completed;
    /// 2. otherwise `Proxy`, if the access goes through the async proxy and no proxy fence follows the generic write
    ///    `old`;
    /// 3. `TensorMapProxy`, if the access reads a tensor map and `old` is a write that is ordered but not visible to
    ///    the tensormap proxy. A visible write is no conflict, because the fences of this proxy also order the write
    ///    before the read.
    #[cold]
    pub(in crate::order) fn find_conflict(
        &self,
        old: &AccessRecord,
        lane: u32,
        offset: u64,
        writes: bool,
        unread: bool,
    ) -> Option<ConflictWithoutLane> {
        let of_op = old.key >= FIRST_OP_KEY;
        let op = AsyncOpId::from_key(old.key);
        let earlier_kind = match (of_op, old.write, old.stamp.atomic()) {
            (true, ..) => EarlierAccess::Async(op),
            (_, false, _) => EarlierAccess::Read,
            (_, _, true) => EarlierAccess::Atomic,
            _ => EarlierAccess::Write,
        };
        let fault = |kind, lane: u32| {
            let agent = if of_op { Agent(self.cx.ops.issuer(op).0 & !31 | lane) } else { Agent(old.key << 5 | lane) };
            Some(ConflictWithoutLane { kind, offset, earlier: (agent, old.pc), earlier_kind })
        };
        let is_completed_load = |other: u32| {
            let agent = Agent(old.key << 5 | other);
            earlier_kind == EarlierAccess::Read && self.clock.includes_completed_loads(agent, old.stamp.epoch())
        };
        let unknown = |other: &u32| {
            old.mask >> other & 1 != 0
                && !self.is_ordered_for_lane(old.key, old.stamp, 1 << other, lane)
                && !is_completed_load(*other)
        };
        if let Proxy::TensorMap { address } = self.proxy
            && self.is_visible_to_tensormap_proxy(old, address)
        {
            return None;
        }
        if !self.is_ordered_for_lane(old.key, old.stamp, old.mask, lane)
            && let Some(other) = (0..LANES as u32).find(unknown)
        {
            let strong = self.are_strong_at_common_scope(old);
            if strong && self.overlaps_completely(old) {
                return None;
            }
            let two_stores = writes
                && unread
                && earlier_kind == EarlierAccess::Write
                && !self.stamp.atomic()
                && self.key < FIRST_OP_KEY;
            let kind = if of_op {
                ConflictKind::NotWaited(op)
            } else {
                ConflictKind::Race { two_stores, mixed_sizes: strong }
            };
            return fault(kind, other);
        }
        if self.is_async() && old.write && !self.is_visible_to_async_proxy(old, lane) {
            return fault(ConflictKind::Proxy, old.mask.trailing_zeros());
        }
        if old.write && matches!(self.proxy, Proxy::TensorMap { .. }) {
            return fault(ConflictKind::TensorMapProxy, old.mask.trailing_zeros());
        }
        None
    }

    fn is_visible_to_tensormap_proxy(&self, old: &AccessRecord, address: u64) -> bool {
        let visible = if old.key < FIRST_OP_KEY {
            self.clock.lanes_visible_to_tensormap_proxy(address, old.key, old.stamp.epoch())
        } else {
            self.cx.ops.lanes_visible_to_tensormap_proxy(old.key, self.clock, address)
        };
        old.mask & !visible == 0
    }

    /// Returns true if both accesses are morally strong, or would be morally strong if they overlapped completely: both
    /// are strong, and the scope of each access includes the thread of the other access.
    fn are_strong_at_common_scope(&self, old: &AccessRecord) -> bool {
        let (mine, theirs) = (self.stamp.strength(), old.stamp.strength());
        if mine.min(theirs) == AccessStrength::Weak {
            return false;
        }
        let of_op = old.key >= FIRST_OP_KEY;
        let ops = self.cx.ops;
        let through_async = of_op && ops.kind(AsyncOpId::from_key(old.key)).uses_async_proxy();
        let block = if of_op { ops.issuer(AsyncOpId::from_key(old.key)).block() } else { old.key >> 6 };
        through_async == self.is_async() && mine.min(theirs) >= self.cx.clusters.common_scope(block, self.warp.block())
    }

    /// Returns true if the access covers the same bytes as `old`, which it overlaps. Strong accesses that overlap only
    /// in part are not morally strong. The elements of a bulk reduction are of unknown width; they count as covering
    /// the same bytes.
    fn overlaps_completely(&self, old: &AccessRecord) -> bool {
        self.key >= FIRST_OP_KEY || old.key >= FIRST_OP_KEY || self.stamp.wide() == old.stamp.wide()
    }

    pub(super) fn is_visible_to_async_proxy(&self, old: &AccessRecord, lane: u32) -> bool {
        if old.key == self.key {
            return true;
        }
        if old.key < FIRST_OP_KEY {
            let epoch = old.stamp.epoch();
            let own = old.key == self.warp.key() && self.warp.own_async_visible_epoch(self.space, lane) >= epoch;
            let known = self.clock.lanes_visible_to_async_proxy(self.space, old.key, epoch) | (own as u32) << lane;
            return old.mask & !known == 0;
        }
        // The writes of `st.async` complete on an mbarrier, which makes them visible to every thread that waits for
        // the mbarrier.
        let kind = self.cx.ops.kind(AsyncOpId::from_key(old.key));
        kind.uses_async_proxy() || kind == AsyncOpKind::StAsync || {
            let known = self.cx.ops.lanes_visible_to_async_proxy(old.key, self.warp, lane, self.clock, self.space);
            old.mask & !known == 0
        }
    }

    pub(in crate::order) fn find_list_conflict(
        &mut self,
        list: ListId,
        lane: u32,
        offset: u64,
        writes: bool,
        lists: &AccessLists,
    ) -> Option<ConflictWithoutLane> {
        if self.stamp.strength() == AccessStrength::Gpu
            && self.key < FIRST_OP_KEY
            && lists.are_all_morally_strong_with(list, self.stamp.wide())
        {
            return None;
        }
        let mut wholly_known = true;
        let strong = self.proxy == Proxy::Generic && self.stamp.strength() != AccessStrength::Weak;
        for old in lists.accesses(list).filter(|old| writes || old.write) {
            // Morally strong accesses do not conflict, whether ordered or not.
            if strong && self.overlaps_completely(old) && self.are_strong_at_common_scope(old) {
                wholly_known = false;
                continue;
            }
            let known = self.find_ordered_lanes(old.key, old.stamp).known;
            wholly_known &= known == u32::MAX;
            if known == u32::MAX && !(self.proxy != Proxy::Generic && old.write) {
                continue;
            }
            let old = AccessRecord { mask: old.mask.rotate_left(old.stamp.mask_rotation(offset)), ..*old };
            if let Some(fault) = self.find_conflict(&old, lane, offset, writes, false) {
                return Some(fault);
            }
        }
        // The async proxy also needs earlier writes to be visible, so an access list with writes is not cached as
        // ordered.
        if writes && wholly_known && !(self.proxy != Proxy::Generic && lists.has_write(list)) {
            self.cache_ordered_list(list);
        }
        None
    }
}
