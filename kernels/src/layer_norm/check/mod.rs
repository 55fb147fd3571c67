use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, row_block_count, test_cases_rows_cols_scale_mean};
use crate::checks::rounding::{self, unrounded};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded, assert_within};

checks!(
    equals_the_formula,
    gradient_equals_the_formula,
    a_row_of_equal_elements_gives_the_bias,
    threads_and_other_rows_change_nothing
);

const EPS: f32 = 1e-6;

/// Returns the tolerance, as a multiple of the error of one rounding, for rows whose mean is `far` times their
/// standard deviation. In f32, mean and rstd are accurate to two units in the last place, and the error of the mean
/// shifts all elements of the row.
fn rounding_factor(dtype: DType, far: f32) -> f64 {
    if dtype == F32 { ROUNDING_FACTOR_F32 * (1.0 + far as f64) } else { DEFAULT_ROUNDING_FACTOR }
}
const ROUNDING_FACTOR_F32: f64 = 12.0;
/// Tolerance of a sum over rows in f32, as a multiple of the error of one rounding.
const ROUNDING_FACTOR_SUM: f64 = 10.0;

type Statistics = fn(&[f64], f64) -> (f64, f64);

fn statistics(f: Statistics, x: &[f64], cols: usize) -> Vec<(f64, f64)> {
    x.chunks_exact(cols).map(|x| f(x, EPS as f64)).collect()
}

/// Returns pseudo-random numbers with the given mean and standard deviation `scale`.
fn around(count: usize, seed: u64, scale: f32, mean: f32) -> Vec<f32> {
    normal_numbers(count, seed, scale).into_iter().map(|x| x + mean).collect()
}

/// Runs the forward launch; returns y, mean and rstd.
fn forward(dtype: DType, [x, w, b]: [&TestArray; 3], cols: usize, threads: usize) -> [Vec<f32>; 3] {
    let rows = x.values().len() / cols;
    let (y, mut mean, mut rstd) = (TestArray::output(dtype, rows * cols), vec![f32::NAN; rows], vec![f32::NAN; rows]);
    let params = FwdParams {
        x: x.addr(),
        w: w.addr(),
        b: b.addr(),
        y: y.addr(),
        mean: addr_mut(&mut mean),
        rstd: addr_mut(&mut rstd),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    run(&fwd(dtype, &params), threads);
    [y.values(), mean, rstd]
}

/// Runs the backward launch, which adds to a dw of 0.5 and overwrites db; returns dx, dw and db. Also checks that each
/// result is the same if w, b or both are frozen.
fn backward(
    dtype: DType,
    [x, w, dy]: [&TestArray; 3],
    [mean, rstd]: [&[f32]; 2],
    cols: usize,
    threads: usize,
) -> [Vec<f32>; 3] {
    let rows = rstd.len();
    let dx = TestArray::output(dtype, rows * cols);
    let (mut dw, mut db, mut partial) =
        (vec![0.5; cols], vec![f32::NAN; cols], vec![f32::NAN; 2 * row_block_count(rows) * cols]);
    let params = BwdParams {
        x: x.addr(),
        w: w.addr(),
        mean: addr(mean),
        rstd: addr(rstd),
        dy: dy.addr(),
        dx: dx.addr(),
        dw: addr_mut(&mut dw),
        db: addr_mut(&mut db),
        partial: addr_mut(&mut partial),
        rows: rows as u32,
        cols: cols as u32,
        accumulate_w: 1,
        accumulate_b: 0,
    };
    run(&bwd(dtype, &params), threads);
    let (mut only_w, mut only_b) = (vec![f32::NAN; cols], dw.clone());
    let (dw_alone, db_alone) = (addr_mut(&mut only_w), addr_mut(&mut only_b));
    let alone = [
        BwdParams { dw: Addr::NULL, db: Addr::NULL, partial: Addr::NULL, ..params },
        BwdParams { dw: dw_alone, db: Addr::NULL, accumulate_w: 0, ..params },
        BwdParams { dw: Addr::NULL, db: db_alone, accumulate_b: 1, ..params },
    ];
    for params in alone {
        let frozen = TestArray::output(dtype, rows * cols);
        run(&bwd(dtype, &BwdParams { dx: frozen.addr(), ..params }), threads);
        assert_eq!(dx.values(), frozen.values(), "dx must not depend on whether w and b are frozen");
    }
    let added = |old: f32, new: &[f32]| new.iter().map(|new| new + old).collect::<Vec<f32>>();
    assert_eq!(dw, added(0.5, &only_w), "dw must not depend on whether b is frozen");
    assert_eq!(only_b, dw.iter().zip(&db).map(|(old, new)| new + old).collect::<Vec<f32>>(), "added to db");
    [dx.values(), dw, db]
}

fn inputs(dtype: DType, (rows, cols, scale, mean): (usize, usize, f32, f32)) -> [TestArray; 4] {
    let data = |count, seed, scale, mean| TestArray::new(dtype, &around(count, seed, scale, mean));
    [
        data(rows * cols, 1, scale, mean),
        data(cols, 2, 1.0, 0.0),
        data(cols, 3, 1.0, 0.0),
        data(rows * cols, 4, 1.0, 0.0),
    ]
}

fn equals_the_formula() {
    for case in test_cases_rows_cols_scale_mean() {
        let (rows, cols, scale, mean) = case;
        for dtype in [F32, BF16] {
            let [x, w, b, _] = inputs(dtype, case);
            let [y, means, rstds] = forward(dtype, [&x, &w, &b], cols, 3);
            let name = format!("layer_norm {rows}x{cols}");
            let (x, w, b) = (x.to_f64(), w.to_f64(), b.to_f64());
            let [with, want] =
                [formula::mean_and_rstd_rounded, formula::mean_and_rstd].map(|f: Statistics| statistics(f, &x, cols));
            let with_y = formula::fwd(&x, [&w, &b], &with, rounding::f32);
            // With one column, x − mean is 0, so y equals the bias b.
            let want_y = formula::fwd(&x, [&w, &b], &want, unrounded);
            assert_rounded(&name, dtype, &y, &with_y, &want_y, rounding_factor(dtype, (mean / scale).abs()));
            let column = |s: &[(f64, f64)], k: fn(&(f64, f64)) -> f64| s.iter().map(k).collect::<Vec<f64>>();
            let bound = 1e-6 * (scale + mean.abs()) as f64;
            assert_within(&format!("{name} mean"), &means, &column(&want, |s| s.0), |_| bound);
            let [with, want] = [with, want].map(|s| column(&s, |s| s.1));
            assert_rounded(&format!("{name} rstd"), F32, &rstds, &with, &want, ROUNDING_FACTOR_F32);
        }
    }
}

fn gradient_equals_the_formula() {
    for case in test_cases_rows_cols_scale_mean().into_iter().filter(|c| c.1 > 1) {
        let (rows, cols, scale, mean) = case;
        for dtype in [F32, BF16] {
            let [x, w, b, dy] = inputs(dtype, case);
            let [_, means, rstds] = forward(dtype, [&x, &w, &b], cols, 1);
            let got = backward(dtype, [&x, &w, &dy], [&means, &rstds], cols, 2);
            let given: Vec<(f64, f64)> = means.iter().zip(&rstds).map(|(&m, &r)| (m as f64, r as f64)).collect();
            let [with, want] = [formula::gradients_of_x_w_b_rounded, formula::gradients_of_x_w_b]
                .map(|f| f(&x.to_f64(), &w.to_f64(), &dy.to_f64(), &given));
            let name = format!("{dtype} {rows}x{cols}");
            let of_dx = rounding_factor(dtype, (mean / scale).abs());
            assert_rounded(&format!("dx {name}"), dtype, &got[0], &with[0], &want[0], of_dx);
            for (i, which, old) in [(1, "dw", 0.5), (2, "db", 0.0)] {
                let [with, want] = [&with[i], &want[i]].map(|d| d.iter().map(|d| d + old).collect::<Vec<f64>>());
                assert_rounded(&format!("{which} {name}"), F32, &got[i], &with, &want, ROUNDING_FACTOR_SUM);
            }
        }
    }
}

fn a_row_of_equal_elements_gives_the_bias() {
    let (x, w, b) = (TestArray::new(F32, &[3.0; 24]), TestArray::new(F32, &[2.0; 8]), TestArray::new(F32, &[0.25; 8]));
    assert_eq!(forward(F32, [&x, &w, &b], 8, 1)[0], [0.25; 24]);
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        let (rows, cols) = (131, 515);
        for dtype in [F32, BF16] {
            let [x, w, b, dy] = inputs(dtype, (rows, cols, 1.0, 0.3));
            let all = forward(dtype, [&x, &w, &b], cols, 1);
            assert_eq!(forward(dtype, [&x, &w, &b], cols, 4), all);
            let row = |d: &[f32]| d[70 * cols..71 * cols].to_vec();
            let alone = forward(dtype, [&TestArray::new(dtype, &row(&x.values())), &w, &b], cols, 1);
            assert_eq!(alone[0], row(&all[0]));
            let one = backward(dtype, [&x, &w, &dy], [&all[1], &all[2]], cols, 1);
            assert_eq!(backward(dtype, [&x, &w, &dy], [&all[1], &all[2]], cols, 4), one);
        }
    });
}

#[cfg(test)]
mod tests;
