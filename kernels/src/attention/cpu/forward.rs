//! Forward attention of a tile of query rows of one key head over the keys of their sequence.
//!
//! The rows of a tile are pairs (position, query head): all query heads that share a key head use its keys together.
//! The order of each row's arithmetic does not depend on the tile:
//!
//! ```text
//! for each segment of 512 keys:                # when decoding, threads share the segments of a sequence
//!   part = empty
//!   for each block of 64 keys: scores = q k^T; part = online softmax of (part, scores); part.o += p v
//!   total = merge(total, part)
//! o = total.o / total.sum; lse = total.max + ln(total.sum)
//! ```
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use super::few::scores_of_few_rows;
use super::product::SmallProduct;
use super::vector::{LANES, Vector, VectorCode};
use crate::{DType, Element};

/// Number of keys of a block; also the block size of the KV cache.
pub const BLOCK_KEYS: usize = 64;
pub const SEGMENT_KEYS: usize = 8 * BLOCK_KEYS;
/// Maximum number of query rows of a tile.
pub const MAX_QUERY_ROWS_PER_TILE: usize = 128;
/// Number of rows whose scores are computed at a time. Each group of rows reads the block of keys and values again;
/// with 32 rows these reads are cheap.
const ROWS: usize = 32;
/// Maximum number of query rows for which the keys of a block are transposed in registers and not stored. With so few
/// rows, as in decoding, each block is used only once.
const FEW: usize = 4;

/// The arrays of one sequence and key head.
pub struct SequenceArrays<'a, T> {
    /// Query of the first new token, for the first query head that uses the key head.
    pub q: *const T,
    /// Output of the first new token, for the first query head that uses the key head.
    pub o: *mut T,
    /// Log-sum-exp of the first new token, for the first query head that uses the key head; may be null.
    pub lse: *mut f32,
    /// Keys of the key head.
    pub k: *const T,
    /// Values of the key head.
    pub v: *const T,
    /// Block table of a paged KV cache, and the number of tokens of its pages, a multiple of [`LANES`]. `None` if the
    /// keys are contiguous.
    pub table: Option<(&'a [i32], usize)>,
    /// Number of new tokens.
    pub queries: usize,
    /// Number of keys, including those of the new tokens.
    pub keys: usize,
    /// Whether a query sees only the keys up to its own position.
    pub causal: bool,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl<T> SequenceArrays<'_, T> {
    /// Number of query heads that use the key head.
    pub fn heads_per_key_head(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Returns the number of query rows: new tokens times query heads that use the key head.
    pub fn query_row_count(&self) -> usize {
        self.queries * self.heads_per_key_head()
    }

    /// Returns the number of keys that query row `row` sees.
    pub fn visible_key_count(&self, row: usize) -> usize {
        if self.causal { self.keys - self.queries + row / self.heads_per_key_head() + 1 } else { self.keys }
    }

    /// Returns the first query row that sees key `key`.
    pub fn first_query_row_that_sees(&self, key: usize) -> usize {
        if self.causal { (key + self.queries).saturating_sub(self.keys) * self.heads_per_key_head() } else { 0 }
    }

    /// Returns the index of the query head of row `row` in `q` and `o`, counted in heads from the addresses `q` and
    /// `o`.
    pub fn head_index(&self, row: usize) -> usize {
        row / self.heads_per_key_head() * self.heads + row % self.heads_per_key_head()
    }

    /// Returns the index of the first element of key `key` in `k` and `v`. `key` is a multiple of [`LANES`]; it and
    /// the next [`LANES`] - 1 keys are [`Self::key_stride`] elements apart.
    pub fn key_offset(&self, key: usize) -> usize {
        let slot = self.table.map_or(key, |(table, page)| table[key / page] as usize * page + key % page);
        slot * self.key_stride()
    }

    /// Returns the number of elements from one key to the next.
    pub fn key_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Tells whether the keys of each block are contiguous in memory.
    fn has_contiguous_blocks(&self) -> bool {
        self.table.is_none_or(|(_, page)| page.is_multiple_of(BLOCK_KEYS))
    }
}

/// Some adjacent query rows of a sequence, which are computed together.
pub struct RowTile<'a, T> {
    pub sequence: &'a SequenceArrays<'a, T>,
    pub first: usize,
    pub rows: usize,
    /// The tile that the same thread computes next, if known: its first keys and values are prefetched at the end of
    /// this tile. In decoding a tile has so few keys that it would mostly wait for its own.
    pub next: Option<&'a RowTile<'a, T>>,
}

impl<T> RowTile<'_, T> {
    /// Returns the number of keys that the tile's last row sees; the other rows see at most as many.
    pub fn visible_key_count(&self) -> usize {
        self.sequence.visible_key_count(self.first + self.rows - 1)
    }

    /// Returns the number of segments into which the keys that the tile sees are divided.
    pub fn segment_count(&self) -> usize {
        self.visible_key_count().div_ceil(SEGMENT_KEYS)
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
    pub unsafe fn at(p: *mut f32, rows: usize, head_dim: usize) -> SoftmaxState {
        let sums = p.add(rows * round_up_to_lanes(head_dim));
        SoftmaxState { o: p, sums, row_max: sums.add(rows * LANES) }
    }
}

/// Working memory of a tile.
struct Scratch {
    /// Queries, `[rows, head_dim]`.
    q: *mut f32,
    /// A block of keys, `[head_dim, BLOCK_KEYS]`.
    k: *mut f32,
    /// A block of values, `[BLOCK_KEYS, round_up_to_lanes(head_dim)]`.
    v: *mut f32,
    /// Scores, then probabilities, `[ROWS, BLOCK_KEYS]`.
    scores: *mut f32,
    rest: *mut f32,
}

/// Returns the number of f32 elements of working memory that a tile needs.
pub const fn scratch_element_count(rows: usize, head_dim: usize) -> usize {
    round_up_to_lanes(rows * head_dim)
        + 2 * BLOCK_KEYS * round_up_to_lanes(head_dim)
        + ROWS * BLOCK_KEYS
        + 2 * SoftmaxState::element_count(rows, head_dim)
}

impl Scratch {
    unsafe fn at(p: *mut f32, rows: usize, head_dim: usize) -> Scratch {
        let k = p.add(round_up_to_lanes(rows * head_dim));
        let v = k.add(BLOCK_KEYS * round_up_to_lanes(head_dim));
        let scores = v.add(BLOCK_KEYS * round_up_to_lanes(head_dim));
        Scratch { q: p, k, v, scores, rest: scores.add(ROWS * BLOCK_KEYS) }
    }
}

/// A task that computes the attention of a tile over all keys that it sees, with the working memory `scratch`.
pub struct TileTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub scratch: *mut f32,
}

/// # Safety
/// The sequence's pointers cover its rows and keys, its block table covers its keys, and the scratch has
/// [`scratch_element_count`] elements.
impl<T: Element> VectorCode for TileTask<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let TileTask { tile, scratch } = self;
        let d = tile.sequence.head_dim;
        let scratch = Scratch::at(scratch, tile.rows, d);
        let total = SoftmaxState::at(scratch.rest, tile.rows, d);
        let part = SoftmaxState::at(scratch.rest.add(SoftmaxState::element_count(tile.rows, d)), tile.rows, d);
        prefetch::<V, T>(tile, 0);
        load_queries(tile, &scratch);
        segment::<V, T>(tile, 0, total, &scratch);
        for index in 1..tile.segment_count() {
            segment::<V, T>(tile, index, part, &scratch);
            merge::<V, T>(tile, index, total, part);
        }
        finish::<V, T>(tile, total);
    }
}

/// A task that computes segment `index` of a tile and leaves its state for [`MergeTask`].
pub struct SegmentTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub index: usize,
    pub state: *mut f32,
    pub scratch: *mut f32,
}

/// # Safety
/// The conditions of [`TileTask`]; the state has [`SoftmaxState::element_count`] elements.
impl<T: Element> VectorCode for SegmentTask<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let SegmentTask { tile, index, state, scratch } = self;
        let d = tile.sequence.head_dim;
        let scratch = Scratch::at(scratch, tile.rows, d);
        prefetch::<V, T>(tile, index * SEGMENT_KEYS);
        load_queries(tile, &scratch);
        segment::<V, T>(tile, index, SoftmaxState::at(state, tile.rows, d), &scratch);
    }
}

/// A task that merges the softmax states of a tile's segments and writes the output. The states are adjacent in
/// memory.
pub struct MergeTask<'a, T> {
    pub tile: &'a RowTile<'a, T>,
    pub states: *mut f32,
}

/// # Safety
/// A [`SegmentTask`] has filled the state of every segment.
impl<T: Element> VectorCode for MergeTask<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let MergeTask { tile, states } = self;
        let d = tile.sequence.head_dim;
        let total = SoftmaxState::at(states, tile.rows, d);
        for index in 1..tile.segment_count() {
            let part = SoftmaxState::at(states.add(index * SoftmaxState::element_count(tile.rows, d)), tile.rows, d);
            merge::<V, T>(tile, index, total, part);
        }
        finish::<V, T>(tile, total);
    }
}

/// Prefetches the block of keys and values from key `start` on; behind the tile's last key, the first block of the next
/// tile. The keys of one head are far apart in memory, so hardware prefetchers do not find them.
#[inline(always)]
unsafe fn prefetch<V: Vector, T: Element>(tile: &RowTile<'_, T>, start: usize) {
    let (tile, start) = match tile.next {
        _ if start < tile.visible_key_count() => (tile, start),
        Some(next) if next.visible_key_count() > 0 => (next, 0),
        _ => return,
    };
    let s = tile.sequence;
    for j in 0..BLOCK_KEYS.min(tile.visible_key_count() - start) {
        let at = s.key_offset(start + j / LANES * LANES) + j % LANES * s.key_stride();
        for c in (0..s.head_dim).step_by(64 / size_of::<T>()) {
            V::prefetch(s.k.add(at + c));
            V::prefetch(s.v.add(at + c));
        }
    }
}

#[inline(always)]
unsafe fn load_queries<T: Element>(tile: &RowTile<'_, T>, scratch: &Scratch) {
    let d = tile.sequence.head_dim;
    for r in 0..tile.rows {
        load_row_as_f32(tile.sequence.q.add(tile.sequence.head_index(tile.first + r) * d), d, scratch.q.add(r * d));
    }
}

/// Copies `len` elements and converts them to f32.
#[inline(always)]
pub unsafe fn load_row_as_f32<T: Element>(from: *const T, len: usize, to: *mut f32) {
    for c in 0..len {
        to.add(c).write(from.add(c).read().to_f32());
    }
}

/// Rounds `len` elements to T and stores them.
#[inline(always)]
pub unsafe fn store_row_rounded<T: Element>(from: *const f32, len: usize, to: *mut T) {
    for c in 0..len {
        to.add(c).write(T::from_f32(from.add(c).read()));
    }
}

/// Copies `rows` rows of `d` elements, `stride` elements apart, to f32 rows `[rows, round_up_to_lanes(d)]` that end
/// in zeros.
#[inline(always)]
pub unsafe fn load_zero_padded_rows<V: Vector, T: Element>(
    from: *const T,
    stride: usize,
    rows: usize,
    d: usize,
    to: *mut f32,
) {
    for j in 0..rows {
        for c in (0..d).step_by(LANES) {
            let x = V::load_part(from.add(j * stride + c), LANES.min(d - c));
            x.store(to.add(j * round_up_to_lanes(d) + c));
        }
    }
}

/// Transposes `rows` rows (at most 64) of `d` elements, `stride` elements apart, into an array `[d, BLOCK_KEYS]`.
/// Columns from `rows` on are undefined.
#[inline(always)]
pub unsafe fn load_transposed_rows<V: Vector, T: Element>(
    from: *const T,
    stride: usize,
    rows: usize,
    d: usize,
    to: *mut f32,
) {
    for j in (0..rows).step_by(LANES) {
        for c in (0..d).step_by(LANES) {
            let width = LANES.min(d - c);
            let mut square = [V::splat(0.0); LANES];
            for (i, line) in square.iter_mut().enumerate() {
                if j + i < rows {
                    *line = V::load_part(from.add((j + i) * stride + c), width);
                }
            }
            for (i, line) in V::transpose(square).into_iter().enumerate() {
                if i < width {
                    line.store(to.add((c + i) * BLOCK_KEYS + j));
                }
            }
        }
    }
}

/// Computes the softmax state over the keys of segment `index`, for all rows of the tile that see any of them.
#[inline(always)]
unsafe fn segment<V: Vector, T: Element>(tile: &RowTile<'_, T>, index: usize, state: SoftmaxState, scratch: &Scratch) {
    let s = tile.sequence;
    let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
    for c in (0..tile.rows * (padded + LANES)).step_by(LANES) {
        V::splat(0.0).store(state.o.add(c));
    }
    for c in (0..round_up_to_lanes(tile.rows) + ROWS).step_by(LANES) {
        V::splat(f32::NEG_INFINITY).store(state.row_max.add(c));
    }
    for start in (index * SEGMENT_KEYS..tile.visible_key_count().min((index + 1) * SEGMENT_KEYS)).step_by(BLOCK_KEYS) {
        let keys = BLOCK_KEYS.min(tile.visible_key_count() - start);
        let few = tile.rows <= FEW;
        if !few {
            for j in (0..keys).step_by(LANES) {
                let (at, count) = (s.key_offset(start + j), LANES.min(keys - j));
                load_transposed_rows::<V, T>(s.k.add(at), s.key_stride(), count, d, scratch.k.add(j));
            }
        }
        let (values, value_stride) = values::<V, T>(s, start, keys, scratch.v);
        prefetch::<V, T>(tile, start + BLOCK_KEYS);
        let first = s.first_query_row_that_sees(start).saturating_sub(tile.first);
        for row in (first..tile.rows).step_by(ROWS) {
            let rows = ROWS.min(tile.rows - row);
            let mut limits = [0; ROWS];
            for (r, limit) in limits.iter_mut().enumerate().take(rows) {
                *limit = BLOCK_KEYS.min(s.visible_key_count(tile.first + row + r) - start);
            }
            let q = scratch.q.add(row * d);
            match rows {
                1 if few => scores_of_few_rows::<V, T, 1>(s, start, keys, q, scratch.scores),
                2 if few => scores_of_few_rows::<V, T, 2>(s, start, keys, q, scratch.scores),
                3 if few => scores_of_few_rows::<V, T, 3>(s, start, keys, q, scratch.scores),
                FEW if few => scores_of_few_rows::<V, T, FEW>(s, start, keys, q, scratch.scores),
                _ => V::product(&SmallProduct {
                    rows,
                    a: q,
                    a_row: d,
                    a_inner: 1,
                    inner: d,
                    limits: std::ptr::null(),
                    b: scratch.k,
                    b_row: BLOCK_KEYS,
                    cols: limits[rows - 1].div_ceil(LANES),
                    c: scratch.scores,
                    c_row: BLOCK_KEYS,
                    alpha: std::ptr::null(),
                }),
            }
            let alpha = softmax::<V>(&limits[..rows], s.scale, state, row, scratch.scores);
            V::product(&SmallProduct {
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
}

/// Returns the address and row stride of a block's values in f32. The values stay where they are if whole vectors can
/// be read there; otherwise they are copied to `copy`.
#[inline(always)]
unsafe fn values<V: Vector, T: Element>(
    s: &SequenceArrays<'_, T>,
    start: usize,
    keys: usize,
    copy: *mut f32,
) -> (*const f32, usize) {
    let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
    if T::DTYPE == DType::F32 && d == padded && s.has_contiguous_blocks() {
        return (s.v.add(s.key_offset(start)).cast(), s.key_stride());
    }
    for j in (0..keys).step_by(LANES) {
        let (at, count) = (s.key_offset(start + j), LANES.min(keys - j));
        load_zero_padded_rows::<V, T>(s.v.add(at), s.key_stride(), count, d, copy.add(j * padded));
    }
    (copy, padded)
}

/// Replaces the products q k^T of some rows by probabilities relative to the rows' new maxima. Returns for each row
/// the factor that rescales what was summed with the old maximum.
#[inline(always)]
unsafe fn softmax<V: Vector>(
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
    for r in (0..ROWS).step_by(LANES) {
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
                p.store(line.add(c * LANES));
            }
        } else {
            for (c, p) in p.iter_mut().enumerate() {
                if c * LANES < limit {
                    *p = V::load(line.add(c * LANES)).sub(row_max).exp();
                    p.store(line.add(c * LANES));
                }
            }
        }
        let sum = p[0].add(p[1]).add(p[2].add(p[3]));
        let sums = state.sums.add((row + r) * LANES);
        V::load(sums).mul_add(V::splat(alpha[r]), sum).store(sums);
    }
    alpha
}

/// Merges the state of segment `index` into `total`, the state of the segments before it.
#[inline(always)]
unsafe fn merge<V: Vector, T>(tile: &RowTile<'_, T>, index: usize, total: SoftmaxState, part: SoftmaxState) {
    let padded = round_up_to_lanes(tile.sequence.head_dim);
    let first = tile.sequence.first_query_row_that_sees(index * SEGMENT_KEYS).saturating_sub(tile.first);
    for row in first..tile.rows {
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

/// Divides each row's output by its sum of exponentials and stores output and log-sum-exp.
#[inline(always)]
unsafe fn finish<V: Vector, T: Element>(tile: &RowTile<'_, T>, state: SoftmaxState) {
    let s = tile.sequence;
    let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
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
