//! Shadow memory: for each few bytes of an allocation the accesses that a later one has to be ordered after.

use super::cell::{CHUNK, CHUNK_SHIFT, Cell, Chunk, Init, chunk, each_word, even_chunk};
use super::chain::Chains;
use super::memo::Memo;
use super::seen::Seen;
use super::view::{Fault, View};
use super::{Agent, Clusters, Key, LANES, NOBODY, OP_KEY, OpId, Ops, Space, Stamp, Strength, WarpOrder};
use std::ops::Range;

mod fetch;
mod groups;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Reads, modifies and writes in one.
    Atomic,
}

/// The earlier access of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Other {
    /// There is none.
    None,
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
    /// An asynchronous operation.
    Async(OpId),
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConflictKind {
    /// It reads bytes that nobody wrote.
    Uninitialized,
    /// It is not ordered after an earlier one, and one of them writes. `two_stores`: both are plain stores, and nobody
    /// read in between, so that equal values do no harm.
    Race {
        /// Both only store, unread in between.
        two_stores: bool,
    },
    /// The end of this operation has not been observed by the accessing thread.
    NotWaited(OpId),
    /// An async-proxy access to bytes whose generic write is ordered before it but not made visible by `fence.proxy.async`.
    Proxy,
    /// The async proxy overwrites bytes that were read, in order, through the generic proxy, without a proxy fence.
    ProxyRead,
}

/// A finding about one access of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is wrong.
    pub kind: ConflictKind,
    /// Offset in the allocation, in bytes, of the cell where it is: bytes (at most 128) that were always accessed together.
    pub offset: u64,
    /// The accessing (or issuing) lane.
    pub lane: u32,
    /// Who made the earlier access ([`Agent::HOST`] when there is none), and where (its `pc`).
    pub other: (Agent, u32),
    /// What the earlier access is.
    pub other_is: Other,
}

/// What checks need to know beside the warp.
#[derive(Clone, Copy, Debug)]
pub struct Cx<'a> {
    /// The launch's asynchronous operations.
    pub ops: &'a Ops,
    /// Which blocks form clusters.
    pub clusters: &'a Clusters,
}

/// The shadow of one allocation: a global buffer, or a block's shared memory.
#[derive(Clone, Debug)]
pub struct Shadow {
    pub(super) space: Space,
    pub(super) chunks: Vec<Option<Chunk>>,
    pub(super) spare: Vec<Chunk>,
    pub(super) init: Vec<Init>,
    pub(super) lists: Chains,
}

impl Shadow {
    /// For `bytes` bytes in `space`; `initialized` says whether the host wrote them all.
    pub fn new(space: Space, bytes: u64, initialized: bool) -> Shadow {
        let chunks = bytes.div_ceil(CHUNK) as usize;
        let init = vec![Shadow::init(initialized); chunks];
        Shadow { space, chunks: vec![None; chunks], spare: Vec::new(), init, lists: Chains::default() }
    }

    fn init(initialized: bool) -> Init {
        if initialized { Init::All } else { Init::Some(Vec::new(), CHUNK as u32) }
    }

    /// As new, for another block's shared memory of the same size.
    pub fn reset(&mut self, initialized: bool) {
        self.settle();
        self.init.fill(Shadow::init(initialized));
    }

    /// Everything up to now happens before everything later (a launch's end); what was written stays written.
    pub fn settle(&mut self) {
        self.spare.extend(self.chunks.iter_mut().filter_map(Option::take));
        self.lists = Chains::default();
    }

    /// Marks `range` as written by the host.
    pub fn initialize(&mut self, range: Range<u64>) {
        each_word(range, |at, bits| self.init[(at >> CHUNK_SHIFT) as usize].set(at & (CHUNK - 1), bits));
    }

    /// Whether every byte of `range` was written.
    pub fn is_initialized(&self, range: Range<u64>) -> bool {
        let mut all = true;
        each_word(range, |at, bits| all &= self.init[(at >> CHUNK_SHIFT) as usize].has(at & (CHUNK - 1), bits));
        all
    }

    /// `lanes` of `warp` each access `bytes` (1, 2, 4, 8 or 16) at their offset, which the caller has found in bounds and
    /// aligned. Adds at most one conflict a lane to `out`; the access counts as made all the same.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn access(
        &mut self,
        access: Access,
        warp: &WarpOrder,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = Stamp::new(warp.epoch(), bytes.trailing_zeros(), access == Access::Atomic, strength);
        let lanes = Lanes { warp, lanes, offsets, bytes, key: warp.key(), stamp, pc };
        self.walk_as(access, &lanes, cx, out);
    }

    /// The same for `lanes` of an operation (`cp.async`), each for its own bytes: to be told when it is issued.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn async_lanes(
        &mut self,
        access: Access,
        op: OpId,
        warp: &WarpOrder,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        let stamp = Stamp::new(0, bytes.trailing_zeros(), false, Strength::Weak);
        let lanes = Lanes { warp, lanes, offsets, bytes, key: op.key(), stamp, pc };
        self.make_room();
        for (mask, know) in warp.parts() {
            let mut part = lanes.lanes & mask;
            if part == 0 {
                continue;
            }
            let mut view = View::new(self.space, warp, know, cx, op.key(), stamp, pc);
            if access == Access::Read && part == u32::MAX && bytes == 16 {
                part = self.read_rows_of_lanes(&lanes, &mut view);
                if part == 0 {
                    return;
                }
            }
            if access == Access::Read {
                self.fetch(part, offsets);
                let mut memo = Memo::new();
                self.walk_lanes::<true, false>(&lanes, part, &mut view, out, |view, cell, offset, lane, lists| {
                    memo.step_read(view, cell, offset, lane, lists);
                });
                continue;
            }
            let mut seen = Seen::new();
            crate::simd::dispatch(
                #[inline(always)]
                || {
                    self.walk_lanes::<false, true>(
                        &lanes,
                        part,
                        &mut view,
                        out,
                        #[inline(always)]
                        |view, cell, offset, lane, lists| seen.write(view, cell, offset, lane, lists),
                    );
                },
            );
        }
    }

    #[inline(always)]
    fn walk_as(&mut self, access: Access, lanes: &Lanes, cx: &Cx, out: &mut Vec<Conflict>) {
        self.make_room();
        match access {
            Access::Read => self.walk::<true, false>(lanes, cx, out),
            Access::Write => self.walk::<false, true>(lanes, cx, out),
            Access::Atomic => self.walk::<true, true>(lanes, cx, out),
        }
    }

    fn walk<const READS: bool, const WRITES: bool>(&mut self, access: &Lanes, cx: &Cx, out: &mut Vec<Conflict>) {
        for (mask, know) in access.warp.parts() {
            let lanes = access.lanes & mask;
            if lanes == 0 {
                continue;
            }
            let mut view = View::new(self.space, access.warp, know, cx, access.key, access.stamp, access.pc);
            if lanes != u32::MAX || !self.walk_row::<READS, WRITES>(access, &mut view, out) {
                self.walk_lanes::<READS, WRITES>(access, lanes, &mut view, out, |view, cell, offset, lane, lists| {
                    view.step::<WRITES>(cell, offset, lane, lists);
                });
            }
        }
    }

    /// All lanes, where they access a row of bytes one after the other in one chunk; false (and nothing done) otherwise.
    #[inline(always)]
    fn walk_row<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &Lanes,
        view: &mut View,
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
        if !in_a_row || start >> CHUNK_SHIFT != (end - 1) >> CHUNK_SHIFT {
            return false;
        }
        if READS && !self.is_initialized(start..end) {
            return false;
        }
        let index = (start >> CHUNK_SHIFT) as usize;
        let chunk = chunk(&mut self.chunks[index], &mut self.spare, access.bytes.trailing_zeros());
        if WRITES && !matches!(self.init[index], Init::All) {
            let init = &mut self.init[index];
            each_word(start..end, |at, bits| init.set(at & (CHUNK - 1), bits));
        }
        let (first, count) = (((start & (CHUNK - 1)) >> chunk.shift) as usize, (access.bytes >> chunk.shift) as usize);
        let (shift, lists) = (chunk.shift, &mut self.lists);
        let cells = &mut chunk.cells[first..first + count * LANES];
        for (lane, cells) in cells.chunks_exact_mut(count).enumerate() {
            for (step, cell) in cells.iter_mut().enumerate() {
                let offset = start + (((lane * count + step) as u64) << shift);
                view.step::<WRITES>(cell, offset, lane as u32, lists);
            }
            view.report(lane as u32, out);
        }
        true
    }

    #[inline(always)]
    fn walk_lanes<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &Lanes,
        lanes: u32,
        view: &mut View,
        out: &mut Vec<Conflict>,
        mut each: impl FnMut(&mut View, &mut Cell, u64, u32, &mut Chains),
    ) {
        let bytes = access.bytes;
        let bits = (1u64 << bytes) - 1;
        let mut left = lanes;
        while left != 0 {
            let index = (access.offsets[left.trailing_zeros() as usize] >> CHUNK_SHIFT) as usize;
            let init = &mut self.init[index];
            let chunk = chunk(&mut self.chunks[index], &mut self.spare, bytes.trailing_zeros());
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = access.offsets[lane as usize];
                if (offset >> CHUNK_SHIFT) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK - 1);
                if READS && !init.has(at, bits) {
                    view.fault = Some(Fault::uninitialized(offset));
                }
                if WRITES {
                    init.set(at, bits);
                }
                let (first, count) = ((at >> chunk.shift) as usize, (bytes >> chunk.shift) as usize);
                for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                    each(view, cell, offset + ((step as u64) << chunk.shift), lane, &mut self.lists);
                }
                view.report(lane, out);
            }
        }
    }

    /// [`access`](Shadow::access) that reads.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn read(
        &mut self,
        warp: &WarpOrder,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.access(Access::Read, warp, lanes, offsets, bytes, strength, pc, cx, out);
    }

    /// [`access`](Shadow::access) that writes.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn write(
        &mut self,
        warp: &WarpOrder,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.access(Access::Write, warp, lanes, offsets, bytes, strength, pc, cx, out);
    }

    /// [`access`](Shadow::access) that reads and writes in one.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn atomic(
        &mut self,
        warp: &WarpOrder,
        lanes: u32,
        offsets: &[u64; LANES],
        bytes: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.access(Access::Atomic, warp, lanes, offsets, bytes, strength, pc, cx, out);
    }

    /// The operation `op`, issued by `lane` of `warp`, will read the `runs` (offset and bytes): to be told when it is issued.
    /// Adds at most one conflict a run.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn async_read(
        &mut self,
        runs: &[(u64, u64)],
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.async_runs::<false>(runs, op, warp, lane, Strength::Weak, pc, cx, out);
    }

    /// The operation `op`, issued by `lane` of `warp`, will write the `runs` (with `strength`, other than weak for
    /// reductions): to be told when it is issued. Adds at most one conflict a run.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn async_write(
        &mut self,
        runs: &[(u64, u64)],
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.async_runs::<true>(runs, op, warp, lane, strength, pc, cx, out);
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn async_runs<const WRITES: bool>(
        &mut self,
        runs: &[(u64, u64)],
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.make_room();
        let stamp_of = |(start, bytes): (u64, u64)| {
            let lane_wide = bytes.is_power_of_two() && bytes <= 16 && start.is_multiple_of(bytes);
            Stamp::new(0, if lane_wide { bytes.trailing_zeros() } else { Stamp::RANGE }, false, strength)
        };
        let mut left = runs;
        while let Some(&first) = left.first() {
            let stamp = stamp_of(first);
            let count = left.iter().take_while(|run| stamp_of(**run) == stamp).count();
            let (alike, rest) = left.split_at(count);
            left = rest;
            let mut view = View::new(self.space, warp, warp.know(lane), cx, op.key(), stamp, pc);
            let mut memo = Memo::new();
            for (n, &(start, bytes)) in alike.iter().enumerate() {
                if n % FETCHED == 0 {
                    self.fetch_runs(&alike[n..alike.len().min(n + FETCHED)]);
                }
                let range = start..start + bytes;
                if WRITES {
                    self.initialize(range.clone());
                } else if !self.is_initialized(range.clone()) {
                    view.fault = Some(Fault::uninitialized(start));
                }
                self.async_range::<WRITES>(range, &mut view, &mut memo, lane);
                view.report(lane, out);
            }
        }
    }

    #[inline(always)]
    fn async_range<const WRITES: bool>(&mut self, range: Range<u64>, view: &mut View, memo: &mut Memo, lane: u32) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start | (CHUNK - 1)) + 1);
            let finest = (start | end).trailing_zeros();
            let chunk = even_chunk(&mut self.chunks[(start >> CHUNK_SHIFT) as usize], &mut self.spare, finest);
            let first = ((start & (CHUNK - 1)) >> chunk.shift) as usize;
            let count = ((end - start) >> chunk.shift) as usize;
            for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                let offset = start + ((step as u64) << chunk.shift);
                memo.step_async::<WRITES>(view, cell, offset, lane, &mut self.lists);
            }
            start = end;
        }
    }

    /// An operation without a seen end that reads or writes bytes of `range`, and where: for checks at a block's exit.
    pub fn pending(&self, range: Range<u64>, ops: &Ops) -> Option<(OpId, u64)> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start | (CHUNK - 1)) + 1);
            if let Some(chunk) = &self.chunks[(start >> CHUNK_SHIFT) as usize] {
                let first = ((start & (CHUNK - 1)) >> chunk.shift) as usize;
                let last = (((end - 1) & (CHUNK - 1)) >> chunk.shift) as usize;
                for (step, cell) in chunk.cells[first..=last].iter().enumerate() {
                    if let Some(op) = self.open_op(cell, ops) {
                        let cell = (start >> chunk.shift << chunk.shift) + ((step as u64) << chunk.shift);
                        return Some((op, cell.max(start)));
                    }
                }
            }
            start = end;
        }
        None
    }

    fn open_op(&self, cell: &Cell, ops: &Ops) -> Option<OpId> {
        let open = |key: Key| {
            (OP_KEY..NOBODY >> 5).contains(&key).then(|| OpId::of_key(key)).filter(|op| !ops.is_resolved(*op))
        };
        let here = open(cell.writer >> 5).or_else(|| if cell.reader == NOBODY { None } else { open(cell.reader) });
        here.or_else(|| self.lists.entries(cell.older).find_map(|entry| open(entry.key)))
    }

    /// Drops lists that no cell has any more, when there are many.
    #[inline(always)]
    pub(super) fn make_room(&mut self) {
        if self.lists.is_full() {
            let chunks = self.chunks.iter_mut().flatten();
            self.lists.collect(chunks.flat_map(|chunk| chunk.cells.iter_mut().map(|cell| &mut cell.older)));
        }
    }
}

/// Runs whose cells are fetched at once.
const FETCHED: usize = 8;

/// An access of a warp's lanes.
struct Lanes<'a> {
    warp: &'a WarpOrder,
    lanes: u32,
    offsets: &'a [u64; LANES],
    bytes: u32,
    /// What it is recorded as: the warp or an operation.
    key: Key,
    stamp: Stamp,
    pc: u32,
}
