//! The definition of the column copy, element by element.

/// Returns dst after the copy; `shape` is (rows, width, src_cols, src_start, dst_cols, dst_start).
pub fn copy(src: &[f32], dst: &[f32], [_, width, src_cols, src_start, dst_cols, dst_start]: [usize; 6]) -> Vec<f32> {
    let source = |i: usize| {
        let (row, column) = (i / dst_cols, i % dst_cols);
        let inside = column >= dst_start && column < dst_start + width;
        inside.then(|| src[row * src_cols + src_start + column - dst_start])
    };
    (0..dst.len()).map(|i| source(i).unwrap_or(dst[i])).collect()
}
