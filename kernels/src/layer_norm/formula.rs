//! The definition, in f64.

/// `(x − mean) · rstd · w + b` for one row after the other.
pub fn fwd(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let (mean, rstd) = statistics(x, eps);
        x.iter().zip(w).zip(b).map(|((x, w), b)| (x - mean) * rstd * w + b).collect()
    };
    x.chunks_exact(w.len()).flat_map(row).collect()
}

/// The mean of a row and `1 / sqrt(variance + eps)`.
pub fn statistics(x: &[f64], eps: f64) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// The gradients of `sum(dy · fwd(x, w, b))` for x, w and b, by central differences.
pub fn bwd(x: &[f64], w: &[f64], b: &[f64], dy: &[f64], eps: f64) -> [Vec<f64>; 3] {
    let cols = w.len();
    let mut dx = Vec::new();
    for (x, dy) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
        let loss = |x: &[f64]| -> f64 { fwd(x, w, b, eps).iter().zip(dy).map(|(y, d)| y * d).sum() };
        let h = 1e-5 / statistics(x, eps).1;
        let mut moved = x.to_vec();
        for c in 0..cols {
            moved[c] = x[c] + h;
            let above = loss(&moved);
            moved[c] = x[c] - h;
            dx.push((above - loss(&moved)) / (2.0 * h));
            moved[c] = x[c];
        }
    }
    // A column of y depends on one weight and one bias alone, so all can be moved at once.
    let h = 1e-5;
    let moved = |v: &[f64], h: f64| v.iter().map(|v| v + h).collect::<Vec<_>>();
    let per_column = |above: Vec<f64>, below: Vec<f64>| {
        let mut d = vec![0.0; cols];
        for i in 0..x.len() {
            d[i % cols] += dy[i] * (above[i] - below[i]) / (2.0 * h);
        }
        d
    };
    let dw = per_column(fwd(x, &moved(w, h), b, eps), fwd(x, &moved(w, -h), b, eps));
    let db = per_column(fwd(x, w, &moved(b, h), eps), fwd(x, w, &moved(b, -h), eps));
    [dx, dw, db]
}
