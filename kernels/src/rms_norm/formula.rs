//! The definition of RMS normalisation in f64: exact, and with the roundings that `mod.rs` documents, except the
//! rounding at the store.

use crate::checks::rounding::{F32_ULP, RSQRT_MAX_RELATIVE_ERROR, approximate, f32, sum_f32_in_stages};

/// Returns `w · round(x · rstd)` for every row; `round` rounds the inner product.
pub fn fwd(x: &[f64], w: &[f64], rstds: &[f64], round: fn(f64) -> f64) -> Vec<f64> {
    let rows = x.chunks_exact(w.len()).zip(rstds);
    rows.flat_map(|(x, r)| x.iter().zip(w).map(move |(x, w)| w * round(x * r))).collect()
}

/// Returns `1 / sqrt(mean(x²) + eps)` of a row.
pub fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// Returns the [`rstd`] of a row, computed with the kernel's roundings.
pub fn rstd_rounded(x: &[f64], eps: f64) -> f64 {
    let mean = approximate(sum_f32_in_stages(x.iter().map(|x| x * x), &[128, 64]) / x.len() as f64, 2.0 * F32_ULP);
    approximate(1.0 / f32(mean + eps).sqrt(), RSQRT_MAX_RELATIVE_ERROR)
}

/// Returns the gradients of `sum(dy · fwd(x, w))` for x and w, by the chain rule with the rows' `rstds`. Tests
/// compare them with finite differences.
pub fn gradients_of_x_w(x: &[f64], w: &[f64], dy: &[f64], rstds: &[f64]) -> [Vec<f64>; 2] {
    let cols = w.len();
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; cols]);
    for ((x, dy), r) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(rstds) {
        let mean = (0..cols).map(|c| dy[c] * w[c] * x[c]).sum::<f64>() / cols as f64;
        for c in 0..cols {
            dx.push(r * (dy[c] * w[c] - x[c] * r * r * mean));
            dw[c] += dy[c] * x[c] * r;
        }
    }
    [dx, dw]
}

/// Returns [`gradients_of_x_w`], computed with the kernel's roundings and its order of summation for dw.
pub fn gradients_of_x_w_rounded(x: &[f64], w: &[f64], dy: &[f64], rstds: &[f64]) -> [Vec<f64>; 2] {
    let cols = w.len();
    let (mut dx, mut terms) = (Vec::new(), vec![Vec::new(); cols]);
    for ((x, dy), r) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(rstds) {
        let g: Vec<f64> = dy.iter().zip(w).map(|(dy, w)| f32(dy * w)).collect();
        let mean =
            approximate(sum_f32_in_stages((0..cols).map(|c| g[c] * x[c]), &[128, 64]) / cols as f64, 2.0 * F32_ULP);
        let along = f32(f32(f32(r * r) * r) * mean);
        for c in 0..cols {
            dx.push(f32(f32(r * g[c]) - f32(along * x[c])));
            terms[c].push(dy[c] * f32(x[c] * r));
        }
    }
    [dx, terms.into_iter().map(|t| sum_f32_in_stages(t, &[super::ROWS_PER_BLOCK])).collect()]
}
