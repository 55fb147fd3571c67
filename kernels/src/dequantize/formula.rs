//! The definition in f64. It is exact: a product of two f32 has at most 48 significant bits.

/// Returns the dequantised weights `[n, k]`, before they are rounded. `block_of` gives the block of a weight by its row
/// and column; without zero points, `zeros` is empty.
pub fn dequantize(
    codes: &[u8],
    [n, k]: [usize; 2],
    values: &[f32],
    (scales, zeros): (&[f32], &[f32]),
    block_of: impl Fn(usize, usize) -> usize,
) -> Vec<f64> {
    let one = |row: usize, column: usize| {
        let block = block_of(row, column);
        let zero = zeros.get(block).map_or(0.0, |&zero| zero as f64);
        (values[usize::from(codes[row * k + column])] as f64 - zero) * scales[block] as f64
    };
    (0..n * k).map(|at| one(at / k, at % k)).collect()
}
