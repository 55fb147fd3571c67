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

    fn read_entry(&self) -> Entry {
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
        self.make_room();
        let stamp = Stamp::new(warp.epoch(), bytes.trailing_zeros(), access == Access::Atomic, strength);
        let bits = u64::MAX >> (64 - 8 * bytes.min(8)) >> (8 * bytes.min(8) - bytes.min(8));
        let bits = if bytes == 16 { 0xffff } else { bits };
        for (mask, know) in warp.parts() {
            let mut left = lanes & mask;
            let mut view = View::new(self.space, warp, know, cx, warp.key(), stamp, pc);
            while left != 0 {
                let chunk_index = (offsets[left.trailing_zeros() as usize] >> CHUNK_SHIFT) as usize;
                let init = &mut self.init[chunk_index];
                let chunk = chunk(&mut self.chunks[chunk_index], &mut self.spare);
                while left != 0 {
                    let lane = left.trailing_zeros();
                    let offset = offsets[lane as usize];
                    if (offset >> CHUNK_SHIFT) as usize != chunk_index {
                        break;
                    }
                    left &= left - 1;
                    let at = offset & (CHUNK - 1);
                    let mut fault = None;
                    if access != Access::Write && !init.has(at, bits) {
                        fault = Some(Fault { kind: ConflictKind::Uninitialized, offset, ..Fault::NONE });
                    }
                    if access != Access::Read {
                        init.set(at, bits);
                    }
                    if bytes.trailing_zeros() < chunk.shift {
                        chunk.refine(bytes.trailing_zeros());
                    }
                    let first = (at >> chunk.shift) as usize;
                    let count = (bytes >> chunk.shift) as usize;
                    for (step, cell) in chunk.cells[first..first + count].iter_mut().enumerate() {
                        let offset = offset + ((step as u64) << chunk.shift);
                        let found = match access {
                            Access::Read => view.read(cell, offset, lane, &mut self.lists),
                            _ => view.write(cell, offset, lane, &mut self.lists),
                        };
                        fault = fault.or(found);
                    }
                    if let Some(fault) = fault {
                        out.push(fault.conflict(lane));
                    }
                }
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
        let whole = self.is_initialized(range.clone());
        let mut fault = None;
        if !whole {
            fault = Some(Fault { kind: ConflictKind::Uninitialized, offset: range.start, ..Fault::NONE });
        }
        let found = self.async_access(Access::Read, range, op, warp, lane, Strength::Weak, pc, cx);
        out.extend(fault.or(found).map(|fault| fault.conflict(lane)));
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
        let found = self.async_access(Access::Write, range, op, warp, lane, strength, pc, cx);
        out.extend(found.map(|fault| fault.conflict(lane)));
    }

    #[expect(clippy::too_many_arguments, reason = "an access has this many properties")]
    fn async_access(
        &mut self,
        access: Access,
        range: Range<u64>,
        op: OpId,
        warp: &WarpOrder,
        lane: u32,
        strength: Strength,
        pc: u32,
        cx: &Cx,
    ) -> Option<Fault> {
        self.make_room();
        let bytes = range.end.saturating_sub(range.start);
        let lane_wide = bytes.is_power_of_two() && bytes <= 16 && range.start.is_multiple_of(bytes);
        let wide = if lane_wide { bytes.trailing_zeros() } else { Stamp::RANGE };
        let stamp = Stamp::new(0, wide, false, strength);
        let mut view = View::new(self.space, warp, warp.know(lane), cx, op.key(), stamp, pc);
        let mut fault = None;
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
                let offset = start + ((step as u64) << chunk.shift);
                let found = match access {
                    Access::Read => view.read(cell, offset, lane, &mut self.lists),
                    _ => view.write(cell, offset, lane, &mut self.lists),
                };
                fault = fault.or(found);
            }
            start = end;
        }
        fault
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
    const NONE: Fault =
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
    of_writer: Answer,
    of_reader: Answer,
    /// Lists all of whose entries are known whatever the lane.
    known_list: ListId,
    /// The last list made, of what.
    pushed: Option<(ListId, Entry, ListId)>,
}

impl<'a> View<'a> {
    fn new(space: Space, warp: &'a WarpOrder, know: &'a Know, cx: &'a Cx, key: Key, stamp: Stamp, pc: u32) -> Self {
        let is_async = key >= OP_KEY && cx.ops.kind(OpId::of_key(key)).is_async_proxy();
        let (of_writer, of_reader) = (Answer::NONE, Answer::NONE);
        View { space, warp, know, cx, key, stamp, pc, is_async, of_writer, of_reader, known_list: 0, pushed: None }
    }

    /// `lane` reads the cell at `offset`.
    #[inline(always)]
    fn read(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) -> Option<Fault> {
        let mut fault = None;
        if cell.writer != NOBODY && (self.is_async || !self.knows_writer(cell, lane)) {
            fault = self.judge(&cell.write_entry(), lane, offset, false, false);
        }
        if lists.has_write(cell.older) && fault.is_none() {
            fault = self.judge_list(cell.older, lane, offset, false, lists);
        }
        if cell.reader == self.key && cell.read == self.stamp {
            cell.readers |= 1 << lane;
        } else {
            if cell.reader != NOBODY {
                self.displace_reader(cell, offset, lane, lists);
            }
            (cell.reader, cell.read, cell.readers) = (self.key, self.stamp, 1 << lane);
        }
        cell.read_pc = self.pc;
        fault
    }

    /// `lane` writes the cell at `offset`.
    #[inline(always)]
    fn write(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) -> Option<Fault> {
        let mut fault = None;
        let mut write_known = true;
        let mut read_known = true;
        if cell.reader != NOBODY {
            read_known = self.knows_reader(cell, lane);
            if !read_known {
                fault = self.judge(&cell.read_entry(), lane, offset, true, false);
            }
        }
        if cell.older != 0 && cell.older != self.known_list && fault.is_none() {
            fault = self.judge_list(cell.older, lane, offset, true, lists);
        }
        if cell.writer != NOBODY {
            write_known = self.knows_writer(cell, lane);
            if fault.is_none() && (self.is_async || !write_known) {
                let unread = cell.reader == NOBODY && !lists.has_read(cell.older);
                fault = self.judge(&cell.write_entry(), lane, offset, true, unread);
            }
        }
        if self.stamp.strength() != Strength::Weak {
            self.keep_older(cell, offset, read_known, write_known, lists);
        } else {
            cell.older = 0;
        }
        (cell.writer, cell.write, cell.write_pc) = (self.key << 5 | lane, self.stamp, self.pc);
        cell.reader = NOBODY;
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
    #[inline(always)]
    fn displace_reader(&mut self, cell: &mut Cell, offset: u64, lane: u32, lists: &mut Chains) {
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

    #[inline(always)]
    fn push(&mut self, list: ListId, mut entry: Entry, offset: u64, lists: &mut Chains) -> ListId {
        entry.mask = entry.mask.rotate_right(entry.stamp.turn(offset));
        if let Some((of, pushed, new)) = self.pushed
            && of == list
            && pushed == entry
        {
            return new;
        }
        self.push_new(list, entry, lists)
    }

    fn push_new(&mut self, list: ListId, entry: Entry, lists: &mut Chains) -> ListId {
        let (ops, know) = (self.cx.ops, self.know);
        let below = if entry.key >= OP_KEY && !entry.write {
            lists.without(list, |old| old.key >= OP_KEY && !old.write && ops.known_mask(old.key, know) == u32::MAX)
        } else {
            list
        };
        let new = lists.push(below, entry);
        self.pushed = Some((list, entry, new));
        new
    }

    #[inline(always)]
    fn knows_writer(&mut self, cell: &Cell, lane: u32) -> bool {
        let (key, mask) = (cell.writer >> 5, 1 << (cell.writer & 31));
        if self.of_writer.key != key || self.of_writer.stamp != cell.write {
            self.of_writer = self.ask(key, cell.write);
        }
        mask & !self.of_writer.known == 0 || self.knows_exactly(key, cell.write, mask, lane)
    }

    #[inline(always)]
    fn knows_reader(&mut self, cell: &Cell, lane: u32) -> bool {
        if self.of_reader.key != cell.reader || self.of_reader.stamp != cell.read {
            self.of_reader = self.ask(cell.reader, cell.read);
        }
        cell.readers & !self.of_reader.known == 0 || self.knows_exactly(cell.reader, cell.read, cell.readers, lane)
    }

    fn ask(&self, key: Key, stamp: Stamp) -> Answer {
        let known = if key < OP_KEY {
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
