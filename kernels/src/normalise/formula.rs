//! The definition of L2 normalisation, in f64.

/// Returns the norm `sqrt(Σ x²)` of a row.
pub fn l2_norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Returns the normalised row `x / norm`.
pub fn fwd(x: &[f64]) -> Vec<f64> {
    let norm = l2_norm(x);
    x.iter().map(|x| x / norm).collect()
}
