//! The definition of adding positions, in f64.

/// Returns `x[r, c] + pos[r mod positions, c]`.
pub fn fwd(x: &[f64], pos: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x + pos[i % pos.len()]).collect()
}

/// Adds the gradient of each row to the row of d_pos that belongs to its position, and returns d_pos.
pub fn bwd(dy: &[f64], d_pos: &[f64]) -> Vec<f64> {
    let of = |place: usize| dy.iter().skip(place).step_by(d_pos.len()).sum::<f64>();
    d_pos.iter().enumerate().map(|(place, before)| before + of(place)).collect()
}
