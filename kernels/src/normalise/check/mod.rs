use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_rows_cols_scale};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{
    DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded, assert_within, f32_sum_error, rounding_error,
};

checks!(
    equals_the_formula,
    gradient_equals_the_formula,
    a_row_of_zeros_gives_nan,
    threads_and_other_rows_change_nothing
);

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

/// Largest relative error of a norm, and of an element of y before it is stored.
const MAX_ERROR: f64 = 1e-6;

/// Returns a bound of the error of each element of a row of dx, `(dy − n · Σ dy · n) / norm`, before the row is stored.
/// The terms `dy` and `n · Σ dy · n` may cancel, so the bound depends on their sizes.
fn dx_bounds(x: &[f64], dy: &[f64]) -> Vec<f64> {
    let (n, norm) = (formula::fwd(x), formula::l2_norm(x));
    let along: f64 = n.iter().zip(dy).map(|(n, d)| (n * d).abs()).sum();
    let bound = |(n, d): (&f64, &f64)| {
        16.0 * F32_HALF_ULP * (d.abs() + n.abs() * along) + n.abs() * f32_sum_error(x.len(), along)
    };
    n.iter().zip(dy).map(|terms| bound(terms) / norm).collect()
}

/// Runs the forward launch; returns y and the norms.
fn forward(dtype: DType, x: &TestArray, cols: usize, threads: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = x.values().len() / cols;
    let (y, mut norm) = (TestArray::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params =
        FwdParams { x: x.addr(), y: y.addr(), norm: addr_mut(&mut norm), rows: rows as u32, cols: cols as u32 };
    run(&fwd(dtype, &params), threads);
    (y.values(), norm)
}

fn backward(dtype: DType, x: &TestArray, dy: &TestArray, norm: &[f32], cols: usize, threads: usize) -> Vec<f32> {
    let dx = TestArray::output(dtype, norm.len() * cols);
    let (rows, cols) = (norm.len() as u32, cols as u32);
    let params = BwdParams { x: x.addr(), norm: addr(norm), dy: dy.addr(), dx: dx.addr(), rows, cols };
    run(&bwd(dtype, &params), threads);
    dx.values()
}

fn equals_the_formula() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        for dtype in [F32, BF16] {
            let x = TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale));
            let (y, norm) = forward(dtype, &x, cols, 3);
            let want: Vec<f64> = x.to_f64().chunks_exact(cols).flat_map(formula::fwd).collect();
            assert_normalised(&format!("{dtype} {rows}x{cols}"), dtype, &y, &want, 1e-6, |i| MAX_ERROR * want[i].abs());
            let want: Vec<f64> = x.to_f64().chunks_exact(cols).map(formula::l2_norm).collect();
            assert_close(&format!("norm {dtype} {rows}x{cols}"), &norm, &want, 1e-6, |i| MAX_ERROR * want[i]);
        }
    }
}

fn gradient_equals_the_formula() {
    // With one column, y is ±1 for any x, so dx consists of rounding errors only.
    for (rows, cols, scale) in test_cases_rows_cols_scale().into_iter().filter(|c| c.1 > 1) {
        for dtype in [F32, BF16] {
            let (x, dy) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale)),
                TestArray::new(dtype, &normal_numbers(rows * cols, 2, 1.0)),
            );
            let (_, norm) = forward(dtype, &x, cols, 1);
            let dx = backward(dtype, &x, &dy, &norm, cols, 2);
            let rows_of = |d: &TestArray| d.to_f64().chunks_exact(cols).map(<[f64]>::to_vec).collect::<Vec<_>>();
            let want: Vec<f64> =
                rows_of(&x).iter().zip(&rows_of(&dy)).flat_map(|(x, dy)| formula::bwd(x, dy)).collect();
            let bounds: Vec<f64> = rows_of(&x).iter().zip(&rows_of(&dy)).flat_map(|(x, dy)| dx_bounds(x, dy)).collect();
            assert_normalised(&format!("dx {dtype} {rows}x{cols}"), dtype, &dx, &want, 1e-5, |i| bounds[i]);
        }
    }
}

fn a_row_of_zeros_gives_nan() {
    let x = TestArray::new(F32, &[0.0, 0.0, 3.0, 4.0]);
    let (y, norm) = forward(F32, &x, 2, 1);
    assert!(y[0].is_nan() && y[1].is_nan());
    assert_eq!((&y[2..], &norm[..]), (&[0.6, 0.8][..], &[0.0, 5.0][..]));
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        let (rows, cols) = (37, 515);
        for dtype in [F32, BF16] {
            let (values, d_values) = (normal_numbers(rows * cols, 1, 1.0), normal_numbers(rows * cols, 2, 1.0));
            let (x, dy) = (TestArray::new(dtype, &values), TestArray::new(dtype, &d_values));
            let (y, norm) = forward(dtype, &x, cols, 1);
            let dx = backward(dtype, &x, &dy, &norm, cols, 4);
            for row in [0, 20, 36] {
                let at = row * cols..(row + 1) * cols;
                let (x, dy) =
                    (TestArray::new(dtype, &values[at.clone()]), TestArray::new(dtype, &d_values[at.clone()]));
                assert_eq!(forward(dtype, &x, cols, 2), (y[at.clone()].to_vec(), vec![norm[row]]));
                assert_eq!(backward(dtype, &x, &dy, &norm[row..=row], cols, 1), dx[at]);
            }
        }
    });
}

#[cfg(test)]
mod tests;
