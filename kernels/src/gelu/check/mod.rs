use reel_device::DType::{self, BF16, F32};
use reel_device::Launch;

use super::{BwdParams, FwdParams, bwd, formula, fwd, tanh_bwd, tanh_fwd, test_cases_count_scale};
use crate::checks::{TestArray, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded, assert_within};

checks!(both_forms_equal_the_formula, gradient_equals_differences_of_the_formula, edges);

/// Tolerance of the exact form in f32, as a multiple of the error of one rounding. It covers the polynomial for
/// Mills' ratio (`cpu.rs`), whose relative error is up to 7e-8.
const ROUNDING_FACTOR_FIT: f64 = 5.0;
/// Tolerance of the f32 gradient, as a multiple of the error of one rounding. Near a zero of the derivative the two
/// terms of the gradient cancel.
const ROUNDING_FACTOR_SLOPE: f64 = 64.0;

/// A forward launch, its f64 formula, and the formula with the kernel's roundings.
type Fwd = (fn(DType, &FwdParams) -> Launch, fn(f64) -> f64, fn(f64) -> f64);

fn both_forms_equal_the_formula() {
    let forms: [Fwd; 2] =
        [(fwd, formula::fwd, formula::fwd_rounded), (tanh_fwd, formula::tanh_fwd, formula::tanh_fwd_rounded)];
    for (i, (launch, formula, with_roundings)) in forms.into_iter().enumerate() {
        for dtype in [F32, BF16] {
            for (n, scale) in test_cases_count_scale() {
                let (x, y) = (TestArray::new(dtype, &normal_numbers(n, 1, scale)), TestArray::output(dtype, n));
                run(&launch(dtype, &FwdParams { x: x.addr(), y: y.addr(), count: n as u64 }), 2);
                let each = |f: fn(f64) -> f64| x.to_f64().into_iter().map(f).collect::<Vec<f64>>();
                let name = format!("gelu, form {i}, {n}");
                let rounding_factor =
                    if dtype == F32 && i == 0 { ROUNDING_FACTOR_FIT } else { DEFAULT_ROUNDING_FACTOR };
                assert_rounded(&name, dtype, &y.values(), &each(with_roundings), &each(formula), rounding_factor);
            }
        }
    }
}

/// A backward launch, the f64 forward formula that is differentiated, and the slope with the kernel's roundings.
type Bwd = (fn(DType, &BwdParams) -> Launch, fn(f64) -> f64, fn(f64) -> f64);

fn gradient_equals_differences_of_the_formula() {
    let forms: [Bwd; 2] = [
        (bwd, formula::fwd, formula::derivative_rounded),
        (tanh_bwd, formula::tanh_fwd, formula::tanh_derivative_rounded),
    ];
    for (i, (launch, formula, with_roundings)) in forms.into_iter().enumerate() {
        for dtype in [F32, BF16] {
            for (n, scale) in test_cases_count_scale() {
                let (x, dy) = (
                    TestArray::new(dtype, &normal_numbers(n, 1, scale)),
                    TestArray::new(dtype, &normal_numbers(n, 2, 1.0)),
                );
                let dx = TestArray::output(dtype, n);
                let params = BwdParams { x: x.addr(), dy: dy.addr(), dx: dx.addr(), count: n as u64 };
                run(&launch(dtype, &params), 3);
                let each = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
                    x.to_f64().iter().zip(dy.to_f64()).map(|(&x, dy)| dy * f(x)).collect()
                };
                let (with, want) = (each(&with_roundings), each(&|x| formula::derivative(formula, x)));
                let rounding_factor = if dtype == F32 { ROUNDING_FACTOR_SLOPE } else { DEFAULT_ROUNDING_FACTOR };
                // Near a zero of GELU's derivative the two terms of the derivative cancel, and the relative error is
                // large. So for a single element the check bounds the absolute error.
                if (dtype, n) == (F32, 1) {
                    let most = 3e-7 * (1.0 + dy.to_f64()[0].abs());
                    assert_within("dx of one", &dx.values(), &want, |_| most);
                } else {
                    assert_rounded(&format!("dx, form {i}, {n}"), dtype, &dx.values(), &with, &want, rounding_factor);
                }
            }
        }
    }
}

fn edges() {
    let x = TestArray::new(F32, &[f32::NAN, f32::INFINITY, 1e30, -1e30, -0.0, 1e-30, -40.0]);
    for (fwd, bwd) in
        [(fwd as fn(DType, &FwdParams) -> Launch, bwd as fn(DType, &BwdParams) -> Launch), (tanh_fwd, tanh_bwd)]
    {
        let y = TestArray::output(F32, 7);
        run(&fwd(F32, &FwdParams { x: x.addr(), y: y.addr(), count: 7 }), 1);
        let y = y.values();
        assert!(y[0].is_nan());
        assert_eq!((y[1], y[2]), (f32::INFINITY, 1e30));
        assert_eq!((y[4], y[5]), (-0.0, 5e-31));
        assert!(y[4].is_sign_negative() && y[3] == 0.0 && y[6] == 0.0, "{y:?}");
        let (ones, dx) = (TestArray::new(F32, &[1.0; 7]), TestArray::output(F32, 7));
        run(&bwd(F32, &BwdParams { x: x.addr(), dy: ones.addr(), dx: dx.addr(), count: 7 }), 1);
        let dx = dx.values();
        assert_eq!(dx[2..], [1.0, 0.0, 0.5, 0.5, 0.0]);
    }
}

#[cfg(test)]
mod tests;
