//! Resampling of the learned positions of Qwen3-VL's vision tower to the grid of an image: bilinear, with the corners
//! of the table at the corners of the image.
//!
//! ```text
//! row r of h:  s = r · (side − 1) / max(h − 1, 1);  taps ⌊s⌋ and ⌊s⌋ + 1 (at most side − 1);  weights 1 − frac, frac
//! ```
//!
//! Columns have the same rule. A patch is the sum of four rows of the table, one for each pair of taps. All frames of a
//! video have the same positions.

use crate::window::{GridThw, patch_rows_and_columns};

/// The four taps of every patch, in processor order: the indices of rows of the table with `side²` rows, and their
/// weights, `[4 N]` each. `merge` is the number of patches along a side of the square that becomes one vision token.
pub fn position_taps(grids: &[GridThw], merge: usize, side: usize) -> (Vec<i32>, Vec<f32>) {
    let (mut index, mut weight) = (Vec::new(), Vec::new());
    for &[t, h, w] in grids {
        let (rows, columns) = (axis_taps(h, side), axis_taps(w, side));
        let first = index.len();
        for [row, column] in patch_rows_and_columns(&[[1, h, w]], merge) {
            for (y, of_row) in rows[row] {
                for (x, of_column) in columns[column] {
                    index.push((y * side + x) as i32);
                    weight.push(of_row * of_column);
                }
            }
        }
        for _ in 1..t {
            index.extend_from_within(first..first + 4 * h * w);
            weight.extend_from_within(first..first + 4 * h * w);
        }
    }
    (index, weight)
}

/// The two taps along one axis of each of `count` patches: the index in the table's side, and the weight.
fn axis_taps(count: usize, side: usize) -> Vec<[(usize, f32); 2]> {
    let step = (side - 1) as f64 / (count - 1).max(1) as f64;
    (0..count)
        .map(|i| {
            let at = i as f64 * step;
            let (low, fraction) = (at.floor() as usize, (at - at.floor()) as f32);
            [(low, 1.0 - fraction), ((low + 1).min(side - 1), fraction)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A table that is linear in row and column is resampled exactly: the corners of the image are the corners of
        /// the table, and all other patches lie evenly between them.
        #[test]
        fn a_linear_table_stays_linear(t in 1usize..3, h in 1usize..9, w in 1usize..9, side in 1usize..50) {
            let grid = [t, 2 * h, 2 * w];
            let (index, weight) = position_taps(&[grid], 2, side);
            prop_assert_eq!((index.len(), weight.len()), (16 * t * h * w, 16 * t * h * w));
            let value = |row: f64, column: f64| 3.0 * row - 2.0 * column + 1.0;
            let positions = patch_rows_and_columns(&[grid], 2);
            for ((taps, weights), [row, column]) in index.chunks(4).zip(weight.chunks(4)).zip(positions) {
                let of_tap = |&tap: &i32| value((tap as usize / side) as f64, (tap as usize % side) as f64);
                let sum: f64 = taps.iter().zip(weights).map(|(tap, &weight)| f64::from(weight) * of_tap(tap)).sum();
                let scale = |n: usize| (side - 1) as f64 / (2 * n - 1) as f64;
                let exact = value(row as f64 * scale(h), column as f64 * scale(w));
                prop_assert!((sum - exact).abs() < 1e-4, "{} {}", sum, exact);
            }
        }
    }
}
