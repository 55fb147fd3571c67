//! Shadow cells: the last accesses to every few bytes of an allocation. Cells are allocated in chunks.

use super::access_lists::{AccessRecord, ListId};
use super::caches_disabled;
use super::{AccessStamp, NO_AGENT, OwnerKey};
use std::ops::Range;

/// Bytes of an allocation whose shadow cells are allocated together, at the first access to any of them.
pub(super) const CHUNK_BYTES: u64 = 1 << LOG2_CHUNK_BYTES;
pub(super) const LOG2_CHUNK_BYTES: u32 = 12;
/// Log2 of the bytes per shadow cell in a new chunk: 128 bytes, the usual row length of copied tiles. A narrower
/// access splits the cells of its chunk.
const LOG2_INITIAL_CELL_BYTES: u32 = 7;
/// Log2 of 16, the maximum number of bytes that one lane accesses at once.
pub(super) const LOG2_MAX_BYTES_PER_LANE: u32 = 4;

/// The history of some bytes: the last write, the last reads and a list of older accesses. 32 bytes in size.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(32))]
pub(super) struct ShadowCell {
    /// Agent that wrote last (for an asynchronous operation its owner key and lane); [`NO_AGENT`] if there is none.
    pub writer: u32,
    pub write: AccessStamp,
    pub write_pc: u32,
    /// List of older accesses that must still be remembered, besides the last write and the last reads.
    pub older: ListId,
    /// Warp or asynchronous operation that read last; [`NO_AGENT`] if there is none.
    pub reader: OwnerKey,
    pub read: AccessStamp,
    pub readers: u32,
    pub read_pc: u32,
}

impl ShadowCell {
    pub(super) const NEVER_ACCESSED: ShadowCell = ShadowCell {
        writer: NO_AGENT,
        write: AccessStamp(0),
        write_pc: 0,
        reader: NO_AGENT,
        read: AccessStamp(0),
        readers: 0,
        read_pc: 0,
        older: 0,
    };

    /// Returns the history of the 16 bytes that lie `lanes` × 16 bytes after this shadow cell's first 16 bytes, in a
    /// row of which each lane accessed its own 16 bytes. The history is the same, with the lanes shifted by `lanes`.
    pub(super) fn with_lanes_shifted(&self, lanes: u32) -> ShadowCell {
        let mut cell = *self;
        if cell.writer != NO_AGENT && cell.write.wide() == LOG2_MAX_BYTES_PER_LANE {
            cell.writer = cell.writer & !31 | (cell.writer + lanes) & 31;
        }
        if cell.reader != NO_AGENT && cell.read.wide() == LOG2_MAX_BYTES_PER_LANE {
            cell.readers = cell.readers.rotate_left(lanes);
        }
        cell
    }

    pub(super) fn last_write_record(&self) -> AccessRecord {
        let (key, mask) = (self.writer >> 5, 1 << (self.writer & 31));
        AccessRecord { key, stamp: self.write, mask, pc: self.write_pc, write: true }
    }

    pub(super) const fn last_reads_record(&self) -> AccessRecord {
        AccessRecord { key: self.reader, stamp: self.read, mask: self.readers, pc: self.read_pc, write: false }
    }
}

#[derive(Clone, Debug)]
pub(super) struct CellChunk {
    /// Log2 of the bytes per shadow cell.
    pub shift: u32,
    /// Whether a shadow cell may stand for consecutive 16-byte accesses of several lanes. The cell then holds the
    /// history of its first 16 bytes; [`ShadowCell::with_lanes_shifted`] gives the history of the following bytes.
    pub has_row_cells: bool,
    pub cells: Vec<ShadowCell>,
}

impl CellChunk {
    fn fresh(shift: u32) -> CellChunk {
        CellChunk {
            shift,
            has_row_cells: false,
            cells: vec![ShadowCell::NEVER_ACCESSED; (CHUNK_BYTES >> shift) as usize],
        }
    }

    /// Splits each shadow cell into cells of `1 << shift` bytes.
    #[cold]
    pub(super) fn split_cells(&mut self, shift: u32) {
        let (parts, has_rows) = (1u32 << (self.shift - shift), self.has_row_cells);
        let part = |cell: &ShadowCell, n: u32| {
            if has_rows { cell.with_lanes_shifted(n << shift >> LOG2_MAX_BYTES_PER_LANE) } else { *cell }
        };
        let part = &part;
        self.cells = self.cells.iter().flat_map(|cell| (0..parts).map(move |n| part(cell, n))).collect();
        (self.shift, self.has_row_cells) = (shift, has_rows && shift > LOG2_MAX_BYTES_PER_LANE);
    }
}

/// The set of initialised bytes of a chunk.
#[derive(Clone, Debug)]
pub(super) enum InitializedBytes {
    All,
    /// One bit per byte, and the number of uninitialised bytes. An empty vector means that no byte is initialised.
    Some(Vec<u64>, u32),
}

impl InitializedBytes {
    /// Returns true if all bytes in the bit mask `bits` are initialised. The first bit of the mask stands for the byte
    /// at `offset` in the chunk. The mask must not reach across a multiple of 64.
    #[inline(always)]
    pub(super) fn are_bytes_initialized(&self, offset: u64, bits: u64) -> bool {
        match self {
            InitializedBytes::All => true,
            InitializedBytes::Some(words, _) => {
                words.get((offset >> 6) as usize).is_some_and(|word| word >> (offset & 63) & bits == bits)
            }
        }
    }

    #[inline(always)]
    pub(super) fn mark_bytes_initialized(&mut self, offset: u64, bits: u64) {
        if let InitializedBytes::Some(words, missing) = self {
            if words.is_empty() {
                *words = vec![0; (CHUNK_BYTES / 64) as usize];
            }
            let word = &mut words[(offset >> 6) as usize];
            let new = bits << (offset & 63) & !*word;
            if new != 0 {
                *word |= new;
                *missing -= new.count_ones();
                if *missing == 0 {
                    *self = InitializedBytes::All;
                }
            }
        }
    }
}

impl InitializedBytes {
    /// Marks the bytes of the bit mask `bits`, whose first bit stands for the byte at `offset` in the chunk, as not
    /// initialised.
    pub(super) fn mark_bytes_uninitialized(&mut self, offset: u64, bits: u64) {
        if matches!(self, InitializedBytes::All) {
            *self = InitializedBytes::Some(vec![u64::MAX; (CHUNK_BYTES / 64) as usize], 0);
        }
        if let InitializedBytes::Some(words, missing) = self
            && let Some(word) = words.get_mut((offset >> 6) as usize)
        {
            let gone = bits << (offset & 63) & *word;
            *word &= !gone;
            *missing += gone.count_ones();
        }
    }
}

/// Splits `range` at multiples of 64 and calls `f` for each part, with the part's start and a mask with one bit per
/// byte.
pub(super) fn for_each_byte_mask(range: Range<u64>, mut f: impl FnMut(u64, u64)) {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min((start | 63) + 1);
        f(start, u64::MAX >> (64 - (end - start)));
        start = end;
    }
}

/// Returns the chunk in `slot` with shadow cells of at most `1 << max_shift` bytes. Creates the chunk if there is
/// none.
#[inline(always)]
pub(super) fn get_or_create_chunk<'a>(
    slot: &'a mut Option<CellChunk>,
    spare_chunks: &mut Vec<CellChunk>,
    max_shift: u32,
) -> &'a mut CellChunk {
    let chunk = slot.get_or_insert_with(|| new_chunk(spare_chunks, max_shift));
    if max_shift < chunk.shift {
        chunk.split_cells(max_shift);
    }
    chunk
}

/// Like [`get_or_create_chunk`], for accesses other than rows of consecutive lanes: splits shadow cells that stand for
/// several lanes.
#[inline(always)]
pub(super) fn chunk_without_row_cells<'a>(
    slot: &'a mut Option<CellChunk>,
    spare_chunks: &mut Vec<CellChunk>,
    max_shift: u32,
) -> &'a mut CellChunk {
    let has_rows = slot.as_ref().is_some_and(|chunk| chunk.has_row_cells);
    get_or_create_chunk(slot, spare_chunks, if has_rows { max_shift.min(LOG2_MAX_BYTES_PER_LANE) } else { max_shift })
}

#[cold]
fn new_chunk(spare_chunks: &mut Vec<CellChunk>, max_shift: u32) -> CellChunk {
    let shift = max_shift.min(if caches_disabled() { LOG2_MAX_BYTES_PER_LANE } else { LOG2_INITIAL_CELL_BYTES });
    match spare_chunks.pop() {
        Some(mut chunk) => {
            (chunk.shift, chunk.has_row_cells) = (shift, false);
            chunk.cells.clear();
            chunk.cells.resize((CHUNK_BYTES >> shift) as usize, ShadowCell::NEVER_ACCESSED);
            chunk
        }
        None => CellChunk::fresh(shift),
    }
}
