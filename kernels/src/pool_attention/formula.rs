//! The definition of attention pooling for one head of one image, in f64.

use crate::checks::rounding::derivative_at_zero;

/// The operands of one head: q `[d]`, k and v `[n, d]`.
#[derive(Clone, Debug)]
pub struct HeadOperands {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub scale: f64,
}

/// Returns the head's output and the log-sum-exp of its scores.
pub fn output_and_log_sum_exp(head: &HeadOperands) -> (Vec<f64>, f64) {
    let d = head.q.len();
    let score = |k: &[f64]| head.scale * head.q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    let scores: Vec<f64> = head.k.chunks_exact(d).map(score).collect();
    let row_max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if scores.is_empty() {
        return (vec![0.0; d], f64::NEG_INFINITY);
    }
    let lse = row_max + scores.iter().map(|s| (s - row_max).exp()).sum::<f64>().ln();
    let mut o = vec![0.0; d];
    for (s, v) in scores.iter().zip(head.v.chunks_exact(d)) {
        for (o, v) in o.iter_mut().zip(v) {
            *o += (s - lse).exp() * v;
        }
    }
    (o, lse)
}

/// Returns the gradients of `sum(d_o · o)` for q, k and v, by finite differences. `delta` is `d_o · o` computed from
/// a rounded o. An error e of delta changes every `ds_j` by `−p_j e`, which is the gradient of an additional loss
/// `−e · lse`.
pub fn gradients_of_q_k_v(head: &HeadOperands, d_o: &[f64], delta: f64) -> [Vec<f64>; 3] {
    let dot = |o: &[f64]| o.iter().zip(d_o).map(|(o, d)| o * d).sum::<f64>();
    let e = delta - dot(&output_and_log_sum_exp(head).0);
    let differences = |part: fn(&mut HeadOperands) -> &mut Vec<f64>| {
        let mut moved = head.clone();
        let count = part(&mut moved).len();
        let mut at = |i: usize, value: f64| {
            part(&mut moved)[i] = value;
            let (o, lse) = output_and_log_sum_exp(&moved);
            if e == 0.0 { dot(&o) } else { dot(&o) - e * lse }
        };
        let mut original = head.clone();
        let original = part(&mut original);
        let difference = |i: usize| {
            let slope = derivative_at_zero(|h| at(i, original[i] + h));
            at(i, original[i]);
            slope
        };
        (0..count).map(difference).collect()
    };
    [differences(|head| &mut head.q), differences(|head| &mut head.k), differences(|head| &mut head.v)]
}
