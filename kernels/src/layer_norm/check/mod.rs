use reel_device::DType::{self, BF16, F32};

use super::{FwdParams, formula, fwd, test_cases_rows_cols_scale_mean};
use crate::checks::rounding::{self, unrounded};
use crate::checks::{TestArray, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(equals_the_formula, a_row_of_equal_elements_gives_the_bias, threads_and_other_rows_change_nothing);

const EPS: f32 = 1e-6;

/// Returns the tolerance, as a multiple of the error of one rounding, for rows whose mean is `far` times their
/// standard deviation. In f32, mean and rstd are accurate to two units in the last place, and the error of the mean
/// shifts all elements of the row.
fn rounding_factor(dtype: DType, far: f32) -> f64 {
    if dtype == F32 { ROUNDING_FACTOR_F32 * (1.0 + far as f64) } else { DEFAULT_ROUNDING_FACTOR }
}
const ROUNDING_FACTOR_F32: f64 = 12.0;

type Statistics = fn(&[f64], f64) -> (f64, f64);

fn statistics(f: Statistics, x: &[f64], cols: usize) -> Vec<(f64, f64)> {
    x.chunks_exact(cols).map(|x| f(x, EPS as f64)).collect()
}

/// Returns pseudo-random numbers with the given mean and standard deviation `scale`.
fn around(count: usize, seed: u64, scale: f32, mean: f32) -> Vec<f32> {
    normal_numbers(count, seed, scale).into_iter().map(|x| x + mean).collect()
}

/// Runs the launch; returns y.
fn forward(dtype: DType, [x, w, b]: [&TestArray; 3], cols: usize, threads: usize) -> Vec<f32> {
    let rows = x.values().len() / cols;
    let y = TestArray::output(dtype, rows * cols);
    let params = FwdParams {
        x: x.addr(),
        w: w.addr(),
        b: b.addr(),
        y: y.addr(),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    run(&fwd(dtype, &params), threads);
    y.values()
}

fn inputs(dtype: DType, (rows, cols, scale, mean): (usize, usize, f32, f32)) -> [TestArray; 3] {
    let data = |count, seed, scale, mean| TestArray::new(dtype, &around(count, seed, scale, mean));
    [data(rows * cols, 1, scale, mean), data(cols, 2, 1.0, 0.0), data(cols, 3, 1.0, 0.0)]
}

fn equals_the_formula() {
    for case in test_cases_rows_cols_scale_mean() {
        let (rows, cols, scale, mean) = case;
        for dtype in [F32, BF16] {
            let [x, w, b] = inputs(dtype, case);
            let y = forward(dtype, [&x, &w, &b], cols, 3);
            let name = format!("layer_norm {rows}x{cols}");
            let (x, w, b) = (x.to_f64(), w.to_f64(), b.to_f64());
            let [with, want] =
                [formula::mean_and_rstd_rounded, formula::mean_and_rstd].map(|f: Statistics| statistics(f, &x, cols));
            let with_y = formula::fwd(&x, [&w, &b], &with, rounding::f32);
            // With one column, x − mean is 0, so y equals the bias b.
            let want_y = formula::fwd(&x, [&w, &b], &want, unrounded);
            assert_rounded(&name, dtype, &y, &with_y, &want_y, rounding_factor(dtype, (mean / scale).abs()));
        }
    }
}

fn a_row_of_equal_elements_gives_the_bias() {
    let (x, w, b) = (TestArray::new(F32, &[3.0; 24]), TestArray::new(F32, &[2.0; 8]), TestArray::new(F32, &[0.25; 8]));
    assert_eq!(forward(F32, [&x, &w, &b], 8, 1), [0.25; 24]);
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        let (rows, cols) = (131, 515);
        for dtype in [F32, BF16] {
            let [x, w, b] = inputs(dtype, (rows, cols, 1.0, 0.3));
            let all = forward(dtype, [&x, &w, &b], cols, 1);
            assert_eq!(forward(dtype, [&x, &w, &b], cols, 4), all);
            let row = |d: &[f32]| d[70 * cols..71 * cols].to_vec();
            let alone = forward(dtype, [&TestArray::new(dtype, &row(&x.values())), &w, &b], cols, 1);
            assert_eq!(alone, row(&all));
        }
    });
}
