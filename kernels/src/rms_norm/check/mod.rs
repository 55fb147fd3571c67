use bytemuck::Zeroable;
use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, row_block_count, test_cases_rows_cols_scale};
use crate::checks::rounding::{self, unrounded};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{
    DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, assert_close, assert_rounded, assert_within, f32_sum_error, rounding_error,
};

checks!(
    equals_the_formula_with_its_inner_rounding,
    gradient_equals_the_formula,
    threads_and_other_rows_change_nothing,
    a_residual_is_added_before_the_norm,
    the_gradient_of_a_residual_joins_that_of_the_norm
);

pub(crate) const EPS: f32 = 1e-6;

/// Tolerance of f32 results, as a multiple of the error of one rounding. A row's rstd has an error of two units in
/// its last place, which all elements of the row share. In a gradient, the component parallel to x cancels, which
/// makes errors relatively larger.
const ROUNDING_FACTOR_F32: f64 = 12.0;
/// Tolerance of a sum over rows in f32, as a multiple of the error of one rounding.
const ROUNDING_FACTOR_SUM: f64 = 10.0;

fn rounding_factor(dtype: DType) -> f64 {
    if dtype == F32 { ROUNDING_FACTOR_F32 } else { DEFAULT_ROUNDING_FACTOR }
}

/// Returns the function that rounds an f64 to an element type.
fn rounding(dtype: DType) -> fn(f64) -> f64 {
    if dtype == F32 { rounding::f32 } else { rounding::bf16 }
}

fn each_row(f: fn(&[f64], f64) -> f64, x: &[f64], cols: usize) -> Vec<f64> {
    x.chunks_exact(cols).map(|x| f(x, EPS as f64)).collect()
}

/// Asserts that the results of an RMS normalisation are right: element `i` may be off by `bound(i)`. All elements of a
/// row share the error of the row's rstd. With few f32 rows the total error therefore varies too much for a tight
/// bound.
fn assert_rows(
    name: &str,
    dtype: DType,
    rows: usize,
    got: &[f32],
    [with, want]: [&[f64]; 2],
    bound: impl Fn(usize) -> f64,
) {
    if dtype == F32 && rows < 4 {
        return assert_close(name, got, want, 1e-6, bound);
    }
    assert_within(name, got, want, bound);
    assert_rounded(name, dtype, got, with, want, rounding_factor(dtype));
}

/// Largest relative error of an element of y or rstd in f32: the error of rstd (2^-22.9, plus the error of the mean)
/// and two roundings.
pub(crate) const MAX_ERROR_F32: f64 = 1e-6;

/// Returns bounds of the errors of dx. Its two terms, `rstd · w · dy` and `x · rstd³ · mean(w · dy · x)`, may cancel,
/// so the bound depends on their sizes. Each term has the error of rstd and the roundings of its products; the mean has
/// the error of a sum over the row; dx is rounded once when it is stored.
pub(crate) fn dx_bounds(dtype: DType, [x, w, dy]: [&[f64]; 3], rstds: &[f64], dx: &[f64]) -> Vec<f64> {
    let (cols, mut bounds) = (w.len(), Vec::new());
    for (row, dx) in dx.chunks_exact(cols).enumerate() {
        let (r, x, dy) = (rstds[row], &x[row * cols..], &dy[row * cols..]);
        let mean = (0..cols).map(|c| (w[c] * dy[c] * x[c]).abs()).sum::<f64>() / cols as f64;
        for (c, dx) in dx.iter().enumerate() {
            let along = x[c].abs() * r.powi(3);
            let terms = (r * w[c] * dy[c]).abs() + along * mean;
            let of_sum = along * f32_sum_error(cols, mean);
            bounds.push(16.0 * F32_HALF_ULP * terms + of_sum + rounding_error(dtype) * dx.abs());
        }
    }
    bounds
}

/// Asserts that y and rstd equal the formula's results for the rows of x.
fn assert_normed(name: &str, dtype: DType, [x, w]: [&TestArray; 2], y: &[f32], rstds: &[f32]) {
    let (x, w) = (x.to_f64(), w.to_f64());
    let [with, want] = [formula::rstd_rounded, formula::rstd].map(|f| each_row(f, &x, w.len()));
    let bound = |i: usize| MAX_ERROR_F32 * want[i];
    assert_rows(&format!("{name}: rstd"), F32, rstds.len(), rstds, [&with, &want], bound);
    let (with, want) = (formula::fwd(&x, &w, &with, rounding(dtype)), formula::fwd(&x, &w, &want, unrounded));
    // In bf16 the inner product and y are rounded.
    let most = MAX_ERROR_F32 + if dtype == BF16 { 2.0 * rounding_error(BF16) } else { 0.0 };
    assert_rows(name, dtype, rstds.len(), y, [&with, &want], |i| most * want[i].abs());
    if dtype == BF16 {
        // A kernel that did not round x · rstd to bf16 would differ in half of the elements.
        let others = with.iter().zip(y).filter(|(with, y)| rounding::bf16(**with) != **y as f64).count();
        assert!(others <= 1 + y.len() / 50, "{name}: {others} of {} elements differ from the formula", y.len());
    }
}

/// Runs the forward launch; returns y and rstd.
pub(crate) fn forward(
    dtype: DType,
    x: &TestArray,
    w: &TestArray,
    rows: usize,
    cols: usize,
    threads: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (y, mut rstd) = (TestArray::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params = FwdParams {
        x: x.addr(),
        w: w.addr(),
        y: y.addr(),
        rstd: addr_mut(&mut rstd),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        ..Zeroable::zeroed()
    };
    run(&fwd(dtype, &params), threads);
    (y.values(), rstd)
}

/// Runs the backward launch with dw starting at 0.5; returns dx and dw.
pub(crate) fn backward(
    dtype: DType,
    x: &TestArray,
    w: &TestArray,
    dy: &TestArray,
    rstd: &[f32],
    cols: usize,
    threads: usize,
) -> [Vec<f32>; 2] {
    let rows = rstd.len();
    let dx = TestArray::output(dtype, rows * cols);
    let (mut dw, mut partial) = (vec![0.5; cols], vec![f32::NAN; row_block_count(rows) * cols]);
    let params = BwdParams {
        x: x.addr(),
        w: w.addr(),
        rstd: addr(rstd),
        dy: dy.addr(),
        dx: dx.addr(),
        dw: addr_mut(&mut dw),
        partial: addr_mut(&mut partial),
        rows: rows as u32,
        cols: cols as u32,
        accumulate: 1,
        ..Zeroable::zeroed()
    };
    run(&bwd(dtype, &params), threads);
    let frozen = TestArray::output(dtype, rows * cols);
    let params = BwdParams { dx: frozen.addr(), dw: Addr::NULL, partial: Addr::NULL, ..params };
    run(&bwd(dtype, &params), threads);
    assert_eq!(dx.values(), frozen.values(), "dx must not depend on whether w is frozen");
    let mut alone = vec![f32::NAN; cols];
    let (dw_at, partial) = (addr_mut(&mut alone), addr_mut(&mut partial));
    run(&bwd(dtype, &BwdParams { dw: dw_at, partial, accumulate: 0, ..params }), threads);
    let is_same = |(alone, sum): (&f32, &f32)| 0.5 + alone == *sum;
    assert!(rows == 0 || alone.iter().zip(&dw).all(is_same), "dw must have the same bits with and without accumulate");
    [dx.values(), dw]
}

fn equals_the_formula_with_its_inner_rounding() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        for dtype in [F32, BF16] {
            let (x, w) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale)),
                TestArray::new(dtype, &normal_numbers(cols, 2, 1.0)),
            );
            let (y, rstd) = forward(dtype, &x, &w, rows, cols, 3);
            assert_normed(&format!("rms_norm {rows}x{cols}"), dtype, [&x, &w], &y, &rstd);
        }
    }
}

fn gradient_equals_the_formula() {
    for (rows, cols, scale) in test_cases_rows_cols_scale().into_iter() {
        for dtype in [F32, BF16] {
            let (x, w) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale)),
                TestArray::new(dtype, &normal_numbers(cols, 2, 1.0)),
            );
            let dy = TestArray::new(dtype, &normal_numbers(rows * cols, 3, 1.0));
            let (_, rstd) = forward(dtype, &x, &w, rows, cols, 1);
            let [dx, dw] = backward(dtype, &x, &w, &dy, &rstd, cols, 2);
            let rstds: Vec<f64> = rstd.iter().map(|&r| r as f64).collect();
            let [[with_dx, with_dw], [want_dx, want_dw]] =
                [formula::gradients_of_x_w_rounded, formula::gradients_of_x_w]
                    .map(|f| f(&x.to_f64(), &w.to_f64(), &dy.to_f64(), &rstds));
            if cols == 1 {
                // With one column, y is ±w for any x, so dx consists of rounding errors only.
                assert_within(&format!("dx {dtype} {rows}x1"), &dx, &want_dx, |_| 1e-6);
            } else {
                let bounds = dx_bounds(dtype, [&x.to_f64(), &w.to_f64(), &dy.to_f64()], &rstds, &want_dx);
                assert_rows(&format!("dx {rows}x{cols}"), dtype, rows, &dx, [&with_dx, &want_dx], |i| bounds[i]);
            }
            let added = |d: Vec<f64>| d.iter().map(|d| d + 0.5).collect::<Vec<f64>>();
            let name = format!("dw {dtype} {rows}x{cols}");
            if rows * cols == 1 {
                // The gradient may cancel the 0.5 that dw starts with, so the check allows an absolute error.
                assert_within(&name, &dw, &added(want_dw), |_| 1e-6);
            } else {
                assert_rounded(&name, F32, &dw, &added(with_dw), &added(want_dw), ROUNDING_FACTOR_SUM);
            }
        }
    }
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        let (rows, cols) = (131, 515);
        for dtype in [F32, BF16] {
            let values = normal_numbers(rows * cols, 1, 1.0);
            let (x, w) = (TestArray::new(dtype, &values), TestArray::new(dtype, &normal_numbers(cols, 2, 1.0)));
            let dy = TestArray::new(dtype, &normal_numbers(rows * cols, 3, 1.0));
            let (y, rstd) = forward(dtype, &x, &w, rows, cols, 1);
            assert_eq!(forward(dtype, &x, &w, rows, cols, 4), (y.clone(), rstd.clone()));
            let one = backward(dtype, &x, &w, &dy, &rstd, cols, 1);
            assert_eq!(backward(dtype, &x, &w, &dy, &rstd, cols, 4), one);
            for row in [0, 77, 130] {
                let alone = TestArray::new(dtype, &values[row * cols..][..cols]);
                assert_eq!(forward(dtype, &alone, &w, 1, cols, 2).0, y[row * cols..][..cols]);
            }
        }
    });
}

/// Runs the forward launch with a residual and returns y and rstd. The sum is written to the address `sum`, which may
/// be that of x or of the residual.
fn add_forward(
    dtype: DType,
    x: &TestArray,
    residual: &TestArray,
    w: &TestArray,
    sum: Addr,
    cols: usize,
) -> (Vec<f32>, Vec<f32>) {
    let rows = x.values().len() / cols;
    let (y, mut rstd) = (TestArray::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params = FwdParams {
        x: x.addr(),
        residual: residual.addr(),
        w: w.addr(),
        sum,
        y: y.addr(),
        rstd: addr_mut(&mut rstd),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    run(&fwd(dtype, &params), 2);
    (y.values(), rstd)
}

fn a_residual_is_added_before_the_norm() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        for dtype in [F32, BF16] {
            let data = |seed| TestArray::new(dtype, &normal_numbers(rows * cols, seed, scale));
            let (x, residual, w) = (data(1), data(2), TestArray::new(dtype, &normal_numbers(cols, 3, 1.0)));
            let sum = TestArray::output(dtype, rows * cols);
            let (y, rstd) = add_forward(dtype, &x, &residual, &w, sum.addr(), cols);
            // `sum` must equal, bit for bit, the f32 sum of x and residual rounded to the element type.
            let want: Vec<f32> = x.values().iter().zip(residual.values()).map(|(x, r)| x + r).collect();
            assert_eq!(sum.values(), TestArray::new(dtype, &want).values());
            assert_normed(&format!("add {rows}x{cols}"), dtype, [&sum, &w], &y, &rstd);
            for place in [&x, &residual] {
                let before = TestArray::new(dtype, &place.values());
                let terms = if std::ptr::eq(place, &x) { (&before, &residual) } else { (&x, &before) };
                let again = add_forward(dtype, terms.0, terms.1, &w, before.addr(), cols);
                assert_eq!((again, before.values()), ((y.clone(), rstd.clone()), sum.values()));
            }
        }
    }
}

fn the_gradient_of_a_residual_joins_that_of_the_norm() {
    for (rows, cols, scale) in test_cases_rows_cols_scale().into_iter().filter(|c| c.1 > 1) {
        for dtype in [F32, BF16] {
            let (x, w) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 1, scale)),
                TestArray::new(dtype, &normal_numbers(cols, 2, 1.0)),
            );
            let (dy, d_sum) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 3, 1.0)),
                TestArray::new(dtype, &normal_numbers(rows * cols, 4, 1.0)),
            );
            // Runs these launches with one interleaving of warps only: `gradient_equals_the_formula` uses several.
            let (mut rstd, mut want_dw) = (Vec::new(), Vec::new());
            with_one_interleaving(|| {
                rstd = forward(dtype, &x, &w, rows, cols, 1).1;
                [_, want_dw] = backward(dtype, &x, &w, &dy, &rstd, cols, 2);
            });
            let rstds: Vec<f64> = rstd.iter().map(|&r| r as f64).collect();
            let [with_dx, want_dx] = [formula::gradients_of_x_w_rounded, formula::gradients_of_x_w].map(|f| {
                let [dx, _] = f(&x.to_f64(), &w.to_f64(), &dy.to_f64(), &rstds);
                dx.iter().zip(d_sum.to_f64()).map(|(a, b)| a + b).collect::<Vec<f64>>()
            });
            let bounds = dx_bounds(dtype, [&x.to_f64(), &w.to_f64(), &dy.to_f64()], &rstds, &want_dx);
            for in_place in [false, true] {
                let dx = if in_place {
                    TestArray::new(dtype, &d_sum.values())
                } else {
                    TestArray::output(dtype, rows * cols)
                };
                let (mut dw, mut partial) = (vec![0.5; cols], vec![f32::NAN; row_block_count(rows) * cols]);
                let params = BwdParams {
                    x: x.addr(),
                    w: w.addr(),
                    rstd: addr(&rstd),
                    dy: dy.addr(),
                    d_sum: if in_place { dx.addr() } else { d_sum.addr() },
                    dx: dx.addr(),
                    dw: addr_mut(&mut dw),
                    partial: addr_mut(&mut partial),
                    rows: rows as u32,
                    cols: cols as u32,
                    accumulate: 1,
                    reserved: 0,
                };
                run(&bwd(dtype, &params), 2);
                let name = format!("add dx {rows}x{cols}");
                assert_rows(&name, dtype, rows, &dx.values(), [&with_dx, &want_dx], |i| bounds[i]);
                assert_eq!(dw, want_dw, "dw must not depend on d_sum");
            }
        }
    }
}

#[cfg(test)]
mod tests;
