//! Shadow memory: for each few bytes of an allocation the accesses that a later one has to be ordered after.

use super::chain::{Chains, Entry, ListId};
use super::{Agent, Clusters, Key, Know, LANES, NOBODY, OP_KEY, OpId, Ops, Space, Stamp, Strength, WarpOrder};
use std::ops::Range;

/// Bytes of an allocation whose cells are made together, when first touched.
const CHUNK: u64 = 1 << CHUNK_SHIFT;
const CHUNK_SHIFT: u32 = 12;
/// Cells start at 4 bytes.
const CELL_SHIFT: u32 = 2;

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
}

/// A finding about one access of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is wrong.
    pub kind: ConflictKind,
    /// Offset in the allocation, in bytes, of the cell (of 4 bytes, fewer after narrow accesses) where it is.
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

/// The accesses to 4 bytes (fewer after narrow accesses) that count: 32 bytes.
#[derive(Clone, Copy, Debug)]
struct Cell {
    /// Agent of the last write, or a key of an operation and a lane; [`NOBODY`].
    writer: u32,
    write: Stamp,
    write_pc: u32,
    /// Warp (or operation) of the last reads, or [`NOBODY`].
    reader: Key,
    read: Stamp,
    readers: u32,
    read_pc: u32,
    /// Accesses beside these.
    older: ListId,
}

impl Cell {
    const FRESH: Cell = Cell {
        writer: NOBODY,
        write: Stamp(0),
        write_pc: 0,
        reader: NOBODY,
        read: Stamp(0),
        readers: 0,
        read_pc: 0,
        older: 0,
    };

    fn write_entry(&self) -> Entry {
        let (key, mask) = (self.writer >> 5, 1 << (self.writer & 31));
        Entry { key, stamp: self.write, mask, pc: self.write_pc, write: true }
    }

    const fn read_entry(&self) -> Entry {
        Entry { key: self.reader, stamp: self.read, mask: self.readers, pc: self.read_pc, write: false }
    }
}

#[derive(Clone, Debug)]
struct Chunk {
    /// Log2 of a cell's bytes.
    shift: u32,
    cells: Vec<Cell>,
}

impl Chunk {
    fn fresh() -> Chunk {
        Chunk { shift: CELL_SHIFT, cells: vec![Cell::FRESH; (CHUNK >> CELL_SHIFT) as usize] }
    }

    /// Splits cells down to `1 << shift` bytes.
    #[cold]
    fn refine(&mut self, shift: u32) {
        let parts = 1 << (self.shift - shift);
        self.cells = self.cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, parts)).collect();
        self.shift = shift;
    }
}

/// Which bytes of a chunk were written.
#[derive(Clone, Debug)]
enum Init {
    All,
    /// A bit a byte, and how many are missing; empty: none was written.
    Some(Vec<u64>, u32),
}

impl Init {
    /// Whether the `bytes` (up to 64, not across a multiple of 64) at `at` of the chunk were all written.
    #[inline(always)]
    fn has(&self, at: u64, bits: u64) -> bool {
        match self {
            Init::All => true,
            Init::Some(words, _) => words.get((at >> 6) as usize).is_some_and(|word| word >> (at & 63) & bits == bits),
        }
    }

    #[inline(always)]
    fn set(&mut self, at: u64, bits: u64) {
        if let Init::Some(words, missing) = self {
            if words.is_empty() {
                *words = vec![0; (CHUNK / 64) as usize];
            }
            let word = &mut words[(at >> 6) as usize];
            let new = bits << (at & 63) & !*word;
            if new != 0 {
                *word |= new;
                *missing -= new.count_ones();
                if *missing == 0 {
                    *self = Init::All;
                }
            }
        }
    }
}

/// The shadow of one allocation: a global buffer, or a block's shared memory.
#[derive(Clone, Debug)]
pub struct Shadow {
    space: Space,
    chunks: Vec<Option<Chunk>>,
    spare: Vec<Chunk>,
    init: Vec<Init>,
    lists: Chains,
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
        self.walk_as(access, &lanes, cx, out);
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
                self.walk_lanes::<READS, WRITES>(access, lanes, &mut view, out);
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
        let chunk = chunk(&mut self.chunks[index], &mut self.spare);
        if access.bytes < 1 << chunk.shift {
            return false;
        }
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

    fn walk_lanes<const READS: bool, const WRITES: bool>(
        &mut self,
        access: &Lanes,
        lanes: u32,
        view: &mut View,
        out: &mut Vec<Conflict>,
    ) {
        let bytes = access.bytes;
        let bits = (1u64 << bytes) - 1;
        let mut left = lanes;
        while left != 0 {
            let index = (access.offsets[left.trailing_zeros() as usize] >> CHUNK_SHIFT) as usize;
            let init = &mut self.init[index];
            let chunk = chunk(&mut self.chunks[index], &mut self.spare);
            if bytes.trailing_zeros() < chunk.shift {
                chunk.refine(bytes.trailing_zeros());
            }
            while left != 0 {
                let lane = left.trailing_zeros();
                let offset = access.offsets[lane as usize];
                if (offset >> CHUNK_SHIFT) as usize != index {
                    break;
                }
                left &= left - 1;
                let at = offset & (CHUNK - 1);
                if READS && !init.has(at, bits) {
                    view.fault = Some(Fault { offset, ..Fault::UNINITIALIZED });
                }
                if WRITES {
                    init.set(at, bits);
                }
                let (first, count) = ((at >> chunk.shift) as usize, (bytes >> chunk.shift) as usize);
                for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                    view.step::<WRITES>(cell, offset + ((step as u64) << chunk.shift), lane, &mut self.lists);
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

    /// The operation `op`, issued by `lane` of `warp`, will read `range`: to be told when it is issued. Adds at most one
    /// conflict.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn async_read(
        &mut self,
        range: Range<u64>,
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        let first = out.len();
        if !self.is_initialized(range.clone()) {
            out.push(Fault { offset: range.start, ..Fault::UNINITIALIZED }.conflict(lane));
        }
        self.async_range::<false>(range, op, warp, lane, Strength::Weak, pc, cx, out);
        out.truncate(first + 1);
    }

    /// The operation `op`, issued by `lane` of `warp`, will write `range` (with `strength`, other than weak for reductions):
    /// to be told when it is issued. Adds at most one conflict.
    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    pub fn async_write(
        &mut self,
        range: Range<u64>,
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.initialize(range.clone());
        self.async_range::<true>(range, op, warp, lane, strength, pc, cx, out);
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn async_range<const WRITES: bool>(
        &mut self,
        range: Range<u64>,
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
        out: &mut Vec<Conflict>,
    ) {
        self.make_room();
        let bytes = range.end.saturating_sub(range.start);
        let lane_wide = bytes.is_power_of_two() && bytes <= 16 && range.start.is_multiple_of(bytes);
        let wide = if lane_wide { bytes.trailing_zeros() } else { Stamp::RANGE };
        let stamp = Stamp::new(0, wide, false, strength);
        let mut view = View::new(self.space, warp, warp.know(lane), cx, op.key(), stamp, pc);
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start | (CHUNK - 1)) + 1);
            let chunk = chunk(&mut self.chunks[(start >> CHUNK_SHIFT) as usize], &mut self.spare);
            let finest = (start | end).trailing_zeros();
            if finest < chunk.shift {
                chunk.refine(finest);
            }
            let first = ((start & (CHUNK - 1)) >> chunk.shift) as usize;
            let count = ((end - start) >> chunk.shift) as usize;
            for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                view.step::<WRITES>(cell, start + ((step as u64) << chunk.shift), lane, &mut self.lists);
            }
            start = end;
        }
        view.report(lane, out);
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
                        return Some((op, (start >> chunk.shift << chunk.shift) + ((step as u64) << chunk.shift)));
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
    fn make_room(&mut self) {
        if self.lists.is_full() {
            let chunks = self.chunks.iter_mut().flatten();
            self.lists.collect(chunks.flat_map(|chunk| chunk.cells.iter_mut().map(|cell| &mut cell.older)));
        }
    }
}

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

/// Calls `f` with `range` cut at multiples of 64: where a part starts, and a bit for each of its bytes.
fn each_word(range: Range<u64>, mut f: impl FnMut(u64, u64)) {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min((start | 63) + 1);
        f(start, u64::MAX >> (64 - (end - start)));
        start = end;
    }
}

/// The chunk in `place`, made if it is not there yet.
#[inline(always)]
fn chunk<'a>(place: &'a mut Option<Chunk>, spare: &mut Vec<Chunk>) -> &'a mut Chunk {
    place.get_or_insert_with(|| new_chunk(spare))
}

#[cold]
fn new_chunk(spare: &mut Vec<Chunk>) -> Chunk {
    match spare.pop() {
        Some(mut chunk) if chunk.shift == CELL_SHIFT => {
            chunk.cells.fill(Cell::FRESH);
            chunk
        }
        _ => Chunk::fresh(),
    }
}

/// A conflict whose lane is yet to be named.
#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: ConflictKind,
    offset: u64,
    other: (Agent, u32),
    other_is: Other,
}

impl Fault {
    const UNINITIALIZED: Fault =
        Fault { kind: ConflictKind::Uninitialized, offset: 0, other: (Agent::HOST, 0), other_is: Other::None };

    fn conflict(self, lane: u32) -> Conflict {
        let Fault { kind, offset, other, other_is } = self;
        Conflict { kind, offset, lane, other, other_is }
    }
}

/// Which lanes of a warp (or operation) are known at an epoch: the last answer.
#[derive(Clone, Copy)]
struct Answer {
    key: Key,
    stamp: Stamp,
    known: u32,
}

impl Answer {
    const NONE: Answer = Answer { key: NOBODY, stamp: Stamp(u32::MAX), known: 0 };

    #[inline(always)]
    fn covers(&self, key: Key, stamp: Stamp, mask: u32) -> bool {
        self.key == key && self.stamp == stamp && mask & !self.known == 0
    }
}

/// One access of lanes that know the same, walking over cells.
struct View<'a> {
    space: Space,
    warp: &'a WarpOrder,
    know: &'a Know,
    cx: &'a Cx<'a>,
    /// What the access is recorded as: the warp or the operation.
    key: Key,
    stamp: Stamp,
    pc: u32,
    /// It goes through the async proxy.
    is_async: bool,
    /// It is weak and not through the async proxy.
    is_plain: bool,
    of_writer: Answer,
    of_reader: Answer,
    /// Lists all of whose entries are known whatever the lane.
    known_list: ListId,
    /// The last list made, of what.
    pushed: (ListId, Entry, ListId),
    /// The first thing wrong with the lane's access.
    fault: Option<Fault>,
}

impl<'a> View<'a> {
    fn new(space: Space, warp: &'a WarpOrder, know: &'a Know, cx: &'a Cx, key: Key, stamp: Stamp, pc: u32) -> Self {
        let is_async = key >= OP_KEY && cx.ops.kind(OpId::of_key(key)).is_async_proxy();
        let is_plain = !is_async && stamp.strength() == Strength::Weak;
        let (of_writer, of_reader) = (Answer::NONE, Answer::NONE);
        let (known_list, pushed, fault) = (0, (0, Cell::FRESH.read_entry(), 0), None);
        View {
            space,
            warp,
            know,
            cx,
            key,
            stamp,
            pc,
            is_async,
            is_plain,
            of_writer,
            of_reader,
            known_list,
            pushed,
            fault,
        }
    }

    /// `lane` accesses the cell at `offset`.
    #[inline(always)]
    fn step<const WRITES: bool>(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        let me = self.key << 5 | lane;
        let write_known =
            self.of_writer.covers(cell.writer >> 5, cell.write, 1 << (cell.writer & 31)) || cell.writer == me;
        let mine = cell.reader == self.key && cell.readers & !(1 << lane) == 0;
        let again = !WRITES && cell.reader == self.key && cell.read == self.stamp;
        let read_known = again || mine || self.of_reader.covers(cell.reader, cell.read, cell.readers);
        if !(write_known && cell.older == self.known_list && self.is_plain) {
            return self.step_with_care(WRITES, cell, offset, lane, lists);
        }
        if !read_known {
            if WRITES || !self.was_pushed(cell, offset) {
                return self.step_with_care(WRITES, cell, offset, lane, lists);
            }
            cell.older = self.pushed.2;
        }
        if WRITES {
            *cell = Cell { writer: me, write: self.stamp, write_pc: self.pc, ..Cell::FRESH };
        } else {
            cell.readers = 1 << lane | if again { cell.readers } else { 0 };
            (cell.reader, cell.read, cell.read_pc) = (self.key, self.stamp, self.pc);
        }
    }

    #[inline(never)]
    fn step_with_care(&mut self, writes: bool, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        let found = if writes { self.write(cell, offset, lane, lists) } else { self.read(cell, offset, lane, lists) };
        self.fault = self.fault.or(found);
    }

    /// Hands on what is wrong with `lane`'s access.
    #[inline(always)]
    fn report(&mut self, lane: u32, out: &mut Vec<Conflict>) {
        if self.fault.is_some() {
            out.extend(self.fault.take().map(|fault| fault.conflict(lane)));
        }
    }

    /// `lane` reads the cell at `offset`.
    fn read(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) -> Option<Fault> {
        let mut fault = None;
        let write_known = self.knows_writer(cell, lane);
        if cell.writer != NOBODY && (self.is_async || !write_known) {
            fault = self.judge(&cell.write_entry(), lane, offset, false, false);
        }
        if !lists.has_write(cell.older) {
            self.known_list = cell.older;
        } else if fault.is_none() {
            fault = self.judge_list(cell.older, lane, offset, false, lists);
        }
        if cell.reader == self.key && cell.read == self.stamp {
            cell.readers |= 1 << lane;
        } else {
            self.displace_reader(cell, offset, lane, lists);
            (cell.reader, cell.read, cell.readers) = (self.key, self.stamp, 1 << lane);
        }
        cell.read_pc = self.pc;
        fault
    }

    /// `lane` writes the cell at `offset`.
    fn write(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) -> Option<Fault> {
        let mut fault = None;
        let read_known = self.knows_reader(cell, lane);
        if !read_known {
            fault = self.judge(&cell.read_entry(), lane, offset, true, false);
        }
        if cell.older == 0 {
            self.known_list = 0;
        } else if cell.older != self.known_list && fault.is_none() {
            fault = self.judge_list(cell.older, lane, offset, true, lists);
        }
        let write_known = self.knows_writer(cell, lane);
        if cell.writer != NOBODY && fault.is_none() && (self.is_async || !write_known) {
            let unread = cell.reader == NOBODY && !lists.has_read(cell.older);
            fault = self.judge(&cell.write_entry(), lane, offset, true, unread);
        }
        if self.stamp.strength() != Strength::Weak {
            self.keep_older(cell, offset, read_known, write_known, lists);
        } else {
            cell.older = 0;
        }
        let older = cell.older;
        *cell = Cell { writer: self.key << 5 | lane, write: self.stamp, write_pc: self.pc, older, ..Cell::FRESH };
        fault
    }

    /// Moves what a strong write does not stand for to the older accesses.
    #[cold]
    fn keep_older(&mut self, cell: &mut Cell, offset: u64, read_known: bool, write_known: bool, lists: &mut Chains) {
        let mine = Entry { key: self.key, stamp: self.stamp, mask: 0, pc: self.pc, write: true };
        if cell.reader != NOBODY && !(read_known && mine.subsumes(&cell.read_entry())) {
            cell.older = self.push(cell.older, cell.read_entry(), offset, lists);
        }
        if cell.writer != NOBODY && !(write_known && mine.subsumes(&cell.write_entry())) {
            cell.older = self.push(cell.older, cell.write_entry(), offset, lists);
        }
    }

    /// Makes way for a new reader of the cell.
    fn displace_reader(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
        if cell.reader == NOBODY {
            return;
        }
        if self.knows_reader(cell, lane) {
            if self.stamp.strength() == Strength::Weak {
                return;
            }
            let mine = Entry { key: self.key, stamp: self.stamp, mask: 0, pc: self.pc, write: false };
            if mine.subsumes(&cell.read_entry()) {
                return;
            }
        }
        cell.older = self.push(cell.older, cell.read_entry(), offset, lists);
    }

    fn push(&mut self, list: ListId, mut entry: Entry, offset: u64, lists: &mut Chains) -> ListId {
        entry.mask = entry.mask.rotate_right(entry.stamp.turn(offset));
        let (of, pushed, new) = self.pushed;
        if of == list && pushed == entry {
            return new;
        }
        self.push_new(list, entry, lists)
    }

    /// Whether the cell's reader is what was last pushed onto its list.
    #[inline(always)]
    fn was_pushed(&self, cell: &Cell, offset: u64) -> bool {
        let (of, pushed, _) = &self.pushed;
        let mask = cell.readers.rotate_right(cell.read.turn(offset));
        *of == cell.older
            && (pushed.key, pushed.stamp, pushed.pc) == (cell.reader, cell.read, cell.read_pc)
            && pushed.mask == mask
            && !pushed.write
    }

    fn push_new(&mut self, list: ListId, entry: Entry, lists: &mut Chains) -> ListId {
        let (ops, know) = (self.cx.ops, self.know);
        let below = if entry.key >= OP_KEY && !entry.write {
            lists.without(list, |old| old.key >= OP_KEY && !old.write && ops.known_mask(old.key, know) == u32::MAX)
        } else {
            list
        };
        let new = lists.push(below, entry);
        self.pushed = (list, entry, new);
        new
    }

    fn knows_writer(&mut self, cell: &Cell, lane: u32) -> bool {
        let (key, mask) = (cell.writer >> 5, 1 << (cell.writer & 31));
        if self.of_writer.key != key || self.of_writer.stamp != cell.write {
            self.of_writer = self.ask(key, cell.write);
        }
        mask & !self.of_writer.known == 0 || self.may_know_more(key) && self.knows_exactly(key, cell.write, mask, lane)
    }

    fn knows_reader(&mut self, cell: &Cell, lane: u32) -> bool {
        if self.of_reader.key != cell.reader || self.of_reader.stamp != cell.read {
            self.of_reader = self.ask(cell.reader, cell.read);
        }
        cell.readers & !self.of_reader.known == 0
            || self.may_know_more(cell.reader) && self.knows_exactly(cell.reader, cell.read, cell.readers, lane)
    }

    /// Whether a lane may know more of `key` than stands in what it knows: its own accesses, and what it waited for.
    fn may_know_more(&self, key: Key) -> bool {
        key == self.warp.key() || key >= OP_KEY
    }

    fn ask(&self, key: Key, stamp: Stamp) -> Answer {
        let known = if key >= NOBODY >> 5 {
            u32::MAX
        } else if key < OP_KEY {
            self.know.known_mask(key, stamp.epoch())
        } else {
            self.cx.ops.known_mask(key, self.know)
        };
        Answer { key, stamp, known }
    }

    /// With what `lane` itself did.
    fn knows_exactly(&self, key: Key, stamp: Stamp, mask: u32, lane: u32) -> bool {
        let own = if key == self.key || key == self.warp.key() { 1 << lane } else { 0 };
        let known = if key < OP_KEY {
            self.know.known_mask(key, stamp.epoch())
        } else {
            self.cx.ops.known_to_lane(key, self.warp, lane, self.know)
        };
        mask & !(known | own) == 0
    }

    /// What is wrong between `lane`'s access and an earlier one, its mask not turned.
    #[cold]
    fn judge(&self, old: &Entry, lane: u32, offset: u64, writes: bool, unread: bool) -> Option<Fault> {
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
        let unknown = (0..LANES as u32)
            .filter(|other| old.mask >> other & 1 != 0)
            .find(|other| !self.knows_exactly(old.key, old.stamp, 1 << other, lane));
        if let Some(other) = unknown {
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
    fn strong_enough(&self, old: &Entry) -> bool {
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

    fn is_fenced(&self, old: &Entry, lane: u32) -> bool {
        if old.key == self.key {
            return true;
        }
        if old.key < OP_KEY {
            let epoch = old.stamp.epoch();
            let own = old.key == self.warp.key() && self.warp.own_fenced(self.space, lane) >= epoch;
            let known = self.know.fenced_mask(self.space, old.key, epoch) | (own as u32) << lane;
            return old.mask & !known == 0;
        }
        let through_async = self.cx.ops.kind(OpId::of_key(old.key)).is_async_proxy();
        through_async || {
            let known = self.cx.ops.fenced_mask(old.key, self.warp, lane, self.know, self.space);
            old.mask & !known == 0
        }
    }

    fn judge_list(&mut self, list: ListId, lane: u32, offset: u64, writes: bool, lists: &Chains) -> Option<Fault> {
        if self.stamp.strength() == Strength::Gpu && self.key < OP_KEY && lists.all_gpu(list) {
            return None;
        }
        let mut wholly_known = true;
        for old in lists.entries(list).filter(|old| writes || old.write) {
            wholly_known &= self.ask(old.key, old.stamp).known == u32::MAX;
            let old = Entry { mask: old.mask.rotate_left(old.stamp.turn(offset)), ..*old };
            if let Some(fault) = self.judge(&old, lane, offset, writes, false) {
                return Some(fault);
            }
        }
        if writes && wholly_known && !self.is_async {
            self.known_list = list;
        }
        None
    }
}
