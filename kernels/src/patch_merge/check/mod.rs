use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_rows_cols_scale};
use crate::checks::rounding;
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{assert_close, f32_sum_error, rounding_error};
use crate::rms_norm::check::{EPS, MAX_ERROR_F32, dx_bounds};
use crate::rms_norm::{self, row_block_count};

checks!(equals_the_formula, gradient_equals_differences_of_the_formula, equals_gather_then_rms_norm);

/// Returns an irregular permutation of `0 .. rows`.
fn index(rows: usize) -> Vec<i32> {
    let mut index: Vec<i32> = (0..rows as i32).collect();
    index.sort_by_key(|i| (i.wrapping_mul(0x9e37_79b1u32 as i32), *i));
    index
}

/// Runs the forward kernel; returns y and rstd.
fn forward(dtype: DType, x: &TestArray, index: &[i32], w: &TestArray, cols: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = index.len();
    let (y, mut rstd) = (TestArray::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params = FwdParams {
        x: x.addr(),
        index: addr(index),
        w: w.addr(),
        y: y.addr(),
        rstd: addr_mut(&mut rstd),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    run(&fwd(dtype, &params), 3);
    (y.values(), rstd)
}

fn inputs(dtype: DType, rows: usize, cols: usize, scale: f32) -> [TestArray; 3] {
    let data = |count, seed, scale| TestArray::new(dtype, &normal_numbers(count, seed, scale));
    [data(rows * cols, 1, scale), data(cols, 2, 1.0), data(rows * cols, 3, 1.0)]
}

fn equals_the_formula() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        // The bf16 formula rounds twice, as the kernel does. With one rounding, the result would be more than 1e-3
        // away from the kernel's.
        for (dtype, tol, round) in [(F32, 1e-6, rounding::unrounded as fn(f64) -> f64), (BF16, 3e-4, rounding::bf16)] {
            let ([x, w, _], index) = (inputs(dtype, rows, cols, scale), index(rows));
            let (y, _) = forward(dtype, &x, &index, &w, cols);
            let want = formula::fwd(&x.to_f64(), &index, &w.to_f64(), EPS as f64, round);
            // In bf16 each of the two roundings may give the neighbouring number, one unit in the last place away.
            let most = if dtype == F32 { MAX_ERROR_F32 } else { 4.0 * rounding_error(BF16) };
            assert_close(&format!("patch_merge {dtype} {rows}x{cols}"), &y, &want, tol, |i| most * want[i].abs());
        }
    }
}

/// Runs the backward kernel with dw starting at 0.5; returns dx and dw.
fn backward(dtype: DType, [x, w, dy]: [&TestArray; 3], index: &[i32], rstd: &[f32], cols: usize) -> [Vec<f32>; 2] {
    let rows = index.len();
    let (dx, frozen) = (TestArray::output(dtype, rows * cols), TestArray::output(dtype, rows * cols));
    let (mut dw, mut partial) = (vec![0.5; cols], vec![f32::NAN; row_block_count(rows) * cols]);
    let params = BwdParams {
        x: x.addr(),
        index: addr(index),
        w: w.addr(),
        rstd: addr(rstd),
        dy: dy.addr(),
        dx: dx.addr(),
        dw: addr_mut(&mut dw),
        partial: addr_mut(&mut partial),
        rows: rows as u32,
        cols: cols as u32,
        accumulate: 1,
        reserved: 0,
    };
    run(&bwd(dtype, &params), 2);
    run(&bwd(dtype, &BwdParams { dx: frozen.addr(), dw: Addr::NULL, partial: Addr::NULL, ..params }), 1);
    assert_eq!(dx.values(), frozen.values(), "dx must not depend on whether w is frozen");
    let mut alone = vec![f32::NAN; cols];
    run(&bwd(dtype, &BwdParams { dw: addr_mut(&mut alone), accumulate: 0, ..params }), 2);
    let is_same = |(alone, sum): (&f32, &f32)| 0.5 + alone == *sum;
    assert!(rows == 0 || alone.iter().zip(&dw).all(is_same), "dw must have the same bits with and without accumulate");
    [dx.values(), dw]
}

/// Returns bounds of the errors of dx and dw. dw is a sum over the rows that starts at 0.5.
fn gradient_bounds(
    dtype: DType,
    [x, w, dy]: [&TestArray; 3],
    index: &[i32],
    rstd: &[f32],
    want_dx: &[f64],
) -> [Vec<f64>; 2] {
    let (x, w, dy) = (x.to_f64(), w.to_f64(), dy.to_f64());
    let (cols, rstds) = (w.len(), rstd.iter().map(|&r| r as f64).collect::<Vec<f64>>());
    let gather =
        |x: &[f64]| -> Vec<f64> { index.iter().flat_map(|&i| x[i as usize * cols..][..cols].to_vec()).collect() };
    let gathered = gather(&x);
    let bounds = dx_bounds(dtype, [&gathered, &w, &dy], &rstds, &gather(want_dx));
    let mut of_dx = vec![f64::NAN; x.len()];
    for (&to, bounds) in index.iter().zip(bounds.chunks_exact(cols)) {
        let r = 1.0 / (x[to as usize * cols..][..cols].iter().map(|x| x * x).sum::<f64>() / cols as f64).sqrt();
        // The formula uses finite differences in f64. Their error is about 1e-9 of the largest terms of a row.
        of_dx[to as usize * cols..][..cols].iter_mut().zip(bounds).for_each(|(to, bound)| *to = bound + 1e-8 * r);
    }
    let of_dw = |c: usize| {
        let terms = (0..rstds.len()).map(|r| (dy[r * cols + c] * gathered[r * cols + c] * rstds[r]).abs());
        f32_sum_error(rstds.len() + 1, terms.sum::<f64>() + 0.5)
    };
    [of_dx, (0..cols).map(of_dw).collect()]
}

fn gradient_equals_differences_of_the_formula() {
    for (rows, cols, scale) in test_cases_rows_cols_scale().into_iter().filter(|c| c.1 > 1 && c.1 < 1000) {
        for (dtype, tol) in [(F32, 1e-4), (BF16, 4e-3)] {
            let ([x, w, dy], index) = (inputs(dtype, rows, cols, scale), index(rows));
            let (_, rstd) = forward(dtype, &x, &index, &w, cols);
            let [dx, dw] = backward(dtype, [&x, &w, &dy], &index, &rstd, cols);
            let [want_dx, want_dw] =
                formula::gradients_of_x_w(&x.to_f64(), &index, &w.to_f64(), &dy.to_f64(), EPS as f64);
            let [dx_bounds, dw_bounds] = gradient_bounds(dtype, [&x, &w, &dy], &index, &rstd, &want_dx);
            assert_close(&format!("dx {dtype} {rows}x{cols}"), &dx, &want_dx, tol, |i| dx_bounds[i]);
            let want_dw: Vec<f64> = want_dw.iter().map(|d| d + 0.5).collect();
            assert_close(&format!("dw {dtype} {rows}x{cols}"), &dw, &want_dw, 1e-5, |i| dw_bounds[i]);
        }
    }
}

/// The results are bit-identical to a gather of rows followed by `rms_norm`.
fn equals_gather_then_rms_norm() {
    for (rows, cols, scale) in test_cases_rows_cols_scale() {
        for dtype in [F32, BF16] {
            let ([x, w, dy], index) = (inputs(dtype, rows, cols, scale), index(rows));
            let (y, rstd) = forward(dtype, &x, &index, &w, cols);
            let [dx, dw] = backward(dtype, [&x, &w, &dy], &index, &rstd, cols);
            let values = x.values();
            let gathered: Vec<f32> =
                index.iter().flat_map(|&i| &values[i as usize * cols..][..cols]).copied().collect();
            let x = TestArray::new(dtype, &gathered);
            // Runs the `rms_norm` launches with one interleaving of warps only: the checks of `rms_norm` use several.
            let (mut norm, mut norm_gradients) = ((Vec::new(), Vec::new()), [Vec::new(), Vec::new()]);
            with_one_interleaving(|| {
                norm = rms_norm::check::forward(dtype, &x, &w, rows, cols, 1);
                norm_gradients = rms_norm::check::backward(dtype, &x, &w, &dy, &rstd, cols, 1);
            });
            let [norm_dx, norm_dw] = norm_gradients;
            assert_eq!((&y, &rstd), (&norm.0, &norm.1), "{dtype} {rows}x{cols}");
            for (i, &from) in index.iter().enumerate() {
                assert_eq!(dx[from as usize * cols..][..cols], norm_dx[i * cols..][..cols], "{dtype} {rows}x{cols}");
            }
            assert_eq!(dw, norm_dw, "{dtype} {rows}x{cols}");
        }
    }
}

#[cfg(test)]
mod tests;
