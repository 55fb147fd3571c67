//! The definition, in f64.

/// `round(w · round(x · rstd))` for one row after the other; `round` is that of the element type.
pub fn fwd(x: &[f64], w: &[f64], eps: f64, round: fn(f64) -> f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let r = rstd(x, eps);
        x.iter().zip(w).map(|(x, w)| round(w * round(x * r))).collect()
    };
    x.chunks_exact(w.len()).flat_map(row).collect()
}

/// `1 / sqrt(mean(x²) + eps)` of a row.
pub fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// The gradients of `sum(dy · fwd(x, w))` for x and w, by central differences.
pub fn bwd(x: &[f64], w: &[f64], dy: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let (cols, exact) = (w.len(), |v| v);
    let mut dx = Vec::new();
    for (x, dy) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
        let loss = |x: &[f64]| -> f64 { fwd(x, w, eps, exact).iter().zip(dy).map(|(y, d)| y * d).sum() };
        let h = 1e-5 / rstd(x, eps);
        let mut moved = x.to_vec();
        for c in 0..cols {
            moved[c] = x[c] + h;
            let above = loss(&moved);
            moved[c] = x[c] - h;
            dx.push((above - loss(&moved)) / (2.0 * h));
            moved[c] = x[c];
        }
    }
    // A column of y depends on one weight alone, so all weights can be moved at once.
    let h = 1e-5;
    let shifted = |h: f64| fwd(x, &w.iter().map(|w| w + h).collect::<Vec<_>>(), eps, exact);
    let (above, below) = (shifted(h), shifted(-h));
    let mut dw = vec![0.0; cols];
    for i in 0..x.len() {
        dw[i % cols] += dy[i] * (above[i] - below[i]) / (2.0 * h);
    }
    (dx, dw)
}
