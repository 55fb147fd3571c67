//! Defines the matrix product, in f64, and the layout of operands in groups of rows.

#[cfg(test)]
use reel_device::Element;
#[cfg(test)]
use reel_device::launch::{GROUP_ROWS, group_elements};

/// Returns `sum over l of a(i, l) * b(j, l)` for each i and j; `a` is `[m, k]`, `b` is `[n, k]`.
pub fn product(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                c[i * n + j] += a[i * k + l] * b[j * k + l];
            }
        }
    }
    c
}

/// Returns a matrix `[n, k]` in the layout of groups that [`super::WeightGroups`] describes.
#[cfg(test)]
pub fn arrange_in_row_groups<T: Element>(rows: &[T], n: usize, k: usize) -> Vec<T> {
    let each = 4 / size_of::<T>();
    let lines = k.div_ceil(each);
    let mut groups = vec![T::from_f32(0.0); group_elements(T::DTYPE, n, k)];
    for (row, column) in (0..n).flat_map(|row| (0..k).map(move |column| (row, column))) {
        let line = row / GROUP_ROWS * lines + column / each;
        groups[(line * GROUP_ROWS + row % GROUP_ROWS) * each + column % each] = rows[row * k + column];
    }
    groups
}
