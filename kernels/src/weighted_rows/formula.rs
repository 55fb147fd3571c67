//! The definition in f64.

/// A list of entries: the row of x and the weight.
pub type List = Vec<(usize, f64)>;

/// Returns `Σ weight · x[row]` for each list. `round` rounds each product and each partial sum.
pub fn weighted_rows(x: &[f64], lists: &[List], cols: usize, round: fn(f64) -> f64) -> Vec<f64> {
    let one = |list: &List, c: usize| {
        list.iter().fold(0.0, |sum, (row, weight)| round(sum + round(weight * x[row * cols + c])))
    };
    lists.iter().flat_map(|list| (0..cols).map(move |c| one(list, c))).collect()
}
