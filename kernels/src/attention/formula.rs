//! The definition, in f64.

use super::Case;

/// Output and log-sum-exp of one query row over `keys` keys that lie `stride` apart.
fn row(q: &[f64], k: &[f64], v: &[f64], stride: usize, keys: usize, scale: f64) -> (Vec<f64>, f64) {
    let scores: Vec<f64> =
        (0..keys).map(|j| scale * q.iter().zip(&k[j * stride..]).map(|(a, b)| a * b).sum::<f64>()).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let mut o = vec![0.0; q.len()];
    for (j, s) in scores.iter().enumerate() {
        let p = (s - top).exp() / sum;
        for (o, v) in o.iter_mut().zip(&v[j * stride..]) {
            *o += p * v;
        }
    }
    (o, top + sum.ln())
}

/// Output and log-sum-exp of packed sequences.
pub fn fwd(case: &Case, q: &[f64], k: &[f64], v: &[f64], scale: f64) -> (Vec<f64>, Vec<f64>) {
    let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
    let (mut o, mut lse, mut first) = (Vec::new(), Vec::new(), 0);
    for &len in &case.lengths {
        for i in 0..len {
            for h in 0..heads {
                let kv = (first * kv_heads + h / (heads / kv_heads)) * d;
                let keys = if case.causal { i + 1 } else { len };
                let at = ((first + i) * heads + h) * d;
                let (o_row, lse_row) = row(&q[at..at + d], &k[kv..], &v[kv..], kv_heads * d, keys, scale);
                o.extend(o_row);
                lse.push(lse_row);
            }
        }
        first += len;
    }
    (o, lse)
}

/// The gradients of `sum(d_o * o)` for q, k and v, by the chain rule with the output `o`, which may have been rounded; the
/// tests hold it to differences of [`fwd`].
pub fn bwd(case: &Case, [q, k, v]: [&[f64]; 3], o: &[f64], d_o: &[f64], scale: f64) -> [Vec<f64>; 3] {
    let (heads, kv_heads, d) = (case.heads, case.kv_heads, case.head_dim);
    let (_, lse) = fwd(case, q, k, v, scale);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let mut first = 0;
    for &len in &case.lengths {
        for i in 0..len {
            for h in 0..heads {
                let row = (first + i) * heads + h;
                for j in 0..if case.causal { i + 1 } else { len } {
                    let (a, b) = (row * d, ((first + j) * kv_heads + h / (heads / kv_heads)) * d);
                    let (mut score, mut slope) = (0.0, 0.0);
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
        }
        first += len;
    }
    [dq, dk, dv]
}
