//! The definition, in f64; and the same with the roundings that kernels make between load and store.

use super::Case;
use crate::checks::rounding::{self, ULP};
use std::f64::consts::LOG2_E;

/// Output and log-sum-exp of one query row over keys and values that begin at `places`.
fn row(q: &[f64], k: &[f64], v: &[f64], places: &[usize], scale: f64) -> (Vec<f64>, f64) {
    let scores: Vec<f64> =
        places.iter().map(|&at| scale * q.iter().zip(&k[at..]).map(|(a, b)| a * b).sum::<f64>()).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let mut o = vec![0.0; q.len()];
    for (&at, s) in places.iter().zip(&scores) {
        let p = (s - top).exp() / sum;
        for (o, v) in o.iter_mut().zip(&v[at..]) {
            *o += p * v;
        }
    }
    (o, top + sum.ln())
}

/// Every query row with the places of the keys that it sees, in the order of the rows.
fn rows(case: &Case) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
    (0..case.lengths.len()).flat_map(move |n| {
        let (first, keys) = (case.first(n), case.keys(n));
        (0..case.lengths[n] * heads).map(move |at| {
            let (i, h) = (at / heads, at % heads);
            let place = |token: &usize| (token * kv_heads + h / (heads / kv_heads)) * d;
            ((first + i) * heads + h, keys[..case.limit(n, i)].iter().map(place).collect())
        })
    })
}

/// Output and log-sum-exp of packed sequences.
pub fn fwd(case: &Case, q: &[f64], k: &[f64], v: &[f64], scale: f64) -> (Vec<f64>, Vec<f64>) {
    let d = case.head_dim;
    let (o, lse): (Vec<_>, Vec<_>) =
        rows(case).map(|(at, places)| row(&q[at * d..(at + 1) * d], k, v, &places, scale)).unzip();
    (o.concat(), lse)
}

/// The gradients of `sum(d_o * o)` for q, k and v, by the chain rule with the output `o`, which may have been rounded; the
/// tests hold it to differences of [`fwd`].
pub fn bwd(case: &Case, [q, k, v]: [&[f64]; 3], o: &[f64], d_o: &[f64], scale: f64) -> [Vec<f64>; 3] {
    let d = case.head_dim;
    let (_, lse) = fwd(case, q, k, v, scale);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (row, places) in rows(case) {
        for b in places {
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

/// What a kernel rounds on the way.
#[derive(Clone, Copy)]
pub struct Roundings {
    /// Probabilities, and gradients of scores, where they are multiplied.
    pub factor: fn(f64) -> f64,
    /// Every product that is added to a sum, every difference.
    pub each: fn(f64) -> f64,
    /// `2^x`
    pub exp2: fn(f64) -> f64,
    /// What the order of a row's delta may change, relative to the sum of its terms' magnitudes.
    pub order: f64,
}

impl Roundings {
    /// bf16 on tensor cores: what the products read.
    pub const BF16: Roundings =
        Roundings { factor: rounding::bf16, each: rounding::exact, exp2: f64::exp2, order: 0.0 };
    /// Everything in f32, `2^x` to 2^−22.
    pub const F32: Roundings = Roundings {
        factor: rounding::exact,
        each: rounding::f32,
        exp2: |x| rounding::approximate(x.exp2(), 2.0 * ULP),
        order: ULP / 2.0,
    };

    /// `sum + Σ a · b`, term by term.
    fn dot(self, sum: f64, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).fold(sum, |sum, (a, b)| (self.each)(sum + a * b))
    }
}

/// Sums of a row: the largest score in units of log2, the exponentials, and those times the values.
struct Sums(f64, f64, Vec<f64>);

impl Sums {
    fn new(d: usize) -> Sums {
        Sums(f64::NEG_INFINITY, 0.0, vec![0.0; d])
    }

    /// The same relative to a larger score.
    fn raised(&self, top: f64, r: Roundings) -> Sums {
        let by = if self.0 == f64::NEG_INFINITY { 0.0 } else { (r.exp2)((r.each)(self.0 - top)) };
        Sums(top, (r.each)(self.1 * by), self.2.iter().map(|x| (r.each)(x * by)).collect())
    }

    /// Adds another's, so that both are relative to the larger score.
    fn add(&mut self, other: &Sums, r: Roundings) {
        let top = self.0.max(other.0);
        let (mine, its) = (self.raised(top, r), other.raised(top, r));
        let sums = mine.2.iter().zip(&its.2).map(|(a, b)| (r.each)(a + b)).collect();
        *self = Sums(top, (r.each)(mine.1 + its.1), sums);
    }
}

/// [`fwd`]'s output with roundings; probabilities are relative to the largest score up to the end of their block of 64 keys
/// within the segment of 512.
pub fn fwd_rounded(case: &Case, q: &[f64], k: &[f64], v: &[f64], scale: f64, r: Roundings) -> Vec<f64> {
    let (d, factor) = (case.head_dim, (r.each)(scale * LOG2_E));
    let mut o = Vec::new();
    for (at, places) in rows(case) {
        let scores: Vec<f64> = places.iter().map(|&b| r.dot(0.0, &q[at * d..][..d], &k[b..][..d])).collect();
        let mut total = Sums::new(d);
        for (segment, scores) in places.chunks(512).zip(scores.chunks(512)) {
            let mut part = Sums::new(d);
            for (block, scores) in segment.chunks(64).zip(scores.chunks(64)) {
                let top = scores.iter().map(|s| (r.each)(s * factor)).fold(part.0, f64::max);
                part = part.raised(top, r);
                for (&b, s) in block.iter().zip(scores) {
                    let p = (r.exp2)((r.each)(s * factor - top));
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

/// [`bwd`] with roundings.
pub fn bwd_rounded(
    case: &Case,
    [q, k, v]: [&[f64]; 3],
    o: &[f64],
    d_o: &[f64],
    scale: f64,
    r: Roundings,
) -> [Vec<f64>; 3] {
    let (d, factor) = (case.head_dim, (r.each)(scale * LOG2_E));
    let (_, lse) = fwd(case, q, k, v, scale);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (row, places) in rows(case) {
        let a = row * d;
        let (q, d_o) = (&q[a..a + d], &d_o[a..a + d]);
        // Summed in another order it is off by about this much of its terms, and all of the row with it.
        let sizes: f64 = d_o.iter().zip(&o[a..a + d]).map(|(x, y)| (x * y).abs()).sum();
        let delta = r.dot(0.0, d_o, &o[a..a + d]) + r.order * sizes;
        let reference = (r.each)((r.each)(lse[row]) * LOG2_E);
        for b in places {
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
