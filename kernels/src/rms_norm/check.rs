use super::{AddBwdParams, AddFwdParams, BwdParams, FwdParams, add_bwd, add_fwd, bwd, cases, formula, fwd, parts};
use crate::DType::{BF16, F32};
use crate::checks::{Data, addr, addr_mut, checks, numbers, run};
use crate::compare::assert_close;
use crate::{Addr, DType, Element};

checks!(
    equals_the_formula_with_its_inner_rounding,
    gradient_equals_differences_of_the_formula,
    threads_and_other_rows_change_nothing,
    a_residual_is_added_before_the_norm,
    the_gradient_of_a_residual_joins_that_of_the_norm
);

const EPS: f32 = 1e-6;

fn bf16_rounding(x: f64) -> f64 {
    <half::bf16 as Element>::from_f32(x as f32).to_f32() as f64
}

/// y and rstd.
fn forward(dtype: DType, x: &Data, w: &Data, rows: usize, cols: usize, threads: usize) -> (Vec<f32>, Vec<f32>) {
    let (y, mut rstd) = (Data::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params = FwdParams {
        x: x.addr(),
        w: w.addr(),
        y: y.addr(),
        rstd: addr_mut(&mut rstd),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    run(&fwd(dtype, &params), threads);
    (y.values(), rstd)
}

/// dx and what was added to a dw that held 0.5.
fn backward(dtype: DType, x: &Data, w: &Data, dy: &Data, rstd: &[f32], cols: usize, threads: usize) -> [Vec<f32>; 2] {
    let rows = rstd.len();
    let dx = Data::output(dtype, rows * cols);
    let (mut dw, mut partial) = (vec![0.5; cols], vec![f32::NAN; parts(rows) * cols]);
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
    };
    run(&bwd(dtype, &params), threads);
    let frozen = Data::output(dtype, rows * cols);
    let params = BwdParams { dx: frozen.addr(), dw: Addr::NULL, partial: Addr::NULL, ..params };
    run(&bwd(dtype, &params), threads);
    assert_eq!(dx.values(), frozen.values(), "dx must not depend on whether w is frozen");
    [dx.values(), dw]
}

fn equals_the_formula_with_its_inner_rounding() {
    for (rows, cols, scale) in cases() {
        // Against the formula with bf16's roundings: without the inner one the distance would be above 1e-3.
        for (dtype, tol, round) in [(F32, 1e-6, (|x| x) as fn(f64) -> f64), (BF16, 3e-4, bf16_rounding)] {
            let (x, w) = (Data::new(dtype, &numbers(rows * cols, 1, scale)), Data::new(dtype, &numbers(cols, 2, 1.0)));
            let (y, rstd) = forward(dtype, &x, &w, rows, cols, 3);
            let want = formula::fwd(&x.f64(), &w.f64(), EPS as f64, round);
            assert_close(&format!("rms_norm {dtype} {rows}x{cols}"), &y, &want, tol, f64::MAX);
            let want: Vec<f64> = x.f64().chunks_exact(cols).map(|x| formula::rstd(x, EPS as f64)).collect();
            assert_close("rstd", &rstd, &want, 1e-6, f64::MAX);
        }
    }
}

fn gradient_equals_differences_of_the_formula() {
    for (rows, cols, scale) in cases() {
        for (dtype, tol) in [(F32, 1e-4), (BF16, 4e-3)] {
            let (x, w) = (Data::new(dtype, &numbers(rows * cols, 1, scale)), Data::new(dtype, &numbers(cols, 2, 1.0)));
            let dy = Data::new(dtype, &numbers(rows * cols, 3, 1.0));
            let (_, rstd) = forward(dtype, &x, &w, rows, cols, 1);
            let [dx, dw] = backward(dtype, &x, &w, &dy, &rstd, cols, 2);
            let (want_dx, want_dw) = formula::bwd(&x.f64(), &w.f64(), &dy.f64(), EPS as f64);
            // Of one column nothing but rounding errors is left of dx: y is ±w whatever x is.
            let max = if cols == 1 { 1e-6 } else { f64::MAX };
            let rel = if cols == 1 { f64::MAX } else { tol };
            assert_close(&format!("dx {dtype} {rows}x{cols}"), &dx, &want_dx, rel, max);
            let want_dw: Vec<f64> = want_dw.iter().map(|d| d + 0.5).collect();
            assert_close(&format!("dw {dtype} {rows}x{cols}"), &dw, &want_dw, 1e-5, f64::MAX);
        }
    }
}

fn threads_and_other_rows_change_nothing() {
    let (rows, cols) = (131, 515);
    for dtype in [F32, BF16] {
        let values = numbers(rows * cols, 1, 1.0);
        let (x, w) = (Data::new(dtype, &values), Data::new(dtype, &numbers(cols, 2, 1.0)));
        let dy = Data::new(dtype, &numbers(rows * cols, 3, 1.0));
        let (y, rstd) = forward(dtype, &x, &w, rows, cols, 1);
        assert_eq!(forward(dtype, &x, &w, rows, cols, 4), (y.clone(), rstd.clone()));
        let one = backward(dtype, &x, &w, &dy, &rstd, cols, 1);
        assert_eq!(backward(dtype, &x, &w, &dy, &rstd, cols, 4), one);
        for row in [0, 77, 130] {
            let alone = Data::new(dtype, &values[row * cols..][..cols]);
            assert_eq!(forward(dtype, &alone, &w, 1, cols, 2).0, y[row * cols..][..cols]);
        }
    }
}

/// The sum, y and rstd; the sum may be written over one of its terms.
fn add_forward(dtype: DType, x: &Data, residual: &Data, w: &Data, sum: Addr, cols: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = x.values().len() / cols;
    let (y, mut rstd) = (Data::output(dtype, rows * cols), vec![f32::NAN; rows]);
    let params = AddFwdParams {
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
    run(&add_fwd(dtype, &params), 2);
    (y.values(), rstd)
}

fn a_residual_is_added_before_the_norm() {
    for (rows, cols, scale) in cases() {
        for (dtype, tol, round) in [(F32, 1e-6, (|x| x) as fn(f64) -> f64), (BF16, 3e-4, bf16_rounding)] {
            let data = |seed| Data::new(dtype, &numbers(rows * cols, seed, scale));
            let (x, residual, w) = (data(1), data(2), Data::new(dtype, &numbers(cols, 3, 1.0)));
            let sum = Data::output(dtype, rows * cols);
            let (y, rstd) = add_forward(dtype, &x, &residual, &w, sum.addr(), cols);
            // The sum is a rounded f32 sum, so this is exact.
            let want: Vec<f32> = x.values().iter().zip(residual.values()).map(|(x, r)| x + r).collect();
            assert_eq!(sum.values(), Data::new(dtype, &want).values());
            let want = formula::fwd(&sum.f64(), &w.f64(), EPS as f64, round);
            assert_close(&format!("y {dtype} {rows}x{cols}"), &y, &want, tol, f64::MAX);
            for place in [&x, &residual] {
                let before = Data::new(dtype, &place.values());
                let terms = if std::ptr::eq(place, &x) { (&before, &residual) } else { (&x, &before) };
                let again = add_forward(dtype, terms.0, terms.1, &w, before.addr(), cols);
                assert_eq!((again, before.values()), ((y.clone(), rstd.clone()), sum.values()));
            }
        }
    }
}

fn the_gradient_of_a_residual_joins_that_of_the_norm() {
    for (rows, cols, scale) in cases().into_iter().filter(|c| c.1 > 1) {
        for (dtype, tol) in [(F32, 1e-4), (BF16, 4e-3)] {
            let (x, w) = (Data::new(dtype, &numbers(rows * cols, 1, scale)), Data::new(dtype, &numbers(cols, 2, 1.0)));
            let (dy, d_sum) =
                (Data::new(dtype, &numbers(rows * cols, 3, 1.0)), Data::new(dtype, &numbers(rows * cols, 4, 1.0)));
            let (_, rstd) = forward(dtype, &x, &w, rows, cols, 1);
            let [_, want_dw] = backward(dtype, &x, &w, &dy, &rstd, cols, 2);
            let (want_dx, _) = formula::bwd(&x.f64(), &w.f64(), &dy.f64(), EPS as f64);
            let want_dx: Vec<f64> = want_dx.iter().zip(d_sum.f64()).map(|(a, b)| a + b).collect();
            for in_place in [false, true] {
                let dx = if in_place { Data::new(dtype, &d_sum.values()) } else { Data::output(dtype, rows * cols) };
                let (mut dw, mut partial) = (vec![0.5; cols], vec![f32::NAN; parts(rows) * cols]);
                let params = AddBwdParams {
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
                };
                run(&add_bwd(dtype, &params), 2);
                assert_close(&format!("dx {dtype} {rows}x{cols}"), &dx.values(), &want_dx, tol, f64::MAX);
                assert_eq!(dw, want_dw, "dw must not depend on the other gradient");
            }
        }
    }
}
