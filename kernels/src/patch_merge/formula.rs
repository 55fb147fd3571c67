//! The definition of patch merging in f64, and its gradient by finite differences.

use crate::checks::rounding::derivative_at_zero;
use crate::rms_norm::formula;

/// Returns `round(w · round(x[index] · rstd))`, row after row; `round` rounds to the element type.
pub fn fwd(x: &[f64], index: &[i32], w: &[f64], eps: f64, round: fn(f64) -> f64) -> Vec<f64> {
    let rows: Vec<f64> = index.iter().flat_map(|&i| &x[i as usize * w.len()..][..w.len()]).copied().collect();
    let rstds: Vec<f64> = rows.chunks_exact(w.len()).map(|row| formula::rstd(row, eps)).collect();
    formula::fwd(&rows, w, &rstds, round).into_iter().map(round).collect()
}

/// Returns the gradients of `sum(dy · fwd(x))` for x and w, by finite differences.
pub fn gradients_of_x_w(x: &[f64], index: &[i32], w: &[f64], dy: &[f64], eps: f64) -> [Vec<f64>; 2] {
    let (cols, h, exact) = (w.len(), 1e-5, |v| v);
    let mut dx = vec![0.0; x.len()];
    for (&from, dy) in index.iter().zip(dy.chunks_exact(cols)) {
        let at = from as usize * cols;
        let loss = |x: &[f64]| fwd(x, &[0], w, eps, exact).iter().zip(dy).map(|(y, d)| y * d).sum::<f64>();
        let mut row = x[at..at + cols].to_vec();
        let size = row.iter().map(|x| x * x / cols as f64).sum::<f64>().sqrt().max(eps.sqrt());
        for c in 0..cols {
            let middle = row[c];
            let moved = |h: f64| {
                row[c] = middle + h * size;
                loss(&row)
            };
            dx[at + c] = derivative_at_zero(moved) / size;
            row[c] = middle;
        }
    }
    // Each column of y depends on a single weight, so one pair of evaluations, with all weights shifted at once,
    // gives the gradients of all weights.
    let shifted = |h: f64| fwd(x, index, &w.iter().map(|w| w + h).collect::<Vec<_>>(), eps, exact);
    let (above, below) = (shifted(h), shifted(-h));
    let mut dw = vec![0.0; cols];
    for i in 0..dy.len() {
        dw[i % cols] += dy[i] * (above[i] - below[i]) / (2.0 * h);
    }
    [dx, dw]
}
