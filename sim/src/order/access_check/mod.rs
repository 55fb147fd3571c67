//! Checks one access, made by lanes that share a vector clock, against the shadow cells of the accessed bytes, one
//! after the other. A shadow cell holds the last write and the last reads of a few bytes.
//!
//! [`AccessCheck::check_cell`] is the fast path: it uses cached answers about writers, readers and access lists.
//! [`AccessCheck::check_read`] and [`AccessCheck::check_write`] are the complete rules; `ordering.rs` has the
//! comparison with one earlier access.

use super::access_lists::{AccessLists, AccessRecord, ListId};
use super::cell::ShadowCell;
use super::conflict::{Conflict, ConflictKind, EarlierAccess, RaceCheckContext};
use super::{
    AccessStamp, AccessStrength, Agent, AsyncOpId, FIRST_OP_KEY, MemorySpace, NO_AGENT, OwnerKey, VectorClock,
    WarpVectorClocks,
};

mod ordering;
mod row_reads;

/// A conflict of an access, before it is known which lane made the access.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConflictWithoutLane {
    kind: ConflictKind,
    offset: u64,
    earlier: (Agent, u32),
    earlier_kind: EarlierAccess,
}

impl ConflictWithoutLane {
    pub(super) fn uninitialized(offset: u64) -> ConflictWithoutLane {
        let (kind, earlier) = (ConflictKind::Uninitialized, (Agent::HOST, 0));
        ConflictWithoutLane { kind, offset, earlier, earlier_kind: EarlierAccess::None }
    }

    pub(super) fn with_lane(self, lane: u32) -> Conflict {
        let ConflictWithoutLane { kind, offset, earlier, earlier_kind } = self;
        Conflict { kind, offset, lane, earlier, earlier_kind }
    }
}

/// A cached answer about the earlier accesses with stamp `stamp` (epoch, width and strength) by owner `key` (a warp or
/// an asynchronous operation): the accesses of the lanes `known` are ordered before the present access.
#[derive(Clone, Copy)]
pub(super) struct CachedOrderAnswer {
    key: OwnerKey,
    stamp: AccessStamp,
    known: u32,
}

impl CachedOrderAnswer {
    pub(super) const NONE: CachedOrderAnswer =
        CachedOrderAnswer { key: NO_AGENT, stamp: AccessStamp(u32::MAX), known: 0 };

    #[inline(always)]
    pub(super) fn covers(&self, key: OwnerKey, stamp: AccessStamp, mask: u32) -> bool {
        self.key == key && self.stamp == stamp && mask & !self.known == 0
    }
}

/// Returns true if a cached answer says that the accesses of the lanes `mask` are ordered before the present access;
/// moves that answer to the front.
#[inline(always)]
fn is_known_by(answers: &mut [CachedOrderAnswer; 2], key: OwnerKey, stamp: AccessStamp, mask: u32) -> bool {
    if answers[0].covers(key, stamp, mask) {
        return true;
    }
    let second = answers[1].covers(key, stamp, mask);
    if second {
        answers.swap(0, 1);
    }
    second
}

/// Returns the index of the cached answer about accesses by this owner with this stamp.
fn answer_index(answers: &[CachedOrderAnswer; 2], key: OwnerKey, stamp: AccessStamp) -> Option<usize> {
    answers.iter().position(|answer| answer.key == key && answer.stamp == stamp)
}

/// The proxy (method of access) of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Generic,
    Async,
    /// The tensormap proxy: tensor copies read the tensor map at `address`, the address of its first byte.
    TensorMap {
        address: u64,
    },
}

/// One access, made by lanes that share a vector clock, while it is checked against shadow cells.
pub(super) struct AccessCheck<'a> {
    space: MemorySpace,
    warp: &'a WarpVectorClocks,
    clock: &'a VectorClock,
    cx: &'a RaceCheckContext<'a>,
    /// The owner for which the access is recorded: the warp or the asynchronous operation.
    key: OwnerKey,
    stamp: AccessStamp,
    pc: u32,
    /// The proxy through which the access goes.
    proxy: Proxy,
    /// Whether the access is weak and goes through the generic proxy.
    is_plain: bool,
    /// `writer_answers` and `reader_answers` are the last two cached answers about earlier writers and about earlier
    /// readers, latest first.
    writer_answers: [CachedOrderAnswer; 2],
    reader_answers: [CachedOrderAnswer; 2],
    /// The last two access lists that were found to contain only accesses ordered before every lane of this access,
    /// latest first.
    ordered_lists: [ListId; 2],
    /// The last push onto an access list: the list, the pushed record, and the resulting list.
    pushed: (ListId, AccessRecord, ListId),
    /// These fields are used for accesses through the async proxy. `last_ordered_write` is the last write that was
    /// found not to conflict. `last_unfenced_reader` is the last reader whose reads no proxy fence follows.
    last_ordered_write: AccessRecord,
    last_unfenced_reader: (OwnerKey, AccessStamp),
    /// Owner and stamp of the last readers that were found to be unordered: none of their lanes is ordered before
    /// this access.
    unordered_readers: (OwnerKey, AccessStamp),
    /// The first conflict that was found for the current lane.
    pub fault: Option<ConflictWithoutLane>,
}

impl<'a> AccessCheck<'a> {
    pub(super) fn new(
        space: MemorySpace,
        warp: &'a WarpVectorClocks,
        clock: &'a VectorClock,
        cx: &'a RaceCheckContext,
        key: OwnerKey,
        stamp: AccessStamp,
        pc: u32,
    ) -> Self {
        let is_async = key >= FIRST_OP_KEY && cx.ops.kind(AsyncOpId::from_key(key)).uses_async_proxy();
        let proxy = if is_async { Proxy::Async } else { Proxy::Generic };
        let is_plain = !is_async && stamp.strength() == AccessStrength::Weak;
        let (writer_answers, reader_answers) = ([CachedOrderAnswer::NONE; 2], [CachedOrderAnswer::NONE; 2]);
        let (ordered_lists, pushed, fault) = ([0; 2], (0, ShadowCell::NEVER_ACCESSED.last_reads_record(), 0), None);
        let (last_ordered_write, last_unfenced_reader) =
            (ShadowCell::NEVER_ACCESSED.last_write_record(), (NO_AGENT, AccessStamp(u32::MAX)));
        AccessCheck {
            space,
            warp,
            clock,
            cx,
            key,
            stamp,
            pc,
            proxy,
            is_plain,
            writer_answers,
            reader_answers,
            ordered_lists,
            pushed,
            last_ordered_write,
            last_unfenced_reader,
            unordered_readers: (NO_AGENT, AccessStamp(u32::MAX)),
            fault,
        }
    }

    /// Turns this check into the check of a read of the tensor map at `address` through the tensormap proxy.
    pub(super) fn through_tensormap_proxy(self, address: u64) -> Self {
        AccessCheck { proxy: Proxy::TensorMap { address }, is_plain: false, ..self }
    }

    /// Whether the access goes through the async proxy.
    #[inline(always)]
    fn is_async(&self) -> bool {
        self.proxy == Proxy::Async
    }

    /// Checks and records that `lane` accesses the shadow cell at `offset`. Uses cached answers; without them it
    /// calls [`check_cell_uncached`](Self::check_cell_uncached).
    #[inline(always)]
    pub(super) fn check_cell<const WRITES: bool>(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let me = self.key << 5 | lane;
        let write_known = self.is_writer_cached_as_ordered(cell) || cell.writer == me;
        let mine = cell.reader == self.key && cell.readers & !(1 << lane) == 0;
        let again = !WRITES && cell.reader == self.key && cell.read == self.stamp;
        let read_known = again || mine || self.are_readers_cached_as_ordered(cell);
        if !(write_known && self.is_list_cached_as_ordered(cell.older) && self.is_plain) {
            return self.check_cell_uncached(WRITES, cell, offset, lane, lists);
        }
        if !read_known {
            if WRITES || !self.is_last_pushed_record(cell, offset) {
                return self.check_cell_uncached(WRITES, cell, offset, lane, lists);
            }
            cell.older = self.pushed.2;
        }
        if WRITES {
            *cell = ShadowCell { writer: me, write: self.stamp, write_pc: self.pc, ..ShadowCell::NEVER_ACCESSED };
        } else {
            cell.readers = 1 << lane | if again { cell.readers } else { 0 };
            (cell.reader, cell.read, cell.read_pc) = (self.key, self.stamp, self.pc);
        }
    }

    /// Checks and records that an asynchronous operation, issued by `lane`, accesses the shadow cell at `offset`.
    #[inline(always)]
    pub(super) fn check_cell_of_async_operation<const WRITES: bool>(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let last_ordered_write = (self.last_ordered_write.key, self.last_ordered_write.stamp)
            == (cell.writer >> 5, cell.write)
            && self.last_ordered_write.mask >> (cell.writer & 31) & 1 != 0;
        let in_order = self.is_async()
            && (cell.writer == NO_AGENT || last_ordered_write)
            && self.is_list_cached_as_ordered(cell.older);
        let weak = self.stamp.strength() == AccessStrength::Weak;
        let unread = cell.reader == NO_AGENT;
        let reader_known = unread || self.are_readers_cached_as_ordered(cell);
        if !in_order || !weak {
            return self.check_cell_uncached(WRITES, cell, offset, lane, lists);
        }
        if WRITES {
            let last_unfenced_reader =
                unread || cell.reader >= FIRST_OP_KEY || (cell.reader, cell.read) == self.last_unfenced_reader;
            if !(reader_known && last_unfenced_reader) {
                return self.check_cell_uncached(WRITES, cell, offset, lane, lists);
            }
            *cell = ShadowCell {
                writer: self.key << 5 | lane,
                write: self.stamp,
                write_pc: self.pc,
                ..ShadowCell::NEVER_ACCESSED
            };
            return;
        }
        if !reader_known {
            if !self.is_last_pushed_record(cell, offset) {
                return self.check_cell_uncached(WRITES, cell, offset, lane, lists);
            }
            cell.older = self.pushed.2;
        }
        (cell.reader, cell.read, cell.readers, cell.read_pc) = (self.key, self.stamp, 1 << lane, self.pc);
    }

    /// Checks and records a weak read of the shadow cell at `offset` by all lanes, which share a vector clock. `lane`
    /// is the lane that supplied the address.
    #[inline(always)]
    pub(super) fn check_cell_all_lanes(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let write_known =
            self.is_writer_cached_as_ordered(cell) || !self.is_async() && self.is_writer_ordered(cell, lane);
        if !(write_known && (self.is_list_cached_as_ordered(cell.older) || self.has_no_write(cell.older, lists))) {
            self.check_cell_uncached(false, cell, offset, lane, lists);
        } else if cell.reader != self.key && !self.are_readers_cached_as_ordered(cell) {
            if self.is_last_pushed_record(cell, offset) {
                cell.older = self.pushed.2;
            } else {
                self.move_readers_to_older_list(cell, offset, lane, lists);
            }
        }
        (cell.reader, cell.read, cell.readers, cell.read_pc) = (self.key, self.stamp, u32::MAX, self.pc);
    }

    /// Called after a check without conflict. Returns true if the same access by any other lane would change a shadow
    /// cell equal to `old` in the same way. The lane that wrote the cell and the cell's offset do not matter then.
    pub(super) fn is_result_lane_independent(&self, old: &ShadowCell, writes: bool) -> bool {
        let all = |answers: &[CachedOrderAnswer; 2], key, stamp| {
            answer_index(answers, key, stamp).is_some_and(|at| answers[at].known == u32::MAX)
        };
        let reader = old.reader == NO_AGENT
            || old.reader == self.key
            || all(&self.reader_answers, old.reader, old.read)
            || !writes && old.readers == u32::MAX && !self.may_be_ordered_beyond_clock(old.reader);
        self.is_plain
            && self.fault.is_none()
            && self.ordered_lists.contains(&old.older)
            && reader
            && all(&self.writer_answers, old.writer >> 5, old.write)
    }

    /// Called after a check of `lane` without conflict. Returns true if the access would change a shadow cell equal
    /// to `old` in the same way at any other offset.
    pub(super) fn is_result_offset_independent(&self, old: &ShadowCell, writes: bool, lane: u32) -> bool {
        let weak = self.stamp.strength() == AccessStrength::Weak;
        let same = weak
            && self.fault.is_none()
            && self.ordered_lists.contains(&old.older)
            && !AccessCheck::are_readers_rotated_in_lists(old);
        // A read without a proxy fence is reported only once, so the result of this check must not be cached.
        let fenced = !writes
            || old.reader >= FIRST_OP_KEY
            || !self.is_async()
            || self.is_visible_to_async_proxy(&old.last_reads_record(), lane);
        same && fenced
    }

    /// Returns true if a list of older accesses would store the shadow cell's mask of readers rotated (see
    /// [`AccessStamp::mask_rotation`]).
    pub(super) fn are_readers_rotated_in_lists(cell: &ShadowCell) -> bool {
        cell.reader != NO_AGENT && cell.readers != u32::MAX && cell.read.wide() != AccessStamp::RANGE
    }

    /// Returns true if the last reader of the shadow cell is the owner of this access.
    pub(super) fn is_last_reader(&self, cell: &ShadowCell) -> bool {
        cell.reader == self.key
    }

    /// Returns true if a cached answer says that the shadow cell's last write is ordered before this access.
    #[inline(always)]
    fn is_writer_cached_as_ordered(&mut self, cell: &ShadowCell) -> bool {
        is_known_by(&mut self.writer_answers, cell.writer >> 5, cell.write, 1 << (cell.writer & 31))
    }

    /// Returns true if a cached answer says that the shadow cell's last reads are ordered before this access.
    #[inline(always)]
    fn are_readers_cached_as_ordered(&mut self, cell: &ShadowCell) -> bool {
        is_known_by(&mut self.reader_answers, cell.reader, cell.read, cell.readers)
    }

    /// Returns true if the cache says that all accesses in the access list are ordered before this access.
    #[inline(always)]
    fn is_list_cached_as_ordered(&mut self, list: ListId) -> bool {
        if self.ordered_lists[0] == list {
            return true;
        }
        let second = self.ordered_lists[1] == list;
        if second {
            self.ordered_lists.swap(0, 1);
        }
        second
    }

    fn cache_ordered_list(&mut self, list: ListId) {
        if self.ordered_lists[0] != list {
            self.ordered_lists = [list, self.ordered_lists[0]];
        }
    }

    /// Returns true if the access list contains no write, so that a weak read cannot conflict with it.
    fn has_no_write(&mut self, list: ListId, lists: &AccessLists) -> bool {
        let clean = !lists.has_write(list);
        if clean {
            self.cache_ordered_list(list);
        }
        clean
    }

    #[inline(never)]
    pub(super) fn check_cell_uncached(
        &mut self,
        writes: bool,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        let found = if writes {
            self.check_write(cell, offset, lane, lists)
        } else {
            self.check_read(cell, offset, lane, lists)
        };
        if let Some(found) = found {
            // A missing proxy fence after a read is the least severe conflict, so another conflict replaces it.
            if self.fault.is_none_or(|fault| fault.kind == ConflictKind::ProxyRead) {
                self.fault = Some(found);
            }
        }
    }

    /// Appends the conflict that was found for `lane`, if any, to `out` and clears it.
    #[inline(always)]
    pub(super) fn push_conflict(&mut self, lane: u32, out: &mut Vec<Conflict>) {
        if self.fault.is_some() {
            out.extend(self.fault.take().map(|fault| fault.with_lane(lane)));
        }
    }

    /// Checks and records that `lane` reads the shadow cell at `offset`, by the complete rules.
    pub(super) fn check_read(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) -> Option<ConflictWithoutLane> {
        let mut fault = None;
        let write_known = self.is_writer_ordered(cell, lane);
        if cell.writer != NO_AGENT && (self.proxy != Proxy::Generic || !write_known) {
            fault = self.find_write_conflict(cell, lane, offset, false, false);
        }
        if !self.has_no_write(cell.older, lists) && fault.is_none() {
            fault = self.find_list_conflict(cell.older, lane, offset, false, lists);
        }
        if cell.reader == self.key && cell.read == self.stamp {
            cell.readers |= 1 << lane;
        } else {
            self.move_readers_to_older_list(cell, offset, lane, lists);
            (cell.reader, cell.read, cell.readers) = (self.key, self.stamp, 1 << lane);
        }
        cell.read_pc = self.pc;
        fault
    }

    /// Checks and records that `lane` writes the shadow cell at `offset`, by the complete rules.
    pub(super) fn check_write(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) -> Option<ConflictWithoutLane> {
        let mut fault = None;
        let read_known = self.are_readers_ordered(cell, lane);
        if !read_known {
            fault = self.find_conflict(&cell.last_reads_record(), lane, offset, true, false);
        }
        if cell.older == 0 {
            self.cache_ordered_list(0);
        } else if !self.is_list_cached_as_ordered(cell.older) && fault.is_none() {
            fault = self.find_list_conflict(cell.older, lane, offset, true, lists);
        }
        let write_known = self.is_writer_ordered(cell, lane);
        if cell.writer != NO_AGENT && fault.is_none() && (self.proxy != Proxy::Generic || !write_known) {
            let unread = cell.reader == NO_AGENT && !lists.has_read(cell.older);
            fault = self.find_write_conflict(cell, lane, offset, true, unread);
        }
        let unfenced = |check: &Self| {
            cell.reader < FIRST_OP_KEY && !check.is_visible_to_async_proxy(&cell.last_reads_record(), lane)
        };
        if self.is_async() && fault.is_none() && (cell.reader, cell.read) != self.last_unfenced_reader && unfenced(self)
        {
            self.last_unfenced_reader = (cell.reader, cell.read);
            let earlier = (Agent(cell.reader << 5 | cell.readers.trailing_zeros() & 31), cell.read_pc);
            fault = Some(ConflictWithoutLane {
                kind: ConflictKind::ProxyRead,
                offset,
                earlier,
                earlier_kind: EarlierAccess::Read,
            });
        }
        if self.stamp.strength() != AccessStrength::Weak {
            self.move_accesses_to_older_list(cell, offset, read_known, write_known, lists);
        } else {
            cell.older = 0;
        }
        let older = cell.older;
        *cell = ShadowCell {
            writer: self.key << 5 | lane,
            write: self.stamp,
            write_pc: self.pc,
            older,
            ..ShadowCell::NEVER_ACCESSED
        };
        fault
    }

    /// Moves the last accesses of a shadow cell into its list of older accesses, except those that the present strong
    /// write replaces.
    #[cold]
    pub(super) fn move_accesses_to_older_list(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        read_known: bool,
        write_known: bool,
        lists: &mut AccessLists,
    ) {
        let mine = AccessRecord { key: self.key, stamp: self.stamp, mask: 0, pc: self.pc, write: true };
        if cell.reader != NO_AGENT && !(read_known && mine.subsumes(&cell.last_reads_record())) {
            cell.older = self.push_to_older_list(cell.older, cell.last_reads_record(), offset, lists);
        }
        if cell.writer != NO_AGENT && !(write_known && mine.subsumes(&cell.last_write_record())) {
            cell.older = self.push_to_older_list(cell.older, cell.last_write_record(), offset, lists);
        }
    }

    /// Makes room for a new reader of a shadow cell: moves the present readers into the list of older accesses, unless
    /// the new reader replaces them.
    pub(super) fn move_readers_to_older_list(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        lists: &mut AccessLists,
    ) {
        if cell.reader == NO_AGENT {
            return;
        }
        if self.are_readers_ordered(cell, lane) {
            if self.stamp.strength() == AccessStrength::Weak {
                return;
            }
            let mine = AccessRecord { key: self.key, stamp: self.stamp, mask: 0, pc: self.pc, write: false };
            if mine.subsumes(&cell.last_reads_record()) {
                return;
            }
        }
        cell.older = self.push_to_older_list(cell.older, cell.last_reads_record(), offset, lists);
    }

    pub(super) fn push_to_older_list(
        &mut self,
        list: ListId,
        mut entry: AccessRecord,
        offset: u64,
        lists: &mut AccessLists,
    ) -> ListId {
        entry.mask = entry.mask.rotate_right(entry.stamp.mask_rotation(offset));
        let (of, pushed, new) = self.pushed;
        if of == list && pushed == entry {
            return new;
        }
        self.push_new(list, &entry, lists)
    }

    /// Returns true if the last push added this shadow cell's reads to this cell's access list.
    #[inline(always)]
    pub(super) fn is_last_pushed_record(&self, cell: &ShadowCell, offset: u64) -> bool {
        let (of, pushed, _) = &self.pushed;
        let mask = cell.readers.rotate_right(cell.read.mask_rotation(offset));
        *of == cell.older
            && (pushed.key, pushed.stamp, pushed.pc) == (cell.reader, cell.read, cell.read_pc)
            && pushed.mask == mask
            && !pushed.write
    }

    /// Adds an access to a list and remembers this push. Takes the record by reference, because copying a record that
    /// was just assembled is slow.
    #[inline(always)]
    fn push_new(&mut self, list: ListId, entry: &AccessRecord, lists: &mut AccessLists) -> ListId {
        let (ops, clock, space) = (self.cx.ops, self.clock, self.space);
        let below = if list != 0 && entry.key >= FIRST_OP_KEY && !entry.write {
            lists.without_newest(list, |old| {
                old.key >= FIRST_OP_KEY
                    && !old.write
                    && ops.lanes_ordered_before_clock(old.key, clock, space) == u32::MAX
            })
        } else {
            list
        };
        let new = lists.push(below, entry);
        self.pushed = (list, *entry, new);
        new
    }

    pub(super) fn is_writer_ordered(&mut self, cell: &ShadowCell, lane: u32) -> bool {
        let (key, mask) = (cell.writer >> 5, 1 << (cell.writer & 31));
        let at = answer_index(&self.writer_answers, key, cell.write);
        if at.is_none() {
            self.writer_answers = [self.find_ordered_lanes(key, cell.write), self.writer_answers[0]];
        }
        let known = self.writer_answers[at.unwrap_or(0)].known;
        mask & !known == 0
            || self.may_be_ordered_beyond_clock(key) && self.is_ordered_for_lane(key, cell.write, mask, lane)
    }

    pub(super) fn are_readers_ordered(&mut self, cell: &ShadowCell, lane: u32) -> bool {
        let at = answer_index(&self.reader_answers, cell.reader, cell.read);
        if at.is_none() {
            self.reader_answers = [self.find_ordered_lanes(cell.reader, cell.read), self.reader_answers[0]];
        }
        cell.readers & !self.reader_answers[at.unwrap_or(0)].known == 0
            || self.may_be_ordered_beyond_clock(cell.reader)
                && self.is_ordered_for_lane(cell.reader, cell.read, cell.readers, lane)
    }

    /// Returns true if a lane may be ordered after accesses of owner `key` that its vector clock does not contain: the
    /// lane's own accesses, and the accesses of asynchronous operations for which the lane waited.
    pub(super) fn may_be_ordered_beyond_clock(&self, key: OwnerKey) -> bool {
        key == self.warp.key() || key >= FIRST_OP_KEY
    }

    pub(super) fn find_ordered_lanes(&self, key: OwnerKey, stamp: AccessStamp) -> CachedOrderAnswer {
        let known = if key >= NO_AGENT >> 5 {
            u32::MAX
        } else if key < FIRST_OP_KEY {
            self.clock.lanes_ordered_in_space(self.space, key, stamp.epoch())
        } else {
            self.cx.ops.lanes_ordered_before_clock(key, self.clock, self.space)
        };
        CachedOrderAnswer { key, stamp, known }
    }

    /// Returns true if the accesses of the lanes `mask` are ordered before the access of `lane`. In contrast to the
    /// vector clock, this takes into account the accesses of `lane` itself and the asynchronous operations for which
    /// it waited.
    pub(super) fn is_ordered_for_lane(&self, key: OwnerKey, stamp: AccessStamp, mask: u32, lane: u32) -> bool {
        let own = if key == self.key || key == self.warp.key() { 1 << lane } else { 0 };
        let known = if key < FIRST_OP_KEY {
            self.clock.lanes_ordered_in_space(self.space, key, stamp.epoch())
        } else {
            self.cx.ops.lanes_known_complete_to(key, self.warp, lane, self.clock, self.space)
        };
        mask & !(known | own) == 0
    }
}
