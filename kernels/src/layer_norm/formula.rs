//! The definition of layer normalisation in f64, and the same formulas with the kernel's roundings that `mod.rs`
//! documents, except the final rounding to the element type.

use crate::checks::rounding::{F32_ULP, RSQRT_MAX_RELATIVE_ERROR, approximate, f32, sum_f32_in_stages};

/// Returns `(x − mean) · rstd · w + b` for every row. `statistics` has the (mean, rstd) of each row; `round` rounds
/// each intermediate result.
pub fn fwd(x: &[f64], [w, b]: [&[f64]; 2], statistics: &[(f64, f64)], round: fn(f64) -> f64) -> Vec<f64> {
    let rows = x.chunks_exact(w.len()).zip(statistics);
    let one = |((x, w), b): ((&f64, &f64), &f64), (mean, rstd)| round(round(round(x - mean) * rstd) * w) + b;
    rows.flat_map(|(x, s)| x.iter().zip(w).zip(b).map(move |x| one(x, *s))).collect()
}

/// Returns the mean of a row and its rstd, `1 / sqrt(variance + eps)`.
pub fn mean_and_rstd(x: &[f64], eps: f64) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// Computes [`mean_and_rstd`] with the kernel's roundings.
pub fn mean_and_rstd_rounded(x: &[f64], eps: f64) -> (f64, f64) {
    let mean_of =
        |x: &[f64]| approximate(sum_f32_in_stages(x.iter().copied(), &[128, 64]) / x.len() as f64, 2.0 * F32_ULP);
    let mean = mean_of(x);
    let variance = mean_of(&x.iter().map(|x| f32(x - mean).powi(2)).collect::<Vec<_>>());
    (mean, approximate(1.0 / f32(variance + eps).sqrt(), RSQRT_MAX_RELATIVE_ERROR))
}

/// Returns the gradients of `sum(dy · fwd(x, w, b))` for x, w and b, by the chain rule with the rows' `statistics`.
/// Tests compare them with finite differences.
pub fn gradients_of_x_w_b(x: &[f64], w: &[f64], dy: &[f64], statistics: &[(f64, f64)]) -> [Vec<f64>; 3] {
    let cols = w.len();
    let (mut dx, mut dw, mut db) = (Vec::new(), vec![0.0; cols], vec![0.0; cols]);
    for ((x, dy), (mean, rstd)) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(statistics) {
        let (n, g) = (|c: usize| (x[c] - mean) * rstd, |c: usize| dy[c] * w[c]);
        let mean_g = (0..cols).map(g).sum::<f64>() / cols as f64;
        let mean_gn = (0..cols).map(|c| g(c) * n(c)).sum::<f64>() / cols as f64;
        for c in 0..cols {
            dx.push(rstd * (g(c) - mean_g - n(c) * mean_gn));
            dw[c] += dy[c] * n(c);
            db[c] += dy[c];
        }
    }
    [dx, dw, db]
}

/// Computes [`gradients_of_x_w_b`] with the kernel's roundings and its order of summation for dw and db.
pub fn gradients_of_x_w_b_rounded(x: &[f64], w: &[f64], dy: &[f64], statistics: &[(f64, f64)]) -> [Vec<f64>; 3] {
    let cols = w.len();
    let (mut dx, mut to_w, mut to_b) = (Vec::new(), vec![Vec::new(); cols], vec![Vec::new(); cols]);
    for ((x, dy), (mean, rstd)) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(statistics) {
        let n: Vec<f64> = x.iter().map(|x| f32(f32(x - mean) * rstd)).collect();
        let g: Vec<f64> = dy.iter().zip(w).map(|(dy, w)| f32(dy * w)).collect();
        let mean_of = |f: &dyn Fn(usize) -> f64| {
            approximate(sum_f32_in_stages((0..cols).map(f), &[128, 64]) / cols as f64, 2.0 * F32_ULP)
        };
        let (mean_g, mean_gn) = (mean_of(&|c| g[c]), mean_of(&|c| g[c] * n[c]));
        for c in 0..cols {
            dx.push(rstd * f32(f32(g[c] - mean_g) - f32(n[c] * mean_gn)));
            to_w[c].push(dy[c] * n[c]);
            to_b[c].push(dy[c]);
        }
    }
    let sums =
        |terms: Vec<Vec<f64>>| terms.into_iter().map(|t| sum_f32_in_stages(t, &[super::ROWS_PER_BLOCK])).collect();
    [dx, sums(to_w), sums(to_b)]
}
