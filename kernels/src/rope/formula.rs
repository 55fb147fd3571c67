//! The definition of RoPE, in f64.

/// Returns the cosines and the sines of all angles `[tokens, frequencies]`. An angle is the product of a position and
/// a frequency, rounded to f32.
pub fn cos_sin_table(positions: &[i32], inv_freq: &[f32], axis: &[i32], tokens: usize) -> (Vec<f64>, Vec<f64>) {
    let mut angles = Vec::new();
    for t in 0..tokens {
        for (f, &a) in axis.iter().enumerate() {
            angles.push((positions[a as usize * tokens + t] as f32 * inv_freq[f]) as f64);
        }
    }
    (angles.iter().map(|a| a.cos()).collect(), angles.iter().map(|a| a.sin()).collect())
}

/// Rotates the pairs `(i, i + head_dim / 2)` of each head by the angles of their token; `round` rounds each product.
pub fn apply(x: &[f64], [cos, sin]: [&[f64]; 2], heads: usize, head_dim: usize, round: fn(f64) -> f64) -> Vec<f64> {
    let h = head_dim / 2;
    let mut y = vec![0.0; x.len()];
    for row in 0..x.len() / head_dim {
        for i in 0..h {
            let (c, s) = (cos[row / heads * h + i], sin[row / heads * h + i]);
            let (a, b) = (x[row * head_dim + i], x[row * head_dim + i + h]);
            y[row * head_dim + i] = round(a * c) - round(b * s);
            y[row * head_dim + i + h] = round(b * c) + round(a * s);
        }
    }
    y
}
