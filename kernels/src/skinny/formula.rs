//! The definition of skinny GEMM in f64, and a version with the roundings that `mod.rs` documents, except the last
//! one.

use crate::checks::rounding::{f32, sum_f32_in_stages};

/// Returns `y[r, c] = Σ x[r, i] w[c, i] · scale[c]`. An empty `scale` stands for scales of 1.
pub fn product(x: &[f64], w: &[f64], scale: &[f64], k: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks_exact(k) {
        for (c, w) in w.chunks_exact(k).enumerate() {
            y.push(x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() * scale.get(c).unwrap_or(&1.0));
        }
    }
    y
}

/// Returns the [`product`] in f32: terms are added in order, and the sum is rounded after each term.
pub fn product_rounded(x: &[f64], w: &[f64], scale: &[f64], k: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks_exact(k) {
        for (c, w) in w.chunks_exact(k).enumerate() {
            y.push(f32(sum_f32_in_stages(x.iter().zip(w).map(|(x, w)| x * w), &[]) * scale.get(c).unwrap_or(&1.0)));
        }
    }
    y
}

/// Returns the [`product`] as tensor cores may compute it: a sum is truncated to f32 after each 16 terms.
pub fn product_truncated(x: &[f64], w: &[f64], scale: &[f64], k: usize) -> Vec<f64> {
    let truncated = |x: f64| {
        let nearest = x as f32;
        let is_farther = f64::from(nearest).abs() > x.abs();
        f64::from(if is_farther { f32::from_bits(nearest.to_bits() - 1) } else { nearest })
    };
    let mut y = Vec::new();
    for x in x.chunks_exact(k) {
        for (c, w) in w.chunks_exact(k).enumerate() {
            let terms = x.chunks(16).zip(w.chunks(16)).map(|(x, w)| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
            y.push(f32(terms.fold(0.0, |sum, term| truncated(sum + term)) * scale.get(c).unwrap_or(&1.0)));
        }
    }
    y
}
