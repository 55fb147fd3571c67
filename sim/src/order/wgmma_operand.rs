//! Checks of wgmma operands in shared memory: many bytes, written by few warps, read by four warps at once.
//!
//! The first warp of a warpgroup checks all bytes and collects their writers; the other warps only check those writers.

use super::access_check::{AccessCheck, UnattributedConflict};
use super::access_lists::AccessRecord;
use super::cell::{CHUNK, CHUNK_SHIFT, Init, unturned_chunk};
use super::transition_cache::TransitionCache;
use super::{AccessStamp, AccessStrength, AsyncOpId, CheckContext, Conflict, NO_AGENT, ShadowMemory, WarpClocks};

/// The writers of an operand's bytes, each with the first offset that it wrote.
#[derive(Clone, Debug, Default)]
pub struct OperandWriters(Vec<(AccessRecord, u64)>);

impl ShadowMemory {
    /// Checks that operation `op`, issued by `lane` of `warp`, may read `runs` (offset and bytes, multiples of 4), like
    /// [`ShadowMemory::async_read`] of each run, but reports at most one conflict per writer. Adds the writers to
    /// `writers`.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn read_wgmma_operand(
        &mut self,
        runs: &[(u64, u64)],
        op: AsyncOpId,
        warp: &WarpClocks,
        lane: u32,
        pc: u32,
        cx: &CheckContext,
        writers: &mut OperandWriters,
        out: &mut Vec<Conflict>,
    ) {
        self.make_room();
        let stamp = AccessStamp::new(0, AccessStamp::RANGE, false, AccessStrength::Weak);
        let key = op.key();
        let mut check = AccessCheck::new(self.space, warp, warp.clock(lane), cx, key, stamp, pc);
        let mut latest = usize::MAX;
        let (mut unwritten, mut clean_list, mut cache) = (None, 0, TransitionCache::new());
        for &(from, bytes) in runs {
            let whole = matches!(self.init[(from >> CHUNK_SHIFT) as usize], Init::All)
                && (from ^ (from + bytes - 1)) >> CHUNK_SHIFT == 0;
            if !whole && unwritten.is_none() && !self.is_initialized(from..from + bytes) {
                unwritten = Some(from);
            }
            let (mut start, last) = (from, from + bytes);
            while start < last {
                let end = last.min((start | (CHUNK - 1)) + 1);
                let finest = (start | end).trailing_zeros();
                let chunk = unturned_chunk(&mut self.chunks[(start >> CHUNK_SHIFT) as usize], &mut self.spare, finest);
                let first = ((start & (CHUNK - 1)) >> chunk.shift) as usize;
                let count = ((end - start) >> chunk.shift) as usize;
                for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                    // The writer of an equal cell is already in `writers`.
                    if cache.recall(cell) {
                        continue;
                    }
                    let old = *cell;
                    let known = match writers.0.get(latest) {
                        Some((e, _)) => {
                            let same = (e.key, e.stamp, e.pc) == (cell.writer >> 5, cell.write, cell.write_pc);
                            same && e.mask >> (cell.writer & 31) & 1 != 0
                        }
                        None => false,
                    };
                    let offset = start + ((step as u64) << chunk.shift);
                    if !known && cell.writer != NO_AGENT {
                        latest = writers.add(cell.write_entry(), offset);
                    }
                    if cell.older != clean_list {
                        if self.lists.has_write(cell.older) {
                            let found = check.find_list_conflict(cell.older, lane, offset, false, &self.lists);
                            check.fault = check.fault.or(found);
                        } else {
                            clean_list = cell.older;
                        }
                    }
                    if cell.reader != key {
                        if cell.reader != NO_AGENT {
                            check.displace_reader(cell, offset, lane, &mut self.lists);
                            clean_list = if self.lists.has_write(cell.older) { clean_list } else { cell.older };
                        }
                        (cell.reader, cell.read, cell.readers, cell.read_pc) = (key, stamp, 1 << lane, pc);
                    }
                    if !self.lists.has_write(old.older) && !AccessCheck::are_readers_rotated(&old) {
                        cache.keep(&old, cell);
                    }
                }
                start = end;
            }
        }
        out.extend(unwritten.map(|offset| UnattributedConflict::uninitialized(offset).conflict(lane)));
        check.report(lane, out);
        self.recheck_wgmma_operand(writers, op, warp, lane, pc, cx, out);
    }

    /// Checks that another warp of the same wgmma also knows the writers. Reports at most one conflict per writer.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn recheck_wgmma_operand(
        &self,
        writers: &OperandWriters,
        op: AsyncOpId,
        warp: &WarpClocks,
        lane: u32,
        pc: u32,
        cx: &CheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = AccessStamp::new(0, AccessStamp::RANGE, false, AccessStrength::Weak);
        let mut check = AccessCheck::new(self.space, warp, warp.clock(lane), cx, op.key(), stamp, pc);
        for (entry, offset) in &writers.0 {
            check.fault = check.find_conflict(entry, lane, *offset, false, false);
            check.report(lane, out);
        }
    }
}

impl OperandWriters {
    /// Adds a write and returns the index of the entry that stands for it.
    fn add(&mut self, entry: AccessRecord, offset: u64) -> usize {
        let same = |old: &AccessRecord| (old.key, old.stamp, old.pc) == (entry.key, entry.stamp, entry.pc);
        match self.0.iter().rposition(|(old, _)| same(old)) {
            Some(at) => {
                self.0[at].0.mask |= entry.mask;
                at
            }
            None => {
                self.0.push((entry, offset));
                self.0.len() - 1
            }
        }
    }
}
