//! Gradients of attention on device `cpu`. Probabilities are recomputed from q, k and the log-sum-exp.
//!
//! There are two kinds of tasks, which write different arrays. A [`KeyGradientTask`] computes dk and dv of a block of
//! 64 keys: it loops over the query rows that see them, in chunks of 64 in ascending order. A [`QueryGradientTask`]
//! computes dq of 64 query rows: it loops over their keys. Both need the gradients of the scores:
//!
//! ```text
//! s = q k^T;  p = exp(s - lse);  ds = p (d_o v^T - delta)        # two of the products below
//! key task:    dv += p^T d_o;  dk += ds^T q                      # and, if there is memory for them, stores ds
//! query task:  dq += ds k                                        # reads ds, or computes s, p and ds again
//! ```
//!
//! Reading stored ds saves two of seven products and half of the exponentials. Stored and recomputed ds are
//! bit-identical.
//!
//! As in the forward pass, products of bf16 arrays read pairs where the instruction set multiplies pairs
//! ([`WordContents`]); probabilities and gradients of scores are then rounded to bf16 before they are multiplied. Pairs
//! are neighbours along the inner index of a product: along a row in `q k^T` and `d_o v^T`, two adjacent query rows in
//! dk and dv, two adjacent keys in dq.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use std::ptr::null_mut;

use reel_device::{DType, Element};

use super::super::BwdParams;
use super::forward::round_up_to_lanes;
use super::load::{
    load_pairs_of_rows, load_row, load_transposed_rows, load_zero_padded_rows, store_row_rounded,
    word_contents_of_rows, zero_pad_rows_of_pairs,
};
use super::product::{SmallProduct, WordContents};
use super::sequence::{BLOCK_KEYS, SequenceArrays, joined_block_element_count};
use super::vector::{LANES, Vector, VectorCode};

/// Number of query rows that a [`KeyGradientTask`] processes at a time.
pub const QUERY_ROWS_PER_CHUNK: usize = 64;
/// Maximum number of elements of [`StoredScoreGradients`] (16 MiB), which fit into a third-level cache. If a sequence
/// has more, query tasks recompute the gradients.
pub const MAX_STORED_SCORE_GRADIENTS: usize = 4 << 20;
/// Number of query rows for which a [`DeltaTask`] computes `delta`.
pub const QUERY_ROWS_PER_DELTA_TASK: usize = 256;

/// A task that computes `delta = d_o . o` for some query rows.
pub struct DeltaTask<T> {
    o: *const T,
    d_o: *const T,
    delta: *mut f32,
    rows: usize,
    head_dim: usize,
}

impl<T> DeltaTask<T> {
    /// Makes the task for rows `first .. first + rows` of `[tokens * heads]`.
    pub fn new(p: &BwdParams, first: usize, rows: usize) -> DeltaTask<T> {
        let head_dim = p.head_dim as usize;
        DeltaTask {
            o: (p.o.0 as *const T).wrapping_add(first * head_dim),
            d_o: (p.d_o.0 as *const T).wrapping_add(first * head_dim),
            delta: (p.delta.0 as *mut f32).wrapping_add(first),
            rows,
            head_dim,
        }
    }
}

/// # Safety
/// The parameters' addresses cover the rows of the task.
impl<T: Element> VectorCode for DeltaTask<T> {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let d = self.head_dim;
        for row in 0..self.rows {
            let mut sum = V::splat(0.0);
            for c in (0..d).step_by(LANES) {
                let (at, width) = (row * d + c, LANES.min(d - c));
                sum = V::load_part(self.o.add(at), width).mul_add(V::load_part(self.d_o.add(at), width), sum);
            }
            self.delta.add(row).write(sum.sum());
        }
    }
}

/// The gradients of the scores of one sequence and key head, `[query rows, keys rounded up]`. A key task writes the
/// columns of its keys, for the query rows that see any of these keys.
#[derive(Clone, Copy)]
pub struct StoredScoreGradients {
    /// The first row.
    pub rows: *mut f32,
    /// Number of elements from one row to the next.
    pub stride: usize,
}

impl StoredScoreGradients {
    /// Returns the number of elements from one row of stored gradients to the next, for a sequence of `keys` keys.
    pub const fn stride(keys: usize) -> usize {
        round_up_to_lanes(keys)
    }

    /// Returns the address of the gradient of the score of query row `row` and key `key`.
    fn at(self, row: usize, key: usize) -> *mut f32 {
        self.rows.wrapping_add(row * self.stride + key)
    }
}

/// The arrays that the backward pass of one sequence and key head reads and writes.
pub struct BackwardArrays<'a, T> {
    /// The arrays of the forward pass, which are only read.
    sequence: SequenceArrays<'a, T>,
    d_o: *const T,
    delta: *const f32,
    dq: *mut T,
    dk: *mut T,
    dv: *mut T,
    /// Memory for the gradients of the scores; `None` if they are computed again instead.
    stored: Option<StoredScoreGradients>,
    scratch: *mut f32,
}

impl<'a, T> BackwardArrays<'a, T> {
    /// Makes the arrays for one key head of a sequence. `sequence` has the arrays of the forward pass, and `first` is
    /// the index of the sequence's first token in the batch.
    pub fn new(
        p: &BwdParams,
        sequence: SequenceArrays<'a, T>,
        (first, kv_head): (usize, usize),
        stored: Option<StoredScoreGradients>,
        scratch: *mut f32,
    ) -> Self {
        let head = first * sequence.heads + kv_head * sequence.heads_per_key_head();
        let row = |address: u64| (address as *mut T).wrapping_add(head * sequence.head_dim);
        let key =
            |address: u64| (address as *mut T).wrapping_add(first * sequence.key_stride + kv_head * sequence.head_dim);
        BackwardArrays {
            d_o: row(p.d_o.0),
            delta: (p.delta.0 as *const f32).wrapping_add(head),
            dq: row(p.dq.0),
            dk: key(p.dk.0),
            dv: key(p.dv.0),
            stored,
            scratch,
            sequence,
        }
    }
}

/// A sequence whose queries see some keys of a block, and the range of these keys.
pub struct VisitingQueries<'a, T> {
    /// The sequence of the queries.
    pub gradient: BackwardArrays<'a, T>,
    /// Index within the block of the first key that the sequence sees.
    pub first: usize,
    /// Number of keys of the block that the sequence sees.
    pub keys: usize,
    /// Index of the key `first` among all keys of the sequence.
    pub start: usize,
}

/// Returns the number of f32 elements of working memory that a task needs.
pub const fn scratch_element_count(head_dim: usize) -> usize {
    7 * BLOCK_KEYS * round_up_to_lanes(head_dim)
        + 2 * QUERY_ROWS_PER_CHUNK * BLOCK_KEYS
        + joined_block_element_count(head_dim)
}

/// Working memory of a task, in words. `d` is head_dim rounded up to a multiple of the vector width; arrays of pairs
/// take half of their memory.
struct Scratch {
    /// Transposed keys, `[words of head_dim, BLOCK_KEYS]`.
    k_t: *mut f32,
    /// Transposed values, `[words of head_dim, BLOCK_KEYS]`.
    v_t: *mut f32,
    /// Keys, `[words of BLOCK_KEYS, d]`.
    k: *mut f32,
    /// Queries, `[QUERY_ROWS_PER_CHUNK, words of d]`.
    q: *mut f32,
    /// Gradients of the output, `[QUERY_ROWS_PER_CHUNK, words of d]`.
    d_o: *mut f32,
    /// Partial sums of dk and dv, or of dq, `[64, d]` each.
    sums: [*mut f32; 2],
    /// Probabilities, `[QUERY_ROWS_PER_CHUNK, BLOCK_KEYS]`, or `[QUERY_ROWS_PER_CHUNK / 2, BLOCK_KEYS]` pairs of rows.
    p: *mut f32,
    /// Gradients of the scores: either in the layout of `p`, or as `[QUERY_ROWS_PER_CHUNK, BLOCK_KEYS]` with pairs of
    /// keys in the first half of each row.
    ds: *mut f32,
    /// Copy of a block of keys and values in which the prefix ends ([`SequenceArrays::joined_block`]).
    joined: *mut f32,
}

impl Scratch {
    unsafe fn at(p: *mut f32, head_dim: usize) -> Scratch {
        let n = BLOCK_KEYS * round_up_to_lanes(head_dim);
        Scratch {
            k_t: p,
            v_t: p.add(n),
            k: p.add(2 * n),
            q: p.add(3 * n),
            d_o: p.add(4 * n),
            sums: [p.add(5 * n), p.add(6 * n)],
            p: p.add(7 * n),
            ds: p.add(7 * n + QUERY_ROWS_PER_CHUNK * BLOCK_KEYS),
            joined: p.add(7 * n + 2 * QUERY_ROWS_PER_CHUNK * BLOCK_KEYS),
        }
    }

    /// Returns the memory for queries and gradients of the output as pairs of adjacent rows. Both arrays are
    /// `[QUERY_ROWS_PER_CHUNK / 2, d]` and follow the memory for the same rows as pairs of adjacent columns.
    unsafe fn pairs_of_rows(&self, head_dim: usize) -> [*mut f32; 2] {
        [self.q, self.d_o].map(|x| x.wrapping_add(QUERY_ROWS_PER_CHUNK * round_up_to_lanes(head_dim) / 2))
    }
}

/// Factors of 1 for up to 64 rows. With these factors, [`SmallProduct`] adds the product to the old result without
/// scaling it.
static ONES: [f32; 64] = [1.0; 64];

/// A task that computes dk and dv of a block of 64 keys.
pub struct KeyGradientTask<'a, T> {
    /// The arrays of the keys' sequence.
    pub arrays: &'a BackwardArrays<'a, T>,
    /// Index of the block's first key in the sequence.
    pub first_key: usize,
    /// The queries that see keys of the block, in the order in which they are processed.
    pub visits: &'a [VisitingQueries<'a, T>],
}

/// # Safety
/// The pointers of all [`BackwardArrays`]s cover their sequences; the scratch has [`scratch_element_count`] elements.
impl<T: Element> VectorCode for KeyGradientTask<'_, T> {
    const DTYPE: DType = T::DTYPE;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let KeyGradientTask { arrays: g, first_key: start, visits } = self;
        let s = &g.sequence;
        let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
        let words = word_contents_of_rows::<V, T>(d);
        let scratch = Scratch::at(g.scratch, d);
        let [q, d_o] = match words {
            WordContents::Elements => [scratch.q, scratch.d_o],
            WordContents::Pairs => scratch.pairs_of_rows(d),
        };
        let keys = BLOCK_KEYS.min(s.queries - start);
        let [dk, dv] = scratch.sums;
        for c in (0..BLOCK_KEYS * padded).step_by(LANES) {
            V::splat(0.0).store(dk.add(c));
            V::splat(0.0).store(dv.add(c));
        }
        for visit in visits {
            let (from, to) = ((start + visit.first) * s.key_stride, visit.first * padded);
            load_keys::<V, T>(s, s.k.add(from), s.v.add(from), visit.keys, &scratch);
            let s = &visit.gradient.sequence;
            for row in (s.first_query_row_that_sees(visit.start)..s.query_row_count()).step_by(QUERY_ROWS_PER_CHUNK) {
                let rows = QUERY_ROWS_PER_CHUNK.min(s.query_row_count() - row);
                // The last query row of the chunk sees the most keys.
                let keys = visit.keys.min(s.visible_key_count(row + rows - 1) - visit.start);
                load_rows::<V, T>(&visit.gradient, row, rows, &scratch);
                let factors = match words {
                    WordContents::Elements => Factors::Elements,
                    WordContents::Pairs => {
                        load_pairs_of_queries::<V, T>(&visit.gradient, row, rows, &scratch);
                        Factors::PairsOfRows
                    }
                };
                scores::<V, T>(&visit.gradient, row, rows, visit.start, keys, factors, &scratch);
                for (a, b, c) in [(scratch.p, d_o, dv.add(to)), (scratch.ds, q, dk.add(to))] {
                    V::product(&SmallProduct {
                        words,
                        rows: keys,
                        a,
                        a_row: 1,
                        a_inner: BLOCK_KEYS,
                        // Zeros complete the last pair.
                        inner: if words == WordContents::Pairs { rows.next_multiple_of(2) } else { rows },
                        limits: std::ptr::null(),
                        b,
                        b_row: padded,
                        cols: padded / LANES,
                        c,
                        c_row: padded,
                        alpha: ONES.as_ptr(),
                    });
                }
            }
        }
        for j in 0..keys {
            let at = (start + j) * s.key_stride;
            store_row_rounded(dk.add(j * padded), d, g.dk.add(at));
            store_row_rounded(dv.add(j * padded), d, g.dv.add(at));
        }
    }
}

/// A task that computes dq of 64 query rows of a sequence, from `first_row` on.
pub struct QueryGradientTask<'a, T> {
    pub arrays: &'a BackwardArrays<'a, T>,
    pub first_row: usize,
}

/// # Safety
/// The pointers of the [`BackwardArrays`] cover the sequence; the task's scratch has [`scratch_element_count`]
/// elements.
impl<T: Element> VectorCode for QueryGradientTask<'_, T> {
    const DTYPE: DType = T::DTYPE;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let QueryGradientTask { arrays: g, first_row: row } = self;
        let s = &g.sequence;
        let (d, padded) = (s.head_dim, round_up_to_lanes(s.head_dim));
        let (words, scratch) = (word_contents_of_rows::<V, T>(d), Scratch::at(g.scratch, d));
        let rows = QUERY_ROWS_PER_CHUNK.min(s.query_row_count() - row);
        if g.stored.is_none() {
            load_rows::<V, T>(g, row, rows, &scratch);
        }
        let dq = scratch.sums[0];
        for c in (0..QUERY_ROWS_PER_CHUNK * padded).step_by(LANES) {
            V::splat(0.0).store(dq.add(c));
        }
        let seen = s.visible_key_count(row + rows - 1);
        for start in (0..seen).step_by(BLOCK_KEYS) {
            let keys = BLOCK_KEYS.min(seen - start);
            let joined = s.joined_block(start, seen, scratch.joined);
            let held = joined.as_ref().unwrap_or(s);
            let at = held.key_offset(start);
            let (k, v) = (held.k.wrapping_offset(at), held.v.wrapping_offset(at));
            let factors = match words {
                WordContents::Elements => {
                    load_zero_padded_rows::<V, T>(k, held.key_stride, keys, d, scratch.k);
                    Factors::Elements
                }
                WordContents::Pairs => {
                    let row = |j: usize| k.wrapping_add(j * held.key_stride);
                    load_pairs_of_rows::<V, T>(row, keys, d, scratch.k);
                    zero_pad_rows_of_pairs::<V>(scratch.k, keys.div_ceil(2), padded);
                    Factors::PairsOfKeys
                }
            };
            let mut limits = [0; QUERY_ROWS_PER_CHUNK];
            for (limit, seen) in limits.iter_mut().take(rows).zip(s.visible_key_counts(row)) {
                *limit = seen.saturating_sub(start).min(BLOCK_KEYS);
            }
            match g.stored {
                Some(stored) => load_gradients::<V>(stored, (row, start), &limits[..rows], keys, words, &scratch),
                None => {
                    load_keys::<V, T>(held, k, v, keys, &scratch);
                    scores::<V, T>(g, row, rows, start, keys, factors, &scratch);
                }
            }
            V::product(&SmallProduct {
                words,
                rows,
                a: scratch.ds,
                a_row: BLOCK_KEYS,
                a_inner: 1,
                inner: keys,
                limits: limits.as_ptr(),
                b: scratch.k,
                b_row: padded,
                cols: padded / LANES,
                c: dq,
                c_row: padded,
                alpha: ONES.as_ptr(),
            });
        }
        for r in 0..rows {
            store_row_rounded(dq.add(r * padded), d, g.dq.add(s.head_index(row + r) * d));
        }
    }
}

/// Loads the stored gradients of the scores of some query rows and keys, from row and key `first` on. They are 0
/// where a row does not see a key.
#[inline(always)]
unsafe fn load_gradients<V: Vector>(
    stored: StoredScoreGradients,
    first: (usize, usize),
    limits: &[usize],
    keys: usize,
    words: WordContents,
    scratch: &Scratch,
) {
    for (r, &limit) in limits.iter().enumerate() {
        let to = scratch.ds.add(r * BLOCK_KEYS);
        for c in (0..keys).step_by(LANES) {
            let ds = V::load_part(stored.at(first.0 + r, first.1 + c), LANES.min(limit.saturating_sub(c)));
            match words {
                WordContents::Elements => ds.store(to.add(c)),
                WordContents::Pairs => ds.store_bf16(to.add(c / 2)),
            }
        }
    }
}

/// Loads keys and values for the products with queries and with gradients of the output.
#[inline(always)]
unsafe fn load_keys<V: Vector, T: Element>(
    s: &SequenceArrays<'_, T>,
    k: *const T,
    v: *const T,
    keys: usize,
    scratch: &Scratch,
) {
    let (d, stride) = (s.head_dim, s.key_stride);
    for (from, to) in [(k, scratch.k_t), (v, scratch.v_t)] {
        match word_contents_of_rows::<V, T>(d) {
            WordContents::Elements => load_transposed_rows::<V, T>(from, stride, keys, d, to),
            WordContents::Pairs => {
                load_transposed_rows::<V, f32>(from.cast(), stride / 2, keys, d / 2, to);
                zero_pad_rows_of_pairs::<V>(to, d / 2, BLOCK_KEYS);
            }
        }
    }
}

/// Loads some query rows and the gradients of their outputs; elements end in zeros up to the vector width.
#[inline(always)]
unsafe fn load_rows<V: Vector, T: Element>(g: &BackwardArrays<'_, T>, row: usize, rows: usize, scratch: &Scratch) {
    let s = &g.sequence;
    let (d, words) = (s.head_dim, word_contents_of_rows::<V, T>(s.head_dim));
    let row_words = words.word_count(round_up_to_lanes(d));
    for r in 0..rows {
        let at = s.head_index(row + r) * d;
        for (from, to) in [(s.q, scratch.q), (g.d_o, scratch.d_o)] {
            let to = to.add(r * row_words);
            load_row(words, from.add(at), d, to);
            for c in words.word_count(d)..row_words {
                to.add(c).write(0.0);
            }
        }
    }
}

/// Loads some query rows and the gradients of their outputs as pairs of adjacent rows.
#[inline(always)]
unsafe fn load_pairs_of_queries<V: Vector, T: Element>(
    g: &BackwardArrays<'_, T>,
    row: usize,
    rows: usize,
    scratch: &Scratch,
) {
    let (s, d) = (&g.sequence, g.sequence.head_dim);
    for (from, to) in [s.q, g.d_o].into_iter().zip(scratch.pairs_of_rows(d)) {
        load_pairs_of_rows::<V, T>(|r| from.wrapping_add(s.head_index(row + r) * d), rows, d, to);
        zero_pad_rows_of_pairs::<V>(to, rows.div_ceil(2), round_up_to_lanes(d));
    }
}

/// How probabilities and gradients of scores are stored for the products in which they are factors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Factors {
    Elements,
    PairsOfRows,
    PairsOfKeys,
}

/// Computes the probabilities and the gradients of the scores for some rows and keys. Both are 0 where a row does not
/// see a key. With [`Factors::PairsOfKeys`] only the gradients are stored.
#[inline(always)]
unsafe fn scores<V: Vector, T: Element>(
    g: &BackwardArrays<'_, T>,
    row: usize,
    rows: usize,
    start: usize,
    keys: usize,
    factors: Factors,
    scratch: &Scratch,
) {
    let s = &g.sequence;
    let (d, words) = (s.head_dim, word_contents_of_rows::<V, T>(s.head_dim));
    let cols = keys.div_ceil(LANES);
    for (a, b, c) in [(scratch.q, scratch.k_t, scratch.p), (scratch.d_o, scratch.v_t, scratch.ds)] {
        V::product(&SmallProduct {
            words,
            rows,
            a,
            a_row: words.word_count(round_up_to_lanes(d)),
            a_inner: 1,
            inner: d,
            limits: std::ptr::null(),
            b,
            b_row: BLOCK_KEYS,
            cols,
            c,
            c_row: BLOCK_KEYS,
            alpha: std::ptr::null(),
        });
    }
    let zero = V::splat(0.0);
    match factors {
        Factors::Elements => {
            for r in 0..rows {
                let line = ScoreRow::<V>::of(g, row, r, start, keys, scratch);
                for c in (0..cols * LANES).step_by(LANES) {
                    let (p, ds) = line.factors(c);
                    p.store(line.p.add(c));
                    ds.store(line.ds.add(c));
                    line.keep(c, ds);
                }
            }
        }
        // A pair takes half the memory of two scores, so it overwrites only scores that have been read.
        Factors::PairsOfKeys => {
            for r in 0..rows {
                let line = ScoreRow::<V>::of(g, row, r, start, keys, scratch);
                for c in (0..cols * LANES).step_by(LANES) {
                    line.factors(c).1.store_bf16(line.ds.add(c / 2));
                }
            }
        }
        Factors::PairsOfRows => {
            for r in (0..rows).step_by(2) {
                let first = ScoreRow::<V>::of(g, row, r, start, keys, scratch);
                let second = ScoreRow::<V>::of(g, row, (r + 1).min(rows - 1), start, keys, scratch);
                for c in (0..cols * LANES).step_by(LANES) {
                    let (p, ds) = first.factors(c);
                    let (mut p2, mut ds2) = second.factors(c);
                    first.keep(c, ds);
                    second.keep(c, ds2);
                    if r + 1 == rows {
                        (p2, ds2) = (zero, zero);
                    }
                    p.pair_with(p2).store(scratch.p.add(r / 2 * BLOCK_KEYS + c));
                    ds.pair_with(ds2).store(scratch.ds.add(r / 2 * BLOCK_KEYS + c));
                }
            }
        }
    }
}

/// A row of scores and of products `d_o v^T`, with the values (limit, scale, lse, delta) that turn them into
/// probabilities and gradients of scores.
#[derive(Clone, Copy)]
struct ScoreRow<V> {
    p: *mut f32,
    ds: *mut f32,
    /// Number of keys of the block that the row sees.
    limit: usize,
    /// Address at which this row's gradients of the scores of the `keys` keys are stored; null if gradients are not
    /// stored.
    stored: *mut f32,
    keys: usize,
    scale: V,
    lse: V,
    delta: V,
}

impl<V: Vector> ScoreRow<V> {
    /// Makes row `r` of the chunk of query rows from `row` on, for the `keys` keys from `start` on.
    #[inline(always)]
    unsafe fn of<T>(
        g: &BackwardArrays<'_, T>,
        row: usize,
        r: usize,
        start: usize,
        keys: usize,
        scratch: &Scratch,
    ) -> ScoreRow<V> {
        let s = &g.sequence;
        let head = s.head_index(row + r);
        ScoreRow {
            p: scratch.p.add(r * BLOCK_KEYS),
            ds: scratch.ds.add(r * BLOCK_KEYS),
            limit: s.visible_key_count(row + r).saturating_sub(start).min(keys),
            stored: g.stored.map_or(null_mut(), |stored| stored.at(row + r, start)),
            keys,
            scale: V::splat(s.scale),
            lse: V::splat(s.lse.add(head).read()),
            delta: V::splat(g.delta.add(head).read()),
        }
    }

    /// Stores the gradients of the scores of the keys `c .. c + 16`, but not beyond the last key: another task stores
    /// the gradients of the following keys.
    #[inline(always)]
    unsafe fn keep(&self, c: usize, ds: V) {
        if self.stored.is_null() {
        } else if self.keys >= c + LANES {
            ds.store(self.stored.add(c));
        } else {
            let mut lanes = [0.0; LANES];
            ds.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), self.stored.add(c), self.keys - c);
        }
    }

    /// Returns the probabilities and the gradients of the scores of the keys `c .. c + 16`.
    #[inline(always)]
    unsafe fn factors(&self, c: usize) -> (V, V) {
        let p = V::load(self.p.add(c)).mul(self.scale).sub(self.lse).exp();
        let ds = p.mul(V::load(self.ds.add(c)).sub(self.delta)).mul(self.scale);
        if self.limit >= c + LANES {
            return (p, ds);
        }
        let (seen, zero) = (self.limit.saturating_sub(c), V::splat(0.0));
        (p.keep(seen, zero), ds.keep(seen, zero))
    }
}
