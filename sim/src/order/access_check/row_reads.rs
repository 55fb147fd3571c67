//! Checks consecutive 16-byte reads by several lanes of an asynchronous operation as one access to one shadow cell.

use super::super::access_lists::AccessLists;
use super::super::cell::ShadowCell;
use super::super::{FIRST_OP_KEY, NO_AGENT};
use super::{AccessCheck, answer_index};

impl AccessCheck<'_> {
    /// Checks and records that `count` consecutive lanes from `lane` on read one row of bytes, 16 bytes each. The row
    /// is the shadow cell at `offset`. Returns true if separate calls of [`AccessCheck::check_cell`] for the 16 bytes
    /// of each lane would have the same effect and find no conflict. Otherwise returns false and changes nothing.
    pub(in crate::order) fn check_row(
        &mut self,
        cell: &mut ShadowCell,
        offset: u64,
        lane: u32,
        count: u32,
        lists: &mut AccessLists,
    ) -> bool {
        let written = cell.writer != NO_AGENT && !self.is_writer_ordered_for_all_lanes(cell);
        if !self.is_plain || written || cell.reader == self.key {
            return false;
        }
        if !(self.is_list_cached_as_ordered(cell.older) || self.has_no_write(cell.older, lists)) {
            return false;
        }
        if cell.reader != NO_AGENT {
            match self.are_row_readers_ordered(cell, lane, count) {
                None => return false,
                Some(true) => (),
                Some(false) if self.is_last_pushed_record(cell, offset) => cell.older = self.pushed.2,
                Some(false) => {
                    cell.older = self.push_to_older_list(cell.older, cell.last_reads_record(), offset, lists)
                }
            }
        }
        (cell.reader, cell.read, cell.readers, cell.read_pc) = (self.key, self.stamp, 1 << lane, self.pc);
        true
    }

    /// Returns true if the shadow cell's last write is ordered before this access, for every lane that may have
    /// written and every lane that accesses.
    pub(in crate::order) fn is_writer_ordered_for_all_lanes(&mut self, cell: &ShadowCell) -> bool {
        let (key, stamp) = (cell.writer >> 5, cell.write);
        if answer_index(&self.writer_answers, key, stamp).is_none() {
            self.writer_answers = [self.find_ordered_lanes(key, stamp), self.writer_answers[0]];
        }
        answer_index(&self.writer_answers, key, stamp).is_some_and(|at| self.writer_answers[at].known == u32::MAX)
    }

    /// Returns whether each of `count` lanes is ordered after the last readers of its 16 bytes of the shadow cell;
    /// `None` if this differs between lanes.
    fn are_row_readers_ordered(&mut self, cell: &ShadowCell, lane: u32, count: u32) -> Option<bool> {
        let (key, stamp) = (cell.reader, cell.read);
        if self.unordered_readers == (key, stamp) {
            return Some(false);
        }
        if answer_index(&self.reader_answers, key, stamp).is_none() {
            self.reader_answers = [self.find_ordered_lanes(key, stamp), self.reader_answers[0]];
        }
        let known = answer_index(&self.reader_answers, key, stamp).map_or(0, |at| self.reader_answers[at].known);
        if known == u32::MAX {
            return Some(true);
        }
        if known == 0 && key >= FIRST_OP_KEY && !self.cx.ops.was_completion_observed_by(key, self.warp.key()) {
            self.unordered_readers = (key, stamp);
            return Some(false);
        }
        let mut knows = (0..count).map(|n| {
            let part = cell.with_lanes_shifted(n);
            self.may_be_ordered_beyond_clock(key) && self.is_ordered_for_lane(key, stamp, part.readers, lane + n)
                || part.readers & !known == 0
        });
        let first = knows.next()?;
        knows.all(|other| other == first).then_some(first)
    }
}
