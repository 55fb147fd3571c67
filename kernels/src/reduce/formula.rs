//! The definitions of the sums, in f64, without partial sums.

/// Returns the weighted sum `Σ x · w`.
pub fn weighted_sum(x: &[f64], w: &[f64]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

/// Returns two numbers: the norm `√Σ x²`, and the factor `min(1, max_norm / (norm + 1e-6))` by which clipping scales
/// x.
pub fn norm_and_clip_factor(x: &[f64], max_norm: f64) -> (f64, f64) {
    let norm = weighted_sum(x, x).sqrt();
    (norm, (max_norm / (norm + 1e-6)).min(1.0))
}
