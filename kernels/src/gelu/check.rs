use super::{BwdParams, FwdParams, bwd, cases, formula, fwd, tanh_bwd, tanh_fwd};
use crate::DType::{BF16, F32};
use crate::checks::{Data, checks, numbers, run};
use crate::compare::assert_close;
use crate::{DType, Launch};

checks!(both_forms_equal_the_formula, gradient_equals_differences_of_the_formula, edges);

type Fwd = (fn(DType, &FwdParams) -> Launch, fn(f64) -> f64);

fn both_forms_equal_the_formula() {
    for (launch, formula) in [(fwd, formula::fwd), (tanh_fwd, formula::tanh_fwd)] as [Fwd; 2] {
        for (dtype, tol) in [(F32, 3e-7), (BF16, 4e-3)] {
            for (n, scale) in cases() {
                let (x, y) = (Data::new(dtype, &numbers(n, 1, scale)), Data::output(dtype, n));
                run(&launch(dtype, &FwdParams { x: x.addr(), y: y.addr(), count: n as u64 }), 2);
                let want: Vec<f64> = x.f64().into_iter().map(formula).collect();
                assert_close(&format!("gelu {dtype} {n}"), &y.values(), &want, tol, f64::MAX);
            }
        }
    }
}

type Bwd = (fn(DType, &BwdParams) -> Launch, fn(f64) -> f64);

fn gradient_equals_differences_of_the_formula() {
    for (launch, formula) in [(bwd, formula::fwd), (tanh_bwd, formula::tanh_fwd)] as [Bwd; 2] {
        for (dtype, tol) in [(F32, 1e-6), (BF16, 4e-3)] {
            for (n, scale) in cases() {
                let (x, dy) = (Data::new(dtype, &numbers(n, 1, scale)), Data::new(dtype, &numbers(n, 2, 1.0)));
                let dx = Data::output(dtype, n);
                let params = BwdParams { x: x.addr(), dy: dy.addr(), dx: dx.addr(), count: n as u64 };
                run(&launch(dtype, &params), 3);
                let want: Vec<f64> =
                    x.f64().iter().zip(dy.f64()).map(|(&x, dy)| dy * formula::slope(formula, x)).collect();
                assert_close(&format!("dx {dtype} {n}"), &dx.values(), &want, tol, f64::MAX);
            }
        }
    }
}

fn edges() {
    let x = Data::new(F32, &[f32::NAN, f32::INFINITY, 1e30, -1e30, -0.0, 1e-30, -40.0]);
    for (fwd, bwd) in
        [(fwd as fn(DType, &FwdParams) -> Launch, bwd as fn(DType, &BwdParams) -> Launch), (tanh_fwd, tanh_bwd)]
    {
        let y = Data::output(F32, 7);
        run(&fwd(F32, &FwdParams { x: x.addr(), y: y.addr(), count: 7 }), 1);
        let y = y.values();
        assert!(y[0].is_nan());
        assert_eq!((y[1], y[2]), (f32::INFINITY, 1e30));
        assert_eq!((y[4], y[5]), (-0.0, 5e-31));
        assert!(y[4].is_sign_negative() && y[3] == 0.0 && y[6] == 0.0, "{y:?}");
        let (ones, dx) = (Data::new(F32, &[1.0; 7]), Data::output(F32, 7));
        run(&bwd(F32, &BwdParams { x: x.addr(), dy: ones.addr(), dx: dx.addr(), count: 7 }), 1);
        let dx = dx.values();
        assert_eq!(dx[2..], [1.0, 0.0, 0.5, 0.5, 0.0]);
    }
}

#[cfg(test)]
mod tests;
