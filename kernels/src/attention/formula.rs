//! The definition, in f64.

use super::Case;

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
