use reel_device::DType::{self, BF16, F32};

use super::{FwdParams, formula, fwd, test_cases_rows_cols_scale};
use crate::checks::{TestArray, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_close, assert_rounded, assert_within, rounding_error};

checks!(equals_the_formula, a_row_of_zeros_gives_nan, threads_and_other_rows_change_nothing);

/// Asserts that `got` is close enough to `want`: in bf16 within the default tolerance for roundings, in f32 within
/// the relative L2 distance `tol`. Element `i` may be off by `bound(i)` and the rounding of the store.
fn assert_normalised(name: &str, dtype: DType, got: &[f32], want: &[f64], tol: f64, bound: impl Fn(usize) -> f64) {
    let bound = |i: usize| bound(i) + rounding_error(dtype) * want[i].abs();
    if dtype == F32 {
        return assert_close(name, got, want, tol, bound);
    }
    assert_within(name, got, want, bound);
    assert_rounded(name, dtype, got, want, want, DEFAULT_ROUNDING_FACTOR);
}

/// Largest relative error of an element of y before it is stored.
const MAX_ERROR: f64 = 1e-6;

/// Runs the launch; returns y.
fn forward(dtype: DType, x: &TestArray, cols: usize, threads: usize) -> Vec<f32> {
    let rows = x.values().len() / cols;
    let y = TestArray::output(dtype, rows * cols);
    run(&fwd(dtype, &FwdParams { x: x.addr(), y: y.addr(), rows: rows as u32, cols: cols as u32 }), threads);
    y.values()
}

fn equals_the_formula() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        for dtype in [F32, BF16] {
            let x = TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale));
            let y = forward(dtype, &x, cols, 3);
            let want: Vec<f64> = x.to_f64().chunks_exact(cols).flat_map(formula::fwd).collect();
            assert_normalised(&format!("{dtype} {rows}x{cols}"), dtype, &y, &want, 1e-6, |i| MAX_ERROR * want[i].abs());
        }
    }
}

fn a_row_of_zeros_gives_nan() {
    let x = TestArray::new(F32, &[0.0, 0.0, 3.0, 4.0]);
    let y = forward(F32, &x, 2, 1);
    assert!(y[0].is_nan() && y[1].is_nan());
    assert_eq!(y[2..], [0.6, 0.8]);
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        let (rows, cols) = (37, 515);
        for dtype in [F32, BF16] {
            let values = normal_numbers(rows * cols, 1, 1.0);
            let y = forward(dtype, &TestArray::new(dtype, &values), cols, 1);
            for row in [0, 20, 36] {
                let at = row * cols..(row + 1) * cols;
                let x = TestArray::new(dtype, &values[at.clone()]);
                assert_eq!(forward(dtype, &x, cols, 2), y[at]);
            }
        }
    });
}

#[cfg(test)]
mod tests;
