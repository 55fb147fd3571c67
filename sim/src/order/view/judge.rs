//! What is wrong between an access and an earlier one.

use super::super::cell::Cell;
use super::super::chain::{Chains, Entry, ListId};
use super::super::shadow::{ConflictKind, Other};
use super::super::{Agent, LANES, OP_KEY, OpId, OpKind, Strength};
use super::{Fault, View};

impl View<'_> {
    /// [`View::judge`] of the cell's last write.
    pub(super) fn judge_write(
        &mut self,
        cell: &Cell,
        lane: u32,
        offset: u64,
        writes: bool,
        unread: bool,
    ) -> Option<Fault> {
        let (good, entry) = (&self.good, cell.write_entry());
        if (good.key, good.stamp) == (entry.key, entry.stamp) && entry.mask & !good.mask == 0 {
            return None;
        }
        let fault = self.judge(&entry, lane, offset, writes, unread);
        if fault.is_none() {
            self.good = entry;
        }
        fault
    }

    /// What is wrong between `lane`'s access and an earlier one, its mask not turned.
    #[cold]
    pub(in crate::order) fn judge(
        &self,
        old: &Entry,
        lane: u32,
        offset: u64,
        writes: bool,
        unread: bool,
    ) -> Option<Fault> {
        let of_op = old.key >= OP_KEY;
        let op = OpId::of_key(old.key);
        let other_is = match (of_op, old.write, old.stamp.atomic()) {
            (true, ..) => Other::Async(op),
            (_, false, _) => Other::Read,
            (_, _, true) => Other::Atomic,
            _ => Other::Write,
        };
        let fault = |kind, lane: u32| {
            let agent = if of_op { Agent(self.cx.ops.issuer(op).0 & !31 | lane) } else { Agent(old.key << 5 | lane) };
            Some(Fault { kind, offset, other: (agent, old.pc), other_is })
        };
        let unknown =
            |other: &u32| old.mask >> other & 1 != 0 && !self.knows_exactly(old.key, old.stamp, 1 << other, lane);
        if !self.knows_exactly(old.key, old.stamp, old.mask, lane)
            && let Some(other) = (0..LANES as u32).find(unknown)
        {
            if self.strong_enough(old) {
                return None;
            }
            let two_stores = writes && unread && other_is == Other::Write && !self.stamp.atomic() && self.key < OP_KEY;
            let kind = if of_op { ConflictKind::NotWaited(op) } else { ConflictKind::Race { two_stores } };
            return fault(kind, other);
        }
        if self.is_async && old.write && !self.is_fenced(old, lane) {
            return fault(ConflictKind::Proxy, old.mask.trailing_zeros());
        }
        None
    }

    /// Whether both accesses are strong and each one's scope includes the other's thread.
    pub(super) fn strong_enough(&self, old: &Entry) -> bool {
        let (mine, theirs) = (self.stamp.strength(), old.stamp.strength());
        if mine.min(theirs) == Strength::Weak {
            return false;
        }
        let of_op = old.key >= OP_KEY;
        let ops = self.cx.ops;
        let through_async = of_op && ops.kind(OpId::of_key(old.key)).is_async_proxy();
        let block = if of_op { ops.issuer(OpId::of_key(old.key)).block() } else { old.key >> 6 };
        through_async == self.is_async && mine.min(theirs) >= self.cx.clusters.between(block, self.warp.block())
    }

    pub(super) fn is_fenced(&self, old: &Entry, lane: u32) -> bool {
        if old.key == self.key {
            return true;
        }
        if old.key < OP_KEY {
            let epoch = old.stamp.epoch();
            let own = old.key == self.warp.key() && self.warp.own_fenced(self.space, lane) >= epoch;
            let known = self.know.fenced_mask(self.space, old.key, epoch) | (own as u32) << lane;
            return old.mask & !known == 0;
        }
        // Completion through an mbarrier makes asynchronous stores visible to whoever waits for it.
        let kind = self.cx.ops.kind(OpId::of_key(old.key));
        kind.is_async_proxy() || kind == OpKind::Store || {
            let known = self.cx.ops.fenced_mask(old.key, self.warp, lane, self.know, self.space);
            old.mask & !known == 0
        }
    }

    pub(in crate::order) fn judge_list(
        &mut self,
        list: ListId,
        lane: u32,
        offset: u64,
        writes: bool,
        lists: &Chains,
    ) -> Option<Fault> {
        if self.stamp.strength() == Strength::Gpu && self.key < OP_KEY && lists.all_gpu(list) {
            return None;
        }
        let mut wholly_known = true;
        for old in lists.entries(list).filter(|old| writes || old.write) {
            let known = self.ask(old.key, old.stamp).known;
            wholly_known &= known == u32::MAX;
            if known == u32::MAX && !(self.is_async && old.write) {
                continue;
            }
            let old = Entry { mask: old.mask.rotate_left(old.stamp.turn(offset)), ..*old };
            if let Some(fault) = self.judge(&old, lane, offset, writes, false) {
                return Some(fault);
            }
        }
        // Writes have to be visible to the async proxy as well.
        if writes && wholly_known && !(self.is_async && lists.has_write(list)) {
            self.add_known_list(list);
        }
        None
    }
}
