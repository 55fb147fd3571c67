//! Race checks of wgmma operands in shared memory. An operand has many bytes, but few warps wrote them, and the four
//! warps of the warpgroup read all of them at once.
//!
//! The first warp of a warpgroup checks all bytes and collects their writers; the other warps check only those
//! writers.

use super::access_check::{AccessCheck, ConflictWithoutLane};
use super::access_lists::AccessRecord;
use super::cell::{CHUNK_BYTES, InitializedBytes, LOG2_CHUNK_BYTES, chunk_without_row_cells};
use super::transition_cache::TileChangeCache;
use super::{
    AccessStamp, AccessStrength, AsyncOpId, AsyncOpKind, AsyncOperationTable, Conflict, FIRST_OP_KEY, NO_AGENT,
    RaceCheckContext, ShadowMemory, WarpVectorClocks,
};

/// The last writes to an operand's bytes: one record per writing warp and instruction, with the first offset of the
/// operand at which it was found.
#[derive(Clone, Debug, Default)]
pub struct OperandWriters(Vec<(AccessRecord, u64)>);

impl ShadowMemory {
    /// Checks and records that asynchronous operation `op`, issued by `lane` of `warp`, reads the byte ranges `runs`
    /// (offset and length, both multiples of 4). Unlike [`ShadowMemory::check_async_ranges`], it reports at most one
    /// conflict per writer, and it adds the writers of the bytes to `writers`.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_wgmma_operand_read(
        &mut self,
        runs: &[(u64, u64)],
        op: AsyncOpId,
        warp: &WarpVectorClocks,
        lane: u32,
        pc: u32,
        cx: &RaceCheckContext,
        writers: &mut OperandWriters,
        out: &mut Vec<Conflict>,
    ) {
        self.collect_unused_lists();
        let stamp = AccessStamp::new(0, AccessStamp::RANGE, false, AccessStrength::Weak);
        let key = op.key();
        let mut check = AccessCheck::new(self.space, warp, warp.clock(lane), cx, key, stamp, pc);
        let mut latest = usize::MAX;
        let (mut unwritten, mut clean_list, mut cache) = (None, 0, TileChangeCache::new());
        for &(from, bytes) in runs {
            let whole = matches!(self.init[(from >> LOG2_CHUNK_BYTES) as usize], InitializedBytes::All)
                && (from ^ (from + bytes - 1)) >> LOG2_CHUNK_BYTES == 0;
            if !whole && unwritten.is_none() && !self.is_initialized(from..from + bytes) {
                unwritten = Some(from);
            }
            let (mut start, last) = (from, from + bytes);
            while start < last {
                let end = last.min((start | (CHUNK_BYTES - 1)) + 1);
                let finest = (start | end).trailing_zeros();
                let chunk = chunk_without_row_cells(
                    &mut self.chunks[(start >> LOG2_CHUNK_BYTES) as usize],
                    &mut self.spare,
                    finest,
                );
                let first = ((start & (CHUNK_BYTES - 1)) >> chunk.shift) as usize;
                let count = ((end - start) >> chunk.shift) as usize;
                for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                    let known = match writers.0.get(latest) {
                        Some((e, _)) => {
                            let same = (e.key, e.stamp, e.pc) == (cell.writer >> 5, cell.write, cell.write_pc);
                            same && e.mask >> (cell.writer & 31) & 1 != 0
                        }
                        None => false,
                    };
                    let offset = start + ((step as u64) << chunk.shift);
                    if !known && cell.writer != NO_AGENT {
                        latest = writers.add(cell.last_write_record(), offset);
                    }
                    if cache.replace_by_cached_result_of_any_writer_lane(cell) {
                        continue;
                    }
                    let old = *cell;
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
                            check.move_readers_to_older_list(cell, offset, lane, &mut self.lists);
                            clean_list = if self.lists.has_write(cell.older) { clean_list } else { cell.older };
                        }
                        (cell.reader, cell.read, cell.readers, cell.read_pc) = (key, stamp, 1 << lane, pc);
                    }
                    if !self.lists.has_write(old.older) && !AccessCheck::are_readers_rotated_in_lists(&old) {
                        cache.insert_change_of_any_writer_lane(&old, cell);
                    }
                }
                start = end;
            }
        }
        out.extend(unwritten.map(|offset| ConflictWithoutLane::uninitialized(offset).with_lane(lane)));
        check.push_conflict(lane, out);
        self.check_against_operand_writers(writers, op, warp, lane, pc, cx, out);
    }

    /// Checks that `lane` of another warp that issues the same wgmma is ordered after the writers. Reports at most
    /// one conflict per writer.
    #[expect(clippy::too_many_arguments, reason = "each argument is a separate property of the access")]
    pub fn check_against_operand_writers(
        &self,
        writers: &OperandWriters,
        op: AsyncOpId,
        warp: &WarpVectorClocks,
        lane: u32,
        pc: u32,
        cx: &RaceCheckContext,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = AccessStamp::new(0, AccessStamp::RANGE, false, AccessStrength::Weak);
        let mut check = AccessCheck::new(self.space, warp, warp.clock(lane), cx, op.key(), stamp, pc);
        for (entry, offset) in &writers.0 {
            check.fault = check.find_conflict(entry, lane, *offset, false, false);
            check.push_conflict(lane, out);
        }
    }
}

impl OperandWriters {
    /// Whether all bytes of the operand that were written were last written by tensor copies.
    pub fn were_written_by_tensor_copies(&self, ops: &AsyncOperationTable) -> bool {
        let is_tensor_copy = |key| key >= FIRST_OP_KEY && ops.kind(AsyncOpId::from_key(key)) == AsyncOpKind::TensorCopy;
        self.0.iter().all(|(entry, _)| is_tensor_copy(entry.key))
    }

    /// Records a write, or merges its lanes into the record of the same warp and instruction; returns the record's
    /// index.
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
