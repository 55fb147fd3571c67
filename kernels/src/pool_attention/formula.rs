//! The definition of attention pooling for one head of one image, in f64.

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
