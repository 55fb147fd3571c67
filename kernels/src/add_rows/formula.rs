//! The definition in f64.

/// Returns `y[r, c] + x[i, c]` if `index[i] = r`, otherwise `y[r, c]`.
pub fn add_rows(x: &[f64], index: &[i32], y: &[f64], cols: usize) -> Vec<f64> {
    let row_of_x = |row: usize| index.iter().position(|&r| r == row as i32);
    let one = |at: usize| y[at] + row_of_x(at / cols).map_or(0.0, |i| x[i * cols + at % cols]);
    (0..y.len()).map(one).collect()
}
