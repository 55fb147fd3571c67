//! Forward attention of a tile of query rows of one key head over the keys of their sequence.
//!
//! The rows of a tile are pairs (position, query head): all query heads that share a key head use its keys together.
//! In decoding, a tile may have the rows of several sequences. If the sequences share the pages of a block of keys,
//! as completions of one prompt do, the block is read once for all of them. The order of each row's arithmetic does
//! not depend on the tile:
//!
//! ```text
//! for each segment of 512 keys:                # when decoding, threads share the segments of a sequence
//!   part = empty
//!   for each block of 64 keys: scores = q k^T; part = online softmax of (part, scores); part.o += p v
//!   total = merge(total, part)
//! o = total.o / total.sum; lse = total.max + ln(total.sum)
//! ```
//!
//! Products read 32-bit *words*: f32 elements, or pairs of bf16 elements where the instruction set multiplies pairs
//! ([`WordContents`]). Pairs of q and k are neighbours in a row, pairs of p and v belong to two adjacent keys. p is
//! then rounded to bf16 before it is multiplied by v, as on a GPU's tensor cores.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use reel_device::{DType, Element};

use super::few::scores_of_few_rows;
use super::load::{
    load_pairs_of_rows, load_row, load_transposed_rows, load_zero_padded_rows, store_row_rounded,
    word_contents_of_rows, zero_pad_rows_of_pairs,
};
use super::product::{SmallProduct, WordContents};
use super::sequence::{BLOCK_KEYS, SequenceArrays, joined_block_element_count};
use super::vector::{LANES, Vector, VectorCode};

pub const SEGMENT_KEYS: usize = 8 * BLOCK_KEYS;
/// Maximum number of query rows of a tile.
pub const MAX_QUERY_ROWS_PER_TILE: usize = 128;
/// Number of rows whose scores are computed at a time. Each group of rows reads the block of keys and values again;
/// with 32 rows these reads are cheap.
const ROWS: usize = 32;
/// Maximum number of query rows for which the keys of a block are transposed in registers and not stored. With so few
/// rows, as in decoding, each block is used only once. f32 elements need twice as many registers as pairs, and more
/// than 4 rows of f32 would spill. AMX tiles read keys from memory, so the limit is 0 for them.
const fn few_rows<V: Vector>(pairs: bool) -> usize {
    match (pairs, V::DOTS) {
        (false, _) => 4,
        (true, true) => 8,
        (true, false) => 0,
    }
}

/// Query rows that are computed together: adjacent rows of one sequence, or all rows of several neighbouring sequences
/// with one new token each.
pub struct RowTile<'a, T> {
    pub sequences: &'a [SequenceArrays<'a, T>],
    /// First row of each sequence.
    pub first: usize,
    /// Number of rows of each sequence.
    pub rows: usize,
    /// The tile that the same thread computes next, if known: its first keys and values are prefetched at the end of
    /// this tile. In decoding a tile has so few keys that it would otherwise mostly wait for memory.
    pub next: Option<&'a RowTile<'a, T>>,
}

/// A block of keys, from key `start` on, of a tile's `sequences` sequences from `first_sequence` on. If there are
/// several sequences, they share the block, and all their rows see the whole block.
#[derive(Clone, Copy)]
pub struct KeyBlockVisit {
    pub start: usize,
    pub first_sequence: usize,
    pub sequences: usize,
}

impl<T> RowTile<'_, T> {
    /// Number of rows of all sequences. The rows of one sequence are adjacent in queries, states and scores.
    pub fn row_count(&self) -> usize {
        self.sequences.len() * self.rows
    }

    /// Returns the number of keys that the last row of a sequence of this tile sees. No other row of the sequence
    /// sees more keys.
    fn visible_key_count(&self, sequence: &SequenceArrays<'_, T>) -> usize {
        sequence.visible_key_count(self.first + self.rows - 1)
    }

    /// Returns the number of segments (512 keys each) into which the keys that the tile sees are divided.
    pub fn segment_count(&self) -> usize {
        let keys = self.sequences.iter().map(|s| self.visible_key_count(s)).max();
        keys.unwrap_or(0).div_ceil(SEGMENT_KEYS)
    }

    /// Returns the first visit to the block of keys from `start` on. Its first sequence is the first one, from number
    /// `from` on, that sees any of these keys. The visit also has the next sequences that share the block.
    pub fn find_visit(&self, start: usize, from: usize) -> Option<KeyBlockVisit> {
        let sees = |s: &SequenceArrays<'_, T>| self.visible_key_count(s) > start;
        let first_sequence = from + self.sequences[from..].iter().position(sees)?;
        let (sequence, others) = self.sequences[first_sequence..].split_first()?;
        let sharing = others.iter().take_while(|other| sequence.shares_block(start, other)).count();
        Some(KeyBlockVisit { start, first_sequence, sequences: 1 + sharing })
    }

    /// Returns the visit after `visit`. It has the next sequences with the same block of keys, or else the first
    /// sequences with the next block.
    pub fn visit_after(&self, visit: KeyBlockVisit) -> Option<KeyBlockVisit> {
        let same_block = self.find_visit(visit.start, visit.first_sequence + visit.sequences);
        same_block.or_else(|| self.find_visit(visit.start + BLOCK_KEYS, 0))
    }
}

/// Rounds `n` up to a multiple of the vector width.
pub const fn round_up_to_lanes(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// State of the online softmax of a tile's rows. Each row has an output that is not yet divided by its sum, sixteen
/// partial sums of exponentials, and a maximum.
#[derive(Clone, Copy)]
pub struct SoftmaxState {
    o: *mut f32,
    sums: *mut f32,
    row_max: *mut f32,
}

impl SoftmaxState {
    /// Returns the number of f32 elements that the state of `rows` rows needs.
    pub const fn element_count(rows: usize, head_dim: usize) -> usize {
        // The code loads `ROWS` maxima at a time, from any row on, so `ROWS` more elements follow the last row's
        // maximum.
        rows * (round_up_to_lanes(head_dim) + LANES) + round_up_to_lanes(rows) + ROWS
    }

    /// Makes the state of `rows` rows in the memory at `p`.
    ///
    /// # Safety
    /// There are [`SoftmaxState::element_count`] elements at `p`.
    pub unsafe fn from_memory(p: *mut f32, rows: usize, head_dim: usize) -> SoftmaxState {
        let sums = p.add(rows * round_up_to_lanes(head_dim));
        SoftmaxState { o: p, sums, row_max: sums.add(rows * LANES) }
    }

    /// Returns the state of the rows from `row` on.
    unsafe fn of_rows_from(self, row: usize, head_dim: usize) -> SoftmaxState {
        SoftmaxState {
            o: self.o.add(row * round_up_to_lanes(head_dim)),
            sums: self.sums.add(row * LANES),
            row_max: self.row_max.add(row),
        }
    }
}

/// Working memory of a tile.
struct Scratch {
    /// Queries, `[rows, words of head_dim]`.
    q: *mut f32,
    /// A block of keys, `[words of head_dim, BLOCK_KEYS]`.
    k: *mut f32,
    /// A block of values, `[words of BLOCK_KEYS, round_up_to_lanes(head_dim)]`.
    v: *mut f32,
    /// Scores, then probabilities, `[ROWS, BLOCK_KEYS]`; pairs are in the first half of each row.
    scores: *mut f32,
    /// Copy of a block of keys and values in which the prefix ends ([`SequenceArrays::joined_block`]).
    joined: *mut f32,
    rest: *mut f32,
}

/// Returns the number of f32 elements of working memory that a tile needs.
pub const fn scratch_element_count(rows: usize, head_dim: usize) -> usize {
    round_up_to_lanes(rows * head_dim)
        + 2 * BLOCK_KEYS * round_up_to_lanes(head_dim)
        + ROWS * BLOCK_KEYS
        + joined_block_element_count(head_dim)
        + 2 * SoftmaxState::element_count(rows, head_dim)
}

impl Scratch {
    unsafe fn at(p: *mut f32, rows: usize, head_dim: usize) -> Scratch {
        let k = p.add(round_up_to_lanes(rows * head_dim));
        let v = k.add(BLOCK_KEYS * round_up_to_lanes(head_dim));
        let scores = v.add(BLOCK_KEYS * round_up_to_lanes(head_dim));
        let joined = scores.add(ROWS * BLOCK_KEYS);
        Scratch { q: p, k, v, scores, joined, rest: joined.add(joined_block_element_count(head_dim)) }
    }
}

/// A task that computes the attention of a tile over all keys that it sees, with the working memory `scratch`.
pub struct TileTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub scratch: *mut f32,
}

/// # Safety
/// The pointers of each sequence cover its rows and keys, its block table covers its keys, and the scratch has
/// [`scratch_element_count`] elements.
impl<T: Element> VectorCode for TileTask<'_, T> {
    const DTYPE: DType = T::DTYPE;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let TileTask { tile, scratch } = self;
        let (d, rows) = (tile.sequences[0].head_dim, tile.row_count());
        let scratch = Scratch::at(scratch, rows, d);
        let total = SoftmaxState::from_memory(scratch.rest, rows, d);
        let part = SoftmaxState::from_memory(scratch.rest.add(SoftmaxState::element_count(rows, d)), rows, d);
        prefetch::<V, T>(tile, tile.find_visit(0, 0));
        load_queries(word_contents_of_rows::<V, T>(d), tile, &scratch);
        segment::<V, T>(tile, 0, total, &scratch);
        for index in 1..tile.segment_count() {
            segment::<V, T>(tile, index, part, &scratch);
            merge::<V, T>(tile, index, total, part);
        }
        finish::<V, T>(tile, total);
    }
}

/// A task that computes segment `index` (512 keys) of a tile and leaves the softmax state of this segment for
/// [`MergeTask`].
pub struct SegmentTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub index: usize,
    pub state: *mut f32,
    pub scratch: *mut f32,
}

/// # Safety
/// The conditions of [`TileTask`]; the state has [`SoftmaxState::element_count`] elements.
impl<T: Element> VectorCode for SegmentTask<'_, T> {
    const DTYPE: DType = T::DTYPE;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let SegmentTask { tile, index, state, scratch } = self;
        let (d, rows) = (tile.sequences[0].head_dim, tile.row_count());
        let scratch = Scratch::at(scratch, rows, d);
        prefetch::<V, T>(tile, tile.find_visit(index * SEGMENT_KEYS, 0));
        load_queries(word_contents_of_rows::<V, T>(d), tile, &scratch);
        segment::<V, T>(tile, index, SoftmaxState::from_memory(state, rows, d), &scratch);
    }
}

/// A task that merges the softmax states of a tile's segments (512 keys each) and writes the output. The states are
/// adjacent in memory.
pub struct MergeTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub states: *mut f32,
}

/// # Safety
/// A [`SegmentTask`] has filled the state of every segment.
impl<T: Element> VectorCode for MergeTask<'_, T> {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let MergeTask { tile, states } = self;
        let (d, rows) = (tile.sequences[0].head_dim, tile.row_count());
        let total = SoftmaxState::from_memory(states, rows, d);
        for index in 1..tile.segment_count() {
            let part = SoftmaxState::from_memory(states.add(index * SoftmaxState::element_count(rows, d)), rows, d);
            merge::<V, T>(tile, index, total, part);
        }
        finish::<V, T>(tile, total);
    }
}

/// Prefetches the keys and values of `visit`, or of the first visit of the next tile if there is none. The keys of one
/// head are far apart in memory, so hardware prefetchers do not find them.
#[inline(always)]
unsafe fn prefetch<V: Vector, T: Element>(tile: &RowTile<'_, T>, visit: Option<KeyBlockVisit>) {
    let of_next = || tile.next.and_then(|next| Some((next, next.find_visit(0, 0)?)));
    let Some((tile, visit)) = visit.map(|visit| (tile, visit)).or_else(of_next) else { return };
    let s = &tile.sequences[visit.first_sequence];
    let keys = BLOCK_KEYS.min(tile.visible_key_count(s) - visit.start);
    for j in (0..keys).step_by(LANES) {
        let at = s.key_offset(visit.start + j);
        let (mut k, mut v) = (s.k.wrapping_offset(at), s.v.wrapping_offset(at));
        for _ in j..keys.min(j + LANES) {
            for c in (0..s.head_dim).step_by(64 / size_of::<T>()) {
                V::prefetch(k.wrapping_add(c));
                V::prefetch(v.wrapping_add(c));
            }
            (k, v) = (k.wrapping_add(s.key_stride), v.wrapping_add(s.key_stride));
        }
    }
}

#[inline(always)]
unsafe fn load_queries<T: Element>(words: WordContents, tile: &RowTile<'_, T>, scratch: &Scratch) {
    let mut to = scratch.q;
    for s in tile.sequences {
        for r in 0..tile.rows {
            load_row(words, s.q.add(s.head_index(tile.first + r) * s.head_dim), s.head_dim, to);
            to = to.add(words.word_count(s.head_dim));
        }
    }
}

/// Computes the softmax state over the keys of segment `index` (512 keys), for all rows of the tile that see any of
/// them.
#[inline(always)]
unsafe fn segment<V: Vector, T: Element>(tile: &RowTile<'_, T>, index: usize, state: SoftmaxState, scratch: &Scratch) {
    let (d, rows) = (tile.sequences[0].head_dim, tile.row_count());
    for c in (0..rows * (round_up_to_lanes(d) + LANES)).step_by(LANES) {
        V::splat(0.0).store(state.o.add(c));
    }
    for c in (0..round_up_to_lanes(rows) + ROWS).step_by(LANES) {
        V::splat(f32::NEG_INFINITY).store(state.row_max.add(c));
    }
    let mut coming = tile.find_visit(index * SEGMENT_KEYS, 0);
    while let Some(visit) = coming.filter(|visit| visit.start < (index + 1) * SEGMENT_KEYS) {
        coming = tile.visit_after(visit);
        let s = &tile.sequences[visit.first_sequence];
        let joined = s.joined_block(visit.start, tile.visible_key_count(s), scratch.joined);
        let s = joined.as_ref().unwrap_or(s);
        match word_contents_of_rows::<V, T>(d) {
            WordContents::Elements => block::<V, T, T, false>(tile, s, s, visit, coming, state, scratch),
            WordContents::Pairs => block::<V, T, f32, true>(tile, s, &s.pairs(), visit, coming, state, scratch),
        }
    }
}

/// Adds the block of keys of `visit` to the softmax state, and prefetches the block of the next visit, `coming`. `s` is
/// the first sequence of the visit. `keyed` has the arrays of `s` as 32-bit words: f32 elements or, with `PAIRS`, pairs
/// of bf16.
#[inline(always)]
unsafe fn block<V: Vector, T: Element, W: Element, const PAIRS: bool>(
    tile: &RowTile<'_, T>,
    s: &SequenceArrays<'_, T>,
    keyed: &SequenceArrays<'_, W>,
    visit: KeyBlockVisit,
    coming: Option<KeyBlockVisit>,
    state: SoftmaxState,
    scratch: &Scratch,
) {
    let words = if PAIRS { WordContents::Pairs } else { WordContents::Elements };
    let (row_words, padded) = (keyed.head_dim, round_up_to_lanes(s.head_dim));
    let start = visit.start;
    let keys = BLOCK_KEYS.min(tile.visible_key_count(s) - start);
    // The rows of the sequences that see the block. If there are several sequences, all their rows see the whole block.
    let (first_row, row_count) = (visit.first_sequence * tile.rows, visit.sequences * tile.rows);
    let (queries, state) = (scratch.q.add(first_row * row_words), state.of_rows_from(first_row, s.head_dim));
    let few = row_count <= few_rows::<V>(PAIRS);
    if !few {
        for j in (0..keys).step_by(LANES) {
            let (at, count) = (keyed.key_offset(start + j), LANES.min(keys - j));
            load_transposed_rows::<V, W>(
                keyed.k.wrapping_offset(at),
                keyed.key_stride,
                count,
                row_words,
                scratch.k.add(j),
            );
        }
    }
    if PAIRS && !few {
        zero_pad_rows_of_pairs::<V>(scratch.k, row_words, BLOCK_KEYS);
    }
    let (values, value_stride) = values::<V, T>(words, s, start, keys, scratch.v);
    prefetch::<V, T>(tile, coming);
    let first = s.first_query_row_that_sees(start).saturating_sub(tile.first);
    for row in (first..row_count).step_by(ROWS) {
        let rows = ROWS.min(row_count - row);
        let mut limits = [0; ROWS];
        for (limit, seen) in limits.iter_mut().take(rows).zip(s.visible_key_counts(tile.first + row)) {
            *limit = BLOCK_KEYS.min(seen - start);
        }
        let q = queries.add(row * row_words);
        match rows {
            1 if few => scores_of_few_rows::<V, W, PAIRS, 1>(keyed, start, keys, q, scratch.scores),
            2 if few => scores_of_few_rows::<V, W, PAIRS, 2>(keyed, start, keys, q, scratch.scores),
            3 if few => scores_of_few_rows::<V, W, PAIRS, 3>(keyed, start, keys, q, scratch.scores),
            4 if few => scores_of_few_rows::<V, W, PAIRS, 4>(keyed, start, keys, q, scratch.scores),
            5 if few && PAIRS => scores_of_few_rows::<V, W, PAIRS, 5>(keyed, start, keys, q, scratch.scores),
            6 if few && PAIRS => scores_of_few_rows::<V, W, PAIRS, 6>(keyed, start, keys, q, scratch.scores),
            7 if few && PAIRS => scores_of_few_rows::<V, W, PAIRS, 7>(keyed, start, keys, q, scratch.scores),
            8 if few && PAIRS => scores_of_few_rows::<V, W, PAIRS, 8>(keyed, start, keys, q, scratch.scores),
            _ => V::product(&SmallProduct {
                words,
                rows,
                a: q,
                a_row: row_words,
                a_inner: 1,
                inner: s.head_dim,
                limits: std::ptr::null(),
                b: scratch.k,
                b_row: BLOCK_KEYS,
                cols: limits[rows - 1].div_ceil(LANES),
                c: scratch.scores,
                c_row: BLOCK_KEYS,
                alpha: std::ptr::null(),
            }),
        }
        let alpha = softmax::<V, PAIRS>(&limits[..rows], s.scale, state, row, scratch.scores);
        V::product(&SmallProduct {
            words,
            rows,
            a: scratch.scores,
            a_row: BLOCK_KEYS,
            a_inner: 1,
            inner: BLOCK_KEYS,
            limits: limits.as_ptr(),
            b: values,
            b_row: value_stride,
            cols: padded / LANES,
            c: state.o.add(row * padded),
            c_row: padded,
            alpha: alpha.as_ptr(),
        });
    }
}

/// Returns the address and row stride of a block's values, in words: f32 rows, or pairs of adjacent keys' rows. f32
/// values stay where they are if whole vectors can be read there; others are copied to `copy`.
#[inline(always)]
unsafe fn values<V: Vector, T: Element>(
    words: WordContents,
    s: &SequenceArrays<'_, T>,
    start: usize,
    keys: usize,
    copy: *mut f32,
) -> (*const f32, usize) {
    let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
    if T::DTYPE == DType::F32 && d == padded && s.has_contiguous_blocks() {
        return (s.v.wrapping_offset(s.key_offset(start)).cast(), s.key_stride);
    }
    for j in (0..keys).step_by(LANES) {
        let (from, count) = (s.v.wrapping_offset(s.key_offset(start + j)), LANES.min(keys - j));
        match words {
            WordContents::Elements => {
                load_zero_padded_rows::<V, T>(from, s.key_stride, count, d, copy.add(j * padded));
            }
            WordContents::Pairs => {
                let row = |i: usize| from.wrapping_add(i * s.key_stride);
                load_pairs_of_rows::<V, T>(row, count, d, copy.add(j / 2 * padded));
            }
        }
    }
    if words == WordContents::Pairs {
        zero_pad_rows_of_pairs::<V>(copy, keys.div_ceil(2), padded);
    }
    (copy, padded)
}

/// Replaces the products q k^T of some rows by probabilities relative to the rows' new maxima. Returns for each row
/// the factor that rescales its older sums to the new maximum. With `PAIRS` the probabilities become pairs of bf16,
/// which lie at the start of the row. The row's sum adds the f32 probabilities, before they are rounded to bf16.
#[inline(always)]
unsafe fn softmax<V: Vector, const PAIRS: bool>(
    limits: &[usize],
    scale: f32,
    state: SoftmaxState,
    row: usize,
    scores: *mut f32,
) -> [f32; ROWS] {
    let mut row_maxes = [f32::NEG_INFINITY; ROWS];
    let scale = V::splat(scale);
    for (r, &limit) in limits.iter().enumerate() {
        let line = scores.add(r * BLOCK_KEYS);
        let mut row_max = V::splat(f32::NEG_INFINITY);
        if limit == BLOCK_KEYS {
            for c in 0..BLOCK_KEYS / LANES {
                let x = V::load(line.add(c * LANES)).mul(scale);
                x.store(line.add(c * LANES));
                row_max = x.max(row_max);
            }
        } else {
            for c in (0..limit).step_by(LANES) {
                let x = V::load(line.add(c)).mul(scale).keep(limit - c, V::splat(f32::NEG_INFINITY));
                x.store(line.add(c));
                row_max = x.max(row_max);
            }
        }
        let (before, now) = (state.row_max.add(row + r).read(), row_max.max_lane());
        row_maxes[r] = if now > before { now } else { before };
    }
    let mut alpha = [0.0; ROWS];
    for r in (0..limits.len()).step_by(LANES) {
        let x = V::load(state.row_max.add(row + r)).sub(V::load(row_maxes.as_ptr().add(r)));
        x.exp().store(alpha.as_mut_ptr().add(r));
    }
    for (r, &limit) in limits.iter().enumerate() {
        state.row_max.add(row + r).write(row_maxes[r]);
        let line = scores.add(r * BLOCK_KEYS);
        let row_max = V::splat(row_maxes[r]);
        let mut p = [V::splat(0.0); BLOCK_KEYS / LANES];
        if limit == BLOCK_KEYS {
            for (c, p) in p.iter_mut().enumerate() {
                *p = V::load(line.add(c * LANES)).sub(row_max).exp();
                store_probabilities::<V, PAIRS>(*p, line, c);
            }
        } else {
            for (c, p) in p.iter_mut().enumerate() {
                if c * LANES < limit {
                    *p = V::load(line.add(c * LANES)).sub(row_max).exp();
                    store_probabilities::<V, PAIRS>(*p, line, c);
                }
            }
        }
        let sum = p[0].add(p[1]).add(p[2].add(p[3]));
        let sums = state.sums.add((row + r) * LANES);
        V::load(sums).mul_add(V::splat(alpha[r]), sum).store(sums);
    }
    alpha
}

/// Stores the probabilities of vector `c` of a row. A pair takes half the memory of two scores, so it overwrites only
/// scores that have been read.
#[inline(always)]
unsafe fn store_probabilities<V: Vector, const PAIRS: bool>(p: V, line: *mut f32, c: usize) {
    if PAIRS { p.store_bf16(line.add(c * LANES / 2)) } else { p.store(line.add(c * LANES)) }
}

/// Merges the softmax state of segment `index` (512 keys) into `total`, the state of the segments before it.
#[inline(always)]
unsafe fn merge<V: Vector, T>(tile: &RowTile<'_, T>, index: usize, total: SoftmaxState, part: SoftmaxState) {
    let padded = round_up_to_lanes(tile.sequences[0].head_dim);
    for (i, s) in tile.sequences.iter().enumerate() {
        let first = s.first_query_row_that_sees(index * SEGMENT_KEYS).saturating_sub(tile.first);
        for row in i * tile.rows + first..(i + 1) * tile.rows {
            let (a, b) = (total.row_max.add(row).read(), part.row_max.add(row).read());
            let row_max = if b > a { b } else { a };
            total.row_max.add(row).write(row_max);
            let (a, b) = (V::splat(a - row_max).exp(), V::splat(b - row_max).exp());
            for c in (0..padded).step_by(LANES) {
                let (x, y) = (total.o.add(row * padded + c), part.o.add(row * padded + c));
                V::load(x).mul_add(a, V::load(y).mul(b)).store(x);
            }
            let (x, y) = (total.sums.add(row * LANES), part.sums.add(row * LANES));
            V::load(x).mul_add(a, V::load(y).mul(b)).store(x);
        }
    }
}

/// Divides each row's output by its sum of exponentials and stores output and log-sum-exp.
#[inline(always)]
unsafe fn finish<V: Vector, T: Element>(tile: &RowTile<'_, T>, state: SoftmaxState) {
    for (i, s) in tile.sequences.iter().enumerate() {
        let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
        let state = state.of_rows_from(i * tile.rows, d);
        for row in 0..tile.rows {
            let sum = V::load(state.sums.add(row * LANES)).sum();
            let line = state.o.add(row * padded);
            for c in (0..padded).step_by(LANES) {
                V::load(line.add(c)).div(V::splat(sum)).store(line.add(c));
            }
            let head = s.head_index(tile.first + row);
            store_row_rounded(line, d, s.o.add(head * d));
            if !s.lse.is_null() {
                let lse = state.row_max.add(row).read() as f64 + (sum as f64).ln();
                s.lse.add(head).write(lse as f32);
            }
        }
    }
}
