//! The definition, in f64.

/// `sum[c] + Σ over r of x[r, c]`
pub fn add(x: &[f64], sum: &[f64]) -> Vec<f64> {
    let cols = sum.len();
    (0..cols).map(|c| sum[c] + x.iter().skip(c).step_by(cols).sum::<f64>()).collect()
}
