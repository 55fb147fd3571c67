//! The definitions of gather and scatter, element by element.

/// Gather: `y[i, c] = x[index[i], c]`, 0 for an index out of range.
pub fn gather(x: &[f32], index: &[i32], cols: usize) -> Vec<f32> {
    let at = |i: usize| usize::try_from(index[i / cols]).ok().map(|row| row * cols + i % cols);
    (0..index.len() * cols).map(|i| at(i).and_then(|at| x.get(at)).copied().unwrap_or(0.0)).collect()
}

/// Scatter: `dst[r, c] = src[i, c]` if `index[i] = r`, otherwise unchanged.
pub fn scatter(src: &[f32], index: &[i32], dst: &[f32], cols: usize) -> Vec<f32> {
    let from = |at: usize| index.iter().position(|&row| row == (at / cols) as i32);
    (0..dst.len()).map(|at| from(at).map_or(dst[at], |row| src[row * cols + at % cols])).collect()
}
