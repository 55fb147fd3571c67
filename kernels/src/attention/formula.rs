//! The definition of attention in f64, and a version with the roundings that kernels make between load and store.

use super::PackedBatch;
use crate::checks::rounding::{self, F32_ULP};
use std::f64::consts::LOG2_E;

/// Returns output and log-sum-exp of one query row. `keys` has, for each key that the row sees, the index of its
/// first element in `k` and `v`.
fn row(q: &[f64], k: &[f64], v: &[f64], keys: &[usize], scale: f64) -> (Vec<f64>, f64) {
    let scores: Vec<f64> =
        keys.iter().map(|&at| scale * q.iter().zip(&k[at..]).map(|(a, b)| a * b).sum::<f64>()).collect();
    let row_max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - row_max).exp()).sum();
    let mut o = vec![0.0; q.len()];
    for (&at, s) in keys.iter().zip(&scores) {
        let p = (s - row_max).exp() / sum;
        for (o, v) in o.iter_mut().zip(&v[at..]) {
            *o += p * v;
        }
    }
    (o, row_max + sum.ln())
}

/// Returns, for every query row in order, its index and the keys that it sees, each as the index of its first
/// element.
pub(super) fn visible_keys_per_query_row(case: &PackedBatch) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
    (0..case.lengths.len()).flat_map(move |n| {
        let (first, tokens) = (case.first_token(n), case.visible_tokens(n));
        (0..case.lengths[n] * heads).map(move |at| {
            let (i, h) = (at / heads, at % heads);
            let begin = |token: &usize| (token * kv_heads + h / (heads / kv_heads)) * d;
            ((first + i) * heads + h, tokens[..case.visible_key_count(n, i)].iter().map(begin).collect())
        })
    })
}

/// Returns output and log-sum-exp of a packed batch.
pub fn fwd(case: &PackedBatch, q: &[f64], k: &[f64], v: &[f64], scale: f64) -> (Vec<f64>, Vec<f64>) {
    let d = case.head_dim;
    let (o, lse): (Vec<_>, Vec<_>) =
        visible_keys_per_query_row(case).map(|(at, keys)| row(&q[at * d..(at + 1) * d], k, v, &keys, scale)).unzip();
    (o.concat(), lse)
}

/// Returns the gradients of `sum(d_o * o)` for q, k and v, by the chain rule. `o` is the output, which may have been
/// rounded. Tests compare the result with numerical differences of [`fwd`].
pub fn bwd(case: &PackedBatch, [q, k, v]: [&[f64]; 3], o: &[f64], d_o: &[f64], scale: f64) -> [Vec<f64>; 3] {
    let d = case.head_dim;
    let (_, lse) = fwd(case, q, k, v, scale);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (row, keys) in visible_keys_per_query_row(case) {
        for b in keys {
            let (a, mut score, mut slope) = (row * d, 0.0, 0.0);
            for c in 0..d {
                score += scale * q[a + c] * k[b + c];
                slope += d_o[a + c] * (v[b + c] - o[a + c]);
            }
            let p = (score - lse[row]).exp();
            for c in 0..d {
                dv[b + c] += p * d_o[a + c];
                dq[a + c] += p * slope * scale * k[b + c];
                dk[b + c] += p * slope * scale * q[a + c];
            }
        }
    }
    [dq, dk, dv]
}

/// The roundings of a kernel between load and store.
#[derive(Clone, Copy)]
pub struct Roundings {
    /// Rounds probabilities and score gradients before they become factors of matrix products.
    pub factor: fn(f64) -> f64,
    /// Rounds the result of every addition and subtraction.
    pub each: fn(f64) -> f64,
    /// Computes `2^x` with the kernel's error.
    pub exp2: fn(f64) -> f64,
    /// How much another order of summation may change a row's delta, as a fraction of the sum of the magnitudes of its
    /// terms.
    pub order: f64,
}

impl Roundings {
    /// Roundings of tensor cores with bf16: the factors of matrix products are rounded to bf16.
    pub const BF16: Roundings =
        Roundings { factor: rounding::bf16, each: rounding::unrounded, exp2: f64::exp2, order: 0.0 };
    /// Roundings of f32 arithmetic. `2^x` has a relative error of 2^−22.
    pub const F32: Roundings = Roundings {
        factor: rounding::unrounded,
        each: rounding::f32,
        exp2: |x| rounding::approximate(x.exp2(), 2.0 * F32_ULP),
        order: F32_ULP / 2.0,
    };

    /// Returns `sum + Σ a · b`, rounded after each term.
    fn dot(self, sum: f64, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).fold(sum, |sum, (a, b)| (self.each)(sum + a * b))
    }
}

/// State of a row's online softmax: the largest score times log2 e, the sum of exponentials, and the sum of
/// exponentials times values.
struct Sums(f64, f64, Vec<f64>);

impl Sums {
    fn new(d: usize) -> Sums {
        Sums(f64::NEG_INFINITY, 0.0, vec![0.0; d])
    }

    /// Returns the same state with its sums rescaled from its own maximum to `row_max`, which is at least as large.
    fn raised(&self, row_max: f64, r: Roundings) -> Sums {
        let by = if self.0 == f64::NEG_INFINITY { 0.0 } else { (r.exp2)((r.each)(self.0 - row_max)) };
        Sums(row_max, (r.each)(self.1 * by), self.2.iter().map(|x| (r.each)(x * by)).collect())
    }

    /// Merges another state into this one. The result has the larger of the two maxima.
    fn add(&mut self, other: &Sums, r: Roundings) {
        let row_max = self.0.max(other.0);
        let (mine, its) = (self.raised(row_max, r), other.raised(row_max, r));
        let sums = mine.2.iter().zip(&its.2).map(|(a, b)| (r.each)(a + b)).collect();
        *self = Sums(row_max, (r.each)(mine.1 + its.1), sums);
    }
}

/// Returns the output of [`fwd`] with a kernel's roundings. A block of 64 keys has probabilities relative to the
/// largest score so far in its segment of 512 keys, the block included.
pub fn fwd_rounded(case: &PackedBatch, q: &[f64], k: &[f64], v: &[f64], scale: f64, r: Roundings) -> Vec<f64> {
    let (d, factor) = (case.head_dim, (r.each)(scale * LOG2_E));
    let mut o = Vec::new();
    for (at, keys) in visible_keys_per_query_row(case) {
        let scores: Vec<f64> = keys.iter().map(|&b| r.dot(0.0, &q[at * d..][..d], &k[b..][..d])).collect();
        let mut total = Sums::new(d);
        for (segment, scores) in keys.chunks(512).zip(scores.chunks(512)) {
            let mut part = Sums::new(d);
            for (block, scores) in segment.chunks(64).zip(scores.chunks(64)) {
                let row_max = scores.iter().map(|s| (r.each)(s * factor)).fold(part.0, f64::max);
                part = part.raised(row_max, r);
                for (&b, s) in block.iter().zip(scores) {
                    let p = (r.exp2)((r.each)(s * factor - row_max));
                    part.1 = (r.each)(part.1 + p);
                    (0..d).for_each(|c| part.2[c] = (r.each)(part.2[c] + (r.factor)(p) * v[b + c]));
                }
            }
            total.add(&part, r);
        }
        o.extend(total.2.iter().map(|x| x / total.1));
    }
    o
}

/// Returns the gradients of [`bwd`] with a kernel's roundings.
pub fn bwd_rounded(
    case: &PackedBatch,
    [q, k, v]: [&[f64]; 3],
    o: &[f64],
    d_o: &[f64],
    scale: f64,
    r: Roundings,
) -> [Vec<f64>; 3] {
    let (d, factor) = (case.head_dim, (r.each)(scale * LOG2_E));
    let (_, lse) = fwd(case, q, k, v, scale);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (row, keys) in visible_keys_per_query_row(case) {
        let a = row * d;
        let (q, d_o) = (&q[a..a + d], &d_o[a..a + d]);
        // Another order of summation changes the row's delta by about this much, which shifts all gradients of the row.
        let sizes: f64 = d_o.iter().zip(&o[a..a + d]).map(|(x, y)| (x * y).abs()).sum();
        let delta = r.dot(0.0, d_o, &o[a..a + d]) + r.order * sizes;
        let reference = (r.each)((r.each)(lse[row]) * LOG2_E);
        for b in keys {
            let p = (r.exp2)((r.each)(r.dot(0.0, q, &k[b..b + d]) * factor - reference));
            let slope = (r.each)(r.dot(0.0, d_o, &v[b..b + d]) - delta);
            let (p, ds) = ((r.factor)(p), (r.factor)((r.each)(p * slope)));
            for c in 0..d {
                dv[b + c] = (r.each)(dv[b + c] + p * d_o[c]);
                dq[a + c] = (r.each)(dq[a + c] + ds * k[b + c]);
                dk[b + c] = (r.each)(dk[b + c] + ds * q[c]);
            }
        }
    }
    let scaled = |x: Vec<f64>| x.iter().map(|x| x * scale).collect();
    [scaled(dq), scaled(dk), dv]
}
