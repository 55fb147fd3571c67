//! The definition of the column copy, element by element.

use super::CopyShape;

/// Returns the contents of `dst` after the copy.
pub fn copy(src: &[f32], dst: &[f32], shape: CopyShape) -> Vec<f32> {
    let CopyShape { width, src_cols, src_start, dst_cols, dst_start, .. } = shape;
    let source = |i: usize| {
        let (row, column) = (i / dst_cols, i % dst_cols);
        let inside = column >= dst_start && column < dst_start + width;
        inside.then(|| src[row * src_cols + src_start + column - dst_start])
    };
    (0..dst.len()).map(|i| source(i).unwrap_or(dst[i])).collect()
}
