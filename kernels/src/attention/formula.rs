//! The definition, in f64; and the same with the roundings that the CUDA side makes between load and store.

use super::Case;
use crate::Element;
use half::bf16;

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

fn rounded(x: f64) -> f64 {
    <bf16 as Element>::from_f32(x as f32).to_f32() as f64
}

/// Sums of a row: the largest score, the exponentials, and those times the values.
struct Sums(f64, f64, Vec<f64>);

impl Sums {
    fn new(d: usize) -> Sums {
        Sums(f64::NEG_INFINITY, 0.0, vec![0.0; d])
    }

    /// Adds another's, so that both are relative to the larger score.
    fn add(&mut self, other: &Sums) {
        let top = self.0.max(other.0);
        let (mine, its) = ((self.0 - top).exp(), (other.0 - top).exp());
        *self = Sums(
            top,
            self.1 * mine + other.1 * its,
            self.2.iter().zip(&other.2).map(|(a, b)| a * mine + b * its).collect(),
        );
    }
}

/// [`fwd`]'s output with probabilities rounded to bf16, relative to the largest score up to the end of their block of 64 keys
/// within the segment of 512.
pub fn fwd_rounded(case: &Case, q: &[f64], k: &[f64], v: &[f64], scale: f64) -> Vec<f64> {
    let d = case.head_dim;
    let mut o = Vec::new();
    for (at, places) in rows(case) {
        let score = |b: usize| scale * (0..d).map(|c| q[at * d + c] * k[b + c]).sum::<f64>();
        let mut total = Sums::new(d);
        for segment in places.chunks(512) {
            let mut part = Sums::new(d);
            for block in segment.chunks(64) {
                let top = block.iter().map(|&b| score(b)).fold(part.0, f64::max);
                let mut new = Sums(top, 0.0, vec![0.0; d]);
                for &b in block {
                    let p = (score(b) - top).exp();
                    new.1 += p;
                    (0..d).for_each(|c| new.2[c] += rounded(p) * v[b + c]);
                }
                part.add(&new);
            }
            total.add(&part);
        }
        o.extend(total.2.iter().map(|x| x / total.1));
    }
    o
}

/// [`bwd`] with probabilities and gradients of scores rounded to bf16 in products.
pub fn bwd_rounded(case: &Case, [q, k, v]: [&[f64]; 3], o: &[f64], d_o: &[f64], scale: f64) -> [Vec<f64>; 3] {
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
            let ds = rounded(p * slope) * scale;
            for c in 0..d {
                dv[b + c] += rounded(p) * d_o[a + c];
                dq[a + c] += ds * k[b + c];
                dk[b + c] += ds * q[a + c];
            }
        }
    }
    [dq, dk, dv]
}
