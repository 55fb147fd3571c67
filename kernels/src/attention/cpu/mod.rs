//! Attention on device `cpu`: splits a launch into tasks for the thread team.
//!
//! A forward task computes a tile of query rows of one key head ([`forward`]). If there are few tiles, as in decoding,
//! a task computes one segment of 512 keys of a tile, and a second pass merges the segments. Sequences that share their
//! first pages of the KV cache, as completions of one prompt do, have a tile together. A backward task computes the
//! gradients of a block of 64 keys or of a chunk of 64 query rows ([`backward`]). All matrix products use [`product`],
//! which is written once for every instruction set of [`vector`]; only the AMX code in [`tiles`] is separate. [`load`]
//! has the layouts of the operands.
#![allow(unsafe_code)]

mod backward;
mod few;
mod forward;
mod load;
mod product;
mod sequence;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vector;

use reel_device::cpu::simd::{Isa, isa};
use reel_device::launch::view::slice_at;
use reel_device::{Element, Team};

use super::{BwdParams, FwdParams};
use backward::{BackwardArrays, DeltaTask, KeyGradientTask, QueryGradientTask, StoredScoreGradients, VisitingQueries};
use forward::{MAX_QUERY_ROWS_PER_TILE, MergeTask, RowTile, SegmentTask, SoftmaxState, TileTask};
pub(crate) use sequence::{BLOCK_KEYS, SequenceArrays};
use std::cell::RefCell;
use std::ptr::null_mut;

use vector::{LANES, dispatch};

/// A cache line. Working memory is allocated in whole cache lines, so that no vector crosses the end of one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

thread_local! {
    /// Working memory that each thread keeps between tasks.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    /// Gradients of scores, in the thread that launches a backward pass: at most
    /// [`backward::MAX_STORED_SCORE_GRADIENTS`] elements.
    static STORED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with the address of at least `len` f32 of this thread's working memory.
fn with_scratch(len: usize, f: impl FnOnce(*mut f32)) {
    SCRATCH.with_borrow_mut(|lines| {
        if lines.len() * LANES < len {
            lines.resize(len.div_ceil(LANES), Line([0.0; LANES]));
        }
        f(lines.as_mut_ptr().cast());
    });
}

/// The start of an array in which each task accesses only its own range of elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every task accesses only its own range.
unsafe impl Send for Shared {}
// SAFETY: every task accesses only its own range.
unsafe impl Sync for Shared {}

impl Shared {
    /// Returns the address `offset` elements after the start.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Computes the outputs of `seqs` sequences. `sequence(index, key head)` returns the arrays of one sequence and key
/// head.
///
/// # Safety
/// The machine supports `isa`; the pointers of every sequence cover its rows and keys; the outputs of different
/// sequences do not overlap.
pub(crate) unsafe fn forward_sequences<'a, T: Element>(
    isa: Isa,
    team: &Team,
    seqs: usize,
    kv_heads: usize,
    sequence: impl Fn(usize, usize) -> SequenceArrays<'a, T> + Sync,
) {
    let tiles = tiles_of(team, seqs, kv_heads, |seq| sequence(seq, 0));
    let tasks = tiles.len() * kv_heads;
    let sequences_of = |task: usize| -> Vec<_> {
        tiles[task / kv_heads].sequences.clone().map(|seq| sequence(seq, task % kv_heads)).collect()
    };
    // Elements of `parts`: (task, segment of 512 keys, offset of the segment's softmax state). The states lie one after
    // the other in memory.
    let (mut parts, mut offset) = (Vec::new(), 0);
    if team.threads() > 1 && tasks < 2 * team.threads() {
        // With few tiles, as in decoding, each segment (512 keys) of a tile becomes a task.
        for task in 0..tasks {
            let sequences = sequences_of(task);
            let tile = tiles[task / kv_heads].of(&sequences);
            for index in 0..tile.segment_count() {
                parts.push((task, index, offset));
                offset += SoftmaxState::element_count(tile.row_count(), sequences[0].head_dim);
            }
        }
    }
    if parts.len() <= tasks {
        team.run(tasks, |task| {
            // A thread takes the tasks of its share in ascending order, so the next task is usually `task + 1`.
            let (sequences, next) = (sequences_of(task), sequences_of((task + 1) % tasks));
            let next = tiles[(task + 1) % tasks / kv_heads].of(&next);
            let tile = RowTile { next: Some(&next), ..tiles[task / kv_heads].of(&sequences) };
            with_scratch(forward::scratch_element_count(tile.row_count(), sequences[0].head_dim), |scratch| {
                // SAFETY: the sequences' pointers cover their rows and keys; tiles do not overlap.
                unsafe { dispatch(isa, TileTask { tile: &tile, scratch }) }
            });
        });
        return;
    }
    let mut memory = vec![Line([0.0; LANES]); offset.div_ceil(LANES)];
    let states = Shared(memory.as_mut_ptr().cast());
    team.run(parts.len(), |part| {
        let (task, index, offset) = parts[part];
        let sequences = sequences_of(task);
        let tile = tiles[task / kv_heads].of(&sequences);
        with_scratch(forward::scratch_element_count(tile.row_count(), sequences[0].head_dim), |scratch| {
            // SAFETY: the sequences' pointers cover their rows and keys; every part has a state of its own.
            unsafe { dispatch(isa, SegmentTask { tile: &tile, index, state: states.at(offset), scratch }) }
        });
    });
    let firsts: Vec<(usize, usize)> =
        parts.iter().filter(|(_, index, _)| *index == 0).map(|&(task, _, offset)| (task, offset)).collect();
    team.run(firsts.len(), |i| {
        let (task, offset) = firsts[i];
        let sequences = sequences_of(task);
        let tile = tiles[task / kv_heads].of(&sequences);
        // SAFETY: the sequences' pointers cover their rows; the parts of a tile are adjacent from `offset` on, and
        // were filled above.
        unsafe { dispatch(isa, MergeTask { tile: &tile, states: states.at(offset) }) }
    });
}

/// The query rows of a tile, for any key head ([`RowTile`] adds the arrays of one key head).
struct Tile {
    sequences: std::ops::Range<usize>,
    first: usize,
    rows: usize,
}

impl Tile {
    /// Returns the tile for one key head. `sequences` has the arrays of the tile's sequences for that head.
    fn of<'a, T>(&self, sequences: &'a [SequenceArrays<'a, T>]) -> RowTile<'a, T> {
        RowTile { sequences, first: self.first, rows: self.rows, next: None }
    }
}

/// Divides the query rows of `seqs` sequences into tiles, in the order in which the threads compute them.
fn tiles_of<'a, T>(
    team: &Team,
    seqs: usize,
    kv_heads: usize,
    sequence: impl Fn(usize) -> SequenceArrays<'a, T>,
) -> Vec<Tile> {
    let sequences: Vec<_> = (0..seqs).map(sequence).collect();
    let rows = |seq: usize| sequences[seq].query_row_count();
    // Every tile loads its keys again, so larger tiles are better while there are enough of them for all threads.
    let (mut height, all) = (MAX_QUERY_ROWS_PER_TILE, (0..seqs).map(rows).sum::<usize>() * kv_heads);
    while height > MAX_QUERY_ROWS_PER_TILE / 8 && all / height < 4 * team.threads() {
        height /= 2;
    }
    // Neighbouring sequences share a tile if their rows fit in one tile, they have the same first block of keys, and
    // every thread still has work.
    let segments: usize = sequences.iter().map(|s| s.keys.div_ceil(forward::SEGMENT_KEYS)).sum();
    let mut tiles = Vec::new();
    let mut seq = 0;
    while seq < seqs {
        let rows = rows(seq);
        let others = sequences[seq + 1..].iter();
        let sharing = others.take_while(|s| s.query_row_count() == rows && sequences[seq].shares_block(0, s)).count();
        let most = (segments * kv_heads / team.threads()).min(MAX_QUERY_ROWS_PER_TILE / rows.max(1)).max(1);
        if rows > height || sharing == 0 || most == 1 {
            tiles.extend((0..rows).step_by(height).map(|first| Tile {
                sequences: seq..seq + 1,
                first,
                rows: height.min(rows - first),
            }));
            seq += 1;
            continue;
        }
        // The sequences of the group are divided evenly among its tiles.
        let (group, count) = (1 + sharing, (1 + sharing).div_ceil(most));
        for i in 0..count {
            tiles.push(Tile { sequences: seq + i * group / count..seq + (i + 1) * group / count, first: 0, rows });
        }
        seq += group;
    }
    // The last tiles of a causal sequence take longest. Each thread begins with the last tiles of its share, so that
    // all threads end at about the same time. A thread gets the same rows in every launch.
    for thread in 0..team.threads() {
        let share = team.share(thread, tiles.len());
        tiles[share].reverse();
    }
    tiles
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    // SAFETY: the addresses are valid as `FwdParams` documents; `isa` returns an instruction set of this machine.
    unsafe { fwd_on::<T>(isa(), p, team) }
}

/// Runs [`fwd`] on a given instruction set.
///
/// # Safety
/// The machine supports `isa`; the addresses cover what [`FwdParams`] says.
pub unsafe fn fwd_on<T: Element>(isa: Isa, p: &FwdParams, team: &Team) {
    // SAFETY: the addresses are valid as `FwdParams` documents.
    let packed = unsafe { Packed::new(p) };
    // SAFETY: the addresses cover what `FwdParams` documents, and `Packed::new` has checked the token ranges.
    unsafe {
        forward_sequences(isa, team, p.seqs as usize, p.kv_heads as usize, |seq, kv_head| {
            packed.sequence::<T>(seq, kv_head)
        })
    }
}

/// A sequence that sees some keys of a block; `first`, `keys` and `start` have the meaning that [`VisitingQueries`]
/// documents.
struct VisitingSequence {
    sequence: usize,
    first: usize,
    keys: usize,
    start: usize,
}

/// The sequences of a launch over a packed batch.
struct Packed<'a> {
    p: &'a FwdParams,
    /// For each sequence, two ranges of tokens: its own tokens, then its prefix. A range is (first token, number of
    /// tokens).
    ranges: Vec<[(usize, usize); 2]>,
}

impl<'a> Packed<'a> {
    /// # Safety
    /// Every address in [`FwdParams`] is valid for the documented shape and dtype.
    unsafe fn new(p: &'a FwdParams) -> Self {
        let (tokens, seqs) = (p.tokens as usize, p.seqs as usize);
        // SAFETY: cu_seqlens has `[seqs + 1]` i32.
        let cu = unsafe { slice_at::<i32>(p.cu_seqlens, seqs + 1) };
        // SAFETY: prefix is null or has `[seqs, 2]` i32.
        let prefix = if p.prefix.is_null() { &[] } else { unsafe { slice_at::<i32>(p.prefix, 2 * seqs) } };
        let mut ranges = Vec::new();
        for seq in 0..seqs {
            let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
            assert!(
                first <= end && end <= tokens,
                "cu_seqlens: the tokens {first}..{end} of sequence {seq} are not a range within 0..{tokens}"
            );
            let (from, count) = prefix.get(2 * seq..2 * seq + 2).map_or((0, 0), |x| (x[0] as usize, x[1] as usize));
            assert!(
                from <= tokens && count <= tokens - from,
                "prefix of sequence {seq}: {count} tokens from token {from} on exceed the {tokens} tokens of the batch"
            );
            ranges.push([(first, end - first), (from, count)]);
        }
        Packed { p, ranges }
    }

    /// Returns the arrays of sequence `seq` and key head `kv_head`.
    fn sequence<T>(&self, seq: usize, kv_head: usize) -> SequenceArrays<'_, T> {
        let p = self.p;
        let (heads, kv_heads, d) = (p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
        let [(first, queries), (from, prefix)] = self.ranges[seq];
        let head = first * heads + kv_head * (heads / kv_heads);
        let own = |address: u64| (address as *const T).wrapping_add((first * kv_heads + kv_head) * d);
        SequenceArrays {
            q: (p.q.0 as *const T).wrapping_add(head * d),
            o: (p.o.0 as *mut T).wrapping_add(head * d),
            lse: if p.lse.is_null() { null_mut() } else { (p.lse.0 as *mut f32).wrapping_add(head) },
            k: own(p.k.0),
            v: own(p.v.0),
            key_stride: kv_heads * d,
            prefix: (prefix, (from as isize - first as isize) * (kv_heads * d) as isize),
            table: None,
            queries,
            keys: prefix + queries,
            causal: p.causal != 0,
            heads,
            kv_heads,
            head_dim: d,
            scale: p.scale,
        }
    }

    /// Returns the sequences that see any of the keys start .. start + [`BLOCK_KEYS`] of sequence `seq`, in ascending
    /// order.
    fn visits(&self, seq: usize, start: usize) -> Vec<VisitingSequence> {
        let [(first, len), _] = self.ranges[seq];
        let (token, keys) = (first + start, BLOCK_KEYS.min(len - start));
        let mut visits = Vec::new();
        for (other, [(_, queries), (from, count)]) in self.ranges.iter().copied().enumerate() {
            let (begin, end) = (from.max(token), (from + count).min(token + keys));
            if queries > 0 && begin < end {
                visits.push(VisitingSequence {
                    sequence: other,
                    first: begin - token,
                    keys: end - begin,
                    start: begin - from,
                });
            }
            if other == seq {
                visits.push(VisitingSequence { sequence: seq, first: 0, keys, start: count + start });
            }
        }
        visits
    }
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    // SAFETY: the addresses are valid as `BwdParams` documents; `isa` returns an instruction set of this machine.
    unsafe { bwd_on::<T>(isa(), p, team) }
}

/// Runs [`bwd`] on a given instruction set.
///
/// # Safety
/// The machine supports `isa`; the addresses cover what [`BwdParams`] says.
pub unsafe fn bwd_on<T: Element>(isa: Isa, p: &BwdParams, team: &Team) {
    // SAFETY: the conditions of this function.
    unsafe { bwd_with_stored_limit::<T>(isa, p, team, backward::MAX_STORED_SCORE_GRADIENTS) }
}

/// Runs [`bwd_on`] and stores the gradients of the scores if they are at most `max_stored` elements. The results are
/// the same with any limit.
///
/// # Safety
/// The conditions of [`bwd_on`].
pub(super) unsafe fn bwd_with_stored_limit<T: Element>(isa: Isa, p: &BwdParams, team: &Team, max_stored: usize) {
    let (seqs, kv_heads) = (p.seqs as usize, p.kv_heads as usize);
    let forward = p.forward_params();
    // SAFETY: the addresses are valid as `BwdParams` documents.
    let packed = unsafe { Packed::new(&forward) };
    // Tokens after the last sequence belong to no sequence: they have no output and no delta.
    let rows = packed.ranges.last().map_or(0, |r| r[0].0 + r[0].1) * p.heads as usize;
    team.run(rows.div_ceil(backward::QUERY_ROWS_PER_DELTA_TASK), |task| {
        let first = task * backward::QUERY_ROWS_PER_DELTA_TASK;
        let rows = backward::QUERY_ROWS_PER_DELTA_TASK.min(rows - first);
        // SAFETY: o, d_o and delta cover the rows; tasks have different rows.
        unsafe { dispatch(isa, DeltaTask::<T>::new(p, first, rows)) }
    });
    let group = p.heads as usize / kv_heads;
    // `offsets`: for each sequence, where the stored gradients of its scores begin, for its first key head.
    let (mut offsets, mut stored_count) = (Vec::new(), 0);
    let stride_of = |seq: usize| {
        let [(_, own), (_, prefix)] = packed.ranges[seq];
        StoredScoreGradients::stride(prefix + own)
    };
    for seq in 0..seqs {
        offsets.push(stored_count);
        stored_count += packed.ranges[seq][0].1 * group * stride_of(seq) * kv_heads;
    }
    let stores = stored_count <= max_stored;
    let mut memory = STORED.take();
    if stores && memory.len() * LANES < stored_count {
        memory.resize(stored_count.div_ceil(LANES), Line([0.0; LANES]));
    }
    let stored = Shared(memory.as_mut_ptr().cast());
    let stored_of = |seq: usize, kv_head: usize| {
        let rows = packed.ranges[seq][0].1 * group;
        stores.then(|| StoredScoreGradients {
            rows: stored.at(offsets[seq] + kv_head * rows * stride_of(seq)),
            stride: stride_of(seq),
        })
    };
    // An item has the sequence, the first key or query row, and true if the task is for query rows (dq).
    let lens = || packed.ranges.iter().map(|[(_, len), _]| *len).enumerate();
    let key_items = lens().flat_map(|(seq, len)| (0..len).step_by(BLOCK_KEYS).map(move |key| (seq, key, false)));
    let row_items = lens().flat_map(|(seq, len)| {
        (0..len * group).step_by(backward::QUERY_ROWS_PER_CHUNK).map(move |row| (seq, row, true))
    });
    let run = |items: &[(usize, usize, bool)]| {
        team.run(items.len() * kv_heads, |task| {
            let ((seq, at, queries), kv_head) = (items[task / kv_heads], task % kv_heads);
            with_scratch(backward::scratch_element_count(p.head_dim as usize), |scratch| {
                let gradient = |seq: usize| -> BackwardArrays<T> {
                    let at = (packed.ranges[seq][0].0, kv_head);
                    BackwardArrays::new(p, packed.sequence(seq, kv_head), at, stored_of(seq, kv_head), scratch)
                };
                // SAFETY: the addresses are valid as `BwdParams` documents; tasks write different keys or rows.
                unsafe {
                    if queries {
                        dispatch(isa, QueryGradientTask { arrays: &gradient(seq), first_row: at });
                    } else {
                        let visits: Vec<_> = packed
                            .visits(seq, at)
                            .into_iter()
                            .map(|visit| VisitingQueries {
                                gradient: gradient(visit.sequence),
                                first: visit.first,
                                keys: visit.keys,
                                start: visit.start,
                            })
                            .collect();
                        dispatch(isa, KeyGradientTask { arrays: &gradient(seq), first_key: at, visits: &visits });
                    }
                }
            });
        })
    };
    if stores {
        run(&key_items.collect::<Vec<_>>());
        run(&row_items.collect::<Vec<_>>());
    } else {
        run(&key_items.chain(row_items).collect::<Vec<_>>());
    }
    STORED.set(memory);
}
