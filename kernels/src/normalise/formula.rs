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

/// Returns the gradient of `sum(dy · fwd(x))` for a row: `(dy − n · Σ dy · n) / norm`.
pub fn bwd(x: &[f64], dy: &[f64]) -> Vec<f64> {
    let (n, norm) = (fwd(x), l2_norm(x));
    let along: f64 = n.iter().zip(dy).map(|(n, d)| n * d).sum();
    n.iter().zip(dy).map(|(n, d)| (d - n * along) / norm).collect()
}

/// Returns the gradient of `sum(dy · fwd(x))` for a row, by central differences.
#[cfg(test)]
pub fn bwd_by_differences(x: &[f64], dy: &[f64]) -> Vec<f64> {
    let h = 1e-5 * l2_norm(x);
    let at = |c: usize, h: f64| {
        let mut moved = x.to_vec();
        moved[c] += h;
        fwd(&moved).iter().zip(dy).map(|(y, d)| y * d).sum::<f64>()
    };
    (0..x.len()).map(|c| (at(c, h) - at(c, -h)) / (2.0 * h)).collect()
}
