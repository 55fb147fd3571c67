//! The definition of adding positions, in f64.

/// Returns `x[r, c] + pos[r mod positions, c]`.
pub fn fwd(x: &[f64], pos: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x + pos[i % pos.len()]).collect()
}
