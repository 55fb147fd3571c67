//! The definition, in f64.

/// `ln Σ e^(l · s)` of a row.
pub fn lse(logits: &[f64], s: f64) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    max * s + logits.iter().map(|l| ((l - max) * s).exp()).sum::<f64>().ln()
}

/// `l_target · s − lse`; 0 for a negative target.
pub fn log_prob(logits: &[f64], target: i32, s: f64) -> f64 {
    if target < 0 { 0.0 } else { logits[target as usize] * s - lse(logits, s) }
}

/// The gradient of `log_prob` for the logits by central differences; of the sum only the term that moves is redone.
pub fn bwd(logits: &[f64], target: i32, s: f64) -> Vec<f64> {
    let (h, lse) = (1e-4, lse(logits, s));
    let slope = |j: usize| {
        let moved = |h: f64| {
            let p = |l: f64| (l * s - lse).exp();
            let shift = (p(logits[j] + h) - p(logits[j])).ln_1p();
            if j as i32 == target { h * s - shift } else { -shift }
        };
        (moved(h) - moved(-h)) / (2.0 * h)
    };
    (0..logits.len()).map(|j| if target < 0 { 0.0 } else { slope(j) }).collect()
}
